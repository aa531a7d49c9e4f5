# SPDX-License-Identifier: Apache-2.0
"""The device of one store hangs, and the other store does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from support.daemon import Daemon, format_store
from support.loop import frozen, loop_device, make_ext4, mounted
from support.observe import assert_clean, assert_stored, list_flows, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send
from support.stores import MIB, write_config

FLOW_BYTES: Final = 20 * MIB
OVERWRITTEN_COUNT: Final = 4


def _settings(**more: Any) -> dict[str, Any]:
    return {"area": "4MiB", "write_bytes_max": "128KiB", **more}


@pytest.mark.needs_root
@pytest.mark.fault("device_of_two")
@pytest.mark.parametrize("on_full", ["reject", "overwrite-oldest"])
def test_the_other_store_goes_on(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int, on_full: str
) -> None:
    """It takes segment after segment; with on_full the hanging one wants room at that moment."""
    with loop_device(tmp_path / "fs.img", 200 * MIB) as device:
        make_ext4(device)
        with mounted(device, tmp_path / "mnt") as directory:
            sizes = {"reject": "128MiB", "overwrite-oldest": "12MiB"}
            hung = format_store(directory / "a.img", "--segment-size", "1MiB", size=sizes[on_full])
            other = format_store(tmp_path / "b.img", "--segment-size", "1MiB", size="64MiB")
            config = write_config(
                tmp_path / "c.toml",
                store={
                    "default": _settings(on_full=on_full),
                    "other": _settings(path=str(other)),
                },
                listener={
                    "default": {"store": "default"},
                    "other": {"address": "127.0.0.1:0", "store": "other"},
                },
            )
            daemon = start_daemon(hung, config=config, log=tmp_path / "daemon.log")
            payload = Payload(seed, FLOW_BYTES)
            slow = SocketSender(daemon.address)
            writer = threading.Thread(target=slow.write, args=(payload.data(),), daemon=True)
            with frozen(directory):
                writer.start()
                wait_until(
                    lambda: scrape(daemon).total("ingestd_flows_waiting", store="default") > 0,
                    "the flow into the hanging store waits",
                )
                sent = [send(daemon.listener("other"), Payload(seed + 1, FLOW_BYTES))]
                sent.append(send(daemon.listener("other"), Payload(seed + 2, 1000)))
                for one in sent:
                    assert_sealed(one)
                assert_stored(other, sent)
            writer.join()
            late = Sent(payload, slow.finish())
            assert_sealed(late)
            if on_full == "reject":
                assert_stored(hung, [late])
            assert daemon.stop() == 0
            assert_stored(other, sent)
            assert_clean(hung)
            assert_clean(other)
            assert late.flow in {entry["flow"] for entry in list_flows(hung)}

# SPDX-License-Identifier: Apache-2.0
"""Four stores behind one port: one fills, one fails in mid-stream, one hangs, and one is well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from support.daemon import Daemon, format_store, run_ingestd
from support.loop import (
    frozen,
    loop_device,
    make_ext4,
    mounted,
    refuse_writes,
    sealable_loop_device,
)
from support.observe import image_sha256, list_flows, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed
from support.stores import MIB, write_config

SENDERS_COUNT: Final = 64
FLOW_BYTES: Final = 200_003
SMALL: Final = ("--segment-size", "1MiB")
OUT: Final = {"b": "full", "c": "failed", "d": "stalled"}


def _send(address: tuple[str, int], payload: Payload) -> Sent:
    """A flow, whatever its end."""
    sender = SocketSender(address)
    with suppress(OSError):  # it may have answered and gone: its line is still to be read
        sender.write(payload.data())
    try:
        return Sent(payload, sender.finish())
    except OSError:
        return Sent(payload, sender.answer())


def _check(stores: dict[str, Path], sent: list[Sent]) -> dict[str, int]:
    """Compare all that was acknowledged with what lies where; return the counts of flows."""
    counts = {}
    sealed = {one.flow: one for one in sent if one.receipt["state"] == "sealed"}
    found: list[str] = []
    for name, path in stores.items():
        own = [flow for entry in list_flows(path) if (flow := entry["flow"]) in sealed]
        digests = image_sha256(path, own)
        assert digests == {flow: sealed[flow].payload.sha256() for flow in own}
        counts[name] = len(own)
        found += own
    assert sorted(found) == sorted(sealed)  # each in one store
    return counts


def _config(path: Path, stores: dict[str, Path]) -> Path:
    tables: dict[str, dict[str, Any]] = {
        name: {"path": str(store), "area": "4MiB", "write_bytes_max": "128KiB"}
        for name, store in stores.items()
    }
    for name, table in tables.items():  # a busy machine is no stalled device
        table["stall_after_s"] = 1 if name == "d" else 3600
    return write_config(
        path,
        store=tables,
        listener={"default": {"stores": list(stores)}},
    )


def _reasons(daemon: Daemon) -> dict[str, str]:
    return {line["store"]: line["reason"] for line in daemon.events("store_out")}


@pytest.mark.needs_root
@pytest.mark.fault("device_of_two")
def test_flows_of_the_well_store_do_not_notice(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int
) -> None:
    with (
        loop_device(tmp_path / "fs.img", 200 * MIB) as device,
        sealable_loop_device(64 * MIB) as (failing, backing_fd),
    ):
        make_ext4(device)
        run_ingestd("format", failing, *SMALL)
        with mounted(device, tmp_path / "mnt") as directory:
            stores = {
                "default": format_store(tmp_path / "a.img", *SMALL, size="256MiB"),
                "b": format_store(tmp_path / "b.img", *SMALL, size="8MiB"),
                "c": failing,
                "d": format_store(directory / "d.img", *SMALL, size="128MiB"),
            }
            config = _config(tmp_path / "node.toml", stores)
            daemon = start_daemon(stores["default"], config=config, log=tmp_path / "daemon.log")
            _play(daemon, stores, directory, lambda: refuse_writes(backing_fd), seed)


def _play(
    daemon: Daemon,
    stores: dict[str, Path],
    directory: Path,
    fail: Callable[[], None],
    seed: int,
) -> None:
    payloads = [Payload(seed + number, FLOW_BYTES) for number in range(4 * SENDERS_COUNT)]
    half = len(payloads) // 2
    with ThreadPoolExecutor(SENDERS_COUNT) as pool:
        early = pool.map(lambda one: _send(daemon.address, one), payloads[:half])
        sent = list(early)
        with frozen(directory):
            failed = threading.Timer(0.05, fail)
            failed.start()
            late: list[Any] = [
                pool.submit(_send, daemon.address, payload) for payload in payloads[half:]
            ]
            wait_until(lambda: _reasons(daemon) == OUT, "three stores are out")
            failed.join()
            shot = scrape(daemon)
            for name, reason in OUT.items():
                assert shot.total("ingestd_store_out_seconds", store=name, reason=reason) > 0
            assert shot.total("ingestd_store_out_seconds", store="default") == 0
            # The device still hangs, and each new flow is sealed.
            fresh = [Payload(seed + 1000 + number, FLOW_BYTES) for number in range(SENDERS_COUNT)]
            with ThreadPoolExecutor(8) as others:
                new = list(others.map(lambda one: _send(daemon.address, one), fresh))
            for one in new:
                assert_sealed(one)
            counts = _check({"default": stores["default"]}, new)
            assert counts == {"default": SENDERS_COUNT}
        sent += [future.result() for future in late]
    states = {one.receipt["state"] for one in sent}
    assert states <= {"sealed", "interrupted", "refused"}
    counts = _check(stores, [*sent, *new])
    assert counts["d"] > 0  # what waited for its device is whole
    wait_until(lambda: daemon.events("store_back"), "the device that hung is well again")
    assert {line["store"] for line in daemon.events("store_back")} == {"d"}
    daemon.stop()

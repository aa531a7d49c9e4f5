# SPDX-License-Identifier: Apache-2.0
"""A daemon that is restarted again and again, as by a supervisor in a loop, fills no store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store, run_ingestd
from support.observe import assert_stored, list_flows
from support.payload import Payload
from support.senders import Sent, assert_sealed, send
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
RESTARTS_COUNT = 18


@pytest.mark.parametrize(("on_full", "is_killed"), [("reject", True), ("overwrite-oldest", False)])
def test_a_restart_loop_fills_no_store(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, on_full: str, is_killed: bool
) -> None:
    """More lives than the store has segments, each with a flow of a few bytes."""
    store = format_store(tmp_path / "s.img", "--segment-size", "1MiB", size="17MiB")
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"on_full": on_full, "area": "8MiB", "write_bytes_max": "64KiB"}},
    )
    daemon = start_daemon(store, config=config)
    sent: list[Sent] = [send(daemon.address, Payload(seed, MIB))]
    for number in range(1, RESTARTS_COUNT + 1):
        sent.append(send(daemon.address, Payload(seed + number, number)))
        if is_killed:
            daemon.kill()
        else:
            assert daemon.stop() == 0
        daemon.start()
    for flow in sent:
        assert_sealed(flow)
    assert len(list_flows(store)) == len(sent), "nothing kept has gone for it"
    recovered = daemon.events("recovered")
    assert recovered[-1]["segments_free"] >= 2
    assert sum(event["segments_compacted"] for event in recovered) >= RESTARTS_COUNT // 2
    assert daemon.stop() == 0
    assert_stored(store, sent)
    run_ingestd("verify", store)

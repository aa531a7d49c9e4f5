# SPDX-License-Identifier: Apache-2.0
"""Hellos with ids of flows that came by protocol `raw`, many at once, keep nobody else out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from support import tally
from support.daemon import Daemon, format_store
from support.ingest import Ingest, data_of, stored, trailer_block
from support.observe import assert_clean, assert_stored
from support.payload import Payload
from support.senders import assert_sealed, send
from support.stores import both_protocols_config

HELLOS_COUNT: Final = 94
TRAILERS_COUNT: Final = 30
DATA_BYTES: Final = 20_000


@pytest.mark.fault("look_ups")
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_crowd_that_claims_raw_flows(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int, is_restarted: bool
) -> None:
    """Beside it a new flow begins, flows with trailers are sealed; the end comes in the crowd."""
    config = both_protocols_config(tmp_path / "c.toml")
    daemon = start_daemon(format_store(tmp_path / "store.img"), config=config)
    raw = [send(daemon.address, Payload(seed + n, 100 + n)) for n in range(HELLOS_COUNT)]
    for one in raw:
        assert_sealed(one)
    if is_restarted:
        daemon.kill()
        daemon.start()
    data = data_of(seed, DATA_BYTES)
    with ExitStack() as stack:

        def connect() -> Ingest:
            return stack.enter_context(Ingest(daemon.listener("ingest")))

        ending = [connect() for _ in range(TRAILERS_COUNT)]
        for sender in ending:
            sender.begin(trailer=True)
            sender.send(data)
        crowd = [connect() for _ in raw]
        for thief, one in zip(crowd, raw, strict=True):
            thief.greet(flow=one.flow, resume=True)
        for sender in ending:
            sender.send(trailer_block(data))
        new = connect()
        new.begin(name="nobody's yet")
        new.send(data)
        for sender in (*ending, new):
            assert sender.sealed()["bytes"] == DATA_BYTES
        for thief in crowd:
            assert thief.error()["code"] in ("unknown_flow", "exists", "busy")
        for one in raw:
            connect().greet(flow=one.flow, resume=True)
        assert daemon.stop() == 0
    tally.tried(2 * HELLOS_COUNT)
    assert_stored(daemon.store, raw)
    for sender in (*ending, new):
        with tally.acknowledged(DATA_BYTES):
            assert stored(daemon, sender.flow)[1] == data
    assert_clean(daemon.store)

# SPDX-License-Identifier: Apache-2.0
"""Hellos with ids of flows that came by protocol `raw`, many at once, keep nobody else out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from ingestd.daemon.shutdown import CLOSE_TIME_S
from support import tally
from support.daemon import Daemon, format_store
from support.ingest import Ingest, data_of, stored, trailer_block
from support.loop import loop_device, throttled
from support.observe import assert_clean, assert_stored, scrape, wait_until
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import assert_sealed, send
from support.store_builder import Close, Extent, Open, StoreBuilder
from support.stores import both_protocols_config

HELLOS_COUNT: Final = 94
TRAILERS_COUNT: Final = 30
DATA_BYTES: Final = 20_000
STRANGE: Final = b"\xab" * 16
DRAIN_S: Final = 2.0
CRAWL_BYTES_PER_S: Final = 512  # a block a second
BUSY_S: Final = 20.0  # for a machine that is


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


@pytest.mark.fault("look_ups")
@pytest.mark.needs_root
def test_a_look_up_whose_device_hangs_holds_up_no_shutdown(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int
) -> None:
    config = both_protocols_config(tmp_path / "c.toml", daemon={"drain_timeout_s": DRAIN_S})
    # Of a flow whose id says nothing, only the store can say what it has.
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(STRANGE), Extent(STRANGE, data_of(seed, DATA_BYTES)), Close(STRANGE))
    segment.close()
    image = builder.save(tmp_path / "image").read_bytes()
    with loop_device(tmp_path / "disk.img", len(image)) as device, ExitStack() as stack:
        device.write_bytes(image)
        daemon = start_daemon(device, config=config, log=tmp_path / "log")
        sent = send(daemon.address, Payload(seed, 300_000))
        assert_sealed(sent)
        sender = stack.enter_context(Ingest(daemon.listener("ingest")))
        with throttled(device, daemon.process.pid, CRAWL_BYTES_PER_S, direction="read"):
            sender.greet(flow=str(uuid.UUID(bytes=STRANGE)), resume=True)
            wait_until(
                lambda: scrape(daemon).total("ingestd_lookups_waiting") == 1, "it is looked for"
            )
            begun_s = time.monotonic()
            daemon.process.terminate()
            # The kernel lets no process go that waits for a device: the log says how far it came.
            wait_until(lambda: daemon.events("stopped"), "all is taken down")
            assert time.monotonic() - begun_s < DRAIN_S + CLOSE_TIME_S + BUSY_S
        assert daemon.process.wait(WAIT_S) == 0
        tally.tried(1)
        assert_stored(device, [sent])
        assert_clean(device)

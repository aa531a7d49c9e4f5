# SPDX-License-Identifier: Apache-2.0
"""Removed flows and a damaged segment: which are forgotten, and which must be remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.daemon.admission.flow_lock import FlowLock
from ingestd.daemon.maintenance import maintenance_thread
from ingestd.daemon.maintenance.maintenance_thread import MaintenanceThread
from ingestd.log_events import LogEvent
from ingestd.store.format.layout import (
    CLOSE_REASON_PEER,
    FLOW_STATE_INTERRUPTED,
    SEGMENT_DATA_BLOCK,
    SEGMENTS_OFFSET,
)
from ingestd.store.metadata.tombstones import Tombstones
from ingestd.store.read.image import read_image
from ingestd.store.reclaim.deletion import remove_flows
from ingestd.store.reclaim.presence import damaged_indexes
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import MIB, Close, Extent, Item, Open, StoreBuilder

RAW, INGEST, ANEW, TWICE, HEADLESS, CUT, KEPT, LOST = (bytes([n]) * 16 for n in range(1, 9))
FORGOTTEN = {RAW, INGEST}
REMEMBERED = {ANEW, TWICE, HEADLESS, CUT}
DAMAGED = 2  # the segment


def whole(flow: bytes, protocol: int = 1) -> list[Item]:
    return [Open(flow, protocol=protocol), Extent(flow, b"x" * 700), Close(flow)]


@pytest.fixture
def builder() -> StoreBuilder:
    """In the segment that will be damaged, or may be thought to be, lies a part of CUT."""
    made = StoreBuilder(segment_count=6)
    first = made.segment(0)
    first.batch(*whole(RAW), *whole(INGEST, 2))
    first.batch(Open(TWICE, protocol=2), Extent(TWICE, b"1" * 100))
    first.batch(Close(TWICE, FLOW_STATE_INTERRUPTED, CLOSE_REASON_PEER))
    first.batch(Open(TWICE, protocol=2), Extent(TWICE, b"2" * 100), Close(TWICE))
    first.batch(Extent(HEADLESS, b"the rest", at=700), Close(HEADLESS))
    first.batch(Open(CUT), Extent(CUT, b"c" * 100))
    first.close()
    second = made.segment(1)
    second.batch(*whole(KEPT))
    second.close()
    third = made.segment(DAMAGED)
    third.batch(Extent(CUT, b"c" * 100), Close(CUT), *whole(LOST))
    third.batch(Open(b"\x99" * 16), Extent(b"\x99" * 16, b"z"))
    third.mark(third.batch_count)
    third.close()
    made.raise_generation()
    fourth = made.segment(3)
    fourth.batch(*whole(ANEW, 2))
    fourth.close()
    return made


def damage(path: Path, *, header: bool) -> bytes:
    """Make a segment unreadable in part; return what lay there before."""
    base = SEGMENTS_OFFSET + DAMAGED * MIB
    before = path.read_bytes()[base : base + MIB]
    with path.open("r+b") as file:
        if header:
            file.seek(base + 12)
            file.write(b"\xff" * 200)
        else:  # its first batch and the footer, which a mark lists
            file.seek(base + MIB - 4096 + 8)
            file.write(b"\xff" * 4)
            file.seek(base + SEGMENT_DATA_BLOCK * 4096)
            file.write(bytes(64 * 1024))
    return before


def repair(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(SEGMENTS_OFFSET + DAMAGED * MIB)
        file.write(data)


def table(path: Path) -> set[bytes]:
    with open_for_serving(str(path)) as store:
        return set(store.sweeper.removed)


def shown(path: Path) -> set[bytes]:
    with read_image(str(path)) as image:
        return {flow.flow_id for flow in image.flows}


@pytest.mark.parametrize("header", [False, True])
def test_only_what_may_lie_there_is_remembered(
    tmp_path: Path, builder: StoreBuilder, header: bool
) -> None:
    path = builder.save(tmp_path / "store.img")
    before = damage(path, header=header)
    with read_image(str(path)) as image:
        assert damaged_indexes(image.segments) == [DAMAGED]
    report = remove_flows(str(path), [flow.hex() for flow in sorted(FORGOTTEN | REMEMBERED)])
    assert [outcome.error for outcome in report.outcomes] == [None] * 6
    assert report.segments_freed_count == 2
    # Nobody knows when a segment without a header was written.
    forgotten = {RAW} if header else FORGOTTEN
    assert table(path) == (FORGOTTEN | REMEMBERED) - forgotten
    repair(path, before)
    assert not shown(path) & (FORGOTTEN | REMEMBERED), "none has come back"
    assert {KEPT, LOST} <= shown(path)


def test_they_are_forgotten_when_the_segment_can_be_read_again(
    tmp_path: Path, builder: StoreBuilder
) -> None:
    path = builder.save(tmp_path / "store.img")
    before = damage(path, header=True)
    remove_flows(str(path), [flow.hex() for flow in sorted(FORGOTTEN | REMEMBERED)])
    repair(path, before)
    with open_for_serving(str(path)) as store:
        swept = store.sweeper.sweep(store.sweeper.scan())
        assert swept.gone == (REMEMBERED | {INGEST}) - {CUT}
        assert swept.held_count == 0


def test_a_flow_past_its_term_that_may_lie_there_as_well_is_removed_first(
    tmp_path: Path, builder: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builder.save(tmp_path / "store.img")
    before = damage(path, header=True)
    expired = frozenset(FORGOTTEN | REMEMBERED)
    with open_for_serving(str(path)) as store:
        with monkeypatch.context() as full:
            full.setattr(Tombstones, "room_count", 2)
            swept = store.sweeper.sweep(store.sweeper.scan(), expired)
            assert ([item.segment.index for item in swept.freed], swept.blocked_count) == ([3], 1)
        swept = store.sweeper.sweep(store.sweeper.scan(), expired)
        assert len(swept.freed) == 1
        assert store.sweeper.removed == {TWICE, HEADLESS, CUT}
    repair(path, before)
    assert not shown(path) & expired


def test_the_keeper_names_the_segments_once(
    tmp_path: Path, builder: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance_thread, "SWEEP_PAUSE_TIMES", 0)
    monkeypatch.setattr(maintenance_thread, "TURN_INTERVAL_S", 0.0)
    path = builder.save(tmp_path / "store.img")
    damage(path, header=True)
    remove_flows(str(path), [flow.hex() for flow in sorted(FORGOTTEN | REMEMBERED)])
    with open_for_serving(str(path)) as store:
        maintainer = MaintenanceThread(
            "s", store, FlowLock(store.sweeper.removed), {}, lambda: False
        )
        for _ in range(3):
            maintainer._sweeps_left = 1
            maintainer.turn()
        assert store.sweeper.held_count == 5
    ((event, fields),) = maintainer.take_reports()
    assert event is LogEvent.REMOVED_FLOWS_HELD
    assert (fields["flows"], fields["segments"]) == (5, [DAMAGED])

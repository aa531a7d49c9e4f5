# SPDX-License-Identifier: Apache-2.0
"""The maintainer: what it answers to requests, what it gives back, and when it reads the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.daemon.admission.flow_lock import FlowLock
from ingestd.daemon.maintenance import maintenance_thread
from ingestd.daemon.maintenance.maintenance_thread import MaintenanceThread
from ingestd.daemon.maintenance.removals import RemovalState
from ingestd.errors import StoreError
from ingestd.log_events import LogEvent
from ingestd.store.read.image import StoreImage
from ingestd.store.reclaim.sweep import Sweeper
from support.maintenance import ABSENT, ONE, OPEN, TWO, Stage, staged
from support.store_builder import (
    Close,
    Extent,
    Open,
)

FLOWS_COUNT = 5000  # of one request
OTHER = b"\x55" * 16


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(tmp_path / "store.img", monkeypatch) as made:
        yield made


def test_nothing_is_read_without_cause(stage: Stage) -> None:
    for _ in range(3):
        stage.maintainer.turn()
    stage.begin()
    stage.maintainer.turn()
    assert stage.scans_count == 0


def test_requests_are_answered_and_segments_come_back(stage: Stage) -> None:
    free_count = stage.store.segments_free_count
    stage.ask(ONE, ABSENT)
    stage.maintainer.turn()
    assert stage.answers() == [RemovalState.REMOVED, RemovalState.UNKNOWN]
    assert stage.asked[0].results[ONE].bytes_count == 5000
    assert stage.news() == [LogEvent.FLOW_REMOVED, LogEvent.SEGMENT_FREED]
    assert stage.store.segments_free_count == free_count + 1
    assert stage.store.take_segment() == (0, stage.store.superblock.generation << 32 | 1)
    assert stage.flow_lock.is_removed(ONE)
    assert not stage.flow_lock.is_removed(ABSENT)


def test_what_is_fed_is_refused(stage: Stage) -> None:
    assert stage.flow_lock.begin(ONE)
    segment = stage.begin()
    segment.batch(Open(OPEN), Extent(OPEN, b"raw, and open"))
    stage.put(segment)
    stage.ask(ONE, OPEN, TWO)
    stage.maintainer.turn()
    assert stage.answers() == [RemovalState.IN_USE, RemovalState.IN_USE, RemovalState.REMOVED]
    assert stage.store.sweeper.removed == {TWO}
    stage.flow_lock.end(ONE)
    assert stage.flow_lock.begin(ONE), "it was not claimed"


def test_it_comes_back_for_a_segment_that_is_closed_later(stage: Stage) -> None:
    segment = stage.begin()
    segment.batch(Open(OPEN), Extent(OPEN, b"open"), Close(OPEN))
    segment.mark(1)
    stage.put(segment)
    stage.ask(OPEN)
    stage.maintainer.turn()
    assert stage.news() == [LogEvent.FLOW_REMOVED]
    for _ in range(5):
        stage.maintainer.turn()
    scans_count = stage.scans_count
    stage.maintainer.turn()
    assert stage.scans_count == scans_count, "it does not look for ever"
    assert stage.store.take_segment() is not None  # the next is begun, and the footer written
    stage.maintainer.turn()
    segment.close()
    stage.put(segment)
    stage.maintainer.turn()
    assert stage.news() == [LogEvent.SEGMENT_FREED]


def test_a_flow_is_forgotten_a_while_after_its_last_segment_went(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.ask(ONE)
    stage.maintainer.turn()
    stage.maintainer.turn()
    assert stage.store.sweeper.removed == {ONE}, "who lists the store now must not see a part of it"
    assert stage.maintainer.take_gone() == []
    monkeypatch.setattr(maintenance_thread, "DROP_DELAY_S", 0.0)
    stage.maintainer.turn()
    assert stage.store.sweeper.removed == set()
    assert stage.maintainer.take_gone() == [ONE]
    assert stage.flow_lock.is_removed(ONE), "whoever takes the news decides"


def test_a_store_that_failed_is_left_alone(stage: Stage) -> None:
    stage.is_failed = True
    stage.ask(ONE)
    stage.maintainer.turn()
    assert stage.answers() == [None]
    assert "the store has failed" in stage.asked[0].error


def test_it_waits_after_reading_the_store(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_thread, "REQUEST_PAUSE_TIMES", 10**6)
    stage.ask(ONE)
    stage.maintainer.turn()
    stage.ask(TWO)
    stage.maintainer.turn()
    assert stage.answers() == [RemovalState.REMOVED, None]


def test_segments_of_a_removal_before_the_start_come_back(stage: Stage) -> None:
    stage.store.sweeper.remove([ONE], "removed")
    maintainer = MaintenanceThread("s", stage.store, FlowLock([ONE]), {}, lambda: False)
    maintainer.turn()
    assert [event for event, _ in maintainer.take_reports()] == [LogEvent.SEGMENT_FREED]


def test_too_much_news_is_counted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_thread, "REPORTS_COUNT_MAX", 1)
    stage.ask(ONE, TWO)
    stage.maintainer.turn()
    (_, (event, fields)) = stage.maintainer.take_reports()
    assert (event, fields["count"]) == (LogEvent.EVENTS_LOST, 3)
    assert stage.maintainer.take_reports() == []


def test_thousands_of_flows_in_one_request(stage: Stage) -> None:
    segment = stage.begin()
    flows = [bytes([1, 1]) * 4 + number.to_bytes(8, "big") for number in range(FLOWS_COUNT)]
    for first in range(0, len(flows), 50):
        items = [(Open(flow), Close(flow)) for flow in flows[first : first + 50]]
        segment.batch(*itertools.chain.from_iterable(items))
    segment.mark(segment.batch_count)
    stage.put(segment)
    stage.maintainer.start()
    try:
        results = stage.maintainer.removals.remove([*flows, ABSENT, *flows[:1]], lambda: False)
    finally:
        stage.maintainer.close()
    assert [result.state for result in results] == [
        *FLOWS_COUNT * [RemovalState.REMOVED],
        RemovalState.UNKNOWN,
        RemovalState.REMOVED,
    ]
    assert stage.store.sweeper.removed == set(flows)


def test_a_flow_that_ends_while_the_store_is_read_is_not_removed_by_that_reading(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Sweeper.scan

    def then_a_flow_ends(sweeper: Sweeper) -> StoreImage:
        image = scan(sweeper)
        segment = stage.begin()
        segment.batch(Open(OPEN), Extent(OPEN, b"sealed a moment ago"), Close(OPEN))
        segment.mark(1)
        stage.put(segment)
        stage.ask(OPEN)
        return image

    with monkeypatch.context() as patch:
        patch.setattr(Sweeper, "scan", then_a_flow_ends)
        stage.ask(ONE)
        stage.maintainer.turn()
    assert stage.answers() == [RemovalState.REMOVED, None], "it came after the reading was begun"
    stage.maintainer.turn()
    assert stage.answers() == [RemovalState.REMOVED, RemovalState.REMOVED]
    assert stage.store.sweeper.removed == {ONE, OPEN}


def test_who_asks_waits_for_a_bounded_time(stage: Stage) -> None:
    with pytest.raises(StoreError, match="not answered"):
        stage.maintainer.removals.remove([ONE], lambda: False, timeout_s=0.0)
    with pytest.raises(StoreError, match="not answered"):
        stage.maintainer.removals.remove([ONE], lambda: True)
    stage.maintainer.turn()
    assert stage.scans_count == 0, "nobody waits for it any more"


def test_what_waits_at_the_end_is_refused(stage: Stage) -> None:
    stage.ask(ONE)
    stage.maintainer.stop()
    stage.maintainer.start()
    stage.maintainer.close()
    assert stage.asked[0].error == "the daemon is ending"
    assert stage.scans_count == 0


def test_flows_without_room_go_with_their_segments(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONE and TWO have segments of their own; what lies beside a flow that is kept has no room."""
    monkeypatch.setattr(Sweeper, "room_count", 0)
    segment = stage.begin()
    for flow in (OPEN, OTHER):
        segment.batch(Open(flow), Extent(flow, b"x"), Close(flow))
    segment.close()
    stage.put(segment)
    free_count = stage.store.segments_free_count
    stage.ask(ONE, TWO, OPEN)
    stage.maintainer.turn()
    assert stage.answers() == [RemovalState.REMOVED, RemovalState.REMOVED, RemovalState.NO_ROOM]
    assert stage.store.segments_free_count == free_count + 2
    assert stage.store.sweeper.removed == set()
    assert stage.store.sweeper.counts.flows["removed"] == 2
    assert [flow.flow_id for flow in stage.store.flow_source().flows()] == [OPEN, OTHER]
    assert stage.flow_lock.is_removed(ONE)
    assert not stage.flow_lock.is_removed(OPEN)
    monkeypatch.setattr(maintenance_thread, "DROP_DELAY_S", 0.0)
    stage.maintainer.turn()
    assert set(stage.maintainer.take_gone()) == {ONE, TWO}

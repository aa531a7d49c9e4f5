# SPDX-License-Identifier: Apache-2.0
"""The maintainer: what it answers to requests, what it gives back, and when it reads the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.daemon.admission.flow_lock import FlowLock
from ingestd.daemon.maintenance import delete_requests, maintenance_thread
from ingestd.daemon.maintenance.maintenance_thread import MaintenanceThread
from ingestd.log_events import LogEvent
from ingestd.store.metadata.request_block import Request, RequestState
from ingestd.store.read.image import StoreImage
from ingestd.store.reclaim import deletion
from ingestd.store.reclaim.deletion import remove_flows
from ingestd.store.reclaim.sweep import Sweeper
from ingestd.store.serve.served_store import open_for_serving
from support.maintenance import ABSENT, ONE, OPEN, TWO, Stage, staged
from support.store_builder import (
    Close,
    Extent,
    Open,
)

ROUND_COUNT = 100  # of requests


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
    assert stage.answers() == [RequestState.REMOVED, RequestState.REMOVED]
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
    assert stage.answers() == [RequestState.IN_USE, RequestState.IN_USE, RequestState.REMOVED]
    assert stage.store.sweeper.removed == {TWO}
    stage.flow_lock.end(ONE)
    assert stage.flow_lock.begin(ONE), "it was not claimed"


def test_one_too_many(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweeper, "room_count", 1)
    stage.ask(ONE, TWO)
    stage.maintainer.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.NO_ROOM]
    assert not stage.flow_lock.is_removed(TWO)


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


def test_answers_that_nobody_fetches_are_taken_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.ask(ONE)
    stage.maintainer.turn()
    monkeypatch.setattr(maintenance_thread, "DROP_DELAY_S", -1.0)
    monkeypatch.setattr(delete_requests, "ANSWER_KEPT_S", -1.0)
    stage.ask(TWO, token=8)
    stage.maintainer.turn()
    stage.maintainer.turn()
    assert [request.flow for request in stage.box.read()] == []
    assert stage.store.sweeper.removed <= {TWO}


def test_a_store_that_failed_is_left_alone(stage: Stage) -> None:
    stage.is_failed = True
    stage.ask(ONE)
    stage.maintainer.turn()
    assert stage.answers() == [RequestState.ASKED]


def test_it_waits_after_reading_the_store(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_thread, "REQUEST_PAUSE_TIMES", 10**6)
    stage.ask(ONE)
    stage.maintainer.turn()
    stage.ask(TWO)
    stage.maintainer.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.ASKED]


def test_segments_of_a_removal_before_the_start_come_back(stage: Stage) -> None:
    stage.store.sweeper.remove([ONE], "removed")
    maintainer = MaintenanceThread("s", stage.store, FlowLock([ONE]), {}, lambda: False)
    maintainer.turn()
    assert [event for event, _ in maintainer.take_reports()] == [LogEvent.SEGMENT_FREED]


def test_more_flows_than_the_block_holds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_thread, "TURN_INTERVAL_S", 0.01)
    monkeypatch.setattr(deletion, "REQUESTS_MAX", ROUND_COUNT)
    segment = stage.begin()
    flows = [bytes([1, number]) * 8 for number in range(ROUND_COUNT + 10)]
    for first in range(0, len(flows), 50):
        items = [(Open(flow), Close(flow)) for flow in flows[first : first + 50]]
        segment.batch(*itertools.chain.from_iterable(items))
    segment.close()
    stage.put(segment)
    stage.maintainer.start()
    try:
        report = remove_flows(str(stage.path), [flow.hex() for flow in flows])
    finally:
        stage.maintainer.close()
    assert report.is_served
    assert len(report.outcomes) == len(flows)
    assert not any(outcome.error for outcome in report.outcomes)
    assert stage.box.read() == []
    assert stage.store.sweeper.removed == set(flows)


def test_one_reading_serves_all_rounds_and_only_what_it_shows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks asks for more when it has an answer; what came later waits for the next reading."""
    answer, scan = Sweeper.answer, Sweeper.scan
    still = [[TWO, OPEN]]

    def then_ask_for_more(sweeper: Sweeper, states: Any, stale: Any) -> bool:
        done = answer(sweeper, states, stale)
        if still and stage.answers() == [RequestState.REMOVED]:
            stage.box.write([Request(flow, 7) for flow in still.pop()])
        return done

    def then_a_flow_ends(sweeper: Sweeper) -> StoreImage:
        image = scan(sweeper)
        segment = stage.begin()
        segment.batch(Open(OPEN), Extent(OPEN, b"sealed a moment ago"), Close(OPEN))
        segment.mark(1)
        stage.put(segment)
        return image

    monkeypatch.setattr(Sweeper, "answer", then_ask_for_more)
    monkeypatch.setattr(Sweeper, "scan", then_a_flow_ends)
    monkeypatch.setattr(delete_requests, "ROUND_TIME_S", 0.2)
    stage.ask(ONE)
    stage.maintainer.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.ASKED]
    assert stage.store.sweeper.removed == {ONE, TWO}
    monkeypatch.setattr(Sweeper, "scan", scan)
    stage.maintainer.turn()
    assert stage.answers() == 2 * [RequestState.REMOVED]
    assert stage.store.sweeper.removed == {ONE, TWO, OPEN}


def test_who_asks_is_told_that_it_was_seen_before_the_store_is_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    scan = Sweeper.scan

    def look(sweeper: Sweeper) -> StoreImage:
        seen.append(stage.answers())
        return scan(sweeper)

    monkeypatch.setattr(Sweeper, "scan", look)
    stage.ask(ONE)
    stage.maintainer.turn()
    assert seen == [[RequestState.SEEN]]
    assert stage.answers() == [RequestState.REMOVED]


def test_an_answer_has_its_own_age(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long command has one token all the time, and may fetch an answer late."""
    monkeypatch.setattr(maintenance_thread, "DROP_DELAY_S", 1000.0)
    monkeypatch.setattr(delete_requests, "ROUND_TIME_S", 0.0)
    desk = stage.maintainer._requests
    stage.box.write([Request(ONE, 7, RequestState.REMOVED)])
    assert desk.take(0.0) == []
    stage.box.write([Request(ONE, 7, RequestState.REMOVED), Request(TWO, 7)])
    assert [request.flow for request in desk.take(50.0)] == [TWO]
    stage.box.write([Request(ONE, 7, RequestState.REMOVED), Request(TWO, 7, RequestState.REMOVED)])
    assert desk.take(61.0) == []
    assert [request.flow for request in stage.box.read()] == [TWO]
    stage.box.write([*stage.box.read(), Request(ONE, 7)])
    assert [request.flow for request in desk.take(100.0)] == [ONE], "it is asked for again"


def test_what_an_earlier_daemon_was_asked_is_not_done(stage: Stage) -> None:
    """Neither the command nor the daemon lived to the answer."""
    stage.ask(ONE)
    stage.store.close()
    stage.store = open_for_serving(str(stage.path))
    maintainer = stage.make_maintainer({})
    maintainer.turn()
    assert stage.box.read() == []
    assert maintainer.take_reports() == []


def test_too_much_news_is_counted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance_thread, "REPORTS_COUNT_MAX", 1)
    stage.ask(ONE, TWO)
    stage.maintainer.turn()
    (_, (event, fields)) = stage.maintainer.take_reports()
    assert (event, fields["count"]) == (LogEvent.EVENTS_LOST, 3)
    assert stage.maintainer.take_reports() == []

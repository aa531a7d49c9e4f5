# SPDX-License-Identifier: Apache-2.0
"""The keeper: what it answers to requests, what it gives back, and when it reads the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.daemon import keeper as keeper_module
from ingestd.daemon import request_desk
from ingestd.daemon.flow_gate import FlowGate
from ingestd.daemon.keeper import Keeper
from ingestd.daemon.term_clock import Reading, TermClock
from ingestd.daemon.terms import Terms
from ingestd.errors import StoreError
from ingestd.log import LogEvent
from ingestd.store import removing
from ingestd.store.device import Device, open_device
from ingestd.store.image import StoreImage, read_image
from ingestd.store.removals import RemovalTable
from ingestd.store.removing import remove_flows
from ingestd.store.requests import Request, RequestBox, RequestState
from ingestd.store.retention import Retention
from ingestd.store.segment import SegmentState
from ingestd.store.serving import ServedStore, open_for_serving
from ingestd.store.upkeep import Upkeep
from support.store_builder import (
    SECOND_NS,
    Close,
    Extent,
    Open,
    SegmentWriter,
    StoreBuilder,
)

ROUND_COUNT = 100  # of requests
ONE, TWO, OPEN, ABSENT = (bytes([number]) * 16 for number in (0x11, 0x22, 0x33, 0x44))


class Stage:
    """A store with the flows ONE and TWO in segments of their own, its keeper, and who asks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        builder = StoreBuilder(segment_count=6)
        for index, flow in enumerate((ONE, TWO)):
            segment = builder.segment(index)
            segment.batch(Open(flow), Extent(flow, b"x" * 5000), Close(flow))
            segment.close()
        builder.save(path)
        self.builder = builder
        self.store: ServedStore = open_for_serving(str(path))
        self.gate = FlowGate(self.store.upkeep.removed)
        self.is_failed = False
        self.keeper = self.make_keeper({})
        self.device = open_device(str(path), write=True)
        self.box = RequestBox(self.device, self.store.superblock)
        self.scans_count = 0

    def make_keeper(self, retentions: dict[str, Retention]) -> Keeper:
        return Keeper("s", self.store, self.gate, retentions, lambda: self.is_failed, lambda: None)

    def ask(self, *flows: bytes, token: int = 7) -> None:
        self.box.write(self.box.read() + [Request(flow, token) for flow in flows])

    def answers(self) -> list[RequestState]:
        return [request.state for request in self.box.read()]

    def begin(self) -> SegmentWriter:
        """A worker begins a segment that it was granted."""
        grant = self.store.take_segment()
        assert grant is not None
        index, sequence = grant
        self.builder.generation, self.builder.counter = sequence >> 32, (sequence & 0xFFFFFFFF) - 1
        return self.builder.segment(index)

    def put(self, segment: SegmentWriter) -> None:
        with self.path.open("r+b") as file:
            file.seek(segment.base)
            file.write(
                self.builder.image[segment.base : segment.base + segment.store.segment_bytes]
            )

    def news(self) -> list[LogEvent]:
        return [event for event, _ in self.keeper.take_news()]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path / "store.img")
    scan = Upkeep.scan

    def counted(upkeep: Upkeep) -> object:
        made.scans_count += 1
        return scan(upkeep)

    monkeypatch.setattr(Upkeep, "scan", counted)
    monkeypatch.setattr(keeper_module, "TURN_INTERVAL_S", 0.0)
    monkeypatch.setattr(keeper_module, "SWEEP_PAUSE_TIMES", 0)
    monkeypatch.setattr(keeper_module, "REQUEST_PAUSE_TIMES", 0)
    yield made
    made.device.close()
    made.store.close()


def test_nothing_is_read_without_cause(stage: Stage) -> None:
    for _ in range(3):
        stage.keeper.turn()
    stage.begin()
    stage.keeper.turn()
    assert stage.scans_count == 0


def test_requests_are_answered_and_segments_come_back(stage: Stage) -> None:
    free_count = stage.store.segments_free_count
    stage.ask(ONE, ABSENT)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.REMOVED]
    assert stage.news() == [LogEvent.FLOW_REMOVED, LogEvent.SEGMENT_FREED]
    assert stage.store.segments_free_count == free_count + 1
    assert stage.store.take_segment() == (0, stage.store.superblock.generation << 32 | 1)
    assert stage.gate.is_removed(ONE)
    assert not stage.gate.is_removed(ABSENT)


def test_what_is_fed_is_refused(stage: Stage) -> None:
    assert stage.gate.begin(ONE)
    segment = stage.begin()
    segment.batch(Open(OPEN), Extent(OPEN, b"raw, and open"))
    stage.put(segment)
    stage.ask(ONE, OPEN, TWO)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.IN_USE, RequestState.IN_USE, RequestState.REMOVED]
    assert stage.store.upkeep.removed == {TWO}
    stage.gate.end(ONE)
    assert stage.gate.begin(ONE), "it was not claimed"


def test_one_too_many(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Upkeep, "room_count", 1)
    stage.ask(ONE, TWO)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.NO_ROOM]
    assert not stage.gate.is_removed(TWO)


def test_it_comes_back_for_a_segment_that_is_closed_later(stage: Stage) -> None:
    segment = stage.begin()
    segment.batch(Open(OPEN), Extent(OPEN, b"open"), Close(OPEN))
    segment.mark(1)
    stage.put(segment)
    stage.ask(OPEN)
    stage.keeper.turn()
    assert stage.news() == [LogEvent.FLOW_REMOVED]
    for _ in range(5):
        stage.keeper.turn()
    scans_count = stage.scans_count
    stage.keeper.turn()
    assert stage.scans_count == scans_count, "it does not look for ever"
    assert stage.store.take_segment() is not None  # the next is begun, and the footer written
    stage.keeper.turn()
    segment.close()
    stage.put(segment)
    stage.keeper.turn()
    assert stage.news() == [LogEvent.SEGMENT_FREED]


def test_a_flow_is_forgotten_a_while_after_its_last_segment_went(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.ask(ONE)
    stage.keeper.turn()
    stage.keeper.turn()
    assert stage.store.upkeep.removed == {ONE}, "who lists the store now must not see a part of it"
    assert stage.keeper.take_gone() == []
    monkeypatch.setattr(keeper_module, "DROP_DELAY_S", 0.0)
    stage.keeper.turn()
    assert stage.store.upkeep.removed == set()
    assert stage.keeper.take_gone() == [ONE]
    assert stage.gate.is_removed(ONE), "whoever takes the news decides"


def test_answers_that_nobody_fetches_are_taken_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.ask(ONE)
    stage.keeper.turn()
    monkeypatch.setattr(keeper_module, "DROP_DELAY_S", -1.0)
    monkeypatch.setattr(request_desk, "ANSWER_KEPT_S", -1.0)
    stage.ask(TWO, token=8)
    stage.keeper.turn()
    stage.keeper.turn()
    assert [request.flow for request in stage.box.read()] == []
    assert stage.store.upkeep.removed <= {TWO}


def test_a_device_that_refuses_ends_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Device) -> None:
        raise StoreError("no flush")

    monkeypatch.setattr(Device, "sync", refuse)
    stage.ask(ONE)
    stage.keeper.turn()
    assert stage.keeper.take_news() == [
        (LogEvent.UPKEEP_FAILED, {"store": "s", "error": "no flush"})
    ]
    assert stage.answers() == [RequestState.SEEN]
    assert stage.gate.is_removed(ONE), "nobody knows what was written"
    monkeypatch.undo()
    stage.keeper.turn()
    assert stage.answers() == [RequestState.SEEN]


def test_a_store_that_failed_is_left_alone(stage: Stage) -> None:
    stage.is_failed = True
    stage.ask(ONE)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.ASKED]


def test_it_waits_after_reading_the_store(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "REQUEST_PAUSE_TIMES", 10**6)
    stage.ask(ONE)
    stage.keeper.turn()
    stage.ask(TWO)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.ASKED]


def test_segments_of_a_removal_before_the_start_come_back(stage: Stage) -> None:
    stage.store.upkeep.remove([ONE], "removed")
    keeper = Keeper("s", stage.store, FlowGate([ONE]), {}, lambda: False, lambda: None)
    keeper.turn()
    assert [event for event, _ in keeper.take_news()] == [LogEvent.SEGMENT_FREED]


def test_more_flows_than_the_block_holds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "TURN_INTERVAL_S", 0.01)
    monkeypatch.setattr(removing, "REQUESTS_MAX", ROUND_COUNT)
    segment = stage.begin()
    flows = [bytes([1, number]) * 8 for number in range(ROUND_COUNT + 10)]
    for first in range(0, len(flows), 50):
        items = [(Open(flow), Close(flow)) for flow in flows[first : first + 50]]
        segment.batch(*itertools.chain.from_iterable(items))
    segment.close()
    stage.put(segment)
    stage.keeper.start()
    try:
        report = remove_flows(str(stage.path), [flow.hex() for flow in flows])
    finally:
        stage.keeper.close()
    assert report.is_served
    assert len(report.outcomes) == len(flows)
    assert not any(outcome.error for outcome in report.outcomes)
    assert stage.box.read() == []
    assert stage.store.upkeep.removed == set(flows)


def test_one_reading_serves_all_rounds_and_only_what_it_shows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks asks for more when it has an answer; what came later waits for the next reading."""
    answer, scan = Upkeep.answer, Upkeep.scan
    still = [[TWO, OPEN]]

    def then_ask_for_more(upkeep: Upkeep, states: Any, stale: Any) -> bool:
        done = answer(upkeep, states, stale)
        if still and stage.answers() == [RequestState.REMOVED]:
            stage.box.write([Request(flow, 7) for flow in still.pop()])
        return done

    def then_a_flow_ends(upkeep: Upkeep) -> StoreImage:
        image = scan(upkeep)
        segment = stage.begin()
        segment.batch(Open(OPEN), Extent(OPEN, b"sealed a moment ago"), Close(OPEN))
        segment.mark(1)
        stage.put(segment)
        return image

    monkeypatch.setattr(Upkeep, "answer", then_ask_for_more)
    monkeypatch.setattr(Upkeep, "scan", then_a_flow_ends)
    monkeypatch.setattr(request_desk, "ROUND_TIME_S", 0.2)
    stage.ask(ONE)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.REMOVED, RequestState.ASKED]
    assert stage.store.upkeep.removed == {ONE, TWO}
    monkeypatch.setattr(Upkeep, "scan", scan)
    stage.keeper.turn()
    assert stage.answers() == 2 * [RequestState.REMOVED]
    assert stage.store.upkeep.removed == {ONE, TWO, OPEN}


def test_who_asks_is_told_that_it_was_seen_before_the_store_is_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    scan = Upkeep.scan

    def look(upkeep: Upkeep) -> StoreImage:
        seen.append(stage.answers())
        return scan(upkeep)

    monkeypatch.setattr(Upkeep, "scan", look)
    stage.ask(ONE)
    stage.keeper.turn()
    assert seen == [[RequestState.SEEN]]
    assert stage.answers() == [RequestState.REMOVED]


def test_an_answer_has_its_own_age(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long command has one token all the time, and may fetch an answer late."""
    monkeypatch.setattr(keeper_module, "DROP_DELAY_S", 1000.0)
    monkeypatch.setattr(request_desk, "ROUND_TIME_S", 0.0)
    desk = stage.keeper._desk
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
    keeper = stage.make_keeper({})
    keeper.turn()
    assert stage.box.read() == []
    assert keeper.take_news() == []


# --- Retention --------------------------------------------------------------------------


def test_past_their_term_flows_go_but_those_that_are_fed(stage: Stage) -> None:
    """What the builder writes is long ago."""
    assert stage.gate.begin(ONE)
    keeper = stage.make_keeper({"data": Retention(for_ns=1)})
    keeper.turn()
    news = keeper.take_news()
    assert [(event, fields["reason"]) for event, fields in news] == [
        (LogEvent.SEGMENT_FREED, "retention")
    ]
    assert stage.store.upkeep.counts.flows == {"retention": 1}
    assert stage.gate.is_removed(TWO)
    assert not stage.gate.begin(TWO)
    with read_image(str(stage.path)) as image:
        assert [flow.flow_id for flow in image.flows] == [ONE]


def test_beside_a_flow_that_is_fed_no_claim_stays(stage: Stage) -> None:
    third = b"\x77" * 16
    segment = stage.begin()
    for flow in (OPEN, third):
        segment.batch(Open(flow), Extent(flow, b"x"), Close(flow))
    segment.close()
    stage.put(segment)
    assert stage.gate.begin(third)
    keeper = stage.make_keeper({"data": Retention(for_ns=1)})
    keeper.turn()
    assert stage.gate.is_removed(ONE)
    assert stage.gate.begin(OPEN), "it stays, and may be gone on with"


def test_of_other_listeners_and_before_their_term_all_stay(stage: Stage) -> None:
    for retentions in (
        {"other": Retention(for_ns=1)},
        {"data": Retention(for_ns=2**62)},
        {"data": Retention(for_ns=1, bytes_count=10_000)},
    ):
        keeper = stage.make_keeper(retentions)
        for _ in range(3):
            keeper.turn()
        assert keeper.take_news() == []


def test_the_newest_bytes_stay(stage: Stage) -> None:
    keeper = stage.make_keeper({"data": Retention(bytes_count=5000)})
    keeper.turn()
    with read_image(str(stage.path)) as image:
        assert [flow.flow_id for flow in image.flows] == [TWO]


def test_a_flow_over_several_segments_is_removed_first(stage: Stage) -> None:
    """One of its segments can be given back, the other is still being filled."""
    first, second = stage.begin(), stage.begin()
    first.batch(Open(OPEN), Extent(OPEN, b"a" * 100))
    second.batch(Extent(OPEN, b"b" * 100), Close(OPEN))
    second.mark(1)
    first.close()
    stage.put(first)
    stage.put(second)
    keeper = stage.make_keeper({"data": Retention(for_ns=1)})
    keeper.turn()
    assert stage.store.upkeep.removed == {OPEN}
    with read_image(str(stage.path)) as image:
        assert image.flows == []
        assert [flow.flow_id for flow in image.removed] == [OPEN]
        assert image.segments[first.index].state is SegmentState.FREE


class Machine:
    """Its clocks, which stand still but where a test sets them."""

    def __init__(self, wall_ns: int) -> None:
        self.wall_ns = wall_ns
        self.boot_ns = 0

    def run(self, seconds: int) -> None:
        self.wall_ns += seconds * SECOND_NS
        self.boot_ns += seconds * SECOND_NS

    def keeper(self, stage: Stage, retention: Retention) -> Keeper:
        """One that goes by these clocks."""
        keeper = stage.make_keeper({"data": retention})
        clock = TermClock(lambda: Reading(self.wall_ns, self.boot_ns))
        keeper._terms = Terms({"data": retention}, keeper._tell, clock)
        return keeper


def last_end_ns(stage: Stage) -> int:
    with read_image(str(stage.path)) as image:
        return max(flow.ended_ns for flow in image.flows)


def test_it_looks_again_when_a_term_has_come(stage: Stage) -> None:
    machine = Machine(last_end_ns(stage))
    scans_count = stage.scans_count
    keeper = machine.keeper(stage, Retention(for_ns=100 * SECOND_NS))
    for _ in range(3):
        keeper.turn()
    assert stage.scans_count == scans_count + 1, "it knows when the next is due"
    machine.run(100)
    keeper._terms._next_s = 0.0
    keeper.turn()
    news = [event for event, _ in keeper.take_news()]
    assert news == [LogEvent.SEGMENT_FREED, LogEvent.SEGMENT_FREED]


def test_a_clock_that_is_set_lets_nothing_go(stage: Stage) -> None:
    """Ten years ahead: neither at once, nor in the hour that follows."""
    machine = Machine(last_end_ns(stage))
    keeper = machine.keeper(stage, Retention(for_ns=7200 * SECOND_NS))
    keeper.turn()
    machine.wall_ns += 315_360_000 * SECOND_NS
    for _ in range(3):
        keeper._terms._next_s = 0.0
        keeper.turn()
        machine.run(1000)
    ((event, fields),) = keeper.take_news()
    assert (event, fields["step_s"]) == (LogEvent.CLOCK_SET, 315_360_000.0)
    machine.run(3600)
    keeper._terms._next_s = 0.0
    keeper.turn()
    assert [event for event, _ in keeper.take_news()] == 2 * [LogEvent.SEGMENT_FREED]


@pytest.mark.parametrize("years", [-50, 50])
def test_flows_that_cannot_be_dated_so_are_told_of_and_go_by_what_was_seen(
    stage: Stage, years: int
) -> None:
    machine = Machine(last_end_ns(stage) - years * 31_536_000 * SECOND_NS)
    keeper = machine.keeper(stage, Retention(for_ns=100 * SECOND_NS))
    for _ in range(2):
        keeper._terms._next_s = 0.0
        keeper.turn()
    news = keeper.take_news()
    if years < 0:
        assert news == [], "to be sure that the clock is right takes an hour"
    else:
        ((event, fields),) = news
        assert (event, fields["count"]) == (LogEvent.FLOWS_MISDATED, 2)
    machine.run(50)
    keeper._terms._next_s = 0.0
    keeper.turn()
    assert keeper.take_news() == []
    machine.run(50)
    keeper._terms._next_s = 0.0
    keeper.turn()
    assert [event for event, _ in keeper.take_news()] == 2 * [LogEvent.SEGMENT_FREED]


# --- What happens while the store is read ------------------------------------------------


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_flow_that_was_gone_on_with_while_the_store_was_read_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    """It is whole and durable in segments that were not looked at, and no connection has it now."""
    scan = Upkeep.scan

    def slow(upkeep: Upkeep) -> StoreImage:
        image = scan(upkeep)
        assert stage.gate.begin(ONE)
        segment = stage.begin()
        segment.batch(Open(ONE), Extent(ONE, b"more"), Close(ONE))
        segment.close()
        stage.put(segment)
        stage.gate.end(ONE)
        return image

    monkeypatch.setattr(Upkeep, "scan", slow)
    keeper = stage.make_keeper({} if is_asked else {"data": Retention(for_ns=1)})
    if is_asked:
        stage.ask(ONE)
    keeper.turn()
    assert stage.answers() == ([RequestState.IN_USE] if is_asked else [])
    with read_image(str(stage.path)) as image:
        assert image.find(ONE.hex()).bytes == 5004
    assert ONE not in stage.store.upkeep.removed
    assert stage.gate.begin(ONE), "it was not claimed"


def test_a_flow_that_ended_while_the_store_was_read_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was fed when the reading began."""
    scan = Upkeep.scan

    def slow(upkeep: Upkeep) -> StoreImage:
        stage.gate.end(ONE)
        return scan(upkeep)

    assert stage.gate.begin(ONE)
    monkeypatch.setattr(Upkeep, "scan", slow)
    keeper = stage.make_keeper({"data": Retention(for_ns=1)})
    keeper.turn()
    assert not stage.gate.is_removed(ONE)
    monkeypatch.setattr(Upkeep, "scan", scan)
    keeper._terms._next_s = 0.0
    keeper.turn()
    assert stage.gate.is_removed(ONE), "the next reading knows of its end"


def test_too_much_news_is_counted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "NEWS_COUNT_MAX", 1)
    stage.ask(ONE, TWO)
    stage.keeper.turn()
    (_, (event, fields)) = stage.keeper.take_news()
    assert (event, fields["count"]) == (LogEvent.EVENTS_LOST, 3)
    assert stage.keeper.take_news() == []


def test_a_sweep_ends_soon_when_the_daemon_does(stage: Stage) -> None:
    stage.store.upkeep.stop()
    stage.ask(ONE)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.REMOVED]
    assert stage.news() == [LogEvent.FLOW_REMOVED], "its segment is given back at the next start"


def test_what_finds_no_room_in_the_table_is_told_of_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stage.begin(), stage.begin()
    first.batch(Open(OPEN), Extent(OPEN, b"a" * 100))
    second.batch(Extent(OPEN, b"b" * 100), Close(OPEN))
    for segment in (first, second):
        segment.close()
        stage.put(segment)
    keeper = stage.make_keeper({"data": Retention(for_ns=1)})
    with monkeypatch.context() as full:
        full.setattr(RemovalTable, "room_count", 0)
        for _ in range(3):
            keeper._terms._next_s = 0.0
            keeper.turn()
    told = [fields for event, fields in keeper.take_news() if event is LogEvent.REMOVAL_TABLE_FULL]
    assert [fields["segments"] for fields in told] == [2]
    assert stage.gate.begin(OPEN), "it was not claimed"
    stage.gate.end(OPEN)
    keeper._terms._next_s = 0.0
    keeper.turn()
    assert [event for event, _ in keeper.take_news()] == 2 * [LogEvent.SEGMENT_FREED]


def test_only_what_went_counts(stage: Stage) -> None:
    """The end comes before the first segment is given back."""
    stage.store.upkeep.stop()
    keeper = stage.make_keeper({"data": Retention(for_ns=1)})
    keeper.turn()
    assert stage.store.upkeep.counts.flows["retention"] == 0
    assert not stage.gate.is_removed(ONE)
    assert keeper.take_news() == []

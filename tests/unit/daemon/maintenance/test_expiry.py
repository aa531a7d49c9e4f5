# SPDX-License-Identifier: Apache-2.0
"""Maintenance and retention: what is past its term, by which clock, and what came meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.daemon.maintenance.expiry import Expiry
from ingestd.daemon.maintenance.maintenance_thread import MaintenanceThread
from ingestd.daemon.maintenance.removals import RemovalState
from ingestd.daemon.maintenance.steady_clock import Reading, SteadyClock
from ingestd.log_events import LogEvent
from ingestd.store.format.segment import SegmentState
from ingestd.store.metadata.tombstones import Tombstones
from ingestd.store.read.image import StoreImage, read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.reclaim.retention import Retention
from ingestd.store.reclaim.sweep import Sweeper
from support import tally
from support.maintenance import ONE, OPEN, TWO, Stage, staged
from support.store_builder import (
    SECOND_NS,
    Close,
    Extent,
    Open,
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(tmp_path / "store.img", monkeypatch) as made:
        yield made


def test_past_their_term_flows_go_but_those_that_are_fed(stage: Stage) -> None:
    """What the builder writes is long ago."""
    assert stage.flow_lock.begin(ONE)
    maintainer = stage.make_maintainer({"data": Retention(for_ns=1)})
    maintainer.turn()
    news = maintainer.take_reports()
    assert [(event, fields["reason"]) for event, fields in news] == [
        (LogEvent.SEGMENT_FREED, "retention")
    ]
    assert stage.store.sweeper.counts.flows == {"retention": 1}
    assert stage.flow_lock.is_removed(TWO)
    assert not stage.flow_lock.begin(TWO)
    with read_image(str(stage.path)) as image:
        assert [flow.flow_id for flow in image.flows] == [ONE]


def test_beside_a_flow_that_is_fed_no_claim_stays(stage: Stage) -> None:
    third = b"\x77" * 16
    segment = stage.begin()
    for flow in (OPEN, third):
        segment.batch(Open(flow), Extent(flow, b"x"), Close(flow))
    segment.close()
    stage.put(segment)
    assert stage.flow_lock.begin(third)
    maintainer = stage.make_maintainer({"data": Retention(for_ns=1)})
    maintainer.turn()
    assert stage.flow_lock.is_removed(ONE)
    assert stage.flow_lock.begin(OPEN), "it stays, and may be gone on with"


def test_of_other_listeners_and_before_their_term_all_stay(stage: Stage) -> None:
    for retentions in (
        {"other": Retention(for_ns=1)},
        {"data": Retention(for_ns=2**62)},
        {"data": Retention(for_ns=1, bytes_count=10_000)},
    ):
        maintainer = stage.make_maintainer(retentions)
        for _ in range(3):
            maintainer.turn()
        assert maintainer.take_reports() == []


def test_the_newest_bytes_stay(stage: Stage) -> None:
    maintainer = stage.make_maintainer({"data": Retention(bytes_count=5000)})
    maintainer.turn()
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
    maintainer = stage.make_maintainer({"data": Retention(for_ns=1)})
    maintainer.turn()
    assert stage.store.sweeper.removed == {OPEN}
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

    def maintainer(self, stage: Stage, retention: Retention) -> MaintenanceThread:
        """One that goes by these clocks."""
        maintainer = stage.make_maintainer({"data": retention})
        clock = SteadyClock(lambda: Reading(self.wall_ns, self.boot_ns))
        maintainer._terms = Expiry({"data": retention}, maintainer._report, clock)
        return maintainer


def last_end_ns(stage: Stage) -> int:
    with read_image(str(stage.path)) as image:
        return max(flow.ended_ns for flow in image.flows)


def test_it_looks_again_when_a_term_has_come(stage: Stage) -> None:
    machine = Machine(last_end_ns(stage))
    scans_count = stage.scans_count
    maintainer = machine.maintainer(stage, Retention(for_ns=100 * SECOND_NS))
    for _ in range(3):
        maintainer.turn()
    assert stage.scans_count == scans_count + 1, "it knows when the next is due"
    machine.run(100)
    maintainer._terms._next_s = 0.0
    maintainer.turn()
    news = [event for event, _ in maintainer.take_reports()]
    assert news == [LogEvent.SEGMENT_FREED, LogEvent.SEGMENT_FREED]


def test_a_clock_that_is_set_lets_nothing_go(stage: Stage) -> None:
    """Ten years ahead: neither at once, nor in the hour that follows."""
    machine = Machine(last_end_ns(stage))
    maintainer = machine.maintainer(stage, Retention(for_ns=7200 * SECOND_NS))
    maintainer.turn()
    machine.wall_ns += 315_360_000 * SECOND_NS
    for _ in range(3):
        maintainer._terms._next_s = 0.0
        maintainer.turn()
        machine.run(1000)
    ((event, fields),) = maintainer.take_reports()
    assert (event, fields["step_s"]) == (LogEvent.CLOCK_SET, 315_360_000.0)
    machine.run(3600)
    maintainer._terms._next_s = 0.0
    maintainer.turn()
    assert [event for event, _ in maintainer.take_reports()] == 2 * [LogEvent.SEGMENT_FREED]


@pytest.mark.parametrize("years", [-50, 50])
def test_flows_that_cannot_be_dated_so_are_told_of_and_go_by_what_was_seen(
    stage: Stage, years: int
) -> None:
    machine = Machine(last_end_ns(stage) - years * 31_536_000 * SECOND_NS)
    maintainer = machine.maintainer(stage, Retention(for_ns=100 * SECOND_NS))
    for _ in range(2):
        maintainer._terms._next_s = 0.0
        maintainer.turn()
    news = maintainer.take_reports()
    if years < 0:
        assert news == [], "to be sure that the clock is right takes an hour"
    else:
        ((event, fields),) = news
        assert (event, fields["count"]) == (LogEvent.FLOWS_MISDATED, 2)
    machine.run(50)
    maintainer._terms._next_s = 0.0
    maintainer.turn()
    assert maintainer.take_reports() == []
    machine.run(50)
    maintainer._terms._next_s = 0.0
    maintainer.turn()
    assert [event for event, _ in maintainer.take_reports()] == 2 * [LogEvent.SEGMENT_FREED]


# --- What happens while the store is read ------------------------------------------------


@pytest.mark.fault("retention_race")
@pytest.mark.parametrize("is_asked", [True, False])
def test_a_flow_that_was_gone_on_with_while_the_store_was_read_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    """It is whole and durable in segments that were not looked at, and no connection has it now."""
    scan = Sweeper.scan

    def slow(sweeper: Sweeper) -> StoreImage:
        image = scan(sweeper)
        assert stage.flow_lock.begin(ONE)
        segment = stage.begin()
        segment.batch(Open(ONE), Extent(ONE, b"more"), Close(ONE))
        segment.close()
        stage.put(segment)
        stage.flow_lock.end(ONE)
        return image

    monkeypatch.setattr(Sweeper, "scan", slow)
    maintainer = stage.make_maintainer({} if is_asked else {"data": Retention(for_ns=1)})
    if is_asked:
        stage.ask(ONE, maintainer=maintainer)
    maintainer.turn()
    assert stage.answers() == ([RemovalState.IN_USE] if is_asked else [])
    with tally.acknowledged(5004), read_image(str(stage.path)) as image:
        assert b"".join(read_flow(image, image.find(ONE.hex()))) == b"x" * 5000 + b"more"
    assert ONE not in stage.store.sweeper.removed
    assert stage.flow_lock.begin(ONE), "it was not claimed"


@pytest.mark.fault("retention_race")
def test_a_flow_that_ended_while_the_store_was_read_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was fed when the reading began."""
    scan = Sweeper.scan

    def slow(sweeper: Sweeper) -> StoreImage:
        stage.flow_lock.end(ONE)
        return scan(sweeper)

    assert stage.flow_lock.begin(ONE)
    monkeypatch.setattr(Sweeper, "scan", slow)
    maintainer = stage.make_maintainer({"data": Retention(for_ns=1)})
    maintainer.turn()
    assert not stage.flow_lock.is_removed(ONE)
    monkeypatch.setattr(Sweeper, "scan", scan)
    maintainer._terms._next_s = 0.0
    maintainer.turn()
    assert stage.flow_lock.is_removed(ONE), "the next reading knows of its end"


def test_what_finds_no_room_in_the_table_is_told_of_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stage.begin(), stage.begin()
    first.batch(Open(OPEN), Extent(OPEN, b"a" * 100))
    first.close()
    second.batch(Extent(OPEN, b"b" * 100), Close(OPEN))
    second.mark(1)
    for segment in (first, second):
        stage.put(segment)
    maintainer = stage.make_maintainer({"data": Retention(for_ns=1)})
    with monkeypatch.context() as full:
        full.setattr(Tombstones, "room_count", 0)
        for _ in range(3):
            maintainer._terms._next_s = 0.0
            maintainer.turn()
    told = [
        fields
        for event, fields in maintainer.take_reports()
        if event is LogEvent.REMOVAL_TABLE_FULL
    ]
    assert [fields["segments"] for fields in told] == [1]
    assert stage.store.sweeper.blocked_count == 1
    assert stage.flow_lock.begin(OPEN), "it was not claimed"
    stage.flow_lock.end(OPEN)
    maintainer._terms._next_s = 0.0
    maintainer.turn()
    assert [event for event, _ in maintainer.take_reports()] == [LogEvent.SEGMENT_FREED]
    assert stage.store.sweeper.blocked_count == 0


def test_only_what_went_counts(stage: Stage) -> None:
    """The end comes before the first segment is given back."""
    stage.store.sweeper.stop()
    maintainer = stage.make_maintainer({"data": Retention(for_ns=1)})
    maintainer.turn()
    assert stage.store.sweeper.counts.flows["retention"] == 0
    assert not stage.flow_lock.is_removed(ONE)
    assert maintainer.take_reports() == []

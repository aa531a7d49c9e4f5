# SPDX-License-Identifier: Apache-2.0
"""Giving segments back together: more flows than the table holds, and a device that refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.errors import StoreError
from ingestd.store.format.segment import SegmentImage, SegmentState, Span
from ingestd.store.metadata.freed_record import FREED_OFFSETS, FREED_RECORD, Reclaimer, read_freed
from ingestd.store.metadata.tombstones import FLOWS_MAX, Tombstones
from ingestd.store.read.image import read_image
from ingestd.store.read.verify import verify_store
from ingestd.store.reclaim.candidates import GROUP_RANGES_MAX, ReclaimPlan, plan_reclaim
from ingestd.store.reclaim.deletion import remove_flows
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import MIB, Close, Extent, Open, StoreBuilder

KEPT = b"\xee" * 16
FLOWS_OF_BATCH = 100


def ids(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(1, count + 1)]


def a_segment(sequence: int, flows: list[bytes], *, is_open: bool = False) -> SegmentImage:
    spans = [Span(flow, sequence, sequence, 0, 1, 1, 4, 4, 0, 0, True) for flow in flows]
    state = SegmentState.OPEN if is_open else SegmentState.CLOSED
    return SegmentImage(index=sequence, state=state, sequence=sequence, spans=spans)


def plan(segments: list[SegmentImage], expired: list[bytes], room: int) -> ReclaimPlan:
    return plan_reclaim(segments, removed=set(), expired=set(expired), room_count=room)


@pytest.mark.parametrize("more", [0, 1, 5000])
def test_flows_that_end_together_need_no_room(more: int) -> None:
    flows = ids(FLOWS_MAX + more)
    done = plan([a_segment(number, flows) for number in (1, 2, 3)], flows, FLOWS_MAX)
    assert len(done.segments) == 3
    assert done.removals == ()
    assert [group.ranges for group in done.groups] == [((1, 3),)]
    assert done.blocked_count == 0


def test_only_what_lies_in_segments_that_stay_needs_room() -> None:
    flows = ids(10)
    segments = [a_segment(1, flows), a_segment(2, flows), a_segment(3, flows[:2], is_open=True)]
    assert plan(segments, flows, 1).blocked_count == 2
    done = plan(segments, flows, 2)
    assert (done.removals, len(done.segments)) == (tuple(flows[:2]), 2)


def test_a_run_is_cut_where_the_room_suffices() -> None:
    """The last segment has too many flows that lie in one that stays as well."""
    flows = ids(10)
    segments = [
        a_segment(1, flows[:4]),
        a_segment(2, flows[:5]),
        a_segment(3, flows[4:]),
        a_segment(4, flows[5:], is_open=True),
    ]
    done = plan(segments, flows, 1)
    assert [item.segment.sequence for item in done.segments] == [1, 2]
    assert (done.removals, done.blocked_count) == ((flows[4],), 1)


def test_a_range_has_no_sequence_that_was_not_seen() -> None:
    """It may be one that is granted to a worker, which has not begun it."""
    flows = ids(2)
    done = plan([a_segment(number, flows) for number in (1, 2, 4)], flows, 0)
    assert [group.ranges for group in done.groups] == [((1, 2), (4, 4))]


def test_too_many_ranges_stay_and_are_counted() -> None:
    flows = ids(1)
    numbers = range(1, 2 * GROUP_RANGES_MAX + 4, 2)
    done = plan([a_segment(number, flows) for number in numbers], flows, 0)
    assert (done.groups, done.blocked_count) == ((), GROUP_RANGES_MAX + 2)
    done = plan([a_segment(number, flows) for number in numbers], flows, 1)
    assert (len(done.segments), done.removals) == (GROUP_RANGES_MAX + 2, tuple(flows))


# --- In a store -------------------------------------------------------------------------


def a_store(path: Path, flows: list[bytes]) -> Path:
    """Three segments that each hold something of all flows, and one of a flow that is kept."""
    builder = StoreBuilder(segment_count=5)
    for number in range(3):
        segment = builder.segment(number)
        for at in range(0, len(flows), FLOWS_OF_BATCH):
            some = flows[at : at + FLOWS_OF_BATCH]
            begins = [Open(flow) for flow in some if number == 0]
            ends = [Close(flow) for flow in some if number == 2]
            segment.batch(*begins, *(Extent(flow, b"x") for flow in some), *ends)
        segment.close()
    segment = builder.segment(3)
    segment.batch(Open(KEPT), Extent(KEPT, b"kept"), Close(KEPT))
    segment.close()
    return builder.save(path)


def shown(path: Path) -> tuple[set[bytes], list[str]]:
    with read_image(str(path)) as image:
        return {f.flow_id for f in image.flows}, [str(s.state) for s in image.segments]


def test_more_flows_than_the_table_holds_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows = ids(300)
    path = a_store(tmp_path / "store.img", flows)
    monkeypatch.setattr(Tombstones, "room_count", 0)
    with open_for_serving(str(path)) as store:
        free_count = store.segments_free_count
        swept = store.sweeper.sweep(store.sweeper.scan(), frozenset(flows))
        assert (len(swept.freed), swept.blocked_count) == (3, 0)
        assert swept.gone == frozenset(flows)
        assert store.sweeper.counts.flows == {"retention": len(flows)}
        assert store.segments_free_count == free_count + 3
        assert store.sweeper.removed == frozenset()
    assert shown(path) == ({KEPT}, ["free", "free", "free", "closed", "free"])


def test_all_their_segments_are_given_back_at_the_real_limit(tmp_path: Path) -> None:
    """One more than finds room; each segment has as many records as a writer's footer may have."""
    flows = ids(FLOWS_MAX + 1)
    half = len(flows) // 2
    builder = StoreBuilder(segment_count=7, segment_bytes=16 * MIB)
    for number, some in enumerate((flows[:half], flows[half:], flows, flows[:half], flows[half:])):
        segment = builder.segment(number)
        for at in range(0, len(some), FLOWS_OF_BATCH):
            part = some[at : at + FLOWS_OF_BATCH]
            begins = [Open(flow) for flow in part if number < 2]
            ends = [Close(flow) for flow in part if number > 2]
            segment.batch(*begins, *(Extent(flow, b"x") for flow in part), *ends)
        segment.close()
    path = builder.save(tmp_path / "store.img")
    with open_for_serving(str(path)) as store:
        swept = store.sweeper.sweep(store.sweeper.scan(), frozenset(flows))
        assert (len(swept.freed), swept.blocked_count) == (5, 0)
        assert swept.gone == frozenset(flows)
    assert shown(path) == (set(), 7 * ["free"])


def _open(path: Path) -> None:
    open_for_serving(str(path)).close()


def _remove(path: Path) -> None:
    remove_flows(str(path), [KEPT.hex()])


@pytest.mark.parametrize("then", [_open, _remove])
def test_what_was_cut_off_is_done_by_the_next_who_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: Callable[[Path], None]
) -> None:
    flows = ids(20)
    path = a_store(tmp_path / "store.img", flows)
    monkeypatch.setattr(Tombstones, "room_count", 0)

    def refuse(*_: object, **__: object) -> None:
        raise StoreError("no power")

    with open_for_serving(str(path)) as store, monkeypatch.context() as cut_off:
        cut_off.setattr(Reclaimer, "reclaim", refuse)
        with pytest.raises(StoreError):
            store.sweeper.sweep(store.sweeper.scan(), frozenset(flows))
        assert store.sweeper.scan().half_freed == [0, 1, 2]
    assert shown(path) == ({KEPT}, ["free", "free", "free", "closed", "free"])
    assert verify_store(str(path)).findings == []
    monkeypatch.undo()
    then(path)
    for offset in FREED_OFFSETS:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(FREED_RECORD.size_bytes))
    assert shown(path)[0] <= {KEPT}, "their headers are gone, whatever the record says"


def test_the_record_names_what_went_for_those_who_read_it_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that has read some of the segments before they went shows none of their flows."""
    flows = ids(20)
    path = a_store(tmp_path / "store.img", flows)
    monkeypatch.setattr(Tombstones, "room_count", 0)
    with open_for_serving(str(path)) as store:
        before = store.sweeper.scan()
        store.sweeper.sweep(before, frozenset(flows))
        freed = read_freed(before.device, before.superblock)
        left = freed.without_reclaimed(before.segments)
    assert {s.sequence for s in left if s.state is not SegmentState.FREE} == {
        s.sequence for s in before.segments if KEPT in {span.flow for span in s.spans}
    }


def test_ranges_that_overlap_are_one(tmp_path: Path) -> None:
    """As after a device that refused, and a plan that was another one the next time."""
    path = a_store(tmp_path / "store.img", ids(1))
    with open_for_serving(str(path)) as store:
        reclaimer = store._reclaimer
        with reclaimer.mutex:
            reclaimer.announce([(5, 12)])
            reclaimer.announce([(7, 8), (20, 20)])
        image = store.sweeper.scan()
        freed = read_freed(image.device, image.superblock)
    assert freed.ranges == ((5, 12), (20, 20))
    given_up = [sequence for sequence in range(30) if freed.is_reclaimed(sequence)]
    assert given_up == [*range(5, 13), 20]


def test_what_was_not_ended_is_limited(tmp_path: Path) -> None:
    path = a_store(tmp_path / "store.img", ids(1))
    with open_for_serving(str(path)) as store, store._reclaimer.mutex:
        ranges = [(number, number) for number in itertools.islice(itertools.count(1, 2), 253)]
        with pytest.raises(StoreError, match="253 runs of segments"):
            store._reclaimer.announce(ranges)
        store._reclaimer.announce(ranges[:252])

# SPDX-License-Identifier: Apache-2.0
"""Removing flows: which segments may go, and power that fails at any write of it.

A failure of the second part names the seed that repeats it: INGESTD_TEST_SEED.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestd.store.format import layout
from ingestd.store.format.segment import SegmentImage, SegmentState, Span
from ingestd.store.metadata.tombstones import Tombstones
from ingestd.store.read import image
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import DAMAGE, verify_store
from ingestd.store.reclaim.candidates import REASON_REMOVED, flows_gone, plan_reclaim
from ingestd.store.reclaim.deletion import remove_flows
from ingestd.store.reclaim.presence import flows_of
from ingestd.store.serve.served_store import open_for_serving
from support.crash_disk import Disk
from support.crash_store import Serial, Store, store_in_memory
from support.recorded_writes import RecordedWrites
from support.store_builder import Close, Extent, Item, Open, StoreBuilder
from support.store_histories import flow_id

FLOWS = [flow_id(number) for number in range(8)]
SETS = st.sets(st.sampled_from(FLOWS))


def _segment(index: int, state: SegmentState, flows: set[bytes]) -> SegmentImage:
    spans = [Span(flow, index, index + 1, 0, 1, 1, 4, 4, 0, 0, True) for flow in sorted(flows)]
    return SegmentImage(index=index, state=state, sequence=index + 1, spans=spans)


STATES = st.sampled_from([SegmentState.CLOSED] * 4 + [SegmentState.OPEN, SegmentState.DAMAGED])
SEGMENTS = st.lists(st.tuples(STATES, SETS), max_size=8).map(
    lambda drawn: [_segment(number, *item) for number, item in enumerate(drawn)]
)


@settings(max_examples=400, deadline=None)
@given(segments=SEGMENTS, removed=SETS, expired=SETS, room=st.integers(0, 4))
def test_what_may_go(
    segments: list[SegmentImage], removed: set[bytes], expired: set[bytes], room: int
) -> None:
    plan = plan_reclaim(segments, removed=removed, expired=expired, room_count=room)
    assert len(plan.removals) <= room
    assert not set(plan.removals) & removed
    assert set(plan.removals) <= expired
    freed = {item.segment.index for item in plan.segments}
    left = Counter(flow for s in segments if s.index not in freed for flow in flows_of(s))
    for item in plan.segments:
        assert item.segment.state is SegmentState.CLOSED
        assert item.flows == flows_of(item.segment) <= removed | expired
        assert (item.reason == REASON_REMOVED) == (item.flows <= removed)
        # Nothing is shown of a flow that lost a part.
        assert all(not left[f] or f in removed or f in plan.removals for f in item.flows)
    order = [item.segment.sequence for item in plan.segments]
    assert order == sorted(order)
    # With room for all, whatever may go goes.
    all_of_it = plan_reclaim(segments, removed=removed, expired=expired, room_count=len(FLOWS))
    assert {item.segment.index for item in all_of_it.segments} == {
        s.index
        for s in segments
        if s.state is SegmentState.CLOSED and flows_of(s) and flows_of(s) <= removed | expired
    }
    gone = flows_gone(segments, freed, removed)
    assert gone == {flow for flow in removed if not left[flow]}


# --- Power failures ---------------------------------------------------------------------

ROUNDS = 6
POINTS_OF_ROUND = 5
SEGMENT_COUNT = 5
Shown = dict[bytes, tuple[str, int, str | None, bytes]]


@dataclass
class Removal:
    """One removal, recorded write by write, on a store of random flows."""

    store: Store
    before: bytes
    all_flows: Shown
    wanted: set[bytes]
    writes: RecordedWrites
    expires: bool


def _fill(store: Store, choose: random.Random) -> None:
    """Flows of random sizes over all segments; the last segment may be open."""
    builder = StoreBuilder(
        segment_count=SEGMENT_COUNT,
        block_bytes=store.block_bytes,
        store_uuid=store.store_uuid,
        fill=bytes(store.bytes) if choose.randrange(2) else None,
    )
    checksum = store.checksum == "crc32c"
    ended: set[bytes] = set()
    for number, index in enumerate(choose.sample(range(SEGMENT_COUNT), SEGMENT_COUNT)):
        segment = builder.segment(index)
        segment.batch(*_whole(choose.randbytes(16), choose), checksum=checksum)
        for flow in choose.sample(FLOWS, choose.randint(1, 3)):
            if flow in ended:
                continue
            items = [] if flow in builder.flows else [Open(flow)]
            data = Extent(flow, choose.randbytes(choose.randint(1, 30_000)))
            last = [Close(flow)] if choose.randrange(3) == 0 else []
            segment.batch(*items, data, *last, checksum=checksum)
            ended.update(flow for _ in last)
        segment.mark(segment.batch_count)
        if number < SEGMENT_COUNT - 1 or choose.randrange(2):
            segment.close()
    store.bytes[:] = builder.image


def _whole(flow: bytes, choose: random.Random) -> list[Item]:
    return [Open(flow), Extent(flow, choose.randbytes(100)), Close(flow)]


def _shown(store: Store) -> Shown:
    with read_image(str(store.path)) as found:
        return {
            flow.flow_id: (
                flow.state,
                flow.bytes,
                flow.checksum,
                b"".join(read_flow(found, flow)),
            )
            for flow in found.flows
        }


def _remove(store: Store, flows: set[bytes]) -> None:
    report = remove_flows(str(store.path), [flow.hex() for flow in sorted(flows)])
    assert [outcome.error for outcome in report.outcomes] == [None] * len(flows)


def _expire(store: Store, flows: set[bytes], writes: RecordedWrites | None = None) -> None:
    """Do what a daemon does with flows past their term."""
    with (
        open_for_serving(str(store.path)) as served,
        nullcontext() if writes is None else (writes.recorded()),
    ):
        swept = served.sweeper.sweep(served.sweeper.scan(), frozenset(flows))
        served.sweeper.drop(swept.gone)


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
@pytest.mark.parametrize(("expires", "has_room"), [(False, True), (True, True), (True, False)])
def test_power_fails_while_flows_go(
    seed: int, checksum: str, expires: bool, has_room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room in the table all flows are past their term, and go at once."""
    if not has_room:
        monkeypatch.setattr(Tombstones, "room_count", 0)
    monkeypatch.setattr(image, "ThreadPoolExecutor", Serial)
    choose = random.Random(f"{seed} {checksum} {expires} {has_room}")
    hidden_count = 0
    for _ in range(ROUNDS):
        block_bytes = choose.choice((4096, 4096, 16384))
        with store_in_memory(checksum, block_bytes, SEGMENT_COUNT) as store:
            store.set_up(choose.randbytes(16), 1, None)
            _fill(store, choose)
            with open_for_serving(str(store.path)):
                pass
            before, all_flows = bytes(store.bytes), _shown(store)
            count = choose.randint(1, len(all_flows)) if has_room else len(all_flows)
            wanted = set(choose.sample(sorted(all_flows), count))
            writes = RecordedWrites()
            if expires:
                _expire(store, wanted, writes)
            else:
                with writes.recorded():
                    _remove(store, wanted)
            removal = Removal(store, before, all_flows, wanted, writes, expires)
            for _ in range(POINTS_OF_ROUND):
                hidden_count += _crash(removal, choose)
    assert hidden_count, "no power failure came behind a removal"


def _crash(removal: Removal, choose: random.Random) -> int:
    """Fail at one point, look, open, look, resume the removal; return how many were hidden."""
    store, writes = removal.store, removal.writes
    # Now and then behind all of it, when the command has said that it is done.
    end = choose.choice((choose.randrange(len(writes.done) + 1), len(writes.done)))
    disk = Disk(bytearray(removal.before))
    writes.replay(disk, end)
    disk.lose_power(choose, store.bytes)
    shown = _shown(store)
    kept = {flow: what for flow, what in removal.all_flows.items() if flow not in removal.wanted}
    assert {flow: what for flow, what in shown.items() if flow in kept} == kept
    assert all(what == removal.all_flows[flow] for flow, what in shown.items())
    # The first flush of a command is of what was there before, the next of the removal.
    is_done = end == len(writes.done) or None in writes.done[2:end]
    if not removal.expires and is_done:
        assert not shown.keys() & removal.wanted, "they were removed durably"
    assert [f for f in verify_store(str(store.path)).findings if f.severity == DAMAGE] == []
    with open_for_serving(str(store.path)) as served:
        assert (served.recovery.segments_damaged, served.recovery.warnings) == (0, ())
        assert {flow.flow_id for flow in served.take_recovered_flows()} == set(shown)
    assert _shown(store) == shown
    again = bytes(store.bytes[layout.SEGMENTS_OFFSET :])
    with open_for_serving(str(store.path)):
        pass
    assert bytes(store.bytes[layout.SEGMENTS_OFFSET :]) == again
    # What was cut off is resumed: nothing is left that need not be.
    left = removal.wanted & set(shown)
    if removal.expires:
        _expire(store, removal.wanted)
    elif left:
        _remove(store, left)
    else:
        _sweep(store)
    after = _shown(store)
    assert {flow: what for flow, what in after.items() if flow in kept} == kept
    assert after.keys() <= shown.keys()
    assert removal.expires or after.keys() == kept.keys()
    with read_image(str(store.path)) as found:
        for segment in found.segments:
            assert segment.state is SegmentState.FREE or flows_of(segment) & set(kept)
        assert {flow.flow_id for flow in found.removed} == {
            flow for segment in found.segments for flow in flows_of(segment)
        } - set(after)
    return len(removal.wanted) - len(left)


def _sweep(store: Store) -> None:
    """Do what a daemon does when it has started, no flow being removed any more."""
    with open_for_serving(str(store.path)) as served:
        sweeper = served.sweeper
        found = sweeper.scan()
        free_count = served.segments_free_count
        swept = sweeper.sweep(found)
        assert served.segments_free_count == free_count + len(swept.freed)
        sweeper.drop(swept.gone)

# SPDX-License-Identifier: Apache-2.0
"""Restarts leave segments that hold little: the opening puts them together, and loses nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.store.format import layout
from ingestd.store.format.segment import SegmentState
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.crash_disk import Disk
from support.recorded_writes import RecordedWrites
from support.store_builder import MIB, Close, Extent, Item, Open, StoreBuilder

Shown = dict[bytes, tuple[str, bytes, str | None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.store"


def flow_id(number: int) -> bytes:
    return bytes([number]) * 16


def life(builder: StoreBuilder, index: int, *items: Item, checksum: bool = True) -> None:
    """What one life of a daemon leaves: a segment with a batch or two, closed."""
    segment = builder.segment(index)
    half = len(items) // 2
    for part in (items[:half], items[half:]):
        if part:
            segment.batch(*part, checksum=checksum)
    segment.close()
    builder.raise_generation()


def sealed_flow(number: int, size: int = 1) -> tuple[Item, ...]:
    data = [Extent(flow_id(number), bytes([number]) * size)] if size else []
    return (Open(flow_id(number), name=f"run {number}"), *data, Close(flow_id(number)))


def restarted(lives: int = 5, *, checksum: bool = True) -> StoreBuilder:
    builder = StoreBuilder(segment_count=8)
    for number in range(lives):
        size = (1, 70_000, 0, 5000, 12)[number % 5]
        life(builder, number, *sealed_flow(number + 1, size), checksum=checksum)
    return builder


def shown(path: Path) -> Shown:
    with read_image(str(path)) as image:
        assert not image.warnings
        return {
            flow.flow_id: (flow.state, b"".join(read_flow(image, flow)), flow.checksum)
            for flow in image.flows
        }


def states(path: Path) -> list[str]:
    with read_image(str(path)) as image:
        return [str(segment.state) for segment in image.segments]


@pytest.mark.parametrize("checksum", [True, False])
def test_small_segments_become_one(path: Path, checksum: bool) -> None:
    restarted(checksum=checksum).save(path)
    before = shown(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 5
        assert store.recovery.segments_closed == 1
        assert store.segments_free_count == 7
        taken = store.take_segment()
        assert taken is not None
        assert taken[1] == layout.sequence_of(store.superblock.generation, 2)
    assert shown(path) == before
    assert states(path).count("closed") == 1
    assert not verify_store(str(path)).findings


def test_a_thousand_restarts_take_few_segments(path: Path) -> None:
    """Each with a flow of a byte; the store has eight segments."""
    builder = StoreBuilder(segment_count=8)
    for number in range(60):
        if number:
            with open_for_serving(str(path)) as store:
                free = store.take_segment()
                generation = store.superblock.generation
            assert free is not None
            builder.image[:] = path.read_bytes()
            builder.generation, builder.counter = generation, 1
            builder.write_superblocks()
        life_index = 0 if not number else free[0]
        segment = builder.segment(life_index)
        segment.batch(*sealed_flow(number + 1))
        segment.close()
        builder.save(path)
    assert len(shown(path)) == 60
    assert states(path).count("closed") <= 4


def test_the_next_opening_changes_nothing_more(path: Path) -> None:
    restarted().save(path)
    before = shown(path)
    for _ in range(3):
        with open_for_serving(str(path)) as store:
            assert store.segments_free_count == 7
    assert shown(path) == before


def interrupted(builder: StoreBuilder) -> None:
    close = Close(flow_id(9), layout.FLOW_STATE_INTERRUPTED, layout.CLOSE_REASON_PEER)
    life(builder, 5, Open(flow_id(9)), Extent(flow_id(9), b"x"), close)


def without_end(builder: StoreBuilder) -> None:
    life(builder, 5, Open(flow_id(9)), Extent(flow_id(9), b"x"))


def in_two_segments(builder: StoreBuilder) -> None:
    life(builder, 5, Open(flow_id(9)), Extent(flow_id(9), b"x" * 100))
    builder.generation -= 1  # one life, two segments
    builder.counter = 1
    life(builder, 6, Extent(flow_id(9), b"y" * 100), Close(flow_id(9)))


def large(builder: StoreBuilder) -> None:
    life(builder, 5, *sealed_flow(9, 600_000))


@pytest.mark.parametrize("leave", [interrupted, without_end, in_two_segments, large])
def test_what_is_not_sealed_small_and_whole_ends_the_run(
    path: Path, leave: Callable[[StoreBuilder], None]
) -> None:
    """Not even what lies before it is touched: the order of segments is that of flows."""
    builder = restarted()
    leave(builder)
    builder.save(path)
    before = shown(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 0
    assert shown(path) == before


def test_with_a_damaged_segment_nothing_is_touched(path: Path) -> None:
    builder = restarted()
    builder.image[layout.SEGMENTS_OFFSET + 100] ^= 1
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 0


def test_damaged_payload_is_not_copied(path: Path) -> None:
    """The copy would be as damaged, and the original's place might be looked for in vain."""
    builder = restarted()
    at = builder.image.find(b"\x02" * 50_000)
    builder.image[at + 100] ^= 1
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 0
    assert states(path).count("closed") == 5
    assert verify_store(str(path)).is_damaged


def test_a_full_store_is_left_as_it_is(path: Path) -> None:
    builder = StoreBuilder(segment_count=4)
    for number in range(4):
        life(builder, number, *sealed_flow(number + 1))
    builder.save(path)
    before = shown(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 0
    assert shown(path) == before


@pytest.mark.parametrize("checksum", [True, False])
def test_every_power_failure(path: Path, checksum: bool, tmp_path: Path) -> None:
    """Whenever the power fails while segments are put together, each flow is shown once, whole."""
    builder = restarted(checksum=checksum)
    chance = random.Random(20261126)
    for index in (5, 6, 7):  # free, but what a previous use left there is not all zeros
        base = layout.SEGMENTS_OFFSET + index * builder.segment_bytes
        builder.image[base + 512 : base + 32768] = chance.randbytes(32768 - 512)
    start = bytes(builder.image)
    path.write_bytes(start)
    before = shown(path)
    writes = RecordedWrites()
    with writes.recorded(), open_for_serving(str(path)):
        pass
    assert shown(path) == before
    after = tmp_path / "after.store"
    kept = 0
    for end in range(len(writes.done) + 1):
        for _ in range(4):
            disk = Disk(bytearray(start))
            writes.replay(disk, end)
            image = bytearray(start)
            disk.lose_power(chance, memoryview(image))
            after.write_bytes(image)
            assert shown(after) == before, f"{end} of {len(writes.done)} writes"
            assert not verify_store(str(after)).is_damaged
            with open_for_serving(str(after)) as store:
                assert store.segments_free_count == 7
            assert shown(after) == before
            kept += states(after).count("closed")
    assert kept == 4 * (len(writes.done) + 1)


def test_segments_of_a_megabyte_bound_it(path: Path) -> None:
    """Half a segment is the most that comes together, so that the rest of it is a copy's."""
    builder = StoreBuilder(segment_count=8)
    for number in range(7):
        life(builder, number, *sealed_flow(number + 1, 100_000))
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 4
        assert store.superblock.segment_bytes == MIB
    with read_image(str(path)) as image:
        assert sum(s.state is SegmentState.CLOSED for s in image.segments) == 4


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_a_few_are_left_as_they_are(path: Path, lives: int) -> None:
    restarted(lives).save(path)
    before = path.read_bytes()[layout.SEGMENTS_OFFSET :]
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_compacted == 0
    assert path.read_bytes()[layout.SEGMENTS_OFFSET :] == before

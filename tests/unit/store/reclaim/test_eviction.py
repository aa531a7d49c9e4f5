# SPDX-License-Identifier: Apache-2.0
"""Evicting the oldest segments: which, what is left of their flows, and every crash."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from ingestd.errors import StoreError, UsageError
from ingestd.store.device.device import Device
from ingestd.store.metadata.freed_record import FREED_OFFSETS, FREED_RECORD, read_freed
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import Close, Extent, Open, SegmentWriter, StoreBuilder

FLOW = b"\xab" * 16
OTHER = b"\xcd" * 16
SEGMENTS = 12
PIECE = 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


def full(*, checksum: bool = True) -> StoreBuilder:
    """A store without a free segment: a flow through all of them, another in the first."""
    builder = StoreBuilder(segment_count=SEGMENTS)
    for number in range(SEGMENTS):
        segment = builder.segment(SEGMENTS - 1 - number)
        if number == 0:
            segment.batch(
                Open(OTHER), Extent(OTHER, b"o" * 100), Close(OTHER), Open(FLOW), checksum=checksum
            )
        segment.batch(Extent(FLOW, bytes([number]) * PIECE), checksum=checksum)
        if number == SEGMENTS - 1:
            segment.batch(Close(FLOW), checksum=checksum)
        segment.close()
    return builder


def begin(path: Path, builder: StoreBuilder, index: int, sequence: int) -> None:
    """Write the header that a worker writes into a segment that it was granted."""
    builder.generation, builder.counter = sequence >> 32, (sequence & 0xFFFFFFFF) - 1
    writer = builder.segment(index)
    assert writer.sequence == sequence
    with path.open("r+b") as file:
        file.seek(writer.base)
        file.write(builder.image[writer.base : writer.base + builder.block_bytes])


def test_the_oldest_goes_first_and_the_last_stays(path: Path) -> None:
    full().save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store.is_overwriting
        grants = [store.take_segment() for _ in range(SEGMENTS)]
        indexes = [grant[0] for grant in grants if grant is not None]
        assert indexes == list(range(SEGMENTS - 1, 0, -1)), "by sequence, and one is kept"
        assert grants[-1] is None
        assert store.is_overwriting, "one more when another is closed"
        assert store.overwritten == (SEGMENTS - 1, (SEGMENTS - 1) * PIECE + 100)
        news = store.take_overwritten()
        assert news[0].flows == (OTHER, FLOW)
        assert [item.segment_index for item in news] == indexes
        assert store.take_overwritten() == []


def test_without_it_a_full_store_stays_full(path: Path) -> None:
    before = full().save(path).read_bytes()
    with open_for_serving(str(path)) as store:
        assert store.take_segment() is None
        assert not store.is_overwriting
        assert store.overwritten == (0, 0)
    assert path.read_bytes()[1 << 20 :] == before[1 << 20 :]


def test_a_granted_segment_goes_only_once_it_has_its_footer(path: Path) -> None:
    builder = full()
    builder.save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        taken = [store.take_segment() for _ in range(SEGMENTS - 1)]
        assert store.take_segment() is None
        second = taken[1]
        assert second is not None
        builder.generation, builder.counter = second[1] >> 32, (second[1] & 0xFFFFFFFF) - 1
        segment = builder.segment(second[0])
        segment.batch(Open(OTHER), Extent(OTHER, b"n" * 10))
        segment.close()
        _put(path, segment)
        grant = store.take_segment()
        assert grant is not None
        # The one of the life before is older.
        assert grant[0] == 0
        assert store.take_segment() is None, "the one that was closed now is the last"


def _put(path: Path, segment: SegmentWriter) -> None:
    store = segment.store
    with path.open("r+b") as file:
        file.seek(segment.base)
        file.write(store.image[segment.base : segment.base + store.segment_bytes])


@pytest.mark.parametrize("checksum", [True, False])
def test_a_flow_without_its_head(path: Path, checksum: bool) -> None:
    builder = full(checksum=checksum)
    builder.save(path)
    data = bytes(builder.flows[FLOW].data)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        for _ in range(3):
            assert store.take_segment() is not None
    with read_image(str(path)) as image:
        assert [flow.flow_id for flow in image.flows] == [FLOW], "nothing is left of the other"
        flow = image.flows[0]
        shown = flow.as_dict()
        assert (shown["first_offset"], shown["head_overwritten"]) == (3 * PIECE, True)
        assert (flow.state, flow.bytes, flow.durable_bytes) == ("sealed", len(data), len(data))
        assert (flow.checksum is not None) == checksum, "the checksum of all that there was"
        assert b"".join(read_flow(image, flow)) == data[3 * PIECE :]
        assert b"".join(read_flow(image, flow, 3 * PIECE + 7, 9000)) == data[3 * PIECE + 7 :][:9000]
        with pytest.raises(UsageError, match=f"begins at byte {3 * PIECE}"):
            read_flow(image, flow, 3 * PIECE - 1)
    assert not verify_store(str(path)).findings


def test_a_flow_of_which_only_the_end_is_told(path: Path) -> None:
    builder = StoreBuilder(segment_count=SEGMENTS)
    for number in range(SEGMENTS):
        segment = builder.segment(number)
        if number == 0:
            segment.batch(Open(FLOW), Extent(FLOW, b"x" * PIECE))
        else:
            segment.batch(Extent(OTHER, b"o" * 10), *[Close(FLOW)] * (number == 1))
        segment.close()
    builder.save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store.take_segment() is not None
    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        assert (flow.state, flow.first_offset, flow.bytes) == ("sealed", PIECE, PIECE)
        assert b"".join(read_flow(image, flow)) == b""
    assert not verify_store(str(path)).findings


def test_a_hole_that_nobody_made_on_purpose_stays_one(path: Path) -> None:
    builder = full()
    builder.image[builder.segment_bytes * SEGMENTS : (SEGMENTS + 1) * builder.segment_bytes] = (
        bytes(builder.segment_bytes)
    )
    builder.save(path)
    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        assert (flow.first_offset, flow.bytes) == (0, 0)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store.take_segment() is not None, "the free one"
        assert store.overwritten == (0, 0)
    with read_image(str(path)) as image:
        assert image.find(FLOW.hex()).bytes == 0


def test_an_open_record_without_its_bytes_is_a_loss(path: Path) -> None:
    """Were the bytes overwritten, oldest first, the record before them would be gone too."""
    builder = full()
    segment = builder.segment(SEGMENTS - 2)  # over the second: bytes from PIECE on are lost
    segment.batch(Extent(OTHER, b"z" * 10))
    segment.close()
    third = b"\x33" * 16
    builder.raise_generation()
    builder.flows.clear()
    later = builder.segment(0)
    later.batch(Open(third), Extent(third, b"q" * 10, at=50))
    later.close()
    builder.save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store.take_segment() is not None
    with read_image(str(path)) as image:
        flow = image.find(third.hex())
        assert (flow.first_offset, flow.bytes) == (0, 0)


def test_every_crash_while_a_segment_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the writes that no flush covers yet came through: old or free, no damage."""
    builder = full()
    builder.save(path)
    steps: list[tuple[int, bytes] | None] = []  # None: a flush
    write, sync = Device.write, Device.sync

    def noted_write(device: Device, offset: int, data: bytes) -> None:
        steps.append((offset, bytes(data)))
        write(device, offset, data)

    def noted_sync(device: Device) -> None:
        steps.append(None)
        sync(device)

    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        before = path.read_bytes()
        monkeypatch.setattr(Device, "write", noted_write)
        monkeypatch.setattr(Device, "sync", noted_sync)
        grant = store.take_segment()
        monkeypatch.undo()
    assert grant is not None
    # Granted and begun, but for the first batch.
    begin(path, builder, *grant)
    base = builder.segment_bytes * (1 + grant[0])
    header = path.read_bytes()[base : base + builder.block_bytes]
    steps.append((base, header))
    assert sum(step is None for step in steps) == 2
    count = 0
    for end in range(len(steps) + 1):
        durable = max((n for n in range(end) if steps[n] is None), default=-1) + 1
        loose = [step for step in steps[durable:end] if step is not None]
        for picked in itertools.product((False, True), repeat=len(loose)):
            kept = [step for step in steps[:durable] if step is not None]
            kept += [step for step, is_in in zip(loose, picked, strict=True) if is_in]
            _check_crash(path, before, kept)
            count += 1
    assert count >= len(steps)


def _check_crash(path: Path, before: bytes, kept: list[tuple[int, bytes]]) -> None:
    image = bytearray(before)
    for offset, data in kept:
        image[offset : offset + len(data)] = data
    path.write_bytes(image)
    assert not [f for f in verify_store(str(path)).findings if f.severity == "damage"]
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_damaged == 0
        flows = {flow.flow_id: flow for flow in store.take_recovered_flows()}
        assert flows[FLOW].bytes == SEGMENTS * PIECE
        assert flows[FLOW].first_offset in (0, PIECE)
        assert (OTHER in flows) == (flows[FLOW].first_offset == 0)
    assert not verify_store(str(path)).findings


def _refuse(*_: object) -> int:
    raise OSError(errno.EIO, "made up")


def test_a_flush_that_failed_ends_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full().save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store._recycler is not None
        store._recycler._clock = lambda: 1e9
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _refuse)
            assert store.take_segment() is None
        assert "cannot be flushed" in str(store.overwriting_error)
        store._recycler._clock = lambda: 2e9
        assert store.take_segment() is None, "it is not tried again"
        assert not store.is_overwriting
        assert store.overwritten == (0, 0)


@pytest.mark.fault("maintenance")
@pytest.mark.parametrize("refused_number", [0, 1], ids=["the record", "the header"])
def test_a_write_that_failed_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, refused_number: int
) -> None:
    """Also in the middle of giving a segment up: the same one goes then, and no other."""
    full().save(path)
    clock = [0.0]
    write, calls = os.pwritev, [0]

    def once(*arguments: Any) -> int:
        calls[0] += 1
        if calls[0] == refused_number + 1:
            _refuse()
        return write(*arguments)

    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store._recycler is not None
        store._recycler._clock = lambda: clock[0]
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", once)
            assert store.take_segment() is None
        assert store.overwriting_error is not None
        assert store.take_segment() is None, "the pause is not over"
        clock[0] += 1.5
        grant = store.take_segment()
        assert grant is not None
        assert grant[0] == SEGMENTS - 1, "the oldest"
        assert store.overwriting_error is None
        assert store.is_overwriting
        assert store.overwritten == (1, PIECE + 100)
    assert not verify_store(str(path)).findings


@pytest.mark.fault("maintenance")
def test_segments_that_cannot_be_read_are_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad sector in what was to go anyway must not make the store full."""
    builder = full()
    builder.save(path)
    clock = [0.0]
    with open_for_serving(str(path)) as store:
        base = store.superblock.segment_offset(SEGMENTS - 1)
        bad = (base, base + store.superblock.segment_bytes)
        read = os.preadv

        def of_a_bad_sector(fd: int, buffers: Any, offset: int) -> int:
            if bad[0] <= offset < bad[1]:
                _refuse()
            return read(fd, buffers, offset)

        store.overwrite_oldest(1)
        assert store._recycler is not None
        store._recycler._clock = lambda: clock[0]
        monkeypatch.setattr(os, "preadv", of_a_bad_sector)
        grant = store.take_segment()
        assert grant is not None
        assert grant[0] == SEGMENTS - 2, "the second oldest"
        assert store.overwriting_error is None
        monkeypatch.undo()
        clock[0] += 10_000.0
        grant = store.take_segment()
        assert grant is not None
        assert grant[0] == SEGMENTS - 1, "it can be read again"


def test_ahead_of_time_granting_waits_for_no_device(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full().save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        assert store.recycle_ahead(2) == 2
        assert store.recycle_ahead(2) == 0
        with monkeypatch.context() as patch, store._reclaimer.mutex:
            for call in ("preadv", "pwritev", "fsync"):
                patch.setattr(os, call, _refuse)
            assert store.take_segment() is not None
            assert store.take_segment() is not None
            assert store.take_segment() is None
        assert store.overwriting_error is None
        assert store.recycle_ahead(1) == 1


def test_what_another_gave_up_is_not_given_up_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maintenance may free what the device refused to evict; a worker has it then."""
    full().save(path)
    clock = [0.0]
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        recycler = store._recycler
        assert recycler is not None
        recycler._clock = lambda: clock[0]
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", _refuse)
            assert store.take_segment() is None
        half = recycler._half_evicted
        assert half is not None
        recycler.forget(half.index, half.sequence)
        clock[0] += 1.5
        grant = store.take_segment()
        assert grant is not None
        assert grant[0] != half.index


def test_too_few_segments(path: Path) -> None:
    full().save(path)
    with (
        open_for_serving(str(path)) as store,
        pytest.raises(StoreError, match="12 segments, and overwriting the oldest needs 18"),
    ):
        store.overwrite_oldest(2)


def test_the_record_survives_the_loss_of_a_copy(path: Path) -> None:
    full().save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        for _ in range(3):
            store.take_segment()
    whole = path.read_bytes()
    found = set()
    for offset in FREED_OFFSETS:
        path.write_bytes(whole[:offset] + b"\xff" * 4096 + whole[offset + 4096 :])
        with read_image(str(path)) as image:
            found.add(read_freed(image.device, image.superblock).segments_count)
            assert image.find(FLOW.hex()).first_offset == 3 * PIECE
    assert found == {2, 3}
    assert FREED_RECORD.size_bytes == 4096


def test_a_reader_is_told_what_happened_under_it(path: Path) -> None:
    full(checksum=False).save(path)
    with open_for_serving(str(path)) as store:
        store.overwrite_oldest(1)
        with read_image(str(path)) as image:
            assert image.served
            flow = image.find(FLOW.hex())
            assert store.take_segment() is not None
            with pytest.raises(StoreError, match="reclaimed while they were read"):
                b"".join(read_flow(image, flow))

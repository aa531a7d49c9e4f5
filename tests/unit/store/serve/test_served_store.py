# SPDX-License-Identifier: Apache-2.0
"""Opening a store for the daemon: the lock, the generation, the footers, and every crash."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingestd.errors import NotAStoreError, StoreBusyError, StoreDamagedError, StoreError
from ingestd.store.device.device import Device
from ingestd.store.format import layout
from ingestd.store.format.layout import sequence_of
from ingestd.store.format.segment import SegmentState
from ingestd.store.metadata.superblock import read_superblock
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.serve import served_store
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16
OTHER = b"\xcd" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


def crashed() -> StoreBuilder:
    """A store as a crash leaves it: closed, open, torn, and opened without use."""
    builder = StoreBuilder()
    first = builder.segment(0)
    first.batch(Open(FLOW, name="one"), Extent(FLOW, b"a" * 5000))
    first.close()
    second = builder.segment(1)
    second.batch(Extent(FLOW, b"b" * 5000), Close(FLOW), Open(OTHER), Extent(OTHER, b"c" * 3))
    second.batch(Extent(OTHER, b"d" * 9000), lost="payload_tail")
    builder.segment(2)
    return builder


def shown(path: Path) -> dict[bytes, tuple[str, bytes]]:
    with read_image(str(path)) as image:
        return {f.flow_id: (f.state, b"".join(read_flow(image, f))) for f in image.flows}


def test_it_raises_the_generation_durably(path: Path) -> None:
    StoreBuilder(generation=7).save(path)
    with open_for_serving(str(path)) as store:
        assert store.superblock.generation == 8
        assert fcntl.fcntl(store.fd, fcntl.F_GETFL) & os.O_DIRECT
        assert fcntl.fcntl(store.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert store.path == str(path)
    for offset in (0, layout.SUPERBLOCK_B_OFFSET):
        block = path.read_bytes()[offset : offset + 4096]
        assert layout.SUPERBLOCK.unpack(block).generation == 8
        assert layout.is_intact(block)


def test_only_one_may_serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_store, "HELD_WAIT_S", 0.3)
    StoreBuilder().save(path)
    with open_for_serving(str(path)) as store, read_image(str(path)) as image:
        assert image.served
        with pytest.raises(StoreBusyError, match="in use by another process"):
            open_for_serving(str(path))
        store.close()
        store.close()
        assert store.fd == -1
    with open_for_serving(str(path)):
        pass


def test_a_store_that_is_given_up_meanwhile_is_served(path: Path) -> None:
    """What holds it may be a process that is going away: said once, and waited for."""
    StoreBuilder().save(path)
    first = open_for_serving(str(path))
    told: list[float] = []

    def on_wait(wait_s: float) -> None:
        told.append(wait_s)
        timer.start()

    timer = threading.Timer(0.7, first.close)
    with open_for_serving(str(path), on_wait=on_wait) as store:
        assert first.fd == -1
        assert store.superblock.generation == 3
    timer.join()
    assert told == [served_store.HELD_WAIT_S]


def test_a_reader_that_asks_does_not_keep_the_daemon_out(path: Path) -> None:
    StoreBuilder().save(path)
    asking = os.open(path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    timer = threading.Timer(0.1, os.close, [asking])
    timer.start()
    try:
        told: list[float] = []
        with open_for_serving(str(path), on_wait=told.append) as store:
            assert store.superblock.generation == 2
        assert told == []
    finally:
        timer.join()


def test_segments_are_handed_out_once_and_in_order(path: Path) -> None:
    builder = StoreBuilder(segment_count=4)
    segment = builder.segment(1)
    segment.batch(Open(FLOW), Extent(FLOW, b"x"))
    segment.close()
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.segments_free_count == 3
        assert store.take_segment() == (0, sequence_of(2, 1))
        assert store.take_segment() == (2, sequence_of(2, 2))
        assert store.take_segment() == (3, sequence_of(2, 3))
        assert store.take_segment() is None
        assert store.segments_free_count == 0
    with open_for_serving(str(path)) as store:
        assert store.take_segment() == (0, sequence_of(3, 1)), "it was never written to"


def test_threads_get_different_segments(path: Path) -> None:
    StoreBuilder(segment_count=64).save(path)
    taken: list[tuple[int, int] | None] = []
    with open_for_serving(str(path)) as store:
        threads = [
            threading.Thread(target=lambda: taken.extend(store.take_segment() for _ in range(20)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    given = [pair for pair in taken if pair is not None]
    assert sorted(index for index, _ in given) == list(range(64))
    assert len({sequence for _, sequence in given}) == 64
    assert taken.count(None) == 16


def test_recovery_keeps_the_flows_and_writes_footers(path: Path) -> None:
    crashed().save(path)
    before = shown(path)
    assert before == {
        FLOW: ("sealed", b"a" * 5000 + b"b" * 5000),
        OTHER: ("interrupted", b"c" * 3),
    }
    with open_for_serving(str(path)) as store:
        found = store.recovery
        assert (found.segments_closed, found.segments_free) == (2, 2)
        assert (found.segments_recovered, found.segments_freed) == (1, 1)
        assert (found.flows, found.flows_interrupted, found.batches_dropped) == (2, 1, 1)
        assert found.seconds > 0
        assert found.warnings == ()
        assert store.take_segment() == (2, sequence_of(2, 1))
    assert shown(path) == before
    with read_image(str(path)) as image:
        assert image.segments[1].state is SegmentState.CLOSED
        assert image.segments[1].batch_count == 1
        assert all(flow.durable_bytes == flow.bytes for flow in image.flows)


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_what_no_flush_vouches_for_is_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, marked: int
) -> None:
    builder = StoreBuilder()
    segment = builder.segment(1)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 5000))
    segment.batch(Extent(FLOW, b"b" * 9000))
    if marked:
        segment.mark(marked)
    builder.save(path)
    stored, write, done = path.read_bytes(), Device.write, []

    def noted(device: Device, offset: int, data: layout.Bytes) -> None:
        done.append((offset, bytes(data)))
        write(device, offset, data)

    monkeypatch.setattr(Device, "write", noted)
    with open_for_serving(str(path)) as store:
        base, end = store.superblock.segment_offset(1), store.superblock.segment_offset(2)
    with read_image(str(path)) as image:
        batches_end = base + image.segments[1].batches_end
    again = [pair for pair in done if base <= pair[0] < batches_end]
    assert all(stored[offset : offset + len(data)] == data for offset, data in again)
    first, second = base + 4 * 4096, base + 7 * 4096
    wanted = {
        0: [(base, 4096), (first, batches_end - first)],
        1: [(second, batches_end - second)],
        2: [],
    }
    assert [(offset, len(data)) for offset, data in again] == wanted[marked]
    assert [offset for offset, _ in done[-1:]] == [end - 2 * 4096]  # the footer comes last


def test_a_recovered_footer_is_the_one_that_the_writer_would_have_made(tmp_path: Path) -> None:
    def fill(builder: StoreBuilder) -> None:
        segment = builder.segment(0)
        segment.batch(Open(FLOW), Open(OTHER), Extent(OTHER, b"q" * 700), Extent(FLOW, b"r"))
        segment.batch(Extent(FLOW, b"s" * 5000), Close(OTHER))
        segment.batch(Extent(FLOW, b"t"), Close(FLOW, layout.FLOW_STATE_INTERRUPTED))
        if builder.label:
            segment.close()

    images = []
    for label in ("closed", ""):
        builder = StoreBuilder(label=label)
        fill(builder)
        path = builder.save(tmp_path / f"{label}.img")
        with open_for_serving(str(path)), read_image(str(path)) as image:
            images.append(image.segments[0])
    closed, recovered = images
    assert closed.footer is not None
    assert recovered.footer is not None
    # Times differ, and so may the order of the spans.
    assert _timeless(recovered.footer) == _timeless(closed.footer)
    assert sorted(span.row() for span in recovered.spans) == sorted(
        span.row() for span in closed.spans
    )
    assert recovered.events == closed.events


def _timeless(footer: layout.SegmentFooterRow) -> layout.SegmentFooterRow:
    return footer._replace(closed_ns=0, crc32c=0, records_crc32c=0)


def test_damaged_segments_are_left_alone(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 100))
    segment.batch(Extent(FLOW, b"b" * 100), lost="header")
    segment.batch(Extent(FLOW, b"c" * 100), committed=2)
    closed = builder.segment(1)
    closed.batch(Open(OTHER), Extent(OTHER, b"d" * 100))
    closed.close()
    builder.image[closed.base + 20] ^= 1
    builder.save(path)
    before = path.read_bytes()
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_damaged == 2
        assert any("segment 0: batch 1 is damaged" in w for w in store.recovery.warnings)
        assert any("segment 1: its header is damaged" in w for w in store.recovery.warnings)
        assert store.take_segment() == (2, sequence_of(2, 1))
        assert store.take_segment() == (3, sequence_of(2, 2))
        assert store.take_segment() is None
    assert path.read_bytes()[layout.SEGMENTS_OFFSET :] == before[layout.SEGMENTS_OFFSET :]


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_header_that_was_overwritten_is_damage(path: Path, is_closed: bool) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 100))
    if is_closed:
        segment.close()
    else:
        segment.mark(1)
    builder.image[segment.base : segment.base + 4096] = b"somebody else's block".ljust(4096, b"x")
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.recovery.segments_damaged == 1
        assert store.take_segment() == (1, sequence_of(2, 1))


def test_a_torn_header_without_contents_is_free(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    builder.image[segment.base + 100] = 1
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.take_segment() == (0, sequence_of(2, 1))


def test_a_lost_superblock_is_mended_and_skips_a_generation(path: Path) -> None:
    """The lost copy may have been one ahead: its generation must not be given away again."""
    builder = StoreBuilder(generation=4)
    builder.image[50] ^= 0xFF
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.superblock.generation == 6
        assert "superblock A" in store.recovery.warnings[0]
    with read_image(str(path)) as image:
        assert image.warnings == []


@pytest.mark.parametrize("is_in_segment", [False, True])
def test_behind_the_last_generation_nothing_is_written(path: Path, is_in_segment: bool) -> None:
    """One more would be no generation that any reader takes: the store would be lost."""
    builder = crashed()
    builder.generation = layout.GENERATION_MAX
    if is_in_segment:
        builder.counter = 0
        builder.segment(3)
        builder.generation = 1
    builder.write_superblocks()
    before = builder.save(path).read_bytes()
    with pytest.raises(StoreDamagedError, match="generation 4294967295, after which there is"):
        open_for_serving(str(path))
    assert path.read_bytes() == before


def test_a_segment_ahead_of_the_superblock_raises_it_too(path: Path) -> None:
    builder = StoreBuilder(generation=9)
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"x"))
    builder.generation = 5
    builder.write_superblocks()
    builder.save(path)
    with open_for_serving(str(path)) as store:
        assert store.superblock.generation == 10


def test_what_is_refused(path: Path, tmp_path: Path) -> None:
    builder = StoreBuilder()
    builder.save(path)
    uuid = "11111111-1111-1111-1111-111111111111"
    with open_for_serving(str(path), expected_uuid=uuid.upper()):
        pass
    with pytest.raises(StoreError, match=f"is the store {uuid}.*expects 2222"):
        open_for_serving(str(path), expected_uuid="2222")
    os.truncate(path, builder.store_bytes - 4096)
    with pytest.raises(StoreDamagedError, match="restore its size"):
        open_for_serving(str(path))
    with pytest.raises(NotAStoreError, match="does not exist"):
        open_for_serving(str(tmp_path / "none"))
    with read_image(str(path)) as image:
        assert not image.served, "a refused opening must give its lock back"


class Crash(Exception):
    """The machine stops."""


@contextmanager
def crash_at(step: int, torn: bool) -> Iterator[list[str]]:
    """Stop at the step-th write or flush; `torn`: half of that write still reaches the device."""
    log: list[str] = []
    write, sync = Device.write, Device.sync

    def crashing_write(device: Device, offset: int, data: bytes) -> None:
        log.append("write")
        if len(log) > step:
            if torn and len(log) == step + 1:
                half = len(data) // 2
                old = device.read(offset, len(data))
                write(device, offset, bytes(data[:half]) + old[half:])
            raise Crash
        write(device, offset, data)

    def crashing_sync(device: Device) -> None:
        log.append("flush")
        if len(log) > step:
            raise Crash
        sync(device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "write", crashing_write)
        patch.setattr(Device, "sync", crashing_sync)
        yield log


@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_at_any_step_of_the_recovery_loses_nothing(path: Path, torn: bool) -> None:
    builder = crashed()
    builder.save(path)
    before = shown(path)
    with crash_at(10**6, torn) as log:
        open_for_serving(str(path)).close()
    steps = list(log)
    # Flush first, then who holds the store, then the superblocks one after the other; then
    # header and batch that nobody knows to be safe, then the segments.
    superblocks, again = ["write", "flush", "write", "flush"], ["write", "write", "flush"]
    assert steps == ["flush", "write", *superblocks, *again, "write", "write", "flush"]
    for step in range(len(steps)):
        builder.save(path)
        with crash_at(step, torn), pytest.raises(Crash):
            open_for_serving(str(path))
        assert shown(path) == before, step
        with open_for_serving(str(path)) as store:
            assert store.segments_free_count == 2, step
            generation = store.superblock.generation
        assert shown(path) == before, step
        with Device(str(path), os.open(path, os.O_RDONLY | os.O_DIRECT), is_block=False) as device:
            reading = read_superblock(device)
            assert (reading.superblock.generation, reading.warnings) == (generation, ())

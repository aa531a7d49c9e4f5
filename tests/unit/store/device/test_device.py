# SPDX-License-Identifier: Apache-2.0
"""Direct I/O on files and block devices: what is read, refused and reported."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd.errors import StoreBusyError, StoreDamagedError, StoreError
from ingestd.store.device.claim import is_claimed, take_claim
from ingestd.store.device.device import Device, aligned_memory
from ingestd.store.device.opening import open_device
from ingestd.store.format.layout import SEGMENTS_OFFSET
from ingestd.store.format.segment import SegmentState
from ingestd.store.read.image import read_image
from ingestd.store.read.verify import verify_store
from ingestd.store.serve import served_store
from ingestd.store.serve.served_store import open_for_serving
from support.loop import loop_device
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 10 blocks and 100 bytes each of whose bytes differs from its neighbours."""
    file = tmp_path / "file"
    file.write_bytes(bytes(index * 7 % 251 for index in range(41060)))
    return file


def test_any_range_can_be_read(path: Path) -> None:
    contents = path.read_bytes()
    with open_device(str(path)) as device:
        assert (device.size_bytes, device.align_bytes) == (41060, 4096)
        for offset in (0, 1, 4095, 4096, 5000, 40000, 41059, 41060, 50000):
            for size in (0, 1, 4096, 9999, 60000):
                assert device.read(offset, size) == contents[offset : offset + size]


def test_threads_read_with_memory_of_their_own(path: Path) -> None:
    contents = path.read_bytes()
    wrong: list[int] = []

    def read(first: int) -> None:
        for _ in range(200):
            if device.read(first, 3000) != contents[first : first + 3000]:
                wrong.append(first)

    with open_device(str(path)) as device:
        threads = [threading.Thread(target=read, args=(1000 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_writes_are_whole_blocks(path: Path) -> None:
    with open_device(str(path), write=True) as device:
        device.write(8192, b"q" * 4096)
        device.sync()
        assert device.read(8191, 4098)[1:-1] == b"q" * 4096
        for offset, size in ((1, 4096), (0, 100)):
            with pytest.raises(AssertionError):
                device.write(offset, bytes(size))


def test_memory_is_aligned_and_large_enough() -> None:
    for size in (1, 4096, 65537):
        memory = aligned_memory(size)
        assert len(memory) >= size
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert address % 4096 == 0


Failing = Callable[[int], None]


@pytest.fixture
def failing_reads(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """A function after whose call every read of the byte given fails, as of a bad sector."""
    preadv = os.preadv
    bad: list[int] = []

    def read(fd: int, buffers: list[memoryview], offset: int) -> int:
        if any(offset <= at < offset + len(buffers[0]) for at in bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    return bad.append


def test_a_bad_sector_costs_no_more_than_its_segment(
    tmp_path: Path, failing_reads: Failing
) -> None:
    builder = StoreBuilder()
    for index, flow in enumerate((FLOW, b"\xcd" * 16)):
        segment = builder.segment(index)
        segment.batch(Open(flow), Extent(flow, b"x" * 100), Close(flow))
        segment.close()
    store = str(builder.save(tmp_path / "store.img"))
    failing_reads(SEGMENTS_OFFSET + 100)
    with read_image(store) as image:
        assert [flow.flow_id for flow in image.flows] == [b"\xcd" * 16]
        assert image.segments[0].state is SegmentState.DAMAGED
        assert "cannot be read at byte 1048576: Input/output error" in image.warnings[0]
    assert any("Input/output error" in f.what for f in verify_store(store).findings)
    with open_for_serving(store) as served:
        assert served.take_segment() == (2, 2 << 32 | 1)


def test_a_bad_superblock_is_no_end(tmp_path: Path, failing_reads: Failing) -> None:
    store = str(StoreBuilder().save(tmp_path / "store.img"))
    failing_reads(0)
    with read_image(store) as image:
        assert "superblock A is not readable" in image.warnings[0]
    failing_reads(512 * 1024)
    with pytest.raises(StoreDamagedError, match="both of its superblocks"):
        read_image(store)


def test_a_device_that_refuses_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_device(str(path), write=True) as device:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", refuse)
            with pytest.raises(StoreError, match="cannot be written at byte 4096: No space left"):
                device.write(4096, bytes(4096))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(StoreError, match="cannot be flushed"):
                device.sync()


def test_who_may_not_open_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="Permission denied; run as a user who may"):
        open_device(str(path))


def test_the_lock_is_seen_and_given_back(path: Path) -> None:
    with open_device(str(path)) as one, open_device(str(path)) as other:
        assert not is_claimed(other)
        take_claim(one)
        assert is_claimed(other)
        with pytest.raises(StoreBusyError):
            take_claim(other)
        one.close()
        assert not is_claimed(other)
        take_claim(other)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device with a store of one sealed flow; skips where there is none to be had."""
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"x" * 100), Close(FLOW))
    with loop_device(tmp_path / "backing.img", builder.store_bytes) as device:
        device.write_bytes(builder.image)
        yield str(device)


@pytest.mark.needs_root
def test_a_block_device_is_served_exclusively(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_store, "HELD_WAIT_S", 0.3)
    with open_for_serving(loop) as store:
        assert store.recovery.segments_recovered == 1
        with read_image(loop) as image:
            assert (image.served, image.device.is_block) == (True, True)
            assert image.find("ab").state == "sealed"
        with pytest.raises(StoreBusyError, match="held by another process"):
            open_for_serving(loop)
        with pytest.raises(OSError, match="busy"):
            os.open(loop, os.O_RDWR | os.O_EXCL)
    holder = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(StoreBusyError, match="held by another process"):
            open_for_serving(loop)
    finally:
        os.close(holder)


@pytest.mark.needs_root
def test_a_block_device_that_is_given_up_meanwhile_is_served(loop: str) -> None:
    """Reported once, and not before it is clear that no reader holds it."""
    holder = os.open(loop, os.O_RDONLY | os.O_EXCL)
    timer = threading.Timer(0.3, os.close, [holder])
    told: list[float] = []

    def on_wait(wait_s: float) -> None:
        told.append(wait_s)
        timer.start()

    with open_for_serving(loop, on_wait=on_wait) as store:
        assert store.recovery.segments_recovered == 1
    timer.join()
    assert told == [served_store.HELD_WAIT_S]


def test_larger_logical_blocks_are_taken_from_the_device(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestd.store.device.device.logical_block_bytes", lambda _fd: 16384)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with Device(str(path), fd, is_block=True) as device:
        assert device.align_bytes == 16384
        assert device.read(20000, 10) == path.read_bytes()[20000:20010]
    monkeypatch.setattr("ingestd.store.device.device.logical_block_bytes", lambda _fd: 131072)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with pytest.raises(StoreError, match="blocks of 131072 bytes"):
            Device(str(path), fd, is_block=True)
    finally:
        os.close(fd)


def test_a_store_moved_to_larger_blocks_can_be_read_but_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"x" * 5000), Close(FLOW))
    segment.close()
    store = str(builder.save(tmp_path / "store.img"))
    monkeypatch.setattr("ingestd.store.device.device.direct_align_bytes", lambda *_: 16384)
    assert verify_store(store).findings == []
    with pytest.raises(StoreError, match="blocks of 16384 bytes and was formatted with 4096"):
        open_for_serving(store)

# SPDX-License-Identifier: Apache-2.0
"""The file or block device under a store: direct I/O, size, block, lock.

Invariants: everything is read and written with O_DIRECT through page-aligned
memory, so that the page cache neither shows old bytes nor keeps new ones from
the device; offsets and lengths given to the kernel are multiples of
`align_bytes`. A Device may be read by several threads at once: each has a
buffer of its own. Who may write is told by claim.py; readers never hold a lock for
longer than it takes to ask. No store is opened by a process whose output goes to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ingestd.errors import (
    NotAStoreError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
)
from ingestd.store.device.block_device import BlockDevice
from ingestd.store.device.claim import is_claimed, take_claim
from ingestd.store.device.holder import forget_holder, new_holder, write_holder
from ingestd.store.device.output_guard import refuse_streams
from ingestd.store.device.stacking import layers_of
from ingestd.store.format.layout import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Bytes, round_up

READ_BYTES_MAX: Final = 8 * 1024 * 1024
# A reader that asks whether the store is served holds a shared lock for a moment.
READER_WAIT_S: Final = 0.5
HELD_INTERVAL_S: Final = 0.025

_BLKSSZGET: Final = 0x1268  # linux/fs.h: logical block size of a block device
_PROBE_OFFSET: Final = BLOCK_BYTES_MAX


class Device:
    """An open file or block device of a store; close it, or use it as a context manager."""

    def __init__(self, path: str, fd: int, *, is_block: bool) -> None:
        self.path = path
        self.fd = fd
        self.is_block = is_block
        self.has_failed_flush = False
        self.size_bytes: int = os.lseek(fd, 0, os.SEEK_END)
        self.align_bytes = direct_align_bytes(path, fd, is_block)
        self.layers = layers_of(fd, path)
        self.claims: list[int] = []  # descriptors of what lies below, which close() closes
        self.token = b""  # of the holder record that this opening wrote
        self._buffers = threading.local()

    def close(self) -> None:
        """Close the file, and with it drop every lock on it; a second call does nothing."""
        forget_holder(self.token)
        while self.claims:
            os.close(self.claims.pop())
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fill(self, offset: int, memory: memoryview) -> int:
        """Read into page-aligned memory; returns the bytes read, fewer only at the device's end.

        Offset and length are multiples of `align_bytes`. Raises
        StoreDamagedError if the device cannot read.
        """
        assert offset % self.align_bytes == 0, offset
        assert len(memory) % self.align_bytes == 0, len(memory)
        done = 0
        while done < len(memory):
            try:
                count = os.preadv(self.fd, [memory[done:]], offset + done)
            except OSError as error:
                raise StoreDamagedError(
                    f"{self.path} cannot be read at byte {offset + done}: {error.strerror};"
                    " check the device's health and the kernel log"
                ) from None
            done += count
            # The end of a file: what comes behind an unaligned end is nothing.
            if count == 0 or count % self.align_bytes:
                break
        return done

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset`, however they lie; errors as of fill()."""
        assert 0 <= size <= READ_BYTES_MAX, size
        skipped = offset % self.align_bytes
        wanted = round_up(skipped + size, self.align_bytes)
        memory = self._buffer(wanted)[:wanted]
        done = self.fill(offset - skipped, memory)
        return bytes(memory[skipped : min(done, skipped + size)])

    def write(self, offset: int, data: Bytes) -> None:
        """Write whole blocks; raises StoreError if the device refuses."""
        assert offset % self.align_bytes == 0, offset
        assert len(data) % self.align_bytes == 0, len(data)
        for at in range(0, len(data), READ_BYTES_MAX):
            piece = data[at : at + READ_BYTES_MAX]
            buffer = self._buffer(len(piece))[: len(piece)]
            buffer[:] = piece
            self.write_aligned(offset + at, buffer)

    def write_aligned(self, offset: int, buffer: memoryview) -> None:
        """Write page-aligned memory; raises StoreError if the device refuses."""
        done = 0
        while done < len(buffer):
            try:
                done += os.pwritev(self.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise StoreError(
                    f"{self.path} cannot be written at byte {offset + done}: {error.strerror};"
                    " check the device's health, its free space and the kernel log"
                ) from None

    def sync(self) -> None:
        """Return when all that was written is on stable media; raises StoreError if not.

        Then `has_failed_flush` is set for good: what was written may be lost, and a
        later flush would not tell.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.has_failed_flush = True
            raise StoreError(
                f"{self.path} cannot be flushed: {error.strerror}; check the device's health"
            ) from None

    def lock(self) -> None:
        """Claim the store; raises StoreBusyError if somebody has it right now: open_locked()."""
        take_claim(self)

    def announce(self, store_uuid: bytes) -> None:
        """Tell in the store who holds it; lock() comes before. Raises StoreError."""
        self.token = new_holder()
        write_holder(self, store_uuid)

    def is_served(self) -> bool:
        """Tell whether a daemon holds the store right now, by whatever name of it."""
        return is_claimed(self)

    def _buffer(self, size: int) -> memoryview:
        """This thread's page-aligned memory, grown to at least `size` bytes."""
        held: memoryview | None = getattr(self._buffers, "view", None)
        if held is None or len(held) < size:
            held = aligned_memory(size)
            self._buffers.view = held
        return held


def aligned_memory(size: int) -> memoryview:
    """Return zeroed, page-aligned memory of at least `size` bytes."""
    return memoryview(mmap.mmap(-1, round_up(max(size, 1), BLOCK_BYTES_MAX)))


def open_device(path: str, *, write: bool = False, exclusive: bool = False) -> Device:
    """Open a store's file or block device for direct I/O.

    `exclusive` opens a block device with O_EXCL, which fails while it is
    mounted or otherwise claimed. Raises NotAStoreError, StoreBusyError or
    StoreError.
    """
    with _naming(path):
        mode = os.stat(path).st_mode  # noqa: PTH116 - the descriptor follows, not a Path
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise NotAStoreError(f"{path} is neither a block device nor a regular file")
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC
    if exclusive and stat.S_ISBLK(mode):
        flags |= os.O_EXCL
    with _naming(path):
        fd = os.open(path, flags)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(mode):
            raise StoreError(f"{path} was replaced while it was opened: try it again")
        device = Device(path, fd, is_block=stat.S_ISBLK(mode))
        refuse_streams(path, device.layers)
    except BaseException:
        os.close(fd)
        raise
    return device


def open_locked(
    path: str,
    *,
    wait_s: float = READER_WAIT_S,
    on_wait: Callable[[float], None] | None = None,
) -> Device:
    """Open a store for writing and lock it, so that nobody else writes to it.

    What is held is waited for, up to `wait_s`, but for a mount; `on_wait` is called once
    with that, as soon as it is more than a reader that holds it. Errors as of
    open_device(); StoreBusyError also if the lock is not given up.
    """
    started_s = time.monotonic()
    while True:
        try:
            return _try_locked(path)
        except StoreBusyError as error:
            waited_s = time.monotonic() - started_s
            if error.is_lasting or waited_s >= wait_s:
                raise
        if on_wait is not None and waited_s >= READER_WAIT_S:
            on_wait(wait_s)
            on_wait = None
        time.sleep(HELD_INTERVAL_S)


def _try_locked(path: str) -> Device:
    device = open_device(path, write=True, exclusive=True)
    try:
        device.lock()
    except BaseException:
        device.close()
        raise
    return device


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn what the kernel answers to an opening into a sentence about the store."""
    try:
        yield
    except ValueError:
        raise NotAStoreError(f"{path!r} is not a path") from None
    except OSError as error:
        raise _opening_error(path, error) from None


def _opening_error(path: str, error: OSError) -> StoreError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
        return NotAStoreError(
            f"{path} does not exist: check the path, or make a store there with: ingestd format"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{path} cannot be opened: {error.strerror};"
            " run as a user who may, or change its owner or mode"
        )
    if error.errno == errno.EBUSY and (by := _mounts(path)):
        return StoreBusyError(
            f"{path} is mounted on {', '.join(by)}: unmount it first", is_lasting=True
        )
    if error.errno in (errno.EBUSY, errno.ETXTBSY):
        return StoreBusyError(
            f"{path} is held by another process, a mount or a device made from it: release it first"
        )
    if error.errno == errno.EINVAL:
        return StoreError(
            f"the file system of {path} refuses direct I/O (O_DIRECT): put the store"
            " on a block device or on a file system such as ext4 or XFS"
        )
    return StoreError(f"{path} cannot be opened: {error.strerror}")


def _mounts(path: str) -> list[str]:
    with contextlib.suppress(OSError, StoreError):
        status = os.stat(path)  # noqa: PTH116 - as in open_device()
        if stat.S_ISBLK(status.st_mode):
            return BlockDevice(status.st_rdev).mounts()
    return []


def logical_block_bytes(fd: int) -> int:
    """Return the logical block size of an open block device; sysfs tells the same number.

    The call also answers for a partition, which has no queue directory of its own.
    """
    answer = fcntl.ioctl(fd, _BLKSSZGET, bytes(4))
    return int(struct.unpack("i", answer)[0])


def direct_align_bytes(path: str, fd: int, is_block: bool) -> int:
    """Return the unit of offsets and lengths: at least BLOCK_BYTES_MIN, asked of the kernel.

    Raises StoreError where no size that the format allows can be read.
    """
    if is_block:
        align_bytes = max(BLOCK_BYTES_MIN, logical_block_bytes(fd))
        if align_bytes > BLOCK_BYTES_MAX:
            raise StoreError(
                f"{path} has logical blocks of {align_bytes} bytes; the format takes"
                f" at most {BLOCK_BYTES_MAX}"
            )
        return align_bytes
    # A file system answers for its own device by refusing what is not aligned.
    probe = aligned_memory(BLOCK_BYTES_MAX)
    align_bytes = BLOCK_BYTES_MIN
    while align_bytes <= BLOCK_BYTES_MAX:
        try:
            os.preadv(fd, [probe[:align_bytes]], _PROBE_OFFSET + align_bytes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                return align_bytes
            align_bytes *= 2
        else:
            return align_bytes
    raise StoreError(
        f"the file system of {path} refuses direct reads of {BLOCK_BYTES_MAX} bytes:"
        " put the store on a block device or on a file system such as ext4 or XFS"
    )

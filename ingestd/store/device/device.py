# SPDX-License-Identifier: Apache-2.0
"""The file or block device under a store: direct I/O, size, block.

Invariants: everything is read and written with O_DIRECT through page-aligned
memory, so that the page cache neither shows old bytes nor keeps new ones from
the device; offsets and lengths given to the kernel are multiples of
`align_bytes`. A Device may be read by several threads at once: each has a
buffer of its own. opening.py opens one, claim.py says who may write.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable
from typing import Final

from ingestd.errors import StoreDamagedError, StoreError
from ingestd.store.device.stacking import layers_of
from ingestd.store.format.layout import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Bytes, round_up

READ_BYTES_MAX: Final = 8 * 1024 * 1024

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
        self.on_close: list[Callable[[], None]] = []  # each called by every close()
        self._buffers = threading.local()

    def close(self) -> None:
        """Close the file, and with it drop every lock on it; a second call does nothing."""
        for callback in self.on_close:
            callback()
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
        later flush would not report it.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.has_failed_flush = True
            raise StoreError(
                f"{self.path} cannot be flushed: {error.strerror}; check the device's health"
            ) from None

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


def logical_block_bytes(fd: int) -> int:
    """Return the logical block size of an open block device; sysfs has the same number.

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

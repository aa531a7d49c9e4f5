# SPDX-License-Identifier: Apache-2.0
"""The bytes of a flow that may have to be sent again: kept in a bounded buffer, or read again.

Invariants:
 - Bytes from the durable offset to the end can always be had; a buffer that is
   full takes nothing more, it never grows.
 - The checksum covers each byte once, in order, however often it is sent.

Offsets are those of the flow. A BufferBacklog has two users: the writing thread
puts at its end, the flow's own thread views and releases; they share no byte,
and the lock of the flow's writer orders what they know of each other. A
FileBacklog belongs to the flow's own thread.
"""

from __future__ import annotations

import mmap
import os
from typing import Final, Protocol

from crc32c import crc32c

from ingestd.errors import ResourceError, SenderError, SystemCallError
from ingestd.sizes import full_size

READ_BYTES_MAX: Final = 1024 * 1024


class Backlog(Protocol):
    """Bytes of a flow from its durable offset on."""

    is_whole: bool  # nothing will be added behind the end
    end: int  # offset behind the last byte that there is so far
    crc: int | None  # CRC32C of the bytes before crc_offset; None: not known
    crc_offset: int

    def start(self, offset: int) -> None:
        """Begin, or resume after a connection was lost, at what the daemon has."""

    def view(self, offset: int) -> memoryview:
        """Return some bytes from there on; none at the end."""

    def release(self, offset: int) -> None:
        """Forget the bytes before it: they are durable."""

    def free(self) -> None:
        """Give the memory back: nothing will be sent any more."""


class BufferBacklog:
    """A ring of memory, taken once. Raises ResourceError if there is not so much."""

    def __init__(self, capacity: int, *, has_checksum: bool) -> None:
        assert capacity > 0, capacity
        try:
            self._ring = memoryview(mmap.mmap(-1, capacity))  # zeroed page by page, when used
        except (OSError, OverflowError, ValueError):
            raise ResourceError(
                f"no memory for a buffer of {full_size(capacity)}: ask for a smaller one"
            ) from None
        self._begin = 0
        self._is_begun = False
        self.is_whole = False
        self.end = 0
        self.crc: int | None = 0 if has_checksum else None
        self.crc_offset = 0

    def start(self, offset: int) -> None:
        if not self._is_begun:
            self._begin = self.end = offset
            self._is_begun = True
        assert self._begin <= offset <= self.end, (self._begin, offset, self.end)
        self.release(offset)

    def put(self, data: memoryview) -> int:
        """Take as many bytes as fit in one run; return how many, 0 if it is full."""
        assert self._is_begun
        index = self.end % len(self._ring)
        free_count = len(self._ring) - (self.end - self._begin)
        count = min(len(data), free_count, len(self._ring) - index)
        self._ring[index : index + count] = data[:count]
        self.note(data[:count])
        self.end += count
        return count

    def note(self, data: memoryview) -> None:
        """Count bytes into the checksum, be they kept or durable already."""
        if self.crc is not None:
            self.crc = crc32c(data, self.crc)
            self.crc_offset += len(data)

    def view(self, offset: int) -> memoryview:
        assert self._begin <= offset <= self.end, (self._begin, offset, self.end)
        index = offset % len(self._ring)
        return self._ring[index : index + min(self.end - offset, len(self._ring) - index)]

    def release(self, offset: int) -> None:
        self._begin = max(self._begin, offset)

    def free(self) -> None:
        self._ring = memoryview(b"")


class FileBacklog:
    """A file that can be read at any place: nothing of it is kept but what is being sent."""

    def __init__(self, fd: int, name: str, size: int, *, has_checksum: bool) -> None:
        self._fd = fd
        self._name = name
        self._buffer = bytearray()  # taken at the first read
        self._chunk = memoryview(b"")
        self._chunk_offset = 0
        self.is_whole = True
        self.end = size
        self.crc: int | None = 0 if has_checksum else None
        self.crc_offset = 0

    def start(self, offset: int) -> None:
        """Begin at offset; what lies before it is read for the checksum, if it was not yet.

        Raises SenderError if the file ends before it.
        """
        if offset > self.end:
            raise SenderError(
                f"{self._name}: has {self.end} bytes, but the flow has {offset} already:"
                " that is not what the flow was begun with"
            )
        while self.crc is not None and self.crc_offset < offset:
            self._read(self.crc_offset, offset - self.crc_offset)

    def view(self, offset: int) -> memoryview:
        """Return some bytes from there on. Raises SystemCallError if they cannot be read."""
        if offset == self.end:
            return memoryview(b"")
        if not self._chunk_offset <= offset < self._chunk_offset + len(self._chunk):
            self._read(offset, self.end - offset)
        return self._chunk[offset - self._chunk_offset :]

    def release(self, offset: int) -> None:
        """Nothing is kept."""

    def free(self) -> None:
        self._buffer = bytearray()
        self._chunk = memoryview(b"")

    def _read(self, offset: int, count_max: int) -> None:
        """Read at most count_max bytes into the chunk, and count those that are new."""
        if not self._buffer:
            self._buffer = bytearray(min(self.end, READ_BYTES_MAX))
        room = memoryview(self._buffer)[: min(count_max, READ_BYTES_MAX)]
        try:
            count = os.preadv(self._fd, [room], offset)
        except OSError as error:
            raise SystemCallError(
                f"{self._name}: cannot be read: {error.strerror or error}"
            ) from None
        if count == 0:
            raise SystemCallError(
                f"{self._name}: ended at byte {offset} instead of {self.end}:"
                " it became shorter while it was sent"
            )
        self._chunk, self._chunk_offset = room[:count], offset
        new_from = self.crc_offset - offset
        if self.crc is not None and 0 <= new_from < count:
            self.crc = crc32c(room[new_from:count], self.crc)
            self.crc_offset = offset + count

# SPDX-License-Identifier: Apache-2.0
"""Sources of a raw sender's bytes: files, pipes, objects in memory.

Invariants: a source ends only where its reader does; a file that became shorter than
it was at the begin is an error. Nothing of a pipe is read that is not sent or kept.

Owned by the thread that sends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from typing import BinaryIO, Final, Protocol

from ingestd.errors import ResourceError, SystemCallError

SENDFILE_BYTES_MAX: Final = 4 * 1024 * 1024  # per call: between two looks for an answer
READ_BYTES_MAX: Final = 1024 * 1024

_SENDFILE_UNFIT: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Source(Protocol):
    """The source of the bytes."""

    input_fd: int | None  # to wait for before the next push(), None: push at once

    def push(self, sock: socket.socket) -> int:
        """Hand bytes to the socket; return how many, 0 at the end of the source."""

    def head(self) -> bytes | None:
        """The bytes to send again before those that the reader still has; None: not kept."""


class _FileSource:
    """A regular file: the kernel moves the bytes, from the page cache to the socket."""

    def __init__(self, fd: int, offset: int, name: str) -> None:
        self.input_fd: int | None = None
        self._fd = fd
        self._offset = offset
        self._name = name
        self._size = os.fstat(fd).st_size

    def push(self, sock: socket.socket) -> int:
        count = os.sendfile(sock.fileno(), self._fd, self._offset, SENDFILE_BYTES_MAX)
        # files that the kernel makes up may end before the size that they say they have
        if count == 0 and self._offset < self._size > os.fstat(self._fd).st_size:
            raise SystemCallError(
                f"{self._name}: ended at byte {self._offset} instead of {self._size}:"
                " it became shorter while it was sent"
            )
        self._offset += count
        return count

    def head(self) -> bytes | None:
        return b""


class _StreamSource:
    """Anything else: pipes, terminals, devices, objects in memory."""

    def __init__(self, reader: BinaryIO, fd: int | None, head_bytes_max: int) -> None:
        self._reader = reader
        self._fd = fd
        self._head: bytearray | None = bytearray()
        self._head_bytes_max = head_bytes_max
        self._buffer = bytearray(READ_BYTES_MAX)
        self._left = memoryview(b"")
        self.input_fd = fd

    def push(self, sock: socket.socket) -> int:
        if not self._left:
            self._left = self._read()
            self._keep(self._left)
        if not self._left:
            return 0
        self.input_fd = None  # as long as bytes are left
        count = sock.send(self._left)
        self._left = self._left[count:]
        if not self._left:
            self.input_fd = self._fd
        return count

    def head(self) -> bytes | None:
        return None if self._head is None else bytes(self._head)

    def _keep(self, data: memoryview) -> None:
        if self._head is None:
            return
        if len(self._head) + len(data) > self._head_bytes_max:
            self._head = None
        else:
            self._head += data

    def _read(self) -> memoryview:
        try:
            if self._fd is None:
                return memoryview(self._reader.read(READ_BYTES_MAX))
            return memoryview(self._buffer)[: os.readv(self._fd, [self._buffer])]
        except BlockingIOError:
            raise
        except OSError as error:
            name = getattr(self._reader, "name", "input")
            raise SystemCallError(f"{name}: cannot be read: {error.strerror or error}") from None


def source_of(reader: BinaryIO, head_bytes_max: int = 0) -> Source:
    """Return the source that fits a reader, which stays the caller's.

    Raises ResourceError if descriptors run out.
    """
    try:
        fd = reader.fileno()
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return _StreamSource(reader, None, head_bytes_max)
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        _widen(fd)
    if not stat.S_ISREG(mode):
        return _StreamSource(reader, fd, head_bytes_max)
    offset = reader.tell()
    if not _takes_sendfile(fd, offset):
        os.lseek(fd, offset, os.SEEK_SET)
        return _StreamSource(reader, fd, head_bytes_max)
    return _FileSource(fd, offset, str(getattr(reader, "name", "input")))


def _widen(pipe_fd: int) -> None:
    """Let one read take more; a pipe that may not grow works all the same."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, READ_BYTES_MAX)


def _takes_sendfile(fd: int, offset: int) -> bool:
    """Ask the file system; those that make their files up, such as procfs, refuse."""
    try:
        one, other = socket.socketpair()
    except OSError as error:
        raise ResourceError(f"cannot send: {error.strerror or error}") from None
    with one, other:
        try:
            os.sendfile(one.fileno(), fd, offset, 1)
        except OSError as error:
            return error.errno not in _SENDFILE_UNFIT  # others show again, and are reported then
    return True

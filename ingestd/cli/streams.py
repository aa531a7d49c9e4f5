# SPDX-License-Identifier: Apache-2.0
"""Descriptors 0 to 2, made safe before anything else is opened.

Invariants:
 - Afterwards 0, 1 and 2 are open, so that no store, socket or log that is opened
   later gets one of these numbers and has notes, or a child's output, written into it.
 - What cannot be shown on standard error neither ends nor changes what is being done.
 - What cannot be written to standard output is an OSError, also if it was closed:
   results that nobody got are no success.

Owned by the main thread, before any other thread runs.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import sys
from typing import Any, Final

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
STDOUT_NAME: Final = "standard output"

# Standard output that was closed is open for reading, so that writing into it stays EBADF.
_STAND_INS: Final = ((STDIN, os.O_RDONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY))


class _Results(io.FileIO):
    """Standard output: waits where others made it non-blocking, and names itself in errors."""

    def write(self, data: Any, /) -> int:
        try:
            while (count := super().write(data)) is None:
                wait_for_room(self.fileno())
        except OSError as error:
            error.filename = STDOUT_NAME
            raise
        return count


class _Notes(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            count: int | None = super().write(data)
        except OSError:
            count = None
        return memoryview(data).nbytes if count is None else count


def secure_standard_streams() -> None:
    """Open what of 0 to 2 is closed, and replace sys.stdout and sys.stderr by safe ones.

    Streams that a caller has put in their place are left alone.
    """
    for fd, flags in _STAND_INS:
        _open_stand_in(fd, flags)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Results(STDOUT, "w", closefd=False), sys.stdout)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be in any script
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Notes(STDERR, "w", closefd=False), sys.stderr, is_by_line=True)


def is_stdout_closed() -> bool:
    """Return whether nobody gave this process a standard output that can be written."""
    return fcntl.fcntl(STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def wait_for_room(fd: int) -> None:
    """Wait until a descriptor that does not block can be written, or has failed."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()


def _open_stand_in(fd: int, flags: int) -> None:
    """Open /dev/null in the place of a descriptor that is closed; children inherit it."""
    try:
        os.fstat(fd)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != fd:  # cannot be but with threads about: the lowest free number is taken
            os.dup2(opened, fd)
            os.close(opened)
        else:
            os.set_inheritable(fd, True)


def _stream(raw: io.FileIO, old: Any, *, is_by_line: bool = False) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=is_by_line or bool(getattr(old, "line_buffering", False)),
    )

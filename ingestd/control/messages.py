# SPDX-License-Identifier: Apache-2.0
"""The lines of the control socket: JSON objects, one a line, each way. docs/control.md has them.

Invariants: a line is never longer than the side that reads it allows, and nothing of a longer one
is kept; what is decoded is an object. Any thread may call; a LineBuffer is one thread's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PROTOCOL_VERSION: Final = 1
# A request of those who may change something holds the ids of a good 200,000 flows.
REQUEST_BYTES_MAX: Final = 8 * 1024 * 1024
READER_REQUEST_BYTES_MAX: Final = 64 * 1024
# A flow with its labels takes less than 8 KiB, the status of 64 stores and workers some 100.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
# unix(7): with its zero byte, sun_path of struct sockaddr_un has 108 bytes.
ADDRESS_BYTES_MAX: Final = 107

Message = dict[str, Any]


class LineError(ValueError):
    """A line that is too long, or no JSON object."""


def encode(message: Message) -> bytes:
    """Return a message as a line, in ASCII."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes | bytearray) -> Message:
    """Return the object of a line. Raises LineError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise LineError("the line is not JSON") from None
    if not isinstance(message, dict):
        raise LineError("the line is no JSON object")
    return message


class LineBuffer:
    """Takes bytes as they come and gives whole lines; feed() and next_line() raise LineError."""

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._data = bytearray()
        self._searched = 0  # bytes at the beginning that have no end of line

    def __bool__(self) -> bool:
        """Return whether a line, or a part of one, is there."""
        return bool(self._data)

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._data += data

    def next_line(self) -> bytes | None:
        """Return the next line, without its end; None: it has not come whole."""
        end = self._data.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._data)
        if (len(self._data) if end < 0 else end) > self._line_bytes_max:
            self._data, self._searched = bytearray(), 0
            raise LineError(f"the line is longer than {self._line_bytes_max} bytes")
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        self._searched = 0
        return line


@contextmanager
def socket_address(path: str) -> Iterator[str]:
    """Yield an address for a socket's path, for as long as it is used; also for a long path.

    Raises OSError if the directory cannot be opened.
    """
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield str(Path("/proc/self/fd") / str(fd) / name)
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""One connection to a listener of protocol `ingest`: bytes up, lines down.

Invariants:
 - Unless half_close() was called, every way to lose the socket resets the
   connection, so that no half of a flow is ever taken for the whole.
 - Nothing but a name server blocks longer than asked; a wake-up ends every wait.
 - A connection that is gone is LinkLost, which never leaves this package. Lines
   that came before its end are handed out first: they say why.

Owned by one flow's own thread.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 # look-ups need it, perhaps when descriptors have run out
import errno
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from ingestd.address import Address
from ingestd.errors import SenderError
from ingestd.protocol.fields import LINE_BYTES_MAX
from ingestd.protocol.lines import Line, parse_line

CONNECT_TIMEOUT_S: Final = 10.0
KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
)
SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # close() sends RST
_LINGER_OFF: Final = struct.pack("ii", 0, 0)


class LinkLost(Exception):
    """The connection is gone or was refused for now; the text says how."""

    def __init__(
        self,
        text: str,
        *,
        is_passing: bool = False,
        is_silent: bool = False,
        is_shortage: bool = False,
    ) -> None:
        super().__init__(text)
        self.is_passing = is_passing  # the daemon itself said that it will pass
        self.is_silent = is_silent  # it is there, but has not greeted
        self.is_shortage = is_shortage  # of something on this machine


class Link:
    """A connected socket that does not block, and the lines that came over it."""

    def __init__(self, address: Address, wake_fd: int, check: Callable[[], None]) -> None:
        self._address = address
        self._check = check
        self._wake_fd = wake_fd
        self._text = bytearray()
        self._lines: deque[Line] = deque()
        self._is_broken = False  # nothing can be sent any more
        self._is_at_end = False  # nothing will come any more
        self._socket = self._connect()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def wait(self, *, wants_to_send: bool, timeout_s: float | None) -> bool:
        """Wait for lines, for room if wanted, or for a wake-up; return False on a time-out.

        After a wake-up, check() may raise.
        """
        if self._lines or self._is_broken or self._is_at_end:
            return True
        wanted = select.POLLIN | (select.POLLOUT if wants_to_send else 0)
        return self._poll(self._socket, wanted, timeout_s)

    def send(self, data: memoryview) -> int:
        """Return how many bytes were taken; 0: no room now, or line() will say why."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._is_broken = True
            return 0

    def half_close(self) -> None:
        """Signal the end of the flow to the daemon."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        except OSError:
            self._is_broken = True

    def line(self) -> Line | None:
        """Return the next line, None if there is none yet; raise LinkLost behind the last."""
        if not self._lines:
            self._receive()
        if self._lines:
            return self._lines.popleft()
        if self._is_at_end:
            raise LinkLost("the connection was lost")
        return None

    def next_line(self, what: str, timeout_s: float) -> Line:
        """Wait for a line; raise LinkLost if none comes."""
        deadline_s = time.monotonic() + timeout_s
        while (line := self.line()) is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not self.wait(wants_to_send=False, timeout_s=left_s):
                raise LinkLost(f"no {what} within {timeout_s:g} s", is_silent=True)
        return line

    def _connect(self) -> socket.socket:
        """Try each address of the host in turn, all of them within CONNECT_TIMEOUT_S."""
        host, port = self._address
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        code = errno.EADDRNOTAVAIL
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, target in infos:
                candidate = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
                try:
                    code = self._connect_to(candidate, target, deadline_s)
                finally:
                    if code != 0:
                        candidate.close()
                if code == 0:
                    return candidate
        except (OSError, UnicodeError) as error:
            text = getattr(error, "strerror", None) or error
            is_shortage = isinstance(error, OSError) and error.errno in SHORTAGES
            raise LinkLost(f"cannot connect: {text}", is_shortage=is_shortage) from None
        if code == errno.ETIMEDOUT:
            raise LinkLost(f"no answer within {CONNECT_TIMEOUT_S:g} s")
        raise LinkLost(f"cannot connect: {os.strerror(code)}")

    def _connect_to(self, candidate: socket.socket, target: object, deadline_s: float) -> int:
        """Return 0 or an errno."""
        code = candidate.connect_ex(target)  # type: ignore[arg-type] # as getaddrinfo made it
        while code == errno.EINPROGRESS:
            left_s = deadline_s - time.monotonic()
            if not self._poll(candidate, select.POLLOUT, left_s):
                return errno.ETIMEDOUT
            code = candidate.connect_ex(target)  # type: ignore[arg-type]
        return 0 if code == errno.EISCONN else code

    def _poll(self, one: socket.socket, wanted: int, timeout_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        poll.register(one, wanted)
        ready = poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        if any(fd == self._wake_fd for fd, _ in ready):
            os.eventfd_read(self._wake_fd)
            self._check()
        return bool(ready)

    def _receive(self) -> None:
        try:
            piece = b"" if self._is_at_end else self._socket.recv(LINE_BYTES_MAX)
        except BlockingIOError:
            self._is_at_end = self._is_broken
            return
        except OSError:
            piece = b""
        self._is_at_end = not piece
        self._text += piece
        *texts, rest = self._text.split(b"\n")
        self._text = rest
        try:
            if len(rest) > LINE_BYTES_MAX:
                raise ValueError(f"a line is longer than {LINE_BYTES_MAX} bytes")
            lines = [parse_line(bytes(text)) for text in texts]
        except ValueError as error:
            raise SenderError(
                f"{self._address}: does not speak protocol ingest ({error}):"
                " is that a listener with protocol = 'ingest'?"
            ) from None
        self._lines.extend(line for line in lines if line is not None)

# SPDX-License-Identifier: Apache-2.0
"""One connection to the control socket: lines in and lines out, each with limits.

Invariants: a request that has begun is whole within REQUEST_TIME_MAX_S; a client that takes
nothing of an answer for SEND_TIME_MAX_S, or not all of it within ANSWER_TIME_MAX_S, is hung up
on; who asks nothing is, after IDLE_TIME_MAX_S. end() lets the thread that serves the connection
see the end of it wherever it waits. All but end() is that thread's.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from ingestd.control.client import peer_of
from ingestd.control.messages import (
    READER_REQUEST_BYTES_MAX,
    REQUEST_BYTES_MAX,
    LineBuffer,
    Message,
    encode,
)
from ingestd.daemon.base.waker import Waker

IDLE_TIME_MAX_S: Final = 300.0
REQUEST_TIME_MAX_S: Final = 10.0
SEND_TIME_MAX_S: Final = 10.0
ANSWER_TIME_MAX_S: Final = 900.0
# A subscriber's answer has no end, and it may be slow: only one that has stopped is hung up on.
STALL_TIME_MAX_S: Final = 300.0
RECEIVE_BYTES: Final = 64 * 1024
SEND_BYTES: Final = 64 * 1024


class ChannelClosedError(Exception):
    """Raised where a connection is over; no error of the daemon."""


class Channel:
    """A connected client."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.pid, self.uid, _ = peer_of(sock)
        # Whoever else can connect is in the socket's group: docs/control.md.
        self.may_change = self.uid in (0, os.geteuid())
        self._lines = LineBuffer(REQUEST_BYTES_MAX if self.may_change else READER_REQUEST_BYTES_MAX)
        self._mutex = threading.Lock()
        self._is_closed = False
        self.is_idle = True  # waits for a request
        self._answer_end_s = 0.0

    def end(self) -> None:
        """Let its thread, wherever it waits, see the end of the stream. By any thread."""
        with self._mutex, suppress(OSError):
            if not self._is_closed:
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        with self._mutex:
            self._is_closed = True
            self._sock.close()

    def request(self) -> bytes | None:
        """Return the next line; None when the client is gone or slow. Raises LineError."""
        self.is_idle = not self._lines
        end_s = time.monotonic() + (IDLE_TIME_MAX_S if self.is_idle else REQUEST_TIME_MAX_S)
        while (line := self._lines.next_line()) is None:
            self._sock.settimeout(max(0.001, end_s - time.monotonic()))
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except OSError:  # the time-out, too
                return None
            if not data or time.monotonic() >= end_s:
                return None
            if self.is_idle:
                self.is_idle = False
                end_s = time.monotonic() + REQUEST_TIME_MAX_S
            self._lines.feed(data)
        self._answer_end_s = time.monotonic() + ANSWER_TIME_MAX_S
        return line

    def send(self, messages: Iterable[Message]) -> None:
        """Send lines, many at a time. Raises ChannelClosedError."""
        self._send_each(messages, SEND_TIME_MAX_S, self._answer_end_s or None)

    def _send_each(self, messages: Iterable[Message], stall_s: float, end_s: float | None) -> None:
        data = bytearray()
        for message in messages:
            data += encode(message)
            if len(data) >= SEND_BYTES:
                self._send_all(data, stall_s, end_s)
                data.clear()
        self._send_all(data, stall_s, end_s)

    def _send_all(self, data: bytearray, stall_s: float, end_s: float | None) -> None:
        self._sock.settimeout(stall_s)
        with memoryview(data) as left:
            sent = 0
            while sent < len(left):
                if end_s is not None and time.monotonic() >= end_s:
                    raise ChannelClosedError
                try:
                    with left[sent : sent + SEND_BYTES] as piece:
                        sent += self._sock.send(piece)
                except OSError:
                    raise ChannelClosedError from None

    def send_to_subscriber(self, messages: Iterable[Message]) -> None:
        """The same for a stream of events. Raises ChannelClosedError."""
        self._send_each(messages, STALL_TIME_MAX_S, None)

    def wait_for(self, waker: Waker) -> None:
        """Return once the waker is woken. Raises ChannelClosedError when the client hangs up."""
        poll = select.poll()
        poll.register(waker.fileno(), select.POLLIN)
        poll.register(self._sock.fileno(), select.POLLRDHUP)
        for fd, _ in poll.poll():
            if fd != waker.fileno():
                raise ChannelClosedError
        waker.clear()

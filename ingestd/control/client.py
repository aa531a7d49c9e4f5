# SPDX-License-Identifier: Apache-2.0
"""A client of a daemon's control socket: ask, list, subscribe.

Invariants: a daemon that does not answer holds nobody up longer than the timeout, except where a
stream of events is read; of an answer, no line is kept longer than its reader needs it. One
thread at a time.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from ingestd.control.messages import (
    ANSWER_BYTES_MAX,
    PROTOCOL_VERSION,
    LineBuffer,
    LineError,
    Message,
    decode,
    encode,
    socket_address,
)
from ingestd.errors import ControlError

TIMEOUT_S: Final = 30.0
# Reading a large store, or removing from it, takes its time before the first line comes.
ANSWER_TIMEOUT_S: Final = 900.0
CONNECT_INTERVAL_S: Final = 0.01
RECEIVE_BYTES: Final = 256 * 1024
_PEER: Final = struct.Struct("3i")  # struct ucred of unix(7)


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process at the other end (SO_PEERCRED of unix(7))."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, gid = _PEER.unpack(data)
    return pid, uid, gid


class ControlClient:
    """A connection to the control socket of a daemon; close it, or use it as a context manager.

    Raises ControlError if nothing answers there, it is no control socket of ingestd, or the
    daemon refuses what it is asked; then its `code` is the daemon's.
    """

    def __init__(self, path: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._lines = LineBuffer(ANSWER_BYTES_MAX)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(timeout_s)
            self._connect(time.monotonic() + timeout_s)
            self.pid = peer_of(self._sock)[0]  # 0: of another pid namespace
        except OSError as error:
            self._sock.close()
            raise ControlError(f"{path}: {_connect_problem(error)}") from None
        try:
            self.greeting = self._next(timeout_s)
            if "error" in self.greeting:
                raise _refused(path, self.greeting["error"])
            if self.greeting.get("protocol") != PROTOCOL_VERSION:
                raise ControlError(f"{path}: is no control socket of ingestd of this version")
        except BaseException:
            self._sock.close()
            raise

    def _connect(self, end_s: float) -> None:
        """Connect; again, as long as the daemon has not accepted those before."""
        with socket_address(self.path) as address:
            while True:
                try:
                    self._sock.connect(address)
                except BlockingIOError:
                    if time.monotonic() >= end_s:
                        raise
                    time.sleep(CONNECT_INTERVAL_S)
                else:
                    return

    @property
    def may_change(self) -> bool:
        """Return whether the daemon lets this user change something, and not only read."""
        return self.greeting.get("may") == "change"

    def ask(self, command: str, **arguments: Any) -> Message:
        """Return the last line of an answer; for commands that have no others."""
        *_, answer = self.lines(command, **arguments)
        return answer

    def lines(
        self, command: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: Any
    ) -> Iterator[Message]:
        """Give the lines of an answer; the last has "done". An argument of None is left out."""
        given = {key: value for key, value in arguments.items() if value is not None}
        self._send({"command": command, "version": PROTOCOL_VERSION, **given})
        while True:
            message = self._next(timeout_s)
            if "error" in message:
                raise _refused(self.path, message["error"])
            yield message
            if message.get("done"):
                return

    def status(self) -> Message:
        """Return stores, workers, listeners and the process."""
        status: Message = self.ask("status")["status"]
        return status

    def flows(self, store: str | None, **filters: Any) -> Iterator[Message]:
        """Give the flows of a store, by its name or UUID; filters as of docs/control.md."""
        for line in self.lines("flows", store=store, **filters):
            if "flow" in line:
                yield line["flow"]

    def remove(self, store: str | None, flows: Sequence[str]) -> Iterator[Message]:
        """Remove flows by their ids; give the result of each: flow, result, bytes."""
        for line in self.lines("rm", store=store, flows=list(flows)):
            if "result" in line:
                yield line

    def events(self) -> Iterator[Message]:
        """Give what becomes of flows from now on, without an end of its own."""
        self._send({"command": "events", "version": PROTOCOL_VERSION})
        while True:
            message = self._next(None)
            if "error" in message:
                raise _refused(self.path, message["error"])
            yield message

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, message: Message) -> None:
        self._sock.settimeout(self._timeout_s)
        # The daemon may have said why it hangs up: that is to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            try:
                self._sock.sendall(encode(message))
            except TimeoutError:
                raise self._silent(self._timeout_s) from None

    def _next(self, timeout_s: float | None) -> Message:
        self._sock.settimeout(timeout_s)
        try:
            while (line := self._lines.next_line()) is None:
                data = self._sock.recv(RECEIVE_BYTES)
                if not data:
                    raise ControlError(f"{self.path}: the daemon hung up: see its log")
                self._lines.feed(data)
            return decode(line)
        except TimeoutError:
            raise self._silent(timeout_s or 0) from None
        except LineError as error:
            raise ControlError(f"{self.path}: not understood: {error}") from None
        except OSError as error:
            raise ControlError(f"{self.path}: the daemon is gone: {error.strerror}") from None

    def _silent(self, timeout_s: float) -> ControlError:
        return ControlError(
            f"{self.path}: the daemon did not answer within {timeout_s:g} s: see its log"
        )


def _connect_problem(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no control socket: is the daemon running, with [control] socket on?"
    if isinstance(error, ConnectionRefusedError):
        return "the daemon of this control socket is not running"
    if isinstance(error, PermissionError):
        return "may not be connected to: be root, the daemon's user, or in the socket's group"
    return f"the control socket cannot be connected to: {error.strerror or error}"


def _refused(path: str, error: Any) -> ControlError:
    fields = error if isinstance(error, dict) else {}
    code, text = str(fields.get("code", "failed")), str(fields.get("text", "no reason was given"))
    return ControlError(f"{path}: {text}", code=code)

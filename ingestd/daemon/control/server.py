# SPDX-License-Identifier: Apache-2.0
"""The server of the control socket: accepts, and has a thread for each connection.

Invariants:
 - Nothing that a client does or fails to do holds up the main thread, other clients or the end.
 - Of those who may change something, and of those who may only read, at most CONNECTIONS_MAX
   each are served; one more ends the oldest of its kind that asks nothing, or is refused, so
   that readers keep nobody from the daemon.
 - Out of descriptors or threads, the server pauses instead of trying at once.

start() and close() belong to the main thread, the rest to the server's threads.
"""

from __future__ import annotations

import selectors
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ingestd import __version__
from ingestd.control.messages import PROTOCOL_VERSION, LineError, Message, decode, encode
from ingestd.daemon.base.threads import block_signals, join_threads, start_thread
from ingestd.daemon.base.waker import Waker
from ingestd.daemon.control.channel import Channel, ChannelClosedError
from ingestd.daemon.control.commands import command_of
from ingestd.daemon.control.main_calls import CallNotMadeError
from ingestd.daemon.control.request import RefusedError, Request
from ingestd.errors import IngestdError, ResourceError
from ingestd.log_events import LogEvent
from ingestd.store.read.image import ScanStoppedError

if TYPE_CHECKING:
    import socket

    from ingestd.daemon.control.parts import ControlParts
    from ingestd.daemon.control.socket_file import SocketFile
    from ingestd.log import Log

CONNECTIONS_MAX: Final = 32
ACCEPT_PAUSE_S: Final = 1.0
TRACE_CHARS_MAX: Final = 4000
# What is on its way to clients may leave, before they are hung up on.
FAREWELL_TIME_S: Final = 0.5


class ControlServer:
    """The running server; close() ends it."""

    def __init__(self, file: SocketFile, parts: ControlParts, log: Log) -> None:
        self._file = file
        self._parts = parts
        self._log = log
        self._waker = Waker()
        self._mutex = threading.Lock()
        self._connections: dict[Channel, threading.Thread] = {}  # the oldest first
        self._thread = threading.Thread(target=self._main, name="control", daemon=True)

    def start(self) -> None:
        """Let others connect. Raises ResourceError."""
        self._file.listen()
        start_thread(self._thread)

    def close(self, timeout_s: float) -> list[str]:
        """Hang up on everybody; return the names of threads that hang."""
        self._parts.stopping.set()
        self._parts.events.wake_all()
        self._waker.wake()
        end_s = time.monotonic() + timeout_s
        stuck = join_threads([self._thread], timeout_s)
        with self._mutex:
            left = list(self._connections.items())
        threads = [thread for _, thread in left]
        if join_threads(threads, min(FAREWELL_TIME_S, timeout_s / 2)):
            for channel, _ in left:
                channel.end()
        stuck += join_threads(threads, max(0.0, end_s - time.monotonic()))
        if not stuck:
            self._waker.close()
        return stuck

    def _main(self) -> None:
        block_signals()
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ)
            selector.register(self._file.socket, selectors.EVENT_READ)
            while not self._parts.stopping.is_set():
                for key, _ in selector.select():
                    if key.fileobj is self._waker:
                        self._waker.clear()
                    elif not self._accept():
                        selector.unregister(self._file.socket)
                        selector.select(ACCEPT_PAUSE_S)
                        selector.register(self._file.socket, selectors.EVENT_READ)

    def _accept(self) -> bool:
        """Take a connection; False when there is nothing to take it with."""
        try:
            sock, _ = self._file.socket.accept()
        except (BlockingIOError, ConnectionError):
            return True
        except OSError:
            return False
        sock.setblocking(True)
        try:
            channel = Channel(sock)
        except OSError:
            sock.close()
            return True
        if not self._has_room(channel):
            _refuse(sock, "busy", "there are as many connections as there may be")
            channel.close()
            return True
        thread = threading.Thread(
            target=self._serve, args=(channel,), name="control-client", daemon=True
        )
        with self._mutex:
            self._connections[channel] = thread
        try:
            start_thread(thread)
        except ResourceError:
            self._forget(channel)
            channel.close()
            return False
        return True

    def _has_room(self, newest: Channel) -> bool:
        with self._mutex:
            alike = [c for c in self._connections if c.may_change == newest.may_change]
            if len(alike) < CONNECTIONS_MAX:
                return True
            oldest = next((channel for channel in alike if channel.is_idle), None)
            if oldest is None:
                return False
            # Its thread counts no more: it ends at once, as it waits for nothing but its client.
            oldest.is_idle = False
            thread = self._connections[oldest]
        oldest.end()
        thread.join(ACCEPT_PAUSE_S)
        return True

    def _forget(self, channel: Channel) -> None:
        with self._mutex:
            self._connections.pop(channel, None)

    def _serve(self, channel: Channel) -> None:
        """The thread of a connection: one request after the other."""
        block_signals()
        try:
            channel.send([_greeting(channel)])
            while not self._parts.stopping.is_set() and self._answer_next(channel):
                pass
        except ChannelClosedError:
            pass
        finally:
            channel.close()
            self._forget(channel)

    def _answer_next(self, channel: Channel) -> bool:
        """Answer the next request; False when there is none to come."""
        try:
            line = channel.request()
        except LineError as error:
            channel.send([_error("bad_request", str(error))])
            return False
        if line is None:
            return False
        try:
            channel.send([self._answer(line, channel) | {"done": True}])
        except RefusedError as refusal:
            channel.send([_error(refusal.code, str(refusal))])
        return True

    def _answer(self, line: bytes, channel: Channel) -> Message:
        """Return the last line of an answer. Raises RefusedError."""
        try:
            request = Request(decode(line))
            command = command_of(request, may_change=channel.may_change)
            if command.is_change:
                self._log.emit(
                    LogEvent.CONTROL_COMMAND,
                    command=request.command,
                    pid=channel.pid,
                    uid=channel.uid,
                )
            return command.run(request, channel, self._parts)
        except LineError as error:
            raise RefusedError("bad_request", str(error)) from None
        except (ScanStoppedError, CallNotMadeError):
            raise RefusedError("stopping", "the daemon is ending, or has no time") from None
        except (IngestdError, MemoryError) as error:
            raise RefusedError("failed", str(error) or "memory ran out") from None
        except (RefusedError, ChannelClosedError):
            raise
        except Exception as bug:
            trace = "".join(traceback.format_exception(bug))[-TRACE_CHARS_MAX:]
            self._log.emit(LogEvent.CONTROL_FAILED, error=repr(bug), trace=trace)
            raise RefusedError("failed", "the daemon has a bug here: its log has it") from None


def _greeting(channel: Channel) -> Message:
    return {
        "ingestd": __version__,
        "protocol": PROTOCOL_VERSION,
        "may": "change" if channel.may_change else "read",
    }


def _error(code: str, text: str) -> Message:
    return {"error": {"code": code, "text": text}}


def _refuse(sock: socket.socket, code: str, text: str) -> None:
    """Say why in the place of a greeting, to a client that may not read it."""
    sock.setblocking(False)
    with suppress(OSError):
        sock.send(encode(_error(code, text)))

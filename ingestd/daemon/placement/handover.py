# SPDX-License-Identifier: Apache-2.0
"""Connections that one worker accepted and another one can read, on their way between them.

Invariant: a connection is in the other worker's mailbox, waits here for room in it, or was
ended with a line that says why. Everything here runs on the main thread and waits for nobody.
"""

from __future__ import annotations

import math
import os
import socket
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.protocol.lines import Code, ErrorLine, format_line
from ingestd.protocol.receipt import ErrorCode, Receipt, ReceiptState, format_receipt

if TYPE_CHECKING:
    from ingestd.core.border import Event, FlowElsewhere
    from ingestd.daemon.workers.worker import WorkerThread

WAITING_COUNT_MAX: Final = 4096
"""As many as a listener's backlog has; beyond it connections are asked to come back later."""
RETRY_S: Final = 0.01
"""A worker empties its mailbox in every turn of its loop."""
_TEXT_SHUTDOWN: Final = "the daemon is stopping: send again later"
_TEXT_BUSY: Final = "too many connections wait: come back later"


@dataclass(frozen=True, slots=True)
class _Connection:
    fd: int
    listener_index: int
    peer: str
    worker: WorkerThread | None


class Handover:
    """Gives accepted connections to the workers by whose receive queues they came."""

    def __init__(
        self, listeners: Sequence[tuple[str, str]], log: Log, refused: Counter[tuple[str, str, str]]
    ) -> None:
        """`listeners`: name and protocol of each; `refused`: counts by store, listener, code."""
        self._listeners = listeners
        self._log = log
        self._refused = refused
        self._waiting: deque[_Connection] = deque()

    def retry_s(self) -> float:
        """Return when to call settle() again, in seconds from now."""
        return RETRY_S if self._waiting else math.inf

    def give(
        self,
        workers: Sequence[WorkerThread],
        source: WorkerThread,
        event: Event,
        elsewhere: FlowElsewhere,
    ) -> None:
        """Take the connection of such an event, and give it to whom it belongs."""
        index = elsewhere.worker_index
        of_store = (w for w in workers if w.store is source.store and w.index == index)
        worker = next(of_store, None)
        connection = _Connection(elsewhere.fd, event.listener_index, event.peer, worker)
        if worker is None or not worker.alive():
            self._turn_away(connection, source.store_name, Code.SHUTDOWN, _TEXT_SHUTDOWN)
        elif len(self._waiting) >= WAITING_COUNT_MAX:
            self._turn_away(connection, source.store_name, Code.BUSY, _TEXT_BUSY)
        else:
            self._waiting.append(connection)
            self.settle()

    def settle(self) -> None:
        """Give what waits to those workers that have room now, each in its order."""
        full: set[WorkerThread] = set()
        for _ in range(len(self._waiting)):
            connection = self._waiting.popleft()
            worker = connection.worker
            assert worker is not None
            if worker in full:
                self._waiting.append(connection)
            elif worker.adopt(connection.fd, connection.listener_index):
                continue
            elif worker.alive():
                full.add(worker)
                self._waiting.append(connection)
            else:
                self._turn_away(connection, worker.store_name, Code.SHUTDOWN, _TEXT_SHUTDOWN)

    def _turn_away(self, connection: _Connection, store: str, code: Code, text: str) -> None:
        name, protocol = "", "raw"
        if 0 <= connection.listener_index < len(self._listeners):
            name, protocol = self._listeners[connection.listener_index]
        self._refused[store, name, code] += 1
        self._log.emit(
            LogEvent.FLOW_REFUSED,
            store=store,
            peer=connection.peer,
            listener=name,
            reason=code,
            error=text,
        )
        _send_line(connection.fd, _line(protocol, code, text))


def _line(protocol: str, code: Code, text: str) -> bytes:
    if protocol == "ingest":
        return format_line(ErrorLine(code, text, flow=None, durable=0))
    error = ErrorCode.SHUTDOWN if code is Code.SHUTDOWN else ErrorCode.LIMIT
    return format_receipt(Receipt(None, 0, False, ReceiptState.REFUSED, error=error, text=text))


def _send_line(fd: int, line: bytes) -> None:
    """Send a line, as far as the socket takes it at once, and close."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:  # the kernel does not say what it is
        os.close(fd)
        return
    with connection, suppress(OSError):
        connection.setblocking(False)
        connection.send(line)
        connection.shutdown(socket.SHUT_WR)

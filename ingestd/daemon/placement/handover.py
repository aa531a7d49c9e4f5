# SPDX-License-Identifier: Apache-2.0
"""Connections that one worker accepted and another one is to have, on their way between them.

They came by the other one's rx queue, or are passed on as placement wants it, or the other one's
store has their flow. Invariant: a connection is in the other worker's mailbox, waits here for
room in it, or was ended with a line that says why. Everything here runs on the main thread and
waits for nobody.
"""

from __future__ import annotations

import math
import os
import socket
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.protocol.lines import Code, ErrorLine, format_line
from ingestd.protocol.receipt import ErrorCode, Receipt, ReceiptState, format_receipt

if TYPE_CHECKING:
    from ingestd.core.border import Event, FlowElsewhere
    from ingestd.daemon.placement.placement import Placement
    from ingestd.daemon.workers.worker import WorkerThread

WAITING_COUNT_MAX: Final = 4096
"""As many as a listener's backlog has; beyond it connections are asked to come back later."""
RETRY_S: Final = 0.01
"""A worker empties its mailbox in every turn of its loop."""
_TEXT_SHUTDOWN: Final = "the daemon is stopping: send again later"
_TEXT_BUSY: Final = "too many connections wait: come back later"


_RAW_CODES: Final = {
    Code.SHUTDOWN: ErrorCode.SHUTDOWN,
    Code.STORE_FULL: ErrorCode.STORE_FULL,
    Code.STORE_FAILED: ErrorCode.STORE_FAILED,
}


@dataclass(frozen=True, slots=True)
class _Connection:
    fd: int
    listener_index: int
    peer: str
    worker: WorkerThread
    move_id: int = 0  # by which its hello is known; 0: it is to be greeted


class Handover:
    """Gives accepted connections to the workers that are to have them."""

    def __init__(
        self, listeners: Sequence[tuple[str, str]], log: Log, placement: Placement
    ) -> None:
        """`listeners`: name and protocol of each."""
        self.refused_counts: Counter[tuple[str, str, str]] = Counter()  # store, listener, code
        self._listeners = listeners
        self._log = log
        self._placement = placement
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
        """Take the connection of such an event, and give it to whom it belongs.

        `workers`: by the number that their engines know each other by.
        """
        number, listener_index = elsewhere.worker_index, event.listener_index
        connection = _Connection(elsewhere.fd, listener_index, event.peer, source)
        if number is None and self._placement.is_tied:
            self._refuse(connection)
        elif number is None:
            worker = self._placement.choose(listener_index)
            if worker is None:
                self._refuse(connection)
            else:
                self._give(replace(connection, worker=worker))
        elif number < len(workers):
            self._give(replace(connection, worker=workers[number]))
        else:
            self._turn_away(connection, Code.SHUTDOWN, _TEXT_SHUTDOWN)

    def move(
        self, fd: int, listener_index: int, peer: str, worker: WorkerThread, move_id: int
    ) -> None:
        """Take a connection whose hello is known by a number, and give it to a worker."""
        self._give(_Connection(fd, listener_index, peer, worker, move_id))

    def _give(self, connection: _Connection) -> None:
        if not connection.worker.alive():
            self._turn_away(connection, Code.SHUTDOWN, _TEXT_SHUTDOWN)
        elif len(self._waiting) >= WAITING_COUNT_MAX:
            self._turn_away(connection, Code.BUSY, _TEXT_BUSY)
        else:
            self._waiting.append(connection)
            self.settle()

    def _refuse(self, connection: _Connection) -> None:
        """Send a connection the reason why no store takes new flows, or its own does not."""
        self._turn_away(connection, *self._placement.refused(connection.listener_index))

    def settle(self) -> None:
        """Give what waits to those workers that have room now, each in its order."""
        full: set[WorkerThread] = set()
        for _ in range(len(self._waiting)):
            connection = self._waiting.popleft()
            worker = connection.worker
            if worker in full:
                self._waiting.append(connection)
            elif worker.adopt(connection.fd, connection.listener_index, connection.move_id):
                continue
            elif worker.alive():
                full.add(worker)
                self._waiting.append(connection)
            else:
                self._turn_away(connection, Code.SHUTDOWN, _TEXT_SHUTDOWN)

    def _turn_away(self, connection: _Connection, code: Code, text: str) -> None:
        store = connection.worker.store_name
        name, protocol = "", "raw"
        if 0 <= connection.listener_index < len(self._listeners):
            name, protocol = self._listeners[connection.listener_index]
        self.refused_counts[store, name, code] += 1
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
    error = _RAW_CODES.get(code, ErrorCode.LIMIT)
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

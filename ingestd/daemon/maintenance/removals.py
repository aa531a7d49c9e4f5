# SPDX-License-Identifier: Apache-2.0
"""Removing flows of a served store for those who ask for it, many at a time.

Invariants: a flow is claimed by its lock before its removal is written; where that fails
the claim stays, as nobody knows then what is written. What is answered as removed is so on stable
media. A request is answered from an image that was begun after it came. Who asks waits on a
thread of its own, for a bounded time. ask() and remove() are for any thread; the rest is owned
by the store's maintenance thread, which holds the flow lock's image meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.errors import StoreError
from ingestd.log_events import LogEvent
from ingestd.store.read.flows import STATE_OPEN, Flow
from ingestd.store.reclaim.candidates import REASON_REMOVED

if TYPE_CHECKING:
    from ingestd.daemon.admission.flow_lock import FlowLock
    from ingestd.store.read.image import StoreImage
    from ingestd.store.reclaim.sweep import Sweeper

# However long reading a large store takes, for the image of one request and the one before it.
ANSWER_TIME_MAX_S: Final = 900.0
POLL_INTERVAL_S: Final = 0.1


class RemovalState(Enum):
    """The state of one flow that somebody asked to remove."""

    REMOVED = "removed"  # durably
    IN_USE = "in_use"  # a connection feeds it
    NO_ROOM = "no_room"  # as many removed flows as there may be wait for their segments
    UNKNOWN = "unknown"  # the store has no such flow, or no more


class RemovalResult(NamedTuple):
    """The result for one flow, which had `bytes_count` bytes, as far as that is known."""

    state: RemovalState
    bytes_count: int = 0


class Removal:
    """One request: its flows, and their results or what went wrong once it is over."""

    def __init__(self, flows: Sequence[bytes]) -> None:
        self.flows = flows
        self.is_over = threading.Event()
        self.results: Mapping[bytes, RemovalResult] = {}
        self.error = ""


class Removals:
    """The requests to one store; `report` takes an event of the log and its fields.

    `wake`: called when there is one to take().
    """

    def __init__(
        self,
        sweeper: Sweeper,
        flow_lock: FlowLock,
        report: Callable[..., None],
        wake: Callable[[], None],
    ) -> None:
        self._sweeper = sweeper
        self._flow_lock = flow_lock
        self._report = report
        self._wake = wake
        self._mutex = threading.Lock()
        self._waiting: list[Removal] = []

    def ask(self, flows: Sequence[bytes]) -> Removal:
        """Ask, and do not wait: `is_over` is set once there are results, or an error."""
        asked = Removal(flows)
        with self._mutex:
            self._waiting.append(asked)
        self._wake()
        return asked

    def remove(
        self,
        flows: Sequence[bytes],
        is_stopped: Callable[[], bool],
        timeout_s: float = ANSWER_TIME_MAX_S,
    ) -> list[RemovalResult]:
        """Remove flows; return the result of each, once those that are removed are so durably.

        Raises StoreError if the device refuses, or nobody answers in time or before
        `is_stopped`: then nobody knows which are removed.
        """
        asked = self.ask(flows)
        end_s = time.monotonic() + timeout_s
        while not asked.is_over.wait(POLL_INTERVAL_S):
            if is_stopped() or time.monotonic() >= end_s:
                self._withdraw(asked)
                raise StoreError("the removal was not answered: ask again, which changes nothing")
        if asked.error:
            raise StoreError(asked.error)
        return [asked.results[flow] for flow in flows]

    def _withdraw(self, asked: Removal) -> None:
        with self._mutex:
            if asked in self._waiting:
                self._waiting.remove(asked)

    def take(self) -> list[Removal]:
        """Return the requests that came since the last call."""
        with self._mutex:
            taken, self._waiting = self._waiting, []
        return taken

    def refuse(self, asked: Iterable[Removal], error: str) -> None:
        """Answer those requests that are not answered yet that it went wrong."""
        for request in asked:
            if not request.is_over.is_set():
                request.error = error
                request.is_over.set()

    def answer(
        self,
        image: StoreImage,
        asked: Sequence[Removal],
        reclaim: Callable[[frozenset[bytes]], frozenset[bytes]],
    ) -> None:
        """Remove what may be removed, durably, and answer. Raises StoreError, with no answer.

        `asked`: what take() returned before the image was begun; `reclaim`: has segments of the
        image reclaimed in which only such flows lie, and returns those of which nothing is left.
        """
        shown = {flow.flow_id: flow for flow in image.flows}
        states = self._remove(shown, dict.fromkeys(f for a in asked for f in a.flows), reclaim)
        results = {f: RemovalResult(s, _size(shown.get(f))) for f, s in states.items()}
        for request in asked:
            request.results = results
            request.is_over.set()

    def _remove(
        self,
        shown: Mapping[bytes, Flow],
        wanted: Iterable[bytes],
        reclaim: Callable[[frozenset[bytes]], frozenset[bytes]],
    ) -> dict[bytes, RemovalState]:
        claimed: list[bytes] = []
        states: dict[bytes, RemovalState] = {}
        for flow in wanted:
            if flow not in shown:  # also what was removed before
                states[flow] = RemovalState.UNKNOWN
            elif shown[flow].state == STATE_OPEN or not self._flow_lock.claim(flow):
                states[flow] = RemovalState.IN_USE
            else:
                claimed.append(flow)
                states[flow] = RemovalState.REMOVED
        for flow in self._write(claimed, reclaim):
            self._flow_lock.release(flow)
            states[flow] = RemovalState.NO_ROOM
        for flow, state in states.items():
            if state is not RemovalState.UNKNOWN:
                self._report_state(shown[flow], state)
        return states

    def _write(
        self,
        flows: Sequence[bytes],
        reclaim: Callable[[frozenset[bytes]], frozenset[bytes]],
    ) -> Sequence[bytes]:
        """Remove flows that are claimed; return those for which there is no room.

        More than the table of removed flows has room for go with their segments, as far as
        nothing else lies in these.
        """
        left = flows
        if len(left) > self._sweeper.room_count:
            gone = reclaim(frozenset(left)) | self._sweeper.removed
            left = [flow for flow in left if flow not in gone]
        room_count = self._sweeper.room_count
        self._sweeper.remove(left[:room_count], REASON_REMOVED)
        return left[room_count:]

    def _report_state(self, flow: Flow, state: RemovalState) -> None:
        if state is RemovalState.REMOVED:
            size = _size(flow)
            self._report(LogEvent.FLOW_REMOVED, flow=flow.flow, bytes=size, reason=REASON_REMOVED)
        else:
            self._report(LogEvent.REMOVAL_REFUSED, flow=flow.flow, reason=state.value)


def _size(flow: Flow | None) -> int:
    return flow.bytes - flow.first_offset if flow is not None else 0

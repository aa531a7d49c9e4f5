# SPDX-License-Identifier: Apache-2.0
"""Answering those who ask a served store's daemon to remove flows: store/metadata/request_block.py.

Invariants: a flow is claimed by its lock before its removal is written; where that fails
the claim stays, as nobody knows then what is written. One image of the store serves as
many requests as come while it is held; one that came after it was begun is answered by
it only if it shows the flow, else by the next. An answer that nobody fetches is taken away
after a while, by its own age. Owned by the store's maintenance
thread, which holds the flow lock's image meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from ingestd.log_events import LogEvent
from ingestd.store.metadata.request_block import UNANSWERED, Request, RequestState
from ingestd.store.read.flows import STATE_OPEN, Flow
from ingestd.store.reclaim.candidates import REASON_REMOVED

if TYPE_CHECKING:
    from ingestd.daemon.admission.flow_lock import FlowLock
    from ingestd.store.read.image import StoreImage
    from ingestd.store.reclaim.sweep import Sweeper

# Who asks looks for answers more often than once a second, and then asks for more.
ANSWER_KEPT_S: Final = 60.0
ANSWER_TRIES: Final = 50
ANSWER_INTERVAL_S: Final = 0.02
# While one image is held: so long for the next round of requests, and for all rounds.
ROUND_TIME_S: Final = 1.0
ROUNDS_TIME_S: Final = 10.0

_Asked: TypeAlias = tuple[bytes, int]  # flow and token


class DeleteRequests:
    """The requests to one store; `report` takes an event of the log and its fields."""

    def __init__(
        self,
        sweeper: Sweeper,
        flow_lock: FlowLock,
        report: Callable[..., None],
        *,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._sweeper = sweeper
        self._flow_lock = flow_lock
        self._report = report
        self._is_stopped = is_stopped
        self._answered_at_s: dict[_Asked, float] = {}

    def take(self, now_s: float) -> list[Request]:
        """Return the requests without an answer, having answered who asked that they were seen.

        Answers that nobody fetched are taken away.
        """
        requests = self._sweeper.requests()
        answered = {(r.flow, r.token) for r in requests if r.state not in UNANSWERED}
        self._answered_at_s = {asked: self._answered_at_s.get(asked, now_s) for asked in answered}
        stale = {a for a, at_s in self._answered_at_s.items() if now_s - at_s > ANSWER_KEPT_S}
        asked = [r for r in requests if r.state in UNANSWERED]
        if stale or asked:
            self._sweeper.answer({(r.flow, r.token): RequestState.SEEN for r in asked}, stale)
        return asked

    def answer(self, image: StoreImage, asked: Sequence[Request]) -> None:
        """Remove what may be removed, durably, and answer those who asked, and who ask for more.

        `asked`: what take() returned before the image was begun.
        """
        shown = {flow.flow_id: flow for flow in image.flows}
        end_s = time.monotonic() + ROUNDS_TIME_S
        while asked:
            states = self._remove(shown, asked)
            # What is not there, or not any more, counts as removed.
            answers = {(r.flow, r.token): states.get(r.flow, RequestState.REMOVED) for r in asked}
            if not self._put(answers) or time.monotonic() >= end_s:
                return
            asked = self._more(shown)

    def _put(self, answers: Mapping[_Asked, RequestState]) -> bool:
        for _ in range(ANSWER_TRIES):
            if self._sweeper.answer(answers, set()):
                return True
            time.sleep(ANSWER_INTERVAL_S)
        return False

    def _more(self, shown: Mapping[bytes, Flow]) -> list[Request]:
        """Wait a moment for requests about flows that the image shows as ended."""
        end_s = time.monotonic() + ROUND_TIME_S
        while time.monotonic() < end_s and not self._is_stopped():
            requests = self._sweeper.requests()
            if not requests:
                return []
            more = [
                r
                for r in requests
                if r.state in UNANSWERED and r.flow in shown and shown[r.flow].state != STATE_OPEN
            ]
            if more:
                return more
            time.sleep(ANSWER_INTERVAL_S)
        return []

    def _remove(
        self, shown: Mapping[bytes, Flow], asked: Sequence[Request]
    ) -> dict[bytes, RequestState]:
        """Return what became of those that are there."""
        wanted = list(dict.fromkeys(r.flow for r in asked if r.flow in shown))
        removed: list[bytes] = []
        states = dict.fromkeys(wanted, RequestState.IN_USE)
        room_count = self._sweeper.room_count
        for flow in wanted:
            if flow in self._sweeper.removed:
                states[flow] = RequestState.REMOVED  # in an earlier round
            elif shown[flow].state == STATE_OPEN or not self._flow_lock.claim(flow):
                self._report(LogEvent.REMOVAL_REFUSED, flow=shown[flow].flow, reason="in_use")
            elif len(removed) == room_count:
                self._flow_lock.release(flow)
                states[flow] = RequestState.NO_ROOM
                self._report(LogEvent.REMOVAL_REFUSED, flow=shown[flow].flow, reason="no_room")
            else:
                removed.append(flow)
                states[flow] = RequestState.REMOVED
        self._sweeper.remove(removed, REASON_REMOVED)
        for flow in removed:
            entry = shown[flow]
            size = entry.bytes - entry.first_offset
            self._report(LogEvent.FLOW_REMOVED, flow=entry.flow, bytes=size, reason=REASON_REMOVED)
        return states

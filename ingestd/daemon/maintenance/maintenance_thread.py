# SPDX-License-Identifier: Apache-2.0
"""The maintenance thread of a served store: removes flows, on request or expired, frees segments.

It has a thread of its own for each store, which waits for the device and logs
nothing; what it reports, the main thread fetches. Invariants:
 - Of a flow that was fed since the reading of the store began, nothing that was read counts.
 - The store is read only when there is cause, and never for more than a part of
   the time.
 - A store that failed is left alone.
 - What fails, also a bug, is logged and retried after a pause, ever longer: it
   ends neither the thread nor the process. Only after a flush that failed nothing
   is tried before a restart, as the device may have lost what it had taken.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ingestd.daemon.base.backoff import Backoff
from ingestd.daemon.base.threads import block_signals, join_threads, start_thread
from ingestd.daemon.maintenance.capacity_log import segment_fields
from ingestd.daemon.maintenance.expiry import Expiry
from ingestd.daemon.maintenance.removals import Removal, Removals
from ingestd.errors import StoreError
from ingestd.log_events import LogEvent
from ingestd.store.read.image import ScanStoppedError
from ingestd.store.reclaim.candidates import REASON_REMOVED, Candidate
from ingestd.store.reclaim.presence import damaged_indexes

if TYPE_CHECKING:
    from ingestd.daemon.admission.flow_lock import FlowLock
    from ingestd.store.read.image import StoreImage
    from ingestd.store.reclaim.retention import Retention
    from ingestd.store.reclaim.sweep import Swept
    from ingestd.store.serve.served_store import ServedStore

TURN_INTERVAL_S: Final = 1.0
# After reading the store: for how many times as long only requests, or nothing, is looked at.
SWEEP_PAUSE_TIMES: Final = 20
REQUEST_PAUSE_TIMES: Final = 1
# A segment may get its footer a little later than the grant that it shows by.
SWEEPS_AFTER_CHANGE: Final = 3
# Who lists the store meanwhile may have seen the first segment of a flow before it went.
DROP_DELAY_S: Final = 60.0
REPORTS_COUNT_MAX: Final = 4096
SEGMENTS_SHOWN_MAX: Final = 10
TRACE_CHARS_MAX: Final = 4000
CLOSE_TIME_S: Final = 2.0


class MaintenanceThread:
    """Looks after one store; start() to close().

    `retentions`: by the names of listeners; `is_failed`: whether the device has failed.
    """

    def __init__(
        self,
        name: str,
        store: ServedStore,
        flow_lock: FlowLock,
        retentions: Mapping[str, Retention],
        is_failed: Callable[[], bool],
    ) -> None:
        self.failure = ""  # why the last turn failed
        self._name = name
        self._store = store
        self._sweeper = store.sweeper
        self._flow_lock = flow_lock
        self._terms = Expiry(retentions, self._report)
        self._wanted = threading.Event()
        self.removals = Removals(self._sweeper, flow_lock, self._report, self._wanted.set)
        self._is_failed = is_failed
        self._backoff = Backoff()
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._main, name=f"maintenance-{name}", daemon=True)
        self._reports: deque[tuple[LogEvent, dict[str, Any]]] = deque()
        self._lost_count = 0  # of reports, by this thread
        self._lost_reported_count = 0  # ... of these, as far as reported
        self._gone: deque[bytes] = deque()  # flows to be forgotten by all
        self._gone_since_s: dict[bytes, float] = {}
        self._next_answer_s = 0.0
        self._next_sweep_s = 0.0
        self._granted_count = 0
        self._sweeps_left = 1
        self._held_by: list[int] = []  # damaged segments that removed flows are remembered for
        self._is_blocked = False  # segments wait for room in the table of removed flows

    def start(self) -> None:
        """Begin to look after the store. Raises ResourceError."""
        start_thread(self.thread)

    def stop(self) -> None:
        """Let the thread end, once the step that is under way is done."""
        self._stop.set()
        self._wanted.set()
        self._sweeper.stop()

    def close(self, timeout_s: float = CLOSE_TIME_S) -> list[str]:
        """Release the store; return the thread's name if it hangs."""
        self.stop()
        return join_threads([self.thread], timeout_s)

    def take_reports(self) -> list[tuple[LogEvent, dict[str, Any]]]:
        """Return, and forget, what is to be logged; of too much, what came last is only counted."""
        reports = [self._reports.popleft() for _ in range(len(self._reports))]
        if lost_count := self._lost_count - self._lost_reported_count:
            self._lost_reported_count += lost_count
            reports.append((LogEvent.EVENTS_LOST, {"store": self._name, "count": lost_count}))
        return reports

    def take_gone(self) -> list[bytes]:
        """Return, and forget, flows of which nothing is left; their claims are the caller's."""
        return [self._gone.popleft() for _ in range(len(self._gone))]

    def _main(self) -> None:
        block_signals()
        while not self._stop.is_set():
            self._wanted.wait(TURN_INTERVAL_S)
            self._wanted.clear()
            if not self._stop.is_set():
                self.turn()
        self.removals.refuse(self.removals.take(), "the daemon is ending")

    def turn(self) -> None:
        """Do what there is to do now."""
        if self._is_failed() or not self._backoff.is_due or not self._sweeper.may_retry:
            reason = self.failure or "the store has failed: the daemon's log has the reason"
            self.removals.refuse(self.removals.take(), reason)
            return
        try:
            self._turn(time.monotonic())
        except ScanStoppedError:
            return
        except StoreError as error:
            self._fail(str(error), {})
        except Exception as bug:  # too little memory or threads, also
            trace = "".join(traceback.format_exception(bug))
            self._fail(repr(bug), {"trace": trace[-TRACE_CHARS_MAX:]})
        else:
            self.failure = ""
            if self._backoff.succeed():
                self._report(LogEvent.MAINTENANCE_RESUMED)

    def _fail(self, reason: str, more: dict[str, Any]) -> None:
        self.failure = reason
        retry_s: float | str = round(self._backoff.fail(), 1)
        if not self._sweeper.may_retry:
            retry_s = "at the next start"
        self._report(LogEvent.MAINTENANCE_FAILED, error=reason, retry_s=retry_s, **more)

    def _turn(self, now_s: float) -> None:
        self._terms.look()
        asked = self.removals.take() if now_s >= self._next_answer_s else []
        try:
            self._answer_and_sweep(asked, now_s)
        except BaseException as error:
            self.removals.refuse(asked, str(error) or "the daemon is ending")
            raise

    def _answer_and_sweep(self, asked: Sequence[Removal], now_s: float) -> None:
        self._expire(now_s)
        is_due = now_s >= self._next_sweep_s and self._has_cause()
        if not asked and not is_due:
            return
        with self._flow_lock.image():
            image = None
            if not (is_due and self._terms):  # what expires is not in the removed flows' parts
                flows = [flow for request in asked for flow in request.flows]
                image = self._store.removal_image(flows, self._stop.is_set)
            may_sweep = image is None or not self._terms
            image = image or self._sweeper.scan()
            took_s = time.monotonic() - now_s
            if asked:
                self.removals.answer(image, asked, partial(self._reclaim, image))
                self._sweeps_left = SWEEPS_AFTER_CHANGE
            if may_sweep:
                self._sweep(image)
        end_s = time.monotonic()
        self._next_answer_s = end_s + REQUEST_PAUSE_TIMES * took_s
        self._next_sweep_s = end_s + max(TURN_INTERVAL_S, SWEEP_PAUSE_TIMES * took_s)

    def _has_cause(self) -> bool:
        """Return whether something may have become free since the store was read last."""
        granted_count = self._store.segments_granted_count
        if granted_count != self._granted_count:
            self._granted_count = granted_count
            self._sweeps_left = SWEEPS_AFTER_CHANGE
        if self._terms.is_due():
            return True
        return self._sweeps_left > 0 and bool(self._sweeper.removed or self._terms)

    def _report(self, event: LogEvent, **fields: Any) -> None:
        if len(self._reports) < REPORTS_COUNT_MAX:
            self._reports.append((event, {"store": self._name, **fields}))
        else:
            self._lost_count += 1

    # --- Segments -------------------------------------------------------------------

    def _sweep(self, image: StoreImage) -> None:
        """Give back what nothing keeps any more."""
        self._sweeps_left = max(0, self._sweeps_left - 1)
        expired = self._terms.expired(image)
        swept = self._sweeper.sweep(image, expired, self._flow_lock.claim, self._flow_lock.release)
        self._note_swept(image, swept)

    def _reclaim(self, image: StoreImage, flows: frozenset[bytes]) -> frozenset[bytes]:
        """Give back what only such flows lie in; return those of which nothing is left."""
        swept = self._sweeper.sweep(image, flows, reason=REASON_REMOVED)
        self._note_swept(image, swept)
        return swept.gone

    def _note_swept(self, image: StoreImage, swept: Swept) -> None:
        for item in swept.freed:
            self._report_freed(item)
        if swept.discard_error is not None:
            self._report(LogEvent.DISCARD_FAILED, error=str(swept.discard_error))
        if swept.blocked_count > 0 and not self._is_blocked:
            self._report(
                LogEvent.REMOVAL_TABLE_FULL,
                segments=swept.blocked_count,
                room=self._sweeper.room_count,
                hint="they go once segments that their flows lie in become free of kept flows:"
                " remove what lies beside them, or give listeners that keep for different times"
                " a store each",
            )
        self._is_blocked = swept.blocked_count > 0
        self._report_held(image, swept.held_count)
        now_s = time.monotonic()
        for flow in swept.gone:
            self._gone_since_s.setdefault(flow, now_s)

    def _report_held(self, image: StoreImage, held_count: int) -> None:
        damaged = damaged_indexes(image.segments) if held_count else []
        if held_count and damaged != self._held_by:
            self._report(
                LogEvent.REMOVED_FLOWS_HELD,
                flows=held_count,
                segments=damaged[:SEGMENTS_SHOWN_MAX],
                segments_missing=image.segments_missing_count,
                room=self._sweeper.room_count,
                hint="have the device read them again (dmesg, cabling, multipath) and restart,"
                " or copy what is kept to another store (ingestd cat) and format this one again",
            )
        self._held_by = damaged

    def _report_freed(self, item: Candidate) -> None:
        segment, flows = item.segment, sorted(item.flows)
        fields = segment_fields(segment.index, segment.sequence, segment.payload_bytes, flows)
        self._report(LogEvent.SEGMENT_FREED, reason=item.reason, **fields)

    def _expire(self, now_s: float) -> None:
        """Forget flows of which nothing has been left for a while."""
        due = [f for f, since_s in self._gone_since_s.items() if now_s - since_s >= DROP_DELAY_S]
        if not due:
            return
        self._sweeper.drop(due)
        for flow in due:
            del self._gone_since_s[flow]
            self._gone.append(flow)

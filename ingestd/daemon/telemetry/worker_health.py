# SPDX-License-Identifier: Apache-2.0
"""Checks of all workers that the main thread makes once a second, beside their events.

Invariant: a loop that is late, and events that were lost, are logged once. Owned by
the main thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ingestd.daemon.telemetry.worker_events import errno_text, store_failed_advice
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.daemon.workers.worker import WorkerThread

# The core's loop turns at least once a second; this allows for a busy machine.
LOOP_AGE_MAX_S: Final = 10.0


class WorkerHealth:
    """Looks at all workers; adds to `failed_stores` those that no event reported."""

    def __init__(self, workers: Sequence[WorkerThread], failed_stores: set[str], log: Log) -> None:
        self._workers = workers
        self._failed_stores = failed_stores
        self._log = log
        self._late_workers: set[str] = set()
        self._failed_workers: set[str] = set()
        self._events_dropped_count = 0

    def look_for_lost_events(self, counters: Sequence[Mapping[str, int]]) -> None:
        """Log what the counters show and the events, being too many, did not."""
        dropped_count = sum(shot["events_dropped"] for shot in counters)
        if dropped_count > self._events_dropped_count:
            self._log.emit(LogEvent.EVENTS_LOST, count=dropped_count - self._events_dropped_count)
            self._events_dropped_count = dropped_count
        for worker, shot in zip(self._workers, counters, strict=True):
            if not shot["store_errno"] or worker.store_name in self._failed_stores:
                continue
            # The event follows the counter: it is lost if it is not there by the next look.
            if worker.name not in self._failed_workers:
                self._failed_workers.add(worker.name)
            else:
                self._failed_stores.add(worker.store_name)
                self._log.emit(
                    LogEvent.STORE_FAILED,
                    store=worker.store_name,
                    worker=worker.index,
                    error=errno_text(shot["store_errno"]),
                    hint=store_failed_advice(shot["store_errno"]),
                )

    def loops_turn(self) -> bool:
        """Return whether every worker's loop turns; log of those that do not."""
        late = {w.name: w.loop_age_s() for w in self._workers}
        late = {name: age_s for name, age_s in late.items() if age_s > LOOP_AGE_MAX_S}
        for name in late.keys() - self._late_workers:
            self._log.emit(LogEvent.WATCHDOG_LATE, worker=name, loop_age_s=round(late[name], 1))
        self._late_workers = set(late)
        return not late

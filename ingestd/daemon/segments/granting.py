# SPDX-License-Identifier: Apache-2.0
"""Granting segments to all workers: a pump for each store, an overwriter where it overwrites,
a reserver where its file has lost space.

Invariant: no store waits for another's device, nor its pump for its own. Owned by
the main thread; pumps, overwriters and reservers have threads of their own.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ingestd.daemon.base.periodic import Periodic
from ingestd.daemon.base.threads import join_threads
from ingestd.daemon.segments.overwriter import Overwriter
from ingestd.daemon.segments.pump import Pump
from ingestd.daemon.segments.reserver import Reserver
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore


class Granting:
    """All stores; start() to close()."""

    def __init__(
        self,
        stores: Mapping[str, ServedStore],
        workers: Sequence[WorkerThread],
        is_failed: Callable[[str], bool],
        on_events: Callable[[], None],
        log: Log,
    ) -> None:
        self._log = log
        self._logged: dict[tuple[LogEvent, str], Exception] = {}
        self._pumps: list[Pump] = []
        self._overwriters: dict[str, Overwriter] = {}
        self._reservers: dict[str, Reserver] = {}
        self._without_room: set[str] = set()  # as far as was logged
        for name, store in stores.items():
            own = [worker for worker in workers if worker.store_name == name]
            self._add(name, store, own, is_failed, on_events)

    def _add(
        self,
        name: str,
        store: ServedStore,
        workers: Sequence[WorkerThread],
        is_failed: Callable[[str], bool],
        on_events: Callable[[], None],
    ) -> None:
        if store.is_sparse:
            self._reservers[name] = Reserver(name, store, lambda: pump.wake())
        if store.segments_without_room:
            self._without_room.add(name)
        if not store.is_overwriting:
            pump = Pump(workers, on_events, name=f"pump-{name}")
            self._pumps.append(pump)
            return
        store.recycle_ahead(0)  # from now on, granting leaves it to the overwriter
        # Each wakes the other: what is granted is to be made up for, what is free to be granted.
        overwriter = Overwriter(
            name, store, len(workers), lambda: is_failed(name), lambda: pump.wake()
        )
        pump = Pump(workers, on_events, name=f"pump-{name}", on_granted=overwriter.periodic.wake)
        self._pumps.append(pump)
        self._overwriters[name] = overwriter

    def start(self) -> None:
        """Begin to grant. Raises ResourceError."""
        for helper in self._helpers():
            helper.start()
        for pump in self._pumps:
            pump.start()

    def error(self) -> tuple[str, BaseException] | None:
        """Return what ended a pump, a bug, and its name."""
        for pump in self._pumps:
            if pump.error is not None:
                return pump.thread.name, pump.error
        return None

    def tick(self) -> None:
        """Log bugs in overwriters and reservers, each once, and of room that is back."""
        for name, overwriter in self._overwriters.items():
            self._log_bug(LogEvent.OVERWRITING_FAILED, name, overwriter.periodic.bug)
        for name, reserver in self._reservers.items():
            self._log_bug(LogEvent.RESERVING_FAILED, name, reserver.periodic.bug)
            if reserver.without_count == 0 and name in self._without_room:
                self._without_room.remove(name)
                self._log.emit(LogEvent.STORE_WHOLE, store=name)

    def _log_bug(self, event: LogEvent, name: str, bug: Exception | None) -> None:
        if bug is not None and bug is not self._logged.get((event, name)):
            self._logged[event, name] = bug
            trace = "".join(traceback.format_exception(bug))
            self._log.emit(event, store=name, error=repr(bug), trace=trace)

    def failures(self) -> dict[str, str]:
        """Return why a helper fails in a way that the store does not know of, by store."""
        bugs = {name: reserver.periodic.bug for name, reserver in self._reservers.items()}
        for name, overwriter in self._overwriters.items():
            bugs[name] = overwriter.periodic.bug or bugs.get(name)
        return {name: repr(bug) for name, bug in bugs.items() if bug is not None}

    def close(self, timeout_s: float) -> list[str]:
        """Stop granting; return the names of threads that hang."""
        deadline_s = time.monotonic() + timeout_s
        for helper in self._helpers():
            helper.stop()
        stuck: list[str] = []
        for pump in self._pumps:
            stuck += pump.close(max(0.0, deadline_s - time.monotonic()))
        threads = [helper.thread for helper in self._helpers()]
        return stuck + join_threads(threads, max(0.0, deadline_s - time.monotonic()))

    def _helpers(self) -> list[Periodic]:
        overwriters = [overwriter.periodic for overwriter in self._overwriters.values()]
        return overwriters + [reserver.periodic for reserver in self._reservers.values()]

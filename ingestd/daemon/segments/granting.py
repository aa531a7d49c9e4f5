# SPDX-License-Identifier: Apache-2.0
"""Granting segments to all workers: a pump for each store, an overwriter where it overwrites.

Invariant: no store waits for another's device, nor its pump for its own. Owned by
the main thread; pumps and overwriters have threads of their own.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ingestd.daemon.base.threads import join_threads
from ingestd.daemon.segments.overwriter import Overwriter
from ingestd.daemon.segments.pump import Pump
from ingestd.log import Log, LogEvent

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
        self._told: dict[str, Exception] = {}
        self._pumps: list[Pump] = []
        self._overwriters: dict[str, Overwriter] = {}
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
        if not store.is_overwriting:
            self._pumps.append(Pump(workers, on_events, name=f"pump-{name}"))
            return
        store.recycle_ahead(0)  # from now on, granting leaves it to the overwriter
        # Each wakes the other: what is granted is to be made up for, what is free to be granted.
        overwriter = Overwriter(
            name, store, len(workers), lambda: is_failed(name), lambda: pump.wake()
        )
        pump = Pump(workers, on_events, name=f"pump-{name}", on_granted=overwriter.wake)
        self._pumps.append(pump)
        self._overwriters[name] = overwriter

    def start(self) -> None:
        """Begin to grant. Raises ResourceError."""
        for overwriter in self._overwriters.values():
            overwriter.start()
        for pump in self._pumps:
            pump.start()

    def error(self) -> tuple[str, BaseException] | None:
        """Return what ended a pump, a bug, and its name."""
        for pump in self._pumps:
            if pump.error is not None:
                return pump.thread.name, pump.error
        return None

    def tick(self) -> None:
        """Tell of bugs in overwriters, each once."""
        for name, overwriter in self._overwriters.items():
            bug = overwriter.bug
            if bug is not None and bug is not self._told.get(name):
                self._told[name] = bug
                trace = "".join(traceback.format_exception(bug))
                self._log.emit(
                    LogEvent.OVERWRITING_FAILED, store=name, error=repr(bug), trace=trace
                )

    def failures(self) -> dict[str, str]:
        """Return why overwriting fails in a way that the store does not know of, by store."""
        return {
            name: repr(overwriter.bug)
            for name, overwriter in self._overwriters.items()
            if overwriter.bug is not None
        }

    def close(self, timeout_s: float) -> list[str]:
        """Stop granting; return the names of threads that hang."""
        deadline_s = time.monotonic() + timeout_s
        for overwriter in self._overwriters.values():
            overwriter.stop()
        stuck: list[str] = []
        for pump in self._pumps:
            stuck += pump.close(max(0.0, deadline_s - time.monotonic()))
        threads = [overwriter.thread for overwriter in self._overwriters.values()]
        return stuck + join_threads(threads, max(0.0, deadline_s - time.monotonic()))

# SPDX-License-Identifier: Apache-2.0
"""Maintenance of all stores: free space, removals, and flows that the index forgets.

Invariants: what a maintenance thread reports is logged once; a flow of which nothing is left is
forgotten by the index before its lock is released. Owned by the main
thread; each store has a maintenance thread of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ingestd.daemon.admission.flow_lock import FlowLock
from ingestd.daemon.base.threads import join_threads
from ingestd.daemon.maintenance.capacity_log import CapacityLog
from ingestd.daemon.maintenance.catalogue_feed import CatalogueFeed
from ingestd.daemon.maintenance.maintenance_thread import MaintenanceThread
from ingestd.daemon.maintenance.store_watch import StoreWatch
from ingestd.log import Log
from ingestd.store.reclaim.retention import NS_PER_S, Retention

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.daemon.admission.flow_index import FlowIndex
    from ingestd.daemon.maintenance.removals import RemovalResult
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore


def retentions_of(settings: Settings, store_name: str) -> dict[str, Retention]:
    """Return what is to be kept of a store's ended flows, by listener; others keep all."""
    return {
        name: Retention(
            for_ns=math.ceil(listener.retain_for_s * NS_PER_S) or None,
            bytes_count=listener.retain_bytes or None,
        )
        for name, listener in settings.listeners_of(store_name)
        if listener.retain_for_s or listener.retain_bytes
    }


class Maintenance:
    """All stores: add() each, start(), tick(), close()."""

    def __init__(
        self, indexes: Mapping[str, FlowIndex], workers: Sequence[WorkerThread], log: Log
    ) -> None:
        self.flow_locks: dict[str, FlowLock] = {}
        self._indexes = indexes
        self._workers = workers
        self._log = log
        self._watches: list[CapacityLog] = []
        self._maintainers: dict[str, MaintenanceThread] = {}
        self._store_watches: dict[str, StoreWatch] = {}
        self._feeds: dict[str, CatalogueFeed] = {}
        self._stores: dict[str, ServedStore] = {}

    def add(
        self,
        name: str,
        store: ServedStore,
        settings: Settings,
        is_failed: Callable[[], bool],
    ) -> None:
        """Look after one more store, from start() on."""
        self._stores[name] = store
        self.flow_locks[name] = FlowLock(store.sweeper.removed)
        retentions = retentions_of(settings, name)
        self._maintainers[name] = MaintenanceThread(
            name, store, self.flow_locks[name], retentions, is_failed
        )
        self._store_watches[name] = StoreWatch(name, store, self._workers, self._log)
        if store.feeder is not None:
            is_asked = any(item.protocol == "ingest" for _, item in settings.listeners_of(name))
            self._feeds[name] = CatalogueFeed(name, store.feeder, self._log, wants_ids=is_asked)
        percent = settings.store[name].warn_free_percent
        watch = CapacityLog(name, store, percent, self._log, self._forgetter(name))
        self._watches.append(watch)

    def _forgetter(self, name: str) -> Callable[[bytes], None]:
        def forget(flow: bytes) -> None:
            index = self._indexes.get(name)
            if index is not None:
                index.forget(flow)

        return forget

    def remove(
        self, name: str, flows: Sequence[bytes], is_stopped: Callable[[], bool]
    ) -> list[RemovalResult]:
        """Remove flows of a store, as Removals.remove() does. By any thread that may wait."""
        return self._maintainers[name].removals.remove(flows, is_stopped)

    def start(self) -> None:
        """Start the maintenance threads and watches. Raises ResourceError."""
        for watch in self._store_watches.values():
            watch.periodic.start()
        for maintainer in self._maintainers.values():
            maintainer.start()
        for feed in self._feeds.values():
            feed.start()

    def close(self, timeout_s: float) -> list[str]:
        """End all of them, and log what they did last; return who hangs."""
        for watch in self._store_watches.values():
            watch.periodic.stop()
        for maintainer in self._maintainers.values():
            maintainer.stop()
        for feed in self._feeds.values():
            feed.stop()
        threads = [watch.periodic.thread for watch in self._store_watches.values()]
        threads += [maintainer.thread for maintainer in self._maintainers.values()]
        threads += [feed.periodic.thread for feed in self._feeds.values()]
        stuck = join_threads(threads, timeout_s)
        self._log_reports()
        return stuck

    def failures(self) -> dict[str, str]:
        """Return why a store's maintenance fails now, by store. By any thread."""
        found = {
            name: maintainer.failure
            for name, maintainer in self._maintainers.items()
            if maintainer.failure
        }
        bugs = {name: watch.periodic.bug for name, watch in self._store_watches.items()}
        found |= {name: repr(bug) for name, bug in bugs.items() if bug is not None}
        for name, store in self._stores.items():
            if name not in found and store.overwriting_error is not None:
                found[name] = str(store.overwriting_error)
        return found

    def tick(self) -> None:
        """Log, and forget, what was reported; once a second."""
        for watch in self._watches:
            watch.tick()
        self._log_reports()
        for name, feed in self._feeds.items():
            ids, index = feed.take_ids(), self._indexes.get(name)
            if ids is not None and index is not None:
                index.complete(ids)

    def _log_reports(self) -> None:
        for name, maintainer in self._maintainers.items():
            for event, fields in maintainer.take_reports():
                self._log.emit(event, **fields)
            forget = self._forgetter(name)
            for flow in maintainer.take_gone():
                forget(flow)
                self.flow_locks[name].release(flow)

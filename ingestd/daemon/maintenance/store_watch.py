# SPDX-License-Identifier: Apache-2.0
"""The store watch: sees once a second whether a served store is still there, and is still ours.

A worker looks at the file before it acknowledges (core/storage/device.c); this sees what else can
be lost, and sees it without a flow. It has a thread for each store, as it reads from the device,
which may hang. Invariant: a store that is lost is failed once, on all of its workers.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ingestd.daemon.base.periodic import Periodic
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore

WATCH_INTERVAL_S: Final = 1.0


class StoreWatch:
    """Of one store, looked at by `periodic`. `workers`: of all stores, as they come to be."""

    def __init__(
        self,
        name: str,
        store: ServedStore,
        workers: Sequence[WorkerThread],
        log: Log,
    ) -> None:
        self._name = name
        self._store = store
        self._workers = workers
        self._log = log
        self._is_elsewhere = False
        self.periodic = Periodic(f"watch-{name}", WATCH_INTERVAL_S, self.look, self._log_bug)

    def _log_bug(self, bug: Exception, retry_s: float) -> None:
        if self.periodic.is_stopping:
            return
        trace = "".join(traceback.format_exception(bug))
        self._log.emit(
            LogEvent.MAINTENANCE_FAILED,
            store=self._name,
            error=repr(bug),
            retry_s=retry_s,
            trace=trace,
        )

    def look(self) -> bool:
        """Look once; False when the store is lost, and there is no more to be seen."""
        try:
            code = self._store.loss()
        except OSError as error:  # a device that is gone may answer so
            code = error.errno or errno.EIO
        if self.periodic.is_stopping:  # the descriptor may soon be another's
            return False
        if code is not None:
            own = [w for w in self._workers if w.store_name == self._name]
            failed = [worker.fail_store(code) for worker in own]
            return not all(failed)  # a worker whose box is full is asked again
        is_elsewhere = self._store.is_elsewhere()
        if is_elsewhere and not self._is_elsewhere:
            self._log.emit(
                LogEvent.STORE_MOVED,
                store=self._name,
                path=self._store.path,
                hint="give the store its path back, or configure the new one, before a restart",
            )
        self._is_elsewhere = is_elsewhere
        return True

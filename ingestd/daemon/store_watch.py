# SPDX-License-Identifier: Apache-2.0
"""The store watch: sees once a second whether a served store is still there, and is still ours.

A worker looks at the file before it acknowledges (core/device.c); this sees what else can be
lost, and sees it without a flow. It has a thread for each store, as it reads from the device,
which may hang. Invariant: a store that is lost is failed once, on all of its workers.
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ingestd.log import Log, LogEvent

if TYPE_CHECKING:
    from ingestd.daemon.worker import WorkerThread
    from ingestd.store.serving import ServedStore

WATCH_INTERVAL_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 1.0


class StoreWatch:
    """Of one store; start() to close(). `workers`: of all stores, as they come to be."""

    def __init__(
        self,
        name: str,
        store: ServedStore,
        workers: Sequence[WorkerThread],
        log: Log,
        on_error: Callable[[], None],
    ) -> None:
        self.error: BaseException | None = None  # a bug; the main thread tells of it
        self._name = name
        self._store = store
        self._workers = workers
        self._log = log
        self._on_error = on_error
        self._is_elsewhere = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"watch-{name}", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def close(self) -> None:
        """End, unless the device hangs: the thread then ends with the process."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._stop.wait(WATCH_INTERVAL_S):
                if not self.look():
                    return
        except BaseException as bug:
            if not self._stop.is_set():
                self.error = bug
                self._on_error()

    def look(self) -> bool:
        """Look once; False when the store is lost, and there is no more to be seen."""
        try:
            code = self._store.loss()
        except OSError as error:  # a device that is gone may answer so
            code = error.errno or errno.EIO
        if self._stop.is_set():
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
                way_out="give the store its path back, or configure the new one, before a restart",
            )
        self._is_elsewhere = is_elsewhere
        return True

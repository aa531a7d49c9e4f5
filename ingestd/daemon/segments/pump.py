# SPDX-License-Identifier: Apache-2.0
"""The pump: grants segments to the workers of a store the moment they ask.

A worker holds only a few segments in reserve, and a log that blocks, or another
store's device, must not let it run dry: so granting has a thread of its own for
each store, which logs nothing, waits for no device, and passes the wake-up on to
the main thread, which reads the events.

Invariants: the pump is the only caller of grant_segments() while it runs; an
error in it ends the process rather than the granting.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from ingestd.daemon.base.threads import block_signals, join_threads, start_thread
from ingestd.daemon.base.waker import Waker
from ingestd.daemon.workers.worker import WorkerThread

ASK_INTERVAL_S: Final = 1.0
CLOSE_TIME_S: Final = 2.0


class Pump:
    """One thread for the workers of a store; start() to close().

    `on_events` is called when there may be something for the main thread, `on_granted`
    when segments were granted; neither may wait.
    """

    def __init__(
        self,
        workers: Sequence[WorkerThread],
        on_events: Callable[[], None],
        *,
        name: str = "pump",
        on_granted: Callable[[], None] = lambda: None,
    ) -> None:
        self._workers = workers
        self._on_events = on_events
        self._on_granted = on_granted
        self._waker = Waker()
        self._is_stopping = False
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.error: BaseException | None = None  # a bug; the main thread logs it

    def start(self) -> None:
        """Grant what is wanted now, and keep granting. Raises ResourceError."""
        start_thread(self.thread)

    def wake(self) -> None:
        """Look again: a segment may be free that was not. By any thread."""
        self._waker.wake()

    def close(self, timeout_s: float = CLOSE_TIME_S) -> list[str]:
        """Stop granting; return the thread's name if it hangs."""
        self._is_stopping = True
        self._waker.wake()
        stuck = join_threads([self.thread], timeout_s)
        if not stuck:
            self._waker.close()
        return stuck

    def _main(self) -> None:
        block_signals()
        try:
            with selectors.DefaultSelector() as selector:
                self._serve(selector)
        except BaseException as bug:
            self.error = bug
            self._on_events()

    def _serve(self, selector: selectors.BaseSelector) -> None:
        selector.register(self._waker, selectors.EVENT_READ, None)
        for worker in self._workers:
            selector.register(worker.event_fd, selectors.EVENT_READ, worker)
        self._grant(self._workers)
        next_ask_s = time.monotonic() + ASK_INTERVAL_S
        while True:
            woken = [key.data for key, _ in selector.select(ASK_INTERVAL_S)]
            if self._is_stopping:
                return
            if None in woken or time.monotonic() >= next_ask_s:
                # Events can be dropped, and segments be reclaimed that nobody waited for.
                self._waker.clear()
                next_ask_s = time.monotonic() + ASK_INTERVAL_S
                self._grant(self._workers)
            if not (woken := [worker for worker in woken if worker is not None]):
                continue
            for worker in woken:
                # Cleared first: what comes in from here on wakes anew.
                with suppress(BlockingIOError):
                    os.eventfd_read(worker.event_fd)
            self._grant(woken)
            self._on_events()

    def _grant(self, workers: Sequence[WorkerThread]) -> None:
        if sum([worker.grant_segments() for worker in workers]):
            self._on_granted()

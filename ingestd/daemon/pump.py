# SPDX-License-Identifier: Apache-2.0
"""The pump: grants segments to workers the moment they ask.

A worker holds only a few segments in reserve, and a log that blocks must not
let it run dry: so granting has a thread of its own, which logs nothing, and
passes the wake-up on to the main thread, which reads the events.

Invariants: the pump is the only caller of grant_segments() while it runs; an
error in it ends the process rather than the granting.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from ingestd.daemon.worker import WorkerThread

ASK_INTERVAL_S: Final = 1.0


class Pump:
    """One thread for all workers; start() to close()."""

    def __init__(self, workers: Sequence[WorkerThread], on_events: Callable[[], None]) -> None:
        self._workers = workers
        self._on_events = on_events
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._main, name="pump", daemon=True)
        self.error: BaseException | None = None  # a bug; the main thread tells of it

    def start(self) -> None:
        """Grant what is wanted now, and go on granting."""
        self._thread.start()

    def close(self) -> None:
        """Stop granting."""
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._stop_fd)

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with selectors.DefaultSelector() as selector:
                self._serve(selector)
        except BaseException as bug:
            self.error = bug
            self._on_events()

    def _serve(self, selector: selectors.BaseSelector) -> None:
        selector.register(self._stop_fd, selectors.EVENT_READ, None)
        for worker in self._workers:
            selector.register(worker.event_fd, selectors.EVENT_READ, worker)
            worker.grant_segments()
        next_ask_s = time.monotonic() + ASK_INTERVAL_S
        while True:
            woken = [key.data for key, _ in selector.select(ASK_INTERVAL_S)]
            if None in woken:
                return
            if time.monotonic() >= next_ask_s:
                # Events can be dropped, and segments be given back that nobody waited for.
                next_ask_s = time.monotonic() + ASK_INTERVAL_S
                for worker in self._workers:
                    worker.grant_segments()
            if not woken:
                continue
            for worker in woken:
                # Cleared first: what comes in from here on wakes anew.
                with suppress(BlockingIOError):
                    os.eventfd_read(worker.event_fd)
                worker.grant_segments()
            self._on_events()

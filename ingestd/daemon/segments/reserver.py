# SPDX-License-Identifier: Apache-2.0
"""The reserver: gives segments of a sparse store file their space, once there is room.

It has a thread of its own for each such store, which waits for the file system, so that
the pump need not. Invariant: a bug here ends nothing, it is logged and retried.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ingestd.daemon.base.backoff import Backoff
from ingestd.daemon.base.threads import block_signals, start_thread

if TYPE_CHECKING:
    from ingestd.store.serve.served_store import ServedStore

# Flows are refused meanwhile, and a look costs two system calls.
LOOK_INTERVAL_S: Final = 0.25


class Reserver:
    """One thread for one store; start() to stop(), then joined by its owner."""

    def __init__(self, name: str, store: ServedStore, on_free: Callable[[], None]) -> None:
        self._store = store
        self._on_free = on_free
        self._stopping = threading.Event()
        self._backoff = Backoff()
        self.without_count = store.segments_without_room  # as of the last turn
        self.bug: Exception | None = None  # of the last turn
        self.thread = threading.Thread(target=self._main, name=f"reserver-{name}", daemon=True)

    def start(self) -> None:
        """Begin to ask for room. Raises ResourceError."""
        start_thread(self.thread)

    def stop(self) -> None:
        """Let the thread end, once the file system has answered."""
        self._stopping.set()

    def turn(self) -> None:
        """Ask for what is missing now."""
        if not self._backoff.is_due:
            return
        before_count = self._store.segments_without_room
        try:
            self.without_count = self._store.reserve_room()
        except Exception as bug:
            self.bug = bug
            self._backoff.fail()
            return
        self.bug = None
        self._backoff.succeed()
        if self.without_count < before_count:
            self._on_free()

    def _main(self) -> None:
        block_signals()
        while not self._stopping.wait(LOOK_INTERVAL_S):
            self.turn()

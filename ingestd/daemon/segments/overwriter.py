# SPDX-License-Identifier: Apache-2.0
"""The overwriter: evicts the oldest segments of a full store before they are asked for.

It has a thread of its own for each store that overwrites, which waits for the
device, so that the pump need not. Invariants: as many segments are free ahead as
the store has workers, where there are old ones that can be evicted; a bug here
ends nothing, it is logged and retried.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ingestd.daemon.base.backoff import Backoff
from ingestd.daemon.base.threads import block_signals, join_threads, start_thread

if TYPE_CHECKING:
    from ingestd.store.serve.served_store import ServedStore

# A segment is closed, and can go, without any notice.
LOOK_INTERVAL_S: Final = 1.0


class Overwriter:
    """One thread for one store; start() to join()."""

    def __init__(
        self,
        name: str,
        store: ServedStore,
        ahead_count: int,
        is_failed: Callable[[], bool],
        on_free: Callable[[], None],
    ) -> None:
        self._store = store
        self._ahead_count = ahead_count
        self._is_failed = is_failed
        self._on_free = on_free
        self._wanted = threading.Event()
        self._is_stopping = False
        self._backoff = Backoff()
        self.bug: Exception | None = None  # of the last turn
        self.thread = threading.Thread(target=self._main, name=f"overwriter-{name}", daemon=True)

    def start(self) -> None:
        """Begin to evict what is too much. Raises ResourceError."""
        start_thread(self.thread)

    def wake(self) -> None:
        """Look again: segments were granted. By any thread."""
        self._wanted.set()

    def stop(self) -> None:
        """Let the thread end, once the device has answered."""
        self._is_stopping = True
        self._wanted.set()

    def join(self, timeout_s: float) -> list[str]:
        """Wait for the end; return the thread's name if it hangs."""
        return join_threads([self.thread], timeout_s)

    def turn(self) -> None:
        """Evict what is wanted now."""
        if self._is_failed() or not self._backoff.is_due:
            return
        try:
            recycled_count = self._store.recycle_ahead(self._ahead_count)
        except Exception as bug:
            self.bug = bug
            self._backoff.fail()
            return
        self.bug = None
        self._backoff.succeed()
        if recycled_count:
            self._on_free()

    def _main(self) -> None:
        block_signals()
        while not self._is_stopping:
            self.turn()
            self._wanted.wait(LOOK_INTERVAL_S)
            self._wanted.clear()

# SPDX-License-Identifier: Apache-2.0
"""Looking into a store for flows of which the daemon knows no more than the id.

A thread of its own for each store reads; whoever asks is answered by take(). Invariants: one
reading answers all who waited when it began; between two readings there is a pause
as long as the one before took; what nobody waits for any more is not looked for. After
stop() nobody is woken. A device that hangs holds up its own store's lookups and nothing
else. All but the reading is the main thread's.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Set
from typing import Final, TypeAlias

from ingestd.errors import StoreError
from ingestd.store.read.point_query import Found, QueryStoppedError

PAUSE_TIMES: Final = 1
JOIN_TIME_S: Final = 1.0

Find: TypeAlias = Callable[[Set[bytes], Callable[[], bool]], Found]


class Lookups:
    """Those into one store. `find` is ServedStore.find_flows; `wake`: take() has something."""

    def __init__(self, name: str, find: Find, wake: Callable[[], None]) -> None:
        self._find = find
        self._wake = wake
        self._changed = threading.Condition()
        self._asked: set[bytes] = set()  # not looked for yet
        self._found: dict[bytes, Found | Exception] = {}
        self._is_stopped = False
        self._thread = threading.Thread(target=self._main, name=f"lookup-{name}", daemon=True)

    def ask(self, flow: bytes) -> bool:
        """Have a flow looked for; False if there is no thread to be had for it."""
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError:  # the limit of threads, or of memory
                self._thread = threading.Thread(
                    target=self._main, name=self._thread.name, daemon=True
                )
                return False
        with self._changed:
            self._asked.add(flow)
            self._changed.notify()
        return True

    def withdraw(self, flow: bytes) -> None:
        """Nobody waits for a flow any more."""
        with self._changed:
            self._asked.discard(flow)
            self._found.pop(flow, None)

    def take(self) -> dict[bytes, Found | Exception]:
        """Return, and forget, what was found of each flow, or why nobody knows."""
        with self._changed:
            found, self._found = self._found, {}
        return found

    def stop(self) -> None:
        """End the reading; wait for it a moment, as it ends with a segment."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIME_S)

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while wanted := self._next():
            begun_s = time.monotonic()
            outcome: Found | Exception
            try:
                outcome = self._find(wanted, lambda: self._is_stopped)
            except QueryStoppedError:
                return
            except (StoreError, MemoryError) as error:
                outcome = error
            took_s = time.monotonic() - begun_s
            with self._changed:
                if self._is_stopped:
                    return
                self._found.update(dict.fromkeys(wanted, outcome))
                self._wake()
                self._changed.wait_for(lambda: self._is_stopped, PAUSE_TIMES * took_s)

    def _next(self) -> frozenset[bytes]:
        """All that is asked for, once there is something; nothing when it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._is_stopped)
            wanted = frozenset() if self._is_stopped else frozenset(self._asked)
            self._asked.clear()
        return wanted

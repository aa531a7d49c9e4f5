# SPDX-License-Identifier: Apache-2.0
"""A thread that does one thing again and again, and may wait for a device meanwhile.

Invariants: a bug in what it does ends nothing, is kept for whoever logs it, and makes the pauses
longer; it ends by itself only when what it does says so. start(), wake() and stop() are for any
thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ingestd.daemon.base.backoff import Backoff
from ingestd.daemon.base.threads import block_signals, start_thread


def _ignore(_bug: Exception, _retry_s: float) -> None:
    pass


class Periodic:
    """Calls `turn` every `interval_s`, and when woken, until that returns False, or stop().

    `on_bug` gets each exception, and after how many seconds it is tried again.
    """

    def __init__(
        self,
        name: str,
        interval_s: float,
        turn: Callable[[], bool],
        on_bug: Callable[[Exception, float], None] = _ignore,
    ) -> None:
        self._interval_s = interval_s
        self._turn = turn
        self._on_bug = on_bug
        self._wanted = threading.Event()
        self._backoff = Backoff()
        self.is_stopping = False
        self.bug: Exception | None = None  # of the last turn
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Begin. Raises ResourceError."""
        start_thread(self.thread)

    def wake(self) -> None:
        """Take a turn soon."""
        self._wanted.set()

    def stop(self) -> None:
        """Let the thread end, once what it waits for has come: its owner joins it."""
        self.is_stopping = True
        self._wanted.set()

    def run_once(self) -> bool:
        """Take one turn, if a pause after a bug is over; return whether there is to be another."""
        if not self._backoff.is_due:
            return True
        try:
            again = self._turn()
        except Exception as bug:
            self.bug = bug
            self._on_bug(bug, self._backoff.fail())
            return True
        self.bug = None
        self._backoff.succeed()
        return again

    def _main(self) -> None:
        block_signals()
        while not self.is_stopping and self.run_once():
            self._wanted.wait(self._interval_s)
            self._wanted.clear()

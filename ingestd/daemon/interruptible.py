# SPDX-License-Identifier: Apache-2.0
"""Long steps of the start, which a signal may end and the service manager hears of.

Recovering a large store takes minutes, on a device that hangs for ever. The step
has a thread of its own; the main thread looks for signals meanwhile.

Invariants: the manager is asked for more time only when the step has come on, so
that one that hangs is ended by the manager; a step that does not heed the stop
is left behind, which is as safe as a crash. Owned by the main thread, but for
Progress, which belongs to the step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ingestd import systemd
from ingestd.daemon.base.threads import block_signals, start_thread
from ingestd.store.read.image import ScanStoppedError

_T = TypeVar("_T")

POLL_INTERVAL_S: Final = 0.05
NOTIFY_INTERVAL_S: Final = 5.0
# For what comes between two steps of progress, such as putting a million flows together.
STEP_TIME_MAX_S: Final = 300.0


class StartStoppedError(Exception):
    """The start was asked to stop; `left_behind`: the step that did not end, or ""."""

    def __init__(self, left_behind: str = "") -> None:
        super().__init__(left_behind)
        self.left_behind = left_behind


class Progress:
    """The progress of a step; called by it, with the amount done and the total."""

    def __init__(self) -> None:
        self.done_count = 0
        self.total_count = 0
        self.is_stopping = False

    def __call__(self, done_count: int, total_count: int) -> None:
        """Note it. Raises ScanStoppedError when the step is to end."""
        self.done_count, self.total_count = done_count, total_count
        if self.is_stopping:
            raise ScanStoppedError


def attend(
    what: str,
    step: Callable[[Progress], _T],
    *,
    is_stop_wanted: Callable[[], bool],
    stop_time_s: float,
    undo: Callable[[_T], None],
) -> _T:
    """Return what the step returns, or raise what it raises.

    Raises StartStoppedError once is_stop_wanted(); a result that came all the same is undone.
    """
    progress = Progress()
    result: list[_T] = []
    raised: list[BaseException] = []

    def main() -> None:
        block_signals()
        try:
            result.append(step(progress))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=main, name=f"start-{what}", daemon=True)
    start_thread(thread)
    notifier = _Notifier(what)
    while thread.is_alive():
        thread.join(POLL_INTERVAL_S)
        notifier.notify(progress)
        if is_stop_wanted():
            progress.is_stopping = True
            thread.join(stop_time_s)
            if thread.is_alive():
                raise StartStoppedError(thread.name)
            if result:
                undo(result[0])
            raise StartStoppedError
    if raised:
        raise raised[0]
    return result[0]


class _Notifier:
    """Notifies the service manager, now and then, that a step makes progress."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._notified_count = 0
        self._next_s = time.monotonic() + NOTIFY_INTERVAL_S

    def notify(self, progress: Progress) -> None:
        done_count, now_s = progress.done_count, time.monotonic()
        if now_s < self._next_s or done_count == self._notified_count:
            return
        self._next_s = now_s + NOTIFY_INTERVAL_S
        self._notified_count = done_count
        status = f"recovering store {self._what}: {done_count} of {progress.total_count} segments"
        systemd.notify_starting(status, STEP_TIME_MAX_S)

# SPDX-License-Identifier: Apache-2.0
"""A wake-up for a thread that waits on a selector.

Invariants: wake() never waits, and may come at any time, also after close(), when
it does nothing: a thread that was left behind must not write to a descriptor that
means something else by then. Any thread may wake; the rest is the waiting one's.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress


class Waker:
    """Readable from wake() until clear()."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """For a selector."""
        return self._fd

    def wake(self) -> None:
        """Let the waiting thread look."""
        with self._mutex, suppress(BlockingIOError):
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Know of all wakes so far; what comes in from here on wakes anew."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Wake nobody any more; a second call does nothing."""
        with self._mutex:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

# SPDX-License-Identifier: Apache-2.0
"""Exponential backoff of retries: the first is soon, each pause is longer than the one before.

Invariant: the pause doubles from PAUSE_MIN_S to PAUSE_MAX_S. One thread's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 300.0


class Backoff:
    """Counts failures in a row."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause_s = 0.0
        self._next_s = 0.0

    @property
    def is_due(self) -> bool:
        """Return whether nothing failed, or the pause is over."""
        return self._clock() >= self._next_s

    @property
    def has_failed(self) -> bool:
        """Return whether the last try failed."""
        return self._pause_s > 0

    def fail(self) -> float:
        """Know of a failure; return after how many seconds to try again."""
        self._pause_s = min(max(2 * self._pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
        self._next_s = self._clock() + self._pause_s
        return self._pause_s

    def succeed(self) -> bool:
        """Note a success; return whether there was a failure before."""
        had_failed, self._pause_s, self._next_s = self.has_failed, 0.0, 0.0
        return had_failed

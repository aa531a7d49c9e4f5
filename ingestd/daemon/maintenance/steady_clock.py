# SPDX-License-Identifier: Apache-2.0
"""The clock that retention goes by: the machine's, as far as it runs steadily.

A clock is set now and then, by whom and to what nobody here knows. Invariants: a step
of the machine's clock makes no flow older at once, whichever way it goes, also where
the process did not run meanwhile; what was dated while this process runs is as old as a
clock says that nobody sets (CLOCK_BOOTTIME). Times are nanoseconds. Owned by one thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ingestd.store.read.flow_age import SLACK_NS, Clock

# The new time counts once the clock was not set again for so long.
STEADY_NS: Final = 3600 * 10**9
# A step that is smaller is none: the clocks are not read in one moment.
STEP_NS: Final = 10**9
# Dates from before so many steps only count as old as the last step.
STEPS_KEPT_MAX: Final = 64


class Reading(NamedTuple):
    """Both clocks of the machine: Unix time, and since it was started."""

    wall_ns: int
    boot_ns: int


def read_clocks() -> Reading:
    """Return what the machine's clocks say now."""
    return Reading(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class _Stretch(NamedTuple):
    """A time without a step: the clocks differ by `offset_ns` from `begin_ns` (boot time) on."""

    begin_ns: int
    offset_ns: int


class SteadyClock:
    """Begins when the store is opened; look() before each use."""

    def __init__(self, read: Callable[[], Reading] = read_clocks) -> None:
        self._read = read
        self._now = read()
        self._begin_ns = self._now.boot_ns
        offset_ns = self._now.wall_ns - self._now.boot_ns
        self._stretches = deque([_Stretch(self._begin_ns, offset_ns)], STEPS_KEPT_MAX)
        self._trusted_ns: int | None = None

    def look(self) -> int:
        """Read the clocks; return by how many ns the wall clock was set since the last look."""
        before, self._now = self._now, self._read()
        step_ns = self._now.wall_ns - self._now.boot_ns - self._stretches[-1].offset_ns
        if abs(step_ns) >= STEP_NS:
            offset_ns = self._now.wall_ns - self._now.boot_ns
            self._stretches.append(_Stretch(self._now.boot_ns, offset_ns))
        else:
            step_ns = 0
        if self._trusted_ns is not None:
            self._trust(self._trusted_ns + self._now.boot_ns - before.boot_ns)
        return step_ns

    def _trust(self, time_ns: int) -> None:
        """Continue from a time that was right, unless the wall clock has proved itself."""
        steady_ns = self._now.boot_ns - self._stretches[-1].begin_ns
        is_near = abs(self._now.wall_ns - time_ns) <= SLACK_NS
        self._trusted_ns = self._now.wall_ns if is_near or steady_ns >= STEADY_NS else time_ns

    def now_ns(self, newest_ns: int | None) -> int:
        """Return the Unix time to judge by; `newest_ns`: the latest that the store records.

        That is where time continued when the process began: a clock that is far from it
        may have been set wrongly meanwhile.
        """
        if self._trusted_ns is None:
            since_ns = self._now.boot_ns - self._begin_ns
            self._trust(self._now.wall_ns if newest_ns is None else newest_ns + since_ns)
        assert self._trusted_ns is not None
        return min(self._trusted_ns, self._now.wall_ns)

    @property
    def wall_ns(self) -> int:
        """The machine's clock at the last look()."""
        return self._now.wall_ns

    @property
    def is_trusted(self) -> bool:
        """Return whether what now_ns() returned last is what the machine's clock says."""
        return self._trusted_ns == self._now.wall_ns

    def age_ns(self, time_ns: int) -> int:
        """Return how long ago the wall clock said that time, in this process's life; the least.

        Where it said so more than once, or never, the least that it can be.
        """
        end_ns = self._now.boot_ns
        for begin_ns, offset_ns in reversed(self._stretches):
            at_ns = time_ns - offset_ns
            if begin_ns - STEP_NS <= at_ns <= end_ns + STEP_NS:
                return max(0, self._now.boot_ns - min(at_ns, end_ns))
            end_ns = begin_ns
        return self._now.boot_ns - self._stretches[-1].begin_ns

    def for_store(self, newest_ns: int | None, floor_ns: int, generation: int) -> Clock:
        """Return what there is to know for judging a store's flows."""
        return Clock(
            now_ns=self.now_ns(newest_ns),
            floor_ns=floor_ns,
            watched_ns=self._now.boot_ns - self._begin_ns,
            generation=generation,
            age_here=self.age_ns,
        )

# SPDX-License-Identifier: Apache-2.0
"""The age of ended flows, as far as that can be known: clocks are wrong now and then.

A machine may believe in 1970 until it hears of the time, or be years ahead for a while.
Invariants: what is said of a flow's age is never more than its true age, unless a clock
was wrong by a time that could have been right, for all of an earlier generation; order
comes from sequences of segments, which only grow, never from a clock. Times are
Unix time in nanoseconds, ages nanoseconds. Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingestd.store.format.layout import generation_of
from ingestd.store.format.segment import SegmentImage
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.flows import Flow

# 2026-01-01: there was no ingestd before. A clock that says less was not set; 1970 is where
# most begin, and systemd begins with the day on which it was built, some years ago.
FIRST_RELEASE_NS: Final = 1_767_225_600 * 10**9
# So far apart two right clocks may be.
SLACK_NS: Final = 60 * 10**9


def floor_ns(superblock: Superblock, now_ns: int) -> int:
    """Return the time before which no flow of a store can have ended."""
    if FIRST_RELEASE_NS <= superblock.created_ns <= now_ns:
        return superblock.created_ns - SLACK_NS
    return FIRST_RELEASE_NS


def is_plausible(time_ns: int, floor: int, now_ns: int) -> bool:
    """Return whether a flow can have begun or ended then."""
    return floor <= time_ns <= now_ns + SLACK_NS


def is_misdated(flow: Flow, floor: int, now_ns: int) -> bool:
    """Return whether a flow began or ended, by its records, when it cannot have."""
    times = [time_ns for time_ns in (flow.started_ns, flow.ended_ns) if time_ns]
    return not all(is_plausible(time_ns, floor, now_ns) for time_ns in times)


class Bounds(NamedTuple):
    """Between which times everything in a segment happened; None: unknown."""

    low_ns: int | None
    high_ns: int | None


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, as the one who judges ages knows it.

    `now_ns`: by the clock that is trusted; `floor_ns`: as of floor_ns(); `watched_ns`: for how
    long the store has been watched, which all of earlier generations is older than;
    `age_here`: of what this generation dated, by a clock that nobody sets.
    """

    now_ns: int
    floor_ns: int
    watched_ns: int
    generation: int
    age_here: Callable[[int], int]

    def is_plausible(self, time_ns: int) -> bool:
        """Return whether anything in the store can have happened then."""
        return is_plausible(time_ns, self.floor_ns, self.now_ns)

    def age_ns(self, ended_ns: int, sequence: int, bounds: Bounds) -> int:
        """Return for how long a flow has been over, at least.

        `sequence`: of the segment in which it ended, whose `bounds` they are.
        """
        if generation_of(sequence) >= self.generation:
            return self.age_here(ended_ns)
        if not self.is_plausible(ended_ns):
            if bounds.high_ns is None:
                return self.watched_ns
            ended_ns = bounds.high_ns
        elif bounds.low_ns is not None:
            ended_ns = max(ended_ns, bounds.low_ns)
        return max(self.watched_ns, self.now_ns - ended_ns)


def newest_ns(flows: Iterable[Flow], segments: Iterable[SegmentImage], floor: int) -> int | None:
    """Return the latest time that a store records, be it in the future; None: there is none.

    Footers do not count: those of a crash are dated when it is found.
    """
    times = [segment.opened_ns for segment in segments]
    times += [flow.ended_ns for flow in flows]
    return max((time_ns for time_ns in times if time_ns >= floor), default=None)


def bounds_of(segments: Iterable[SegmentImage], clock: Clock) -> dict[int, Bounds]:
    """Return the bounds of each segment, by its sequence.

    One worker begins its segments in the order of their sequences, and everything of a
    generation comes before the next; of two workers of one generation nothing is known.
    """
    used = sorted((s for s in segments if s.sequence), key=lambda s: s.sequence)
    low = _running(used, clock, max, with_own=True)
    high = _running(used[::-1], clock, min, with_own=False)
    return {s.sequence: Bounds(low[s.sequence], high[s.sequence]) for s in used}


def _running(
    used: list[SegmentImage], clock: Clock, choose: Callable[..., int | None], *, with_own: bool
) -> dict[int, int | None]:
    """The largest, or smallest, time at which a segment up to each was begun."""
    found: dict[int, int | None] = {}
    past: int | None = None  # of the generations before
    generation, here = 0, dict[int, int | None]()  # of this one, by worker

    def best(*times: int | None) -> int | None:
        return choose((time_ns for time_ns in times if time_ns is not None), default=None)

    for segment in used:
        if segment.generation != generation:
            past = best(past, *here.values())
            generation, here = segment.generation, {}
        worker = segment.worker_index
        before = best(past, here.get(worker))
        if clock.is_plausible(segment.opened_ns):
            here[worker] = best(here.get(worker), segment.opened_ns)
        found[segment.sequence] = best(past, here.get(worker)) if with_own else before
    return found

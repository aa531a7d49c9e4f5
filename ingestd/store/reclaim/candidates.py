# SPDX-License-Identifier: Apache-2.0
"""Candidates for reclaim: segments in which nothing is to be kept.

Invariants: a segment goes only if it is closed and every flow that has
anything in it, be it a record, is removed or has expired. Of an expired flow no
part is ever shown with a hole: either all segments that it lies in go at once, or it is
removed first. Pure; any thread may call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from typing import Final, NamedTuple

from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import FREED_RANGES_MAX
from ingestd.store.reclaim.presence import flows_of

REASON_REMOVED: Final = "removed"
REASON_RETENTION: Final = "retention"
REASONS: Final = (REASON_REMOVED, REASON_RETENTION)
# Half of what the freed record holds: two groups may be in it.
GROUP_RANGES_MAX: Final = FREED_RANGES_MAX // 2


class Candidate(NamedTuple):
    """A segment to reclaim, the reason, and the flows that are gone with it."""

    segment: SegmentImage
    reason: str
    flows: frozenset[bytes]


class Group(NamedTuple):
    """Segments that go together, the oldest first.

    `ranges`: all of their sequences as [first, last], if they must go at once, since flows lie
    in several of them; none else.
    """

    segments: tuple[Candidate, ...]
    ranges: tuple[tuple[int, int], ...]


class ReclaimPlan(NamedTuple):
    """The steps of a reclaim, in this order: tombstones made durable, then groups reclaimed.

    `blocked_count`: of segments that nothing is kept in, and that stay, as the table has no
    room for the flows that lie elsewhere as well.
    """

    removals: tuple[bytes, ...]
    groups: tuple[Group, ...]
    blocked_count: int

    @property
    def segments(self) -> list[Candidate]:
        """All segments that go."""
        return [item for group in self.groups for item in group.segments]


def plan_reclaim(
    segments: Iterable[SegmentImage],
    *,
    removed: Set[bytes],
    expired: Set[bytes] = frozenset(),
    room_count: int = 0,
    elsewhere: Set[bytes] = frozenset(),
    reason: str = REASON_RETENTION,
) -> ReclaimPlan:
    """Decide which segments to reclaim, the oldest first.

    `removed`: the flows of the table; `expired`: others that need not be kept;
    `room_count`: how many more fit into the table; `elsewhere`: of those that expired,
    such as may lie in a segment that cannot be read; `reason`: why they are not kept.
    """
    used = sorted((s for s in segments if s.sequence), key=lambda s: s.sequence)
    held = [(segment, flows_of(segment)) for segment in used]
    places = Counter(flow for _, flows in held for flow in flows)
    places.update(elsewhere & places.keys())
    freeable, wide = [], []
    for segment, flows in held:
        if segment.state is not SegmentState.CLOSED or not flows:
            continue
        dying = flows - removed
        if dying <= expired:
            why = reason if dying else REASON_REMOVED
            freeable.append(Candidate(segment, why, flows))
            wide.append([flow for flow in sorted(dying) if places[flow] > 1])
    return _grouped(freeable, wide, places, room_count)


def _grouped(
    freeable: Sequence[Candidate],
    wide: Sequence[Sequence[bytes]],
    places: Mapping[bytes, int],
    room_count: int,
) -> ReclaimPlan:
    """Cut segments into groups, each as long as can be, so that the table's room suffices.

    `wide`: of each, the flows that are not removed and lie elsewhere as well, `places` in all.
    """
    going = Counter(flow for flows in wide for flow in flows)
    removals: dict[bytes, None] = {}
    groups = []
    at = blocked_count = 0
    while at < len(freeable):
        group = _Open(places, going, removals)
        end = at
        for number in range(at, len(freeable)):
            group.add(freeable[number].segment.sequence, wide[number])
            if len(group.ranges) > GROUP_RANGES_MAX or len(group.lasting) > room_count:
                break
            if len(removals) + len(group.outside) <= room_count:
                end = number + 1
        if end == at:
            blocked_count += 1
            at += 1
            continue
        group = _Open(places, going, removals)
        for number in range(at, end):
            group.add(freeable[number].segment.sequence, wide[number])
        removals.update(dict.fromkeys(sorted(group.outside)))
        is_at_once = len(group.inside) > len(group.outside)
        groups.append(Group(tuple(freeable[at:end]), tuple(group.ranges) if is_at_once else ()))
        at = end
    return ReclaimPlan(tuple(removals), tuple(groups), blocked_count)


class _Open:
    """A group that segments are added to, the oldest first.

    `inside`: how many places of each flow are in it, of those that need the table or the
    group; `outside`: those of which a part stays; `lasting`: ... whatever else may go.
    """

    def __init__(
        self, places: Mapping[bytes, int], going: Mapping[bytes, int], removals: Container[bytes]
    ) -> None:
        self.inside: Counter[bytes] = Counter()
        self.outside: set[bytes] = set()
        self.lasting: set[bytes] = set()
        self.ranges: list[tuple[int, int]] = []
        self._places = places
        self._going = going
        self._removals = removals

    def add(self, sequence: int, flows: Iterable[bytes]) -> None:
        """Add a segment and its flows that lie in others as well."""
        # What lies between may be a segment that is granted and not begun yet: no range has it.
        if self.ranges and self.ranges[-1][1] + 1 == sequence:
            self.ranges[-1] = (self.ranges[-1][0], sequence)
        else:
            self.ranges.append((sequence, sequence))
        for flow in flows:
            if flow in self._removals:
                continue
            self.inside[flow] += 1
            if self.inside[flow] == self._places[flow]:
                self.outside.discard(flow)
            else:
                self.outside.add(flow)
            if self._going[flow] < self._places[flow]:
                self.lasting.add(flow)


def flows_gone(
    segments: Iterable[SegmentImage],
    freed: Set[int],
    removed: Set[bytes],
) -> frozenset[bytes]:
    """Return the removed flows that no segment is seen to hold once `freed` indexes are free."""
    left: set[bytes] = set()
    for segment in segments:
        if segment.index not in freed:
            left |= flows_of(segment)
    return frozenset(removed - left)

# SPDX-License-Identifier: Apache-2.0
"""Which segments can be given back, as nothing in them is to be kept.

Invariants: a segment goes only if it is closed and every flow that has
anything in it, be it a record, is removed or past its term. A flow past its
term that lies in several segments is removed first, so that a part of it is
never shown with a hole. Pure; any thread may call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from typing import Final, NamedTuple

from ingestd.store.segment import SegmentImage, SegmentState

REASON_REMOVED: Final = "removed"
REASON_RETENTION: Final = "retention"
REASONS: Final = (REASON_REMOVED, REASON_RETENTION)


class Freeable(NamedTuple):
    """A segment to give back, why, and the flows that are gone with it."""

    segment: SegmentImage
    reason: str
    flows: frozenset[bytes]


class Freeing(NamedTuple):
    """What to do, in this order: removals made durable, then segments given back.

    `blocked_count`: of segments that nothing is kept in, and that stay, as the table has no
    room for the flows that lie elsewhere as well.
    """

    removals: tuple[bytes, ...]
    segments: tuple[Freeable, ...]
    blocked_count: int


def flows_of(segment: SegmentImage) -> frozenset[bytes]:
    """Return the ids of the flows that have anything in a segment."""
    ids = {span.flow for span in segment.spans}
    ids.update(event.flow for event in segment.events)
    return frozenset(ids)


def plan_freeing(
    segments: Iterable[SegmentImage],
    *,
    removed: Set[bytes],
    expired: Set[bytes] = frozenset(),
    room_count: int = 0,
) -> Freeing:
    """Decide which segments to give back, the oldest first.

    `removed`: the flows of the table; `expired`: others that need not be kept;
    `room_count`: how many more fit into the table.
    """
    used = sorted((s for s in segments if s.sequence), key=lambda s: s.sequence)
    held = [(segment, flows_of(segment)) for segment in used]
    places = Counter(flow for _, flows in held for flow in flows)
    removals: dict[bytes, None] = {}
    freeable = []
    blocked_count = 0
    for segment, flows in held:
        if segment.state is not SegmentState.CLOSED or not flows:
            continue
        dying = flows - removed
        if not dying <= expired:
            continue
        needed = [flow for flow in sorted(dying) if places[flow] > 1 and flow not in removals]
        if len(removals) + len(needed) > room_count:
            blocked_count += 1
            continue
        removals.update(dict.fromkeys(needed))
        reason = REASON_RETENTION if dying else REASON_REMOVED
        freeable.append(Freeable(segment, reason, flows))
    return Freeing(tuple(removals), tuple(freeable), blocked_count)


def flows_gone(
    segments: Iterable[SegmentImage], freed: Set[int], removed: Set[bytes]
) -> frozenset[bytes]:
    """Return the removed flows of which no segment holds anything once `freed` indexes are free.

    None, as long as a segment is damaged: it may hold some that cannot be seen.
    """
    left: set[bytes] = set()
    for segment in segments:
        if segment.state is SegmentState.DAMAGED:
            return frozenset()
        if segment.index not in freed:
            left |= flows_of(segment)
    return frozenset(removed - left)

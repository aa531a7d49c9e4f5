# SPDX-License-Identifier: Apache-2.0
"""Retention: the flows that need not be kept any longer, by their listener's settings.

Invariants: a flow that may still be fed, one of a listener without settings, or
one whose listener is not known any more is always kept; with both settings, a
flow is kept as long as either asks for it. Which flow is newer their places in the store
say, never a clock; how old one is, flow_age.py. Pure; any thread may call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingestd.store.format.segment import SegmentImage
from ingestd.store.read.flow_age import Bounds, Clock, bounds_of
from ingestd.store.read.flows import STATE_OPEN, Flow

NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Retention:
    """Time (ns) and bytes that a listener's ended flows are kept for; None: not set.

    At least one is set, and neither is 0.
    """

    for_ns: int | None = None
    bytes_count: int | None = None

    def __post_init__(self) -> None:
        assert self.for_ns or self.bytes_count, "what keeps nothing is no setting"
        assert self.for_ns is None or self.for_ns > 0, self.for_ns
        assert self.bytes_count is None or self.bytes_count > 0, self.bytes_count


class Expired(NamedTuple):
    """The expired flows, and in how many ns the next one expires, if nothing else happens.

    `misdated`: those whose time of ending cannot be right.
    """

    flows: frozenset[bytes]
    wait_ns: int | None
    misdated: tuple[Flow, ...]


class _End(NamedTuple):
    """Place and time of a flow's end: newer ones are greater."""

    sequence: int  # of the segment with the last that there is of it
    rank: int  # there
    ended_ns: int


def expired_flows(
    flows: Iterable[Flow],
    segments: Sequence[SegmentImage],
    retentions: Mapping[str, Retention],
    clock: Clock,
) -> Expired:
    """Return the flows that no setting keeps; `retentions` by the names of listeners.

    A listener's newest flows are kept until they have `bytes_count` together, the
    one that reaches it included.
    """
    wanted = {f.flow_id: f for f in flows if f.state != STATE_OPEN and f.listener in retentions}
    ends = _ends(wanted, segments)
    of_listener: dict[str, list[tuple[_End, Flow]]] = defaultdict(list)
    for flow_id, end in ends.items():
        flow = wanted[flow_id]
        assert flow.listener is not None
        of_listener[flow.listener].append((end, flow))
    bounds = bounds_of(segments, clock)
    expired: set[bytes] = set()
    waits: list[int] = []
    for listener, ended in of_listener.items():
        ended.sort(key=lambda pair: pair[0], reverse=True)
        waits += _judge(ended, retentions[listener], bounds, clock, expired)
    misdated = (wanted[f] for f, e in ends.items() if not clock.is_plausible(e.ended_ns))
    return Expired(frozenset(expired), min(waits, default=None), tuple(misdated))


def _judge(
    ended: list[tuple[_End, Flow]],
    retention: Retention,
    bounds: Mapping[int, Bounds],
    clock: Clock,
    expired: set[bytes],
) -> list[int]:
    """Add a listener's expired flows, the newest being first; return in how many ns others are."""
    newer_bytes = 0
    waits = []
    for end, flow in ended:
        is_kept = retention.bytes_count is not None and newer_bytes < retention.bytes_count
        newer_bytes += flow.bytes - flow.first_offset
        if retention.for_ns is not None and not is_kept:
            age_ns = clock.age_ns(end.ended_ns, end.sequence, bounds[end.sequence])
            is_kept = age_ns < retention.for_ns
            if is_kept:
                waits.append(retention.for_ns - age_ns)
        if not is_kept:
            expired.add(flow.flow_id)
    return waits


def _ends(wanted: Mapping[bytes, Flow], segments: Iterable[SegmentImage]) -> dict[bytes, _End]:
    """The ends of flows; those without a CLOSE record no later than their last footer.

    A flow is left out that is not over: its last segment gets its footer one day.
    """
    ends: dict[bytes, _End] = {}
    for segment in sorted(segments, key=lambda s: s.sequence):
        ranks = {event.flow: rank for rank, event in enumerate(segment.events)}
        for flow_id in dict.fromkeys([*ranks, *(span.flow for span in segment.spans)]):
            flow = wanted.get(flow_id)
            if flow is None:
                continue
            ends.pop(flow_id, None)
            if flow.ended_ns:
                ended_ns = flow.ended_ns
            elif segment.footer is not None:
                ended_ns = segment.footer.closed_ns
            else:
                continue
            ends[flow_id] = _End(segment.sequence, ranks.get(flow_id, -1), ended_ns)
    return ends

# SPDX-License-Identifier: Apache-2.0
"""Which flows need not be kept any longer, by their listener's settings.

Invariants: a flow that may still be fed, one of a listener without settings, or
one whose listener is not known any more is always kept; with both settings, a
flow is kept as long as either asks for it. Times are Unix time in nanoseconds,
of this machine's clock. Pure; any thread may call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingestd.store.flows import STATE_OPEN, Flow
from ingestd.store.freeing import flows_of
from ingestd.store.segment import SegmentImage

NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Retention:
    """How long, in ns, and how much, in bytes, of a listener's ended flows is kept; None: no word.

    At least one is set.
    """

    for_ns: int | None = None
    bytes_count: int | None = None


class Expired(NamedTuple):
    """The flows past their term, and when the next one is, if nothing else happens."""

    flows: frozenset[bytes]
    next_ns: int | None


def expired_flows(
    flows: Iterable[Flow],
    segments: Iterable[SegmentImage],
    retentions: Mapping[str, Retention],
    now_ns: int,
) -> Expired:
    """Return the flows that no setting keeps; `retentions` by the names of listeners.

    A listener's newest flows are kept until they have `bytes_count` together, the
    one that reaches it included.
    """
    of_listener: dict[str, list[tuple[int, Flow]]] = defaultdict(list)
    wanted = [f for f in flows if f.state != STATE_OPEN and f.listener in retentions]
    ends = _ends(wanted, segments)
    for flow in wanted:
        if flow.flow_id in ends:
            assert flow.listener is not None
            of_listener[flow.listener].append((ends[flow.flow_id], flow))
    expired: set[bytes] = set()
    next_ns: int | None = None
    for listener, ended in of_listener.items():
        retention = retentions[listener]
        ended.sort(key=lambda pair: (pair[0], pair[1].flow_id), reverse=True)
        newer_bytes = 0
        for end_ns, flow in ended:
            is_kept = retention.bytes_count is not None and newer_bytes < retention.bytes_count
            newer_bytes += flow.bytes - flow.first_offset
            if retention.for_ns is not None and not is_kept:
                due_ns = end_ns + retention.for_ns
                is_kept = now_ns < due_ns
                if is_kept:
                    next_ns = due_ns if next_ns is None else min(next_ns, due_ns)
            if not is_kept:
                expired.add(flow.flow_id)
    return Expired(frozenset(expired), next_ns)


def _ends(flows: Iterable[Flow], segments: Iterable[SegmentImage]) -> dict[bytes, int]:
    """When flows ended; without a CLOSE record, no later than its last segment got its footer."""
    ends = {flow.flow_id: flow.ended_ns for flow in flows}
    unknown = {flow for flow, end_ns in ends.items() if not end_ns}
    for segment in segments if unknown else ():
        for flow in flows_of(segment) & unknown:
            if segment.footer is None:
                ends.pop(flow, None)  # it is not over: the segment gets its footer one day
            elif flow in ends:
                ends[flow] = max(ends[flow], segment.footer.closed_ns)
    return ends

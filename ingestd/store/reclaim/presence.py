# SPDX-License-Identifier: Apache-2.0
"""The flows that a damaged segment may hold data of, among those to be forgotten.

Invariants: who seals a flow, or begins one of protocol `raw`, sends each of its bytes once, and
nothing after that. So of a flow all of which lies in segments that can be read, none lies in
another, unless it began anew since nobody could see that it was there. Pure; any thread may call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from typing import Final

from ingestd.store.format.layout import FLOW_STATE_SEALED
from ingestd.store.format.records import CloseEvent, Event, OpenEvent
from ingestd.store.format.segment import SegmentImage, SegmentState, Span

_PROTOCOL_RAW: Final = 1


def flows_of(segment: SegmentImage) -> frozenset[bytes]:
    """Return the ids of the flows that have anything in a segment."""
    ids = {span.flow for span in segment.spans}
    ids.update(event.flow for event in segment.events)
    return frozenset(ids)


def damaged_indexes(segments: Iterable[SegmentImage]) -> list[int]:
    """Return which segments are damaged."""
    return [s.index for s in segments if s.state is SegmentState.DAMAGED]


class Presence:
    """Facts about some flows in an image's segments, by which others are ruled out.

    `whole`: those that one connection began and ended, with all of their bytes there;
    `certain`: of these, such as cannot have begun anew since a damaged segment was not read.
    `is_cut`: segments lie behind the device's end, of which nothing is known.
    """

    def __init__(
        self, segments: Sequence[SegmentImage], wanted: Set[bytes], *, is_cut: bool = False
    ) -> None:
        # The oldest that a damaged segment was written in: 0 where nobody knows.
        damaged = (s.generation for s in segments if s.state is SegmentState.DAMAGED)
        self._damaged_generation = 0 if is_cut else min(damaged, default=0)
        self.whole: set[bytes] = set()
        self.certain: set[bytes] = set()
        spans: defaultdict[bytes, list[Span]] = defaultdict(list)
        events: defaultdict[bytes, list[tuple[int, Event]]] = defaultdict(list)
        for segment in segments:
            for span in segment.spans:
                if span.flow in wanted:
                    spans[span.flow].append(span)
            for event in segment.events:
                if event.flow in wanted:
                    events[event.flow].append((segment.generation, event))
        for flow, noted in events.items():
            self._judge(flow, noted, spans[flow])

    def _judge(self, flow: bytes, noted: list[tuple[int, Event]], spans: list[Span]) -> None:
        opens = [(g, event) for g, event in noted if isinstance(event, OpenEvent)]
        closes = [event for _, event in noted if isinstance(event, CloseEvent)]
        if len(opens) != 1 or len(closes) != 1 or opens[0][1].row.stream_offset != 0:
            return
        end = 0
        for span in sorted(spans, key=lambda s: (s.first_offset, s.end_offset)):
            if span.first_offset != end:
                return
            end = span.end_offset
        if end != closes[0].row.stream_bytes:
            return
        self.whole.add(flow)
        generation, opened = opens[0]
        is_raw = opened.row.protocol == _PROTOCOL_RAW
        is_older = generation <= self._damaged_generation
        if is_raw or (is_older and closes[0].row.state == FLOW_STATE_SEALED):
            self.certain.add(flow)

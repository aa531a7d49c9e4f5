# SPDX-License-Identifier: Apache-2.0
"""Assembly of flows from the spans and events of all segments.

Invariants: what lay behind a hole when a generation ended is never joined to later bytes: the next
generation's sender resumed at the hole, perhaps with other bytes. And where a connection of a
later generation resumed before the end of what is there, its bytes take the place of those:
docs/format.md has the rule. Pure; any thread may call.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ingestd.store.format.layout import (
    CLOSE_HAS_CRC32C,
    FLOW_STATE_SEALED,
    PROTOCOLS,
    REASONS,
    RecordCloseRow,
    generation_of,
)
from ingestd.store.format.records import CloseEvent, Event, OpenEvent
from ingestd.store.format.segment import SegmentImage, SegmentState, Span
from ingestd.store.read.flows import (
    STATE_DAMAGED,
    STATE_INTERRUPTED,
    STATE_OPEN,
    STATE_SEALED,
    Anomaly,
    Flow,
    FlowId,
    checksum_text,
    utc_text,
)


@dataclass(slots=True)
class _Parts:
    """All that the segments have of one flow, in the order of their sequences."""

    spans: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    # Of each event, what puts it in order; and where connections resumed.
    order: list[tuple[int, int, int, int]] = field(default_factory=list)
    starts: set[tuple[int, int]] = field(default_factory=set)
    generation: int = 0

    def note(self, event: Event, generation: int) -> None:
        """Add an event of a segment; segments come in the order of their sequences."""
        if isinstance(event, OpenEvent):
            offset, time_ns, is_seal = event.row.stream_offset, event.row.started_ns, 0
            self.starts.add((generation, offset))
        else:
            offset, time_ns = event.row.stream_bytes, event.row.ended_ns
            is_seal = int(event.row.state == FLOW_STATE_SEALED)
        self.events.append(event)
        self.order.append((generation, offset, is_seal, time_ns))

    def sort_events(self) -> None:
        """Put the events into the order in which they happened.

        Workers fill segments beside each other, so that a flow which one worker
        resumed after another may lie in segments of any order. Offsets only grow
        from one connection to the next, and nothing comes after a seal.
        """
        ranks = sorted(range(len(self.events)), key=self.order.__getitem__)
        self.events = [self.events[rank] for rank in ranks]


@dataclass(slots=True)
class _Prefix:
    """The spans that follow each other from `first` on, and how far they reach."""

    spans: list[Span] = field(default_factory=list)
    first: int = 0
    end: int = 0
    durable_end: int = 0
    has_crc32c: bool = True
    crc: int = 0
    hole: tuple[int, int] | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)
    overlap: tuple[int, int] | None = None
    broken_chain_at: int | None = None


def assemble(
    segments: Sequence[SegmentImage],
    *,
    generation: int,
    live: bool,
    freed_sequence: int = 0,
    is_cut: bool = False,
) -> tuple[list[Flow], list[Anomaly]]:
    """Return the flows in the order in which they began, and what is odd about them.

    `generation` is the superblock's; `live`: a daemon serves the store now, so
    that flows of this generation may be continued. `freed_sequence`: the highest of a
    segment that was reclaimed; what lay in it is no loss. `is_cut`: segments
    lie behind the device's end, where they are as good as damaged.
    """
    has_damage = is_cut or any(segment.state is SegmentState.DAMAGED for segment in segments)
    parts: defaultdict[FlowId, _Parts] = defaultdict(_Parts)
    for segment in sorted(segments, key=lambda s: s.sequence):
        segment_generation = segment.generation
        for span in segment.spans:
            part = parts[span.flow]
            part.spans.append(span)
            part.generation = segment_generation
        for event in segment.events:
            part = parts[event.flow]
            part.note(event, segment_generation)
            part.generation = segment_generation
    flows, anomalies = [], []
    for flow_id, part in parts.items():
        part.sort_events()
        may_resume = live and part.generation >= generation
        over_holes = has_damage and not may_resume
        prefix = _prefix(part, generation, freed_sequence, over_holes=over_holes)
        flow = _flow(flow_id, part, prefix, may_resume=may_resume)
        flows.append(flow)
        anomalies += _damages(flow, part, prefix)
        if flow.state != STATE_OPEN:
            anomalies += _losses(flow, part, prefix)
    flows.sort(key=lambda f: (f.started or "", f.flow))
    return flows, anomalies


def _prefix(
    part: _Parts, generation: int, freed_sequence: int, *, over_holes: bool = False
) -> _Prefix:
    """Join spans from the first byte that may be there, one generation after the other.

    `over_holes`: a damaged segment may have had what is not there, so that a hole is
    noted as missing and what lies behind it is kept.
    """
    prefix = _behind_head(part) if freed_sequence else _Prefix()
    of_generation: dict[int, list[Span]] = {}
    for span in part.spans:
        if span.end_offset > span.first_offset:
            of_generation.setdefault(generation_of(span.segment_sequence), []).append(span)
    for number, group in sorted(of_generation.items()):
        group.sort(key=lambda s: (s.first_offset, s.segment_sequence))
        first = group[0].first_offset
        if first < prefix.end and (number, first) in part.starts:
            _cut(prefix, first)
        for span in group:
            if span.first_offset > prefix.end:
                prefix.hole = prefix.hole or (prefix.end, span.first_offset)
                if not over_holes:
                    break
                _skip(prefix, span)
            if span.first_offset < prefix.end:
                prefix.overlap = prefix.overlap or (span.first_offset, prefix.end)
                continue
            _join(prefix, span, span.end_offset if number < generation else span.durable_end)
    if over_holes:
        _note_end(part, prefix)
    return prefix


def _skip(prefix: _Prefix, span: Span) -> None:
    """Go over a hole to the span behind it; no checksum of the whole is known any more."""
    prefix.missing.append((prefix.end, span.first_offset))
    prefix.end, prefix.crc, prefix.has_crc32c = span.first_offset, span.crc_before, False


def _note_end(part: _Parts, prefix: _Prefix) -> None:
    """A flow that was sealed with more bytes than are there lacks its end."""
    last = part.events[-1].row if part.events else None
    is_seal = isinstance(last, RecordCloseRow) and last.state == FLOW_STATE_SEALED
    if isinstance(last, RecordCloseRow) and is_seal and last.stream_bytes > prefix.end:
        prefix.missing.append((prefix.end, last.stream_bytes))
        prefix.end, prefix.has_crc32c = last.stream_bytes, False


def _behind_head(part: _Parts) -> _Prefix:
    """Begin where the flow's oldest bytes do, if segments before may have been reclaimed.

    An OPEN record lies before the bytes of its connection. One that begins
    earlier is still there only if what followed it was lost in another way.
    """
    filled = [span for span in part.spans if span.end_offset > span.first_offset]
    if filled:
        first_generation = min(generation_of(span.segment_sequence) for span in filled)
        head = min(
            (s for s in filled if generation_of(s.segment_sequence) == first_generation),
            key=lambda s: (s.first_offset, s.segment_sequence),
        )
        first, crc, has_crc32c = head.first_offset, head.crc_before, head.has_crc32c
    else:
        # Only records are left of it: a CLOSE says how many bytes there were.
        first, crc, has_crc32c = max(span.first_offset for span in part.spans), 0, False
    if first == 0 or any(offset < first for _, offset in part.starts):
        return _Prefix()
    return _Prefix(first=first, end=first, durable_end=first, crc=crc, has_crc32c=has_crc32c)


def _cut(prefix: _Prefix, end: int) -> None:
    """Drop what lies behind `end`: a later connection resumed there."""
    kept = [span for span in prefix.spans if span.first_offset < end]
    if kept and kept[-1].end_offset > end:
        # The chain of checksums is known at the ends of spans only.
        last = replace(kept[-1], end_offset=end, durable_end=min(kept[-1].durable_end, end))
        kept[-1] = last
        prefix.has_crc32c = False
    prefix.spans = kept
    prefix.end = end
    prefix.first = min(prefix.first, end)
    prefix.durable_end = min(prefix.durable_end, end)
    prefix.missing = [(first, min(last, end)) for first, last in prefix.missing if first < end]
    prefix.crc = kept[-1].crc_after if kept else 0
    if not kept:
        prefix.has_crc32c, prefix.broken_chain_at = True, None


def _join(prefix: _Prefix, span: Span, durable_end: int) -> None:
    if prefix.durable_end == span.first_offset:
        prefix.durable_end = durable_end
    if prefix.has_crc32c and span.has_crc32c and span.crc_before != prefix.crc:
        prefix.broken_chain_at = span.first_offset
    prefix.has_crc32c &= span.has_crc32c
    prefix.crc = span.crc_after
    prefix.end = span.end_offset
    prefix.spans.append(span)


def _flow(flow_id: FlowId, part: _Parts, prefix: _Prefix, *, may_resume: bool) -> Flow:
    opens = [event for event in part.events if isinstance(event, OpenEvent)]
    last = part.events[-1] if part.events else None
    close = last.row if isinstance(last, CloseEvent) else None
    state = _state(close, prefix, may_resume=may_resume)
    listener, name, labels = opens[0].texts() if opens else ("", "", "")
    return Flow(
        flow=str(uuid.UUID(bytes=flow_id)),
        name=name or None,
        peer=opens[-1].peer() if opens else None,
        listener=listener or None,
        state=state,
        bytes=prefix.end,
        durable_bytes=prefix.durable_end,
        started=utc_text(opens[0].row.started_ns) if opens else None,
        ended=utc_text(close.ended_ns) if close and state != STATE_OPEN else None,
        checksum=_checksum(close, prefix),
        reason=REASONS.get(close.reason) if close and state == STATE_INTERRUPTED else None,
        protocol=PROTOCOLS.get(opens[0].row.protocol) if opens else None,
        labels=_labels(labels),
        flow_id=flow_id,
        spans=tuple(prefix.spans),
        first_offset=prefix.first,
        started_ns=opens[0].row.started_ns if opens else 0,
        ended_ns=close.ended_ns if close and state != STATE_OPEN else 0,
        missing=tuple(prefix.missing),
    )


def _state(close: RecordCloseRow | None, prefix: _Prefix, *, may_resume: bool) -> str:
    """The state that the flow's last event leaves it in; `close` is that event, if a CLOSE."""
    if prefix.missing:
        return STATE_DAMAGED
    if close and close.state == FLOW_STATE_SEALED and close.stream_bytes == prefix.end:
        return STATE_SEALED
    if close and close.state != FLOW_STATE_SEALED:
        return STATE_INTERRUPTED
    # A seal whose bytes are not all found yet, under a daemon that keeps writing.
    return STATE_OPEN if may_resume else STATE_INTERRUPTED


def _checksum(close: RecordCloseRow | None, prefix: _Prefix) -> str | None:
    if close and close.flags & CLOSE_HAS_CRC32C and close.stream_bytes == prefix.end:
        return checksum_text(close.crc32c)
    if prefix.spans and prefix.has_crc32c and prefix.broken_chain_at is None:
        return checksum_text(prefix.crc)
    return None


def _labels(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if line)
    return {key: value for key, _, value in pairs}


def _damages(flow: Flow, part: _Parts, prefix: _Prefix) -> list[Anomaly]:
    """Anomalies that no order of whole and lost writes explains."""
    found = []
    if prefix.overlap:
        found.append(
            f"bytes {prefix.overlap[0]} to {prefix.overlap[1]} are there twice; those that"
            " were written later are not presented"
        )
    if prefix.broken_chain_at is not None:
        found.append(f"the checksums before and behind byte {prefix.broken_chain_at} disagree")
    close = part.events[-1].row if part.events else None
    if (
        isinstance(close, RecordCloseRow)
        and close.flags & CLOSE_HAS_CRC32C
        and prefix.has_crc32c
        and close.stream_bytes == prefix.end
        and close.crc32c != prefix.crc
    ):
        found.append(
            f"its CLOSE record states {checksum_text(close.crc32c)}, its bytes have"
            f" {checksum_text(prefix.crc)}"
        )
    return [Anomaly(flow.flow, text, is_damage=True) for text in found]


def _losses(flow: Flow, part: _Parts, prefix: _Prefix) -> list[Anomaly]:
    """Anomalies that a crash leaves where nothing had been acknowledged, or that damage left."""
    if prefix.missing:
        ranges = ", ".join(f"{first} to {last}" for first, last in prefix.missing)
        text = f"of its {prefix.end} bytes, {ranges} are missing: a damaged segment had them"
        return [Anomaly(flow.flow, text, is_damage=True)]
    found = []
    if prefix.hole:
        found.append(
            f"bytes {prefix.hole[0]} to {prefix.hole[1]} are not there, and what lies behind"
            " them is not presented"
        )
    close = part.events[-1].row if part.events else None
    if isinstance(close, RecordCloseRow) and close.stream_bytes > prefix.end:
        found.append(f"it ended with {close.stream_bytes} bytes, and {prefix.end} are there")
    return [Anomaly(flow.flow, text, is_damage=False) for text in found]

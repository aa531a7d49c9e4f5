# SPDX-License-Identifier: Apache-2.0
"""One segment as it was read: its state, and the spans and events of flows in it.

Invariants: a span's bytes are whole batches' bytes, in stream order and without
holes: first_offset <= durable_end <= end_offset. A segment's events are in the
order in which they happened. Values; any thread may read.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ingestd.store.format.footer_part import PartPlace
from ingestd.store.format.layout import (
    RECORD_SPAN,
    SPAN,
    SPAN_HAS_CLOSE,
    SPAN_HAS_OPEN,
    CommitMarkRow,
    RecordExtentRow,
    RecordSpanRow,
    SegmentFooterRow,
    generation_of,
)
from ingestd.store.format.records import Batch, Event, OpenEvent


class SegmentState(enum.StrEnum):
    """free: may be handed out; open: no footer; closed: has one; damaged: see the warnings."""

    FREE = "free"
    OPEN = "open"
    CLOSED = "closed"
    DAMAGED = "damaged"


@dataclass(slots=True)
class Span:
    """A run [first_offset, end_offset) of one flow's bytes in one segment.

    Batch blocks count from the segment's start; the CRCs are those of the flow
    before and behind the run.
    """

    flow: bytes
    segment_index: int
    segment_sequence: int
    first_offset: int
    end_offset: int
    durable_end: int
    first_batch_block: int
    last_batch_block: int
    crc_before: int
    crc_after: int
    has_crc32c: bool
    flags: int = 0

    @classmethod
    def of_row(cls, row: RecordSpanRow, index: int, sequence: int) -> Span:
        """Return the span that a footer of that segment has as a record."""
        return cls(
            flow=row.flow,
            segment_index=index,
            segment_sequence=sequence,
            first_offset=row.first_offset,
            end_offset=row.end_offset,
            durable_end=row.end_offset,
            first_batch_block=row.first_batch_block,
            last_batch_block=row.last_batch_block,
            crc_before=row.crc_before,
            crc_after=row.crc_after,
            # Where no CRC is kept, the fields are 0; that both are 0 by chance is harmless.
            has_crc32c=row.first_offset == row.end_offset or bool(row.crc_before or row.crc_after),
            flags=row.flags,
        )

    def row(self) -> RecordSpanRow:
        """Return the record of this span in a footer."""
        return RecordSpanRow(
            kind=RECORD_SPAN,
            record_bytes=SPAN.size_bytes,
            flags=self.flags,
            flow=self.flow,
            first_offset=self.first_offset,
            end_offset=self.end_offset,
            first_batch_block=self.first_batch_block,
            last_batch_block=self.last_batch_block,
            crc_before=self.crc_before,
            crc_after=self.crc_after,
        )


@dataclass(slots=True)
class SegmentImage:
    """One segment as it was found; `batches_end` in bytes from its start.

    `batches_dropped` have a whole header and are not presented, because they
    are torn or nothing proves that they are not; `batches_missing` were once
    on stable media and cannot be found. All before `committed_end` was flushed
    once; 0 where not even the header is known to be.
    """

    index: int
    state: SegmentState
    sequence: int = 0
    worker_index: int = 0
    opened_ns: int = 0
    batch_count: int = 0
    batches_end: int = 0
    committed_end: int = 0
    payload_bytes: int = 0
    batches_dropped: int = 0
    batches_missing: int = 0
    spans: list[Span] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    mark: CommitMarkRow | None = None
    footer: SegmentFooterRow | None = None
    parts: list[PartPlace] = field(default_factory=list)  # where a walk found them
    warnings: list[str] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """The generation that opened the segment; 0 for a free one."""
        return generation_of(self.sequence)


class Tally:
    """Adds up whole batches of one segment, in their order, into spans and events."""

    def __init__(self, segment_index: int, segment_sequence: int, block_bytes: int) -> None:
        self.spans: list[Span] = []
        self.events: list[Event] = []
        self.parts: list[PartPlace] = []
        self.batch_count = 0
        self.payload_bytes = 0
        self._index = segment_index
        self._sequence = segment_sequence
        self._block_bytes = block_bytes
        self._current: dict[bytes, Span] = {}

    def add(self, batch: Batch, *, durable: bool) -> None:
        """Add the next batch; `durable`: it is known to be on stable media."""
        if batch.is_part:
            self._add_part(batch)
        block = batch.offset // self._block_bytes
        for extent in batch.records.extents:
            span = self._span_for(extent, block)
            span.has_crc32c &= batch.has_crc32c
            span.end_offset = extent.stream_offset + extent.bytes_count
            span.crc_after = extent.crc_after
            if durable:
                span.durable_end = span.end_offset
        for event in batch.records.events:
            self._note(event, block)
            self.events.append(event)
        self.batch_count += 1
        self.payload_bytes += batch.header.payload_bytes

    def _add_part(self, batch: Batch) -> None:
        """Begin each flow's spans anew, as the writer does."""
        self.parts.append(PartPlace(batch, len(self.events), len(self.spans)))
        self._current = {}

    def _span_for(self, extent: RecordExtentRow, block: int) -> Span:
        """The span that the extent continues, or a new one where it does not."""
        span = self._current.get(extent.flow)
        if span is None or span.end_offset != extent.stream_offset:
            span = self._begin(extent.flow, extent.stream_offset, extent.crc_before, block)
        elif span.first_offset == span.end_offset:
            span.crc_before = extent.crc_before
        span.last_batch_block = block
        return span

    def _note(self, event: Event, block: int) -> None:
        """Note an OPEN or CLOSE in the flow's span, an empty one where it has no bytes here."""
        span = self._current.get(event.flow)
        if isinstance(event, OpenEvent):
            offset = event.row.stream_offset
            # Bytes between two connections of this segment may lie in another worker's.
            if span is None or not span.first_offset <= offset <= span.end_offset:
                span = self._begin(event.flow, offset, 0, block)
            span.flags |= SPAN_HAS_OPEN
        else:
            span = span or self._begin(event.flow, event.row.stream_bytes, event.row.crc32c, block)
            span.flags |= SPAN_HAS_CLOSE
        span.last_batch_block = block

    def _begin(self, flow: bytes, offset: int, crc: int, block: int) -> Span:
        span = Span(
            flow=flow,
            segment_index=self._index,
            segment_sequence=self._sequence,
            first_offset=offset,
            end_offset=offset,
            durable_end=offset,
            first_batch_block=block,
            last_batch_block=block,
            crc_before=crc,
            crc_after=crc,
            has_crc32c=True,
        )
        self.spans.append(span)
        self._current[flow] = span
        return span

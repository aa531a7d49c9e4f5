# SPDX-License-Identifier: Apache-2.0
"""Segments and flows as rows of the catalogue's tables, and back.

Invariants: what a segment has of a flow lies in the catalogue as the records of its footer, and
is decoded by the code that decodes footers; a part whose CRC32C is not right is never used.
What goes in comes out the same, but for a listing's flows, which have no spans. Pure.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from crc32c import crc32c

from ingestd.store.catalogue.schema import CatalogueError, biased, unbiased
from ingestd.store.format.layout import SPAN
from ingestd.store.format.records import decode_records
from ingestd.store.format.segment import SegmentImage, SegmentState, Span
from ingestd.store.read.flows import Flow, utc_text

_FACTS: Final = struct.Struct("<IQQIQQI")
_SEQUENCE: Final = struct.Struct("<Q")

PART_COLUMNS: Final = "flow, sequence, event_rank, record_count, records, crc32c"
FLOW_COLUMNS: Final = (
    "flow, name, peer, listener, state, bytes, durable_bytes, started, ended, checksum, reason,"
    " protocol, labels, first_offset, missing, is_plain"
)


class SegmentFacts(NamedTuple):
    """One segment that the catalogue has; `closed_ns` and what follows as in its footer."""

    sequence: int
    place: int  # the segment's index
    is_closed: bool
    worker_index: int
    opened_ns: int
    closed_ns: int
    batch_count: int
    batches_end: int
    payload_bytes: int
    records_crc32c: int

    @classmethod
    def of_image(cls, segment: SegmentImage) -> SegmentFacts:
        """Return the facts about a segment that was read."""
        footer = segment.footer
        return cls(
            segment.sequence,
            segment.index,
            segment.state is SegmentState.CLOSED,
            segment.worker_index,
            segment.opened_ns,
            footer.closed_ns if footer else 0,
            segment.batch_count,
            segment.batches_end,
            segment.payload_bytes,
            footer.records_crc32c if footer else 0,
        )

    def row(self) -> tuple[Any, ...]:
        """Return the row of the table `segments`."""
        return biased(self.sequence), self.place, self.is_closed, _FACTS.pack(*self[3:])

    @classmethod
    def of_row(cls, sequence: int, place: int, is_closed: int, facts: bytes) -> SegmentFacts:
        """Return what row() was made from. Raises CatalogueError."""
        if len(facts) != _FACTS.size:
            raise CatalogueError("a segment's facts are not whole")
        return cls(unbiased(sequence), place, bool(is_closed), *_FACTS.unpack(facts))


def part_rows(segment: SegmentImage) -> Iterator[tuple[Any, ...]]:
    """Give the rows of the table `parts` for a segment, by PART_COLUMNS."""
    records: dict[bytes, list[bytes]] = {}
    ranks: dict[bytes, int] = {}
    for rank, event in enumerate(segment.events):
        records.setdefault(event.flow, []).append(event.raw)
        ranks[event.flow] = rank
    for span in segment.spans:
        records.setdefault(span.flow, []).append(SPAN.pack(span.row()))
    sequence = biased(segment.sequence)
    for flow, found in records.items():
        data = b"".join(found)
        crc = _part_crc(flow, segment.sequence, data)
        yield flow, sequence, ranks.get(flow, -1), len(found), data, crc


def _part_crc(flow: bytes, sequence: int, data: bytes) -> int:
    return crc32c(data, crc32c(_SEQUENCE.pack(sequence) + flow))


def segments_of_parts(rows: Iterable[tuple[Any, ...]]) -> list[SegmentImage]:
    """Return segments with no more in them than the parts, of which each has its segment's index.

    Raises CatalogueError if a part is not whole.
    """
    images: dict[int, SegmentImage] = {}
    for index, flow, stored_sequence, _, record_count, data, crc in rows:
        sequence = unbiased(stored_sequence)
        records = decode_records(data, record_count)
        if records is None or crc != _part_crc(flow, sequence, data):
            raise CatalogueError("a flow's records are not whole")
        image = images.get(sequence)
        if image is None:
            image = SegmentImage(index=index, state=SegmentState.CLOSED, sequence=sequence)
            images[sequence] = image
        image.events += records.events
        image.spans += [Span.of_row(row, index, sequence) for row in records.spans]
    return list(images.values())


def flow_row(flow: Flow, *, is_odd: bool) -> tuple[Any, ...]:
    """Return the row of the table `flows`, by FLOW_COLUMNS; `is_odd`: it has an anomaly.

    A flow that a CLOSE record ended where its bytes end, and that is whole from byte 0 on, is
    the same whatever becomes of the store around it: it is plain.
    """
    is_plain = bool(flow.ended_ns) and not (is_odd or flow.missing or flow.first_offset)
    return (
        flow.flow_id,
        flow.name,
        flow.peer,
        flow.listener,
        flow.state,
        flow.bytes,
        flow.durable_bytes,
        biased(flow.started_ns),
        biased(flow.ended_ns),
        flow.checksum,
        flow.reason,
        flow.protocol,
        json.dumps(flow.labels) if flow.labels else None,
        flow.first_offset,
        json.dumps(flow.missing) if flow.missing else None,
        is_plain,
    )


# Flows of one sender have the same labels, most of the time.
@lru_cache(maxsize=256)
def _labels_of(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(json.loads(text).items())


def flow_of_row(row: tuple[Any, ...]) -> Flow:
    """Return what flow_row() was made from, without its spans."""
    flow_id, name, peer, listener, state, size, durable, started, ended = row[:9]
    checksum, reason, protocol, labels, first_offset, missing, _ = row[9:]
    digits = flow_id.hex()
    started_ns, ended_ns = unbiased(started), unbiased(ended)
    return Flow(
        flow=f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
        name=name,
        peer=peer,
        listener=listener,
        state=state,
        bytes=size,
        durable_bytes=durable,
        started=utc_text(started_ns),
        ended=utc_text(ended_ns),
        checksum=checksum,
        reason=reason,
        protocol=protocol,
        labels=dict(_labels_of(labels)) if labels else {},
        flow_id=flow_id,
        first_offset=first_offset,
        started_ns=started_ns,
        ended_ns=ended_ns,
        missing=tuple((first, last) for first, last in json.loads(missing)) if missing else (),
    )

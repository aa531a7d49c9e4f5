# SPDX-License-Identifier: Apache-2.0
"""A part of a segment's footer: what its records were when they filled the writer's memory.

A part is a batch of its segment, with no records in its header; the block behind that
says what the part is, and its records follow one block later. Each part names the one
before it, and the footer the last. Invariant: of the layout, as of those of layout.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ingestd.store.format.layout import IDENTITY, PART_MAGIC, Bytes, Layout
from ingestd.store.format.records import Batch, decode_block


class FooterPartRow(NamedTuple):
    """struct footer_part without its zeros."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    segment_sequence: int
    part_number: int
    record_count: int
    record_bytes: int
    previous_offset: int
    previous_record_bytes: int
    records_crc32c: int
    span_count: int


FOOTER_PART: Final = Layout(
    "footer_part",
    FooterPartRow,
    (
        *IDENTITY,
        ("segment_sequence", "Q"),
        ("part_number", "I"),
        ("record_count", "I"),
        ("record_bytes", "Q"),
        ("previous_offset", "Q"),
        ("previous_record_bytes", "Q"),
        ("records_crc32c", "I"),
        ("span_count", "I"),
        ("zero", "4016x"),
    ),
)


class PartPlace(NamedTuple):
    """A part that a walk over the batches came by, and what it had found before it."""

    batch: Batch
    events_count: int
    spans_count: int


class PartChain(NamedTuple):
    """The last part that a footer can name: its block's offset, and how many there are with it.

    What comes behind the first `events_count` events and `spans_count` spans of the
    segment is in no part.
    """

    offset: int = 0
    record_bytes: int = 0
    part_count: int = 0
    events_count: int = 0
    spans_count: int = 0


NO_PARTS: Final = PartChain()


def decode_part(data: Bytes, store_uuid: bytes, segment_sequence: int) -> FooterPartRow | None:
    """Return the struct that begins `data`; None if it is not whole, or of another segment."""
    row = decode_block(FOOTER_PART, PART_MAGIC, data, store_uuid)
    return row if row is not None and row.segment_sequence == segment_sequence else None

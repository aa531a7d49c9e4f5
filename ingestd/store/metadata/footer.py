# SPDX-License-Identifier: Apache-2.0
"""A segment's footer, built from its image: the recovery's counterpart of the core's.

Invariants: the footer describes, with the parts of `chain`, exactly the image's batches, all
of which the caller has brought to stable media before; its records and its block are one
run of bytes that ends with the segment. No state; any thread may call.
"""

from __future__ import annotations

from crc32c import crc32c

from ingestd.store.format.footer_part import NO_PARTS, PartChain
from ingestd.store.format.layout import (
    FOOTER_MAGIC,
    FORMAT_VERSION,
    SEGMENT_FOOTER,
    SPAN,
    SegmentFooterRow,
    footer_bytes_max,
    round_up,
    sealed,
)
from ingestd.store.format.segment import SegmentImage
from ingestd.store.metadata.superblock import Superblock


def footer_bytes(image: SegmentImage, superblock: Superblock, chain: PartChain = NO_PARTS) -> int:
    """Return the size of the footer of such a segment: its records and its block."""
    records_bytes = sum(len(event.raw) for event in image.events[chain.events_count :])
    records_bytes += (len(image.spans) - chain.spans_count) * SPAN.size_bytes
    return round_up(records_bytes, superblock.block_bytes) + superblock.block_bytes


def has_room(image: SegmentImage, superblock: Superblock, chain: PartChain = NO_PARTS) -> bool:
    """Return whether the footer fits behind the segment's batches, and readers take it."""
    total_bytes = footer_bytes(image, superblock, chain)
    return (
        total_bytes <= footer_bytes_max(superblock.segment_bytes) + superblock.block_bytes
        and image.batches_end + total_bytes <= superblock.segment_bytes
    )


def build_footer(
    image: SegmentImage, superblock: Superblock, closed_ns: int, chain: PartChain = NO_PARTS
) -> bytes | None:
    """Return the bytes that go to the segment's end; None if there is no room for them.

    `chain`: the parts of it that are whole, as of whole_parts().
    """
    if not has_room(image, superblock, chain):
        return None
    block_bytes = superblock.block_bytes
    events, spans = image.events[chain.events_count :], image.spans[chain.spans_count :]
    records = b"".join(event.raw for event in events)
    records += b"".join(SPAN.pack(span.row()) for span in spans)
    region_bytes = footer_bytes(image, superblock, chain) - block_bytes
    records_offset = superblock.segment_bytes - block_bytes - region_bytes
    assert round_up(len(records), block_bytes) == region_bytes, (len(records), region_bytes)
    row = SegmentFooterRow(
        magic=FOOTER_MAGIC,
        crc32c=0,
        version=FORMAT_VERSION,
        store_uuid=superblock.store_uuid,
        segment_sequence=image.sequence,
        batch_count=image.batch_count,
        record_count=len(events) + len(spans),
        records_offset=records_offset,
        record_bytes=len(records),
        batches_end=image.batches_end,
        payload_bytes=image.payload_bytes,
        closed_ns=closed_ns,
        records_crc32c=crc32c(records),
        span_count=len(spans),
        last_part_offset=chain.offset,
        last_part_record_bytes=chain.record_bytes,
        part_count=chain.part_count,
    )
    block = sealed(SEGMENT_FOOTER.pack(row))
    return records.ljust(region_bytes, b"\0") + block.ljust(block_bytes, b"\0")

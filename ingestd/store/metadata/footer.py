# SPDX-License-Identifier: Apache-2.0
"""A segment's footer, built from its image: the recovery's counterpart of the core's.

Invariants: the footer describes exactly the image's batches, all of which the
caller has brought to stable media before; its records and its block are one
run of bytes that ends with the segment. No state; any thread may call.
"""

from __future__ import annotations

from crc32c import crc32c

from ingestd.store.format.layout import (
    FOOTER_MAGIC,
    FORMAT_VERSION,
    SEGMENT_FOOTER,
    SPAN,
    SegmentFooterRow,
    round_up,
    sealed,
)
from ingestd.store.format.segment import SegmentImage
from ingestd.store.metadata.superblock import Superblock


def footer_bytes(image: SegmentImage, superblock: Superblock) -> int:
    """Return the size of the footer of such a segment: its records and its block."""
    records_bytes = sum(len(event.raw) for event in image.events)
    records_bytes += len(image.spans) * SPAN.size_bytes
    return round_up(records_bytes, superblock.block_bytes) + superblock.block_bytes


def has_room(image: SegmentImage, superblock: Superblock) -> bool:
    """Return whether the footer fits behind the segment's batches."""
    return image.batches_end + footer_bytes(image, superblock) <= superblock.segment_bytes


def build_footer(image: SegmentImage, superblock: Superblock, closed_ns: int) -> bytes | None:
    """Return the bytes that go to the segment's end; None if there is no room for them."""
    if not has_room(image, superblock):
        return None
    block_bytes = superblock.block_bytes
    records = b"".join(event.raw for event in image.events)
    records += b"".join(SPAN.pack(span.row()) for span in image.spans)
    region_bytes = footer_bytes(image, superblock) - block_bytes
    records_offset = superblock.segment_bytes - block_bytes - region_bytes
    assert round_up(len(records), block_bytes) == region_bytes, (len(records), region_bytes)
    row = SegmentFooterRow(
        magic=FOOTER_MAGIC,
        crc32c=0,
        version=FORMAT_VERSION,
        store_uuid=superblock.store_uuid,
        segment_sequence=image.sequence,
        batch_count=image.batch_count,
        record_count=len(image.events) + len(image.spans),
        records_offset=records_offset,
        record_bytes=len(records),
        batches_end=image.batches_end,
        payload_bytes=image.payload_bytes,
        closed_ns=closed_ns,
        records_crc32c=crc32c(records),
        span_count=len(image.spans),
    )
    block = sealed(SEGMENT_FOOTER.pack(row))
    return records.ljust(region_bytes, b"\0") + block.ljust(block_bytes, b"\0")

# SPDX-License-Identifier: Apache-2.0
"""The records of a closed segment: those of all parts of its footer, and of the footer itself.

Invariants: a part is trusted only if its block and its records have the CRC32Cs that they
state, and it is the one that the next part, or the footer, names; places along a chain only
fall, so that it ends. Whatever the bytes are, the answer is a value or None. No state; any
thread may call.
"""

from __future__ import annotations

from typing import NamedTuple

from crc32c import crc32c

from ingestd.store.device.device import READ_BYTES_MAX, Device
from ingestd.store.format.footer_part import (
    FOOTER_PART,
    NO_PARTS,
    FooterPartRow,
    PartChain,
    decode_part,
)
from ingestd.store.format.layout import (
    SEGMENT_DATA_BLOCK,
    Bytes,
    SegmentFooterRow,
    footer_bytes_max,
    round_up,
)
from ingestd.store.format.records import Batch, Records, decode_records
from ingestd.store.format.segment import SegmentImage
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.read_ahead import Window


class _Region(NamedTuple):
    """A run of records that has the CRC32C that was stated of it."""

    data: Bytes
    record_count: int
    span_count: int


class FooterReader:
    """Reads what a whole footer block states of its segment."""

    def __init__(
        self, device: Device, superblock: Superblock, index: int, footer: SegmentFooterRow
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._base = superblock.segment_offset(index)
        self._footer = footer

    def records(self, tail: bytes = b"", wanted: frozenset[bytes] | None = None) -> Records | None:
        """Return all records of the segment; None if they are not as the footer says.

        `tail` is what was read of the segment's end already. `wanted`: of a part without any
        of these flows' ids nothing is decoded. Raises StoreDamagedError if the device cannot
        read.
        """
        own = self._own_region(tail)
        parts = self._part_regions() if own is not None else None
        if own is None or parts is None:
            return None
        found = Records([], [], [])
        for region in (*parts, own):
            records = _decoded(region, wanted)
            if records is None:
                return None
            found.events.extend(records.events)
            found.spans.extend(records.spans)
        return found

    def _own_region(self, tail: bytes) -> _Region | None:
        footer, segment_bytes = self._footer, self._superblock.segment_bytes
        end = footer.records_offset + footer.record_bytes
        if footer.record_bytes > footer_bytes_max(segment_bytes):
            return None  # no writer makes so large a one: not to be read at all
        if end > segment_bytes - self._superblock.block_bytes:
            return None
        if footer.batches_end > footer.records_offset:
            return None
        at = footer.records_offset - (segment_bytes - len(tail))
        if at >= 0:
            data: Bytes = memoryview(tail)[at : at + footer.record_bytes]
        else:
            data = self._read(footer.records_offset, footer.record_bytes)
        if len(data) != footer.record_bytes or crc32c(data) != footer.records_crc32c:
            return None
        return _Region(data, footer.record_count, footer.span_count)

    def _part_regions(self) -> list[_Region] | None:
        """The parts' records, in the order in which they were written."""
        footer = self._footer
        offset, record_bytes = footer.last_part_offset, footer.last_part_record_bytes
        end_max, regions = footer.batches_end, list[_Region]()
        for number in range(footer.part_count, 0, -1):
            found = self._read_part(offset, record_bytes, end_max)
            if found is None or found[0].part_number != number:
                return None
            row, region = found
            regions.append(region)
            end_max = offset - self._superblock.block_bytes  # where its batch begins
            offset, record_bytes = row.previous_offset, row.previous_record_bytes
        # The first part names none before it.
        return regions[::-1] if offset == record_bytes == 0 else None

    def _read_part(
        self, offset: int, record_bytes: int, end_max: int
    ) -> tuple[FooterPartRow, _Region] | None:
        """The part whose block is at `offset`, by one read; None if that cannot be."""
        block_bytes = self._superblock.block_bytes
        if offset % block_bytes or offset <= SEGMENT_DATA_BLOCK * block_bytes:
            return None
        if record_bytes > footer_bytes_max(self._superblock.segment_bytes):
            return None
        if offset + block_bytes + round_up(record_bytes, block_bytes) > end_max:
            return None
        data = memoryview(self._read(offset, block_bytes + record_bytes))
        if len(data) != block_bytes + record_bytes:
            return None
        row = decode_part(data, self._superblock.store_uuid, self._footer.segment_sequence)
        if row is None or row.record_bytes != record_bytes:
            return None
        region = _Region(data[block_bytes:], row.record_count, row.span_count)
        return (row, region) if crc32c(region.data) == row.records_crc32c else None

    def _read(self, offset: int, size: int) -> bytes:
        first = self._base + offset
        pieces = [
            self._device.read(at, min(READ_BYTES_MAX, first + size - at))
            for at in range(first, first + size, READ_BYTES_MAX)
        ]
        return b"".join(pieces)


def _decoded(region: _Region, wanted: frozenset[bytes] | None) -> Records | None:
    if wanted is not None:
        text = bytes(region.data)
        if not any(flow in text for flow in wanted):
            return Records([], [], [])
    records = decode_records(region.data, region.record_count)
    return records if records and len(records.spans) == region.span_count else None


def read_part(window: Window, batch: Batch) -> FooterPartRow | None:
    """Return what a batch that is a part says of itself; None if it is torn.

    Raises StoreDamagedError if the device cannot read.
    """
    header = batch.header
    block = window.get(batch.payload_offset, FOOTER_PART.size_bytes)
    row = decode_part(bytes(block), header.store_uuid, header.segment_sequence)
    begin = batch.payload_offset + header.header_bytes  # which is one block
    if row is None or begin + row.record_bytes > batch.end:
        return None
    end = begin + row.record_bytes
    data = b"".join(
        bytes(window.get(at, min(READ_BYTES_MAX, end - at)))
        for at in range(begin, end, READ_BYTES_MAX)
    )
    if len(data) != row.record_bytes or crc32c(data) != row.records_crc32c:
        return None
    # A footer that names it is read only if these are what it states.
    records = _decoded(_Region(data, row.record_count, row.span_count), None)
    return row if records is not None else None


def whole_parts(device: Device, superblock: Superblock, image: SegmentImage) -> PartChain:
    """Return the parts that a footer of a walked segment can name: those before a damaged one.

    Raises StoreDamagedError if the device cannot read.
    """
    window = Window(device, superblock.segment_offset(image.index), superblock.segment_bytes)
    chain = NO_PARTS
    for batch, events_count, spans_count in image.parts:
        row = read_part(window, batch)
        if row is None or row.part_number != chain.part_count + 1:
            break
        if batch.header.header_bytes != superblock.block_bytes:
            break
        if row.record_bytes > footer_bytes_max(superblock.segment_bytes):
            break
        if (row.previous_offset, row.previous_record_bytes) != (chain.offset, chain.record_bytes):
            break
        chain = PartChain(
            batch.payload_offset, row.record_bytes, row.part_number, events_count, spans_count
        )
    return chain

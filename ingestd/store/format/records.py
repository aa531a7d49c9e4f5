# SPDX-License-Identifier: Apache-2.0
"""Batches, their records and the other blocks of a segment, decoded from bytes.

Invariants: nothing here trusts a byte before its CRC32C was found right, and
whatever the bytes are, the answer is a value or None, never an exception. What
is returned holds no reference to the bytes it came from. No state; any thread
may call.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from crc32c import crc32c

from ingestd.store.format.layout import (
    BATCH_HAS_CRC32C,
    BATCH_HEADER,
    BATCH_HEADER_BYTES_MAX,
    BATCH_IS_PART,
    BATCH_MAGIC,
    CLOSE,
    EXTENT,
    FORMAT_MAGIC_BYTES,
    FORMAT_VERSIONS,
    OPEN,
    RECORD_CLOSE,
    RECORD_EXTENT,
    RECORD_HEAD,
    RECORD_OPEN,
    RECORD_SPAN,
    RECORD_TEXT_BYTES_MAX,
    SPAN,
    BatchHeaderRow,
    Bytes,
    Layout,
    RecordCloseRow,
    RecordExtentRow,
    RecordOpenRow,
    RecordSpanRow,
    Row,
    is_intact,
)

RECORD_ALIGN_BYTES: Final = 8
STREAM_BYTES_MAX: Final = 2**63 - 1

# Where every block of a segment has the store's UUID and the segment's sequence.
# The least that a device writes as a whole, and more flipped bytes than a unit ever has.
UNIT_BYTES: Final = 512
FLIPPED_BYTES_MAX: Final = 64

_VERSION_AT: Final = slice(12, 16)  # of every such struct but a batch header
_VERSIONS: Final = tuple(version.to_bytes(4, "little") for version in FORMAT_VERSIONS)
_UUID_AT: Final = slice(16, 32)
_SEQUENCE_AT: Final = slice(32, 40)

# The head's first two fields: a large store has hundreds of thousands of records.
_KIND_AND_SIZE: Final = struct.Struct("<HH")
_SIZES_BYTES: Final = {
    RECORD_EXTENT: EXTENT.size_bytes,
    RECORD_OPEN: OPEN.size_bytes,
    RECORD_CLOSE: CLOSE.size_bytes,
    RECORD_SPAN: SPAN.size_bytes,
}


def is_of_place(block: Bytes, place: Place) -> bool:
    """Return whether a block bears the store's UUID and the segment's sequence; no checksum yet."""
    sequence = place.segment_sequence.to_bytes(8, "little")
    return block[_UUID_AT] == place.store_uuid and block[_SEQUENCE_AT] == sequence


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """An OPEN record: a connection begins to feed a flow."""

    row: RecordOpenRow
    raw: bytes

    @property
    def flow(self) -> bytes:
        """The flow's id, 16 bytes."""
        return self.row.flow

    def texts(self) -> tuple[str, str, str]:
        """Return listener, name and labels; bytes that are not UTF-8 are shown as such."""
        row, at = self.row, OPEN.size_bytes
        ends = (row.listener_bytes, row.name_bytes, row.labels_bytes)
        found = []
        for size in ends:
            found.append(self.raw[at : at + size].decode(errors="backslashreplace"))
            at += size
        return found[0], found[1], found[2]

    def peer(self) -> str | None:
        """Return "192.0.2.1:4000" or "[2001:db8::1]:4000"; None if it is not known."""
        row = self.row
        if row.peer_family == 4:
            return f"{socket.inet_ntop(socket.AF_INET, row.peer_address[:4])}:{row.peer_port}"
        if row.peer_family == 6:
            return f"[{socket.inet_ntop(socket.AF_INET6, row.peer_address)}]:{row.peer_port}"
        return None


@dataclass(frozen=True, slots=True)
class CloseEvent:
    """A CLOSE record: a flow is sealed or interrupted."""

    row: RecordCloseRow
    raw: bytes

    @property
    def flow(self) -> bytes:
        """The flow's id, 16 bytes."""
        return self.row.flow


Event: TypeAlias = OpenEvent | CloseEvent


@dataclass(frozen=True, slots=True)
class Records:
    """A row of records, each kind in the order in which it was written."""

    extents: list[RecordExtentRow]
    events: list[Event]
    spans: list[RecordSpanRow]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose header is whole; `offset` in bytes from the segment's start."""

    offset: int
    header: BatchHeaderRow
    records: Records

    @property
    def payload_offset(self) -> int:
        """The offset of the payload, in bytes from the segment's start."""
        return self.offset + self.header.header_bytes

    @property
    def end(self) -> int:
        """The offset of the next batch, in bytes from the segment's start."""
        return self.offset + self.header.batch_bytes

    @property
    def has_crc32c(self) -> bool:
        """Return whether the extents' CRCs are filled in."""
        return bool(self.header.flags & BATCH_HAS_CRC32C)

    @property
    def is_part(self) -> bool:
        """Return whether it is a part of the segment's footer, and has nothing of any flow."""
        return bool(self.header.flags & BATCH_IS_PART)


def decode_records(data: Bytes, record_count: int) -> Records | None:
    """Return the records that fill `data`; None if they do not fit it or each other.

    Kinds that this version does not know are passed over.
    """
    found = Records([], [], [])
    view, at, count = memoryview(data), 0, 0
    while at < len(view):
        if len(view) - at < RECORD_HEAD.size_bytes:
            return None
        kind, record_bytes = _KIND_AND_SIZE.unpack_from(view, at)
        end = at + record_bytes
        if record_bytes < RECORD_HEAD.size_bytes or end > len(view):
            return None
        if record_bytes % RECORD_ALIGN_BYTES or not _add(found, kind, view[at:end]):
            return None
        at, count = end, count + 1
    return found if count == record_count else None


def _add(found: Records, kind: int, record: memoryview) -> bool:
    """Decode one record into the list of its kind; False if it contradicts itself."""
    size_bytes = _SIZES_BYTES.get(kind)
    if size_bytes is None:
        return True
    if len(record) < size_bytes:
        return False
    if kind == RECORD_EXTENT:
        extent = EXTENT.unpack(record)
        found.extents.append(extent)
        return extent.stream_offset + extent.bytes_count <= STREAM_BYTES_MAX
    if kind == RECORD_SPAN:
        span = SPAN.unpack(record)
        found.spans.append(span)
        return (
            span.first_offset <= span.end_offset <= STREAM_BYTES_MAX
            and span.first_batch_block <= span.last_batch_block
        )
    if kind == RECORD_CLOSE:
        close = CLOSE.unpack(record)
        found.events.append(CloseEvent(close, bytes(record)))
        return close.stream_bytes <= STREAM_BYTES_MAX
    row = OPEN.unpack(record)
    text_bytes = row.listener_bytes + row.name_bytes + row.labels_bytes
    found.events.append(OpenEvent(row, bytes(record)))
    return row.stream_offset <= STREAM_BYTES_MAX and text_bytes <= min(
        RECORD_TEXT_BYTES_MAX, len(record) - OPEN.size_bytes
    )


def batch_header_bytes(data: Bytes, block_bytes: int) -> int | None:
    """Return how long the header that begins `data` says to be; None if that cannot be."""
    if len(data) < BATCH_HEADER.size_bytes:
        return None
    row = BATCH_HEADER.unpack(data)
    if row.magic != BATCH_MAGIC or row.header_bytes % block_bytes:
        return None
    return row.header_bytes if 0 < row.header_bytes <= BATCH_HEADER_BYTES_MAX else None


@dataclass(frozen=True, slots=True)
class Place:
    """The batches that may lie in a segment: the store's, the segment's, in its bounds."""

    store_uuid: bytes
    segment_sequence: int
    segment_bytes: int
    block_bytes: int

    def decode_batch(self, data: Bytes, offset: int, batch_index: int | None) -> Batch | None:
        """Return the batch whose header fills `data`; None if it is torn, stale or foreign.

        `offset` is in bytes from the segment's start; a `batch_index` of None
        stands for any.
        """
        if batch_header_bytes(data, self.block_bytes) != len(data) or not is_intact(data):
            return None
        row = BATCH_HEADER.unpack(data)
        if row.store_uuid != self.store_uuid or row.segment_sequence != self.segment_sequence:
            return None
        if batch_index is not None and row.batch_index != batch_index:
            return None
        if row.batch_bytes % self.block_bytes or row.batch_bytes < row.header_bytes:
            return None
        records_end = BATCH_HEADER.size_bytes + row.record_bytes
        if offset + row.batch_bytes > self.segment_bytes or records_end > row.header_bytes:
            return None
        records = decode_records(
            memoryview(data)[BATCH_HEADER.size_bytes : records_end], row.record_count
        )
        if records is None or not _payload_fits(row, records.extents):
            return None
        return Batch(offset, row, records)


def _payload_fits(row: BatchHeaderRow, extents: list[RecordExtentRow]) -> bool:
    """Return whether the extents lie in the payload and make up what the header says."""
    room = row.batch_bytes - row.header_bytes
    total = sum(e.bytes_count for e in extents)
    # Extents that lay over each other could have a reader check one byte a thousand times.
    return total == row.payload_bytes <= room and all(
        e.payload_offset + e.bytes_count <= room for e in extents
    )


def extent_is_whole(extent: RecordExtentRow, data: Bytes) -> bool:
    """Return whether `data`, the extent's bytes, has the CRC32C that the extent states."""
    return crc32c(data, extent.crc_before) == extent.crc_after


def decode_block(layout: Layout[Row], magic: bytes, data: Bytes, store_uuid: bytes) -> Row | None:
    """Return the struct that begins `data`; None if it is not whole, or of another store."""
    block = memoryview(data)[: layout.size_bytes]
    if len(block) < layout.size_bytes or block[:FORMAT_MAGIC_BYTES] != magic:
        return None
    if block[_VERSION_AT] not in _VERSIONS or block[_UUID_AT] != store_uuid:
        return None
    return layout.unpack(block) if is_intact(block) else None


def is_torn(data: Bytes) -> bool:
    """Return whether a part of a struct was never written: a unit of the device holds other bytes.

    All fields lie in the first unit, and zeros behind them; bits that flipped do
    not fill a unit, what was on the device before may.
    """
    units = (bytes(data[at : at + UNIT_BYTES]) for at in range(UNIT_BYTES, len(data), UNIT_BYTES))
    return any(len(unit) - unit.count(0) > FLIPPED_BYTES_MAX for unit in units)


def is_remains(data: Bytes, magic: bytes, store_uuid: bytes, segment_sequence: int | None) -> bool:
    """Return whether a struct that is not whole was once one of this store's life.

    `data` holds the struct and no more. With a sequence: of that segment's life.
    It is, if it names this store and that sequence, or becomes whole when
    its identity is put right. What a previous generation or another store left behind
    is whole in itself, or has another identity, and is no remains.
    """
    if len(data) < _SEQUENCE_AT.stop or is_intact(data):
        return False
    mended = bytearray(data)
    mended[:FORMAT_MAGIC_BYTES] = magic
    mended[_UUID_AT] = store_uuid
    is_ours = data[_UUID_AT] == store_uuid
    if segment_sequence is not None:
        sequence = segment_sequence.to_bytes(8, "little")
        mended[_SEQUENCE_AT] = sequence
        is_ours = is_ours and data[_SEQUENCE_AT] == sequence
    return is_ours or is_intact(mended)

# SPDX-License-Identifier: Apache-2.0
"""Python's mirror of core/format/format.h: every struct, constant and enum of the format.

Invariants: a Layout has the size and the offsets of the C struct of its name,
which a test compares by compiling core/format/format.h; integers are little-endian
and there are no holes. `crc32c` lies at byte 8 of every struct that has it and
counts as 0 in its own sum. No state; any thread may call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from crc32c import crc32c

FORMAT_VERSION: Final = 2
FORMAT_VERSIONS: Final = (1, FORMAT_VERSION)  # that are read: 1 has no parts of footers
FORMAT_UUID_BYTES: Final = 16
FORMAT_MAGIC_BYTES: Final = 8

SUPERBLOCK_MAGIC: Final = b"INGESTSB"
SEGMENT_MAGIC: Final = b"INGESTSG"
MARK_MAGIC: Final = b"INGESTMK"
BATCH_MAGIC: Final = b"INGESTBT"
FOOTER_MAGIC: Final = b"INGESTFT"
PART_MAGIC: Final = b"INGESTFP"

SUPERBLOCK_B_OFFSET: Final = 512 * 1024
SEGMENTS_OFFSET: Final = 1024 * 1024

SEGMENT_HEADER_BLOCK: Final = 0
SEGMENT_MARK_BLOCK: Final = 1
SEGMENT_MARKS_COUNT: Final = 2
FOOTER_BYTES_MAX: Final = 1024 * 1024
SEGMENT_DATA_BLOCK: Final = 4

BLOCK_BYTES_MIN: Final = 4096
BLOCK_BYTES_MAX: Final = 65536
SEGMENT_BYTES_MIN: Final = 1024 * 1024
SEGMENT_BYTES_MAX: Final = 1024 * 1024 * 1024
# Every image of a store has an entry for each: a limit to what a superblock can make a reader do.
SEGMENT_COUNT_MAX: Final = 1024 * 1024
GENERATION_MAX: Final = 2**32 - 1
BATCH_HEADER_BYTES_MAX: Final = 65536
RECORD_TEXT_BYTES_MAX: Final = 2048

BATCH_HAS_CRC32C: Final = 1
BATCH_IS_PART: Final = 2

RECORD_EXTENT: Final = 1
RECORD_OPEN: Final = 2
RECORD_CLOSE: Final = 3
RECORD_SPAN: Final = 4

PROTOCOL_RAW: Final = 1  # record_open.protocol
PROTOCOL_INGEST: Final = 2

FLOW_STATE_OPEN: Final = 0
FLOW_STATE_SEALED: Final = 1
FLOW_STATE_INTERRUPTED: Final = 2

CLOSE_REASON_NONE: Final = 0
CLOSE_REASON_PEER: Final = 1
CLOSE_REASON_IDLE: Final = 2
CLOSE_REASON_SHUTDOWN: Final = 3
CLOSE_REASON_STORE_FULL: Final = 4
CLOSE_REASON_LIMIT: Final = 5
CLOSE_REASON_REPLACED: Final = 6
CLOSE_REASON_CHECKSUM: Final = 7
CLOSE_REASON_LENGTH: Final = 8
CLOSE_REASON_RECEIVER: Final = 9
CLOSE_REASON_EMPTY: Final = 10

# Names of values, as log, metrics, JSON and the protocols have them.
PROTOCOLS: Final = {PROTOCOL_RAW: "raw", PROTOCOL_INGEST: "ingest"}
RECORD_KINDS: Final = {
    RECORD_EXTENT: "EXTENT",
    RECORD_OPEN: "OPEN",
    RECORD_CLOSE: "CLOSE",
    RECORD_SPAN: "SPAN",
}
FLOW_STATES: Final = {
    FLOW_STATE_OPEN: "open",
    FLOW_STATE_SEALED: "sealed",
    FLOW_STATE_INTERRUPTED: "interrupted",
}
REASONS: Final = {
    CLOSE_REASON_NONE: "none",
    CLOSE_REASON_PEER: "connection_lost",
    CLOSE_REASON_IDLE: "idle_timeout",
    CLOSE_REASON_SHUTDOWN: "shutdown",
    CLOSE_REASON_STORE_FULL: "store_full",
    CLOSE_REASON_LIMIT: "limit",
    CLOSE_REASON_REPLACED: "replaced",
    CLOSE_REASON_CHECKSUM: "checksum",
    CLOSE_REASON_LENGTH: "length",
    CLOSE_REASON_RECEIVER: "receiver",
    CLOSE_REASON_EMPTY: "empty",
}

CLOSE_HAS_CRC32C: Final = 1
CLOSE_HAS_SENDER_CRC32C: Final = 2

SPAN_HAS_OPEN: Final = 1
SPAN_HAS_CLOSE: Final = 2

# A segment_sequence is the generation in its upper half and a counter in its lower.
SEQUENCE_COUNTER_BITS: Final = 32
SEQUENCE_COUNTER_MAX: Final = 2**SEQUENCE_COUNTER_BITS - 1

CRC_OFFSET: Final = FORMAT_MAGIC_BYTES
_CRC_END: Final = CRC_OFFSET + 4
_CRC_AS_ZERO: Final = bytes(4)

Bytes: TypeAlias = bytes | bytearray | memoryview


class SuperblockRow(NamedTuple):
    """struct superblock without its zeros."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    generation: int
    store_bytes: int
    segments_offset: int
    segment_bytes: int
    segment_count: int
    block_bytes: int
    created_ns: int
    label: bytes


class SegmentHeaderRow(NamedTuple):
    """struct segment_header without its zeros."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    segment_sequence: int
    segment_index: int
    worker_index: int
    opened_ns: int


class CommitMarkRow(NamedTuple):
    """struct commit_mark without its zeros."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    segment_sequence: int
    mark_sequence: int
    batches_committed: int
    reserved: int
    committed_end: int


class BatchHeaderRow(NamedTuple):
    """struct batch_header without its zeros."""

    magic: bytes
    crc32c: int
    header_bytes: int
    store_uuid: bytes
    segment_sequence: int
    batch_index: int
    batches_committed: int
    batch_bytes: int
    record_count: int
    record_bytes: int
    flags: int
    reserved: int
    payload_bytes: int
    made_ns: int


class RecordHeadRow(NamedTuple):
    """struct record_head."""

    kind: int
    record_bytes: int
    flags: int
    flow: bytes


class RecordExtentRow(NamedTuple):
    """struct record_extent with its head."""

    kind: int
    record_bytes: int
    flags: int
    flow: bytes
    stream_offset: int
    payload_offset: int
    bytes_count: int
    crc_before: int
    crc_after: int


class RecordOpenRow(NamedTuple):
    """struct record_open with its head, without the texts behind it."""

    kind: int
    record_bytes: int
    flags: int
    flow: bytes
    started_ns: int
    stream_offset: int
    peer_address: bytes
    peer_port: int
    peer_family: int
    protocol: int
    listener_bytes: int
    name_bytes: int
    labels_bytes: int


class RecordCloseRow(NamedTuple):
    """struct record_close with its head."""

    kind: int
    record_bytes: int
    flags: int
    flow: bytes
    stream_bytes: int
    ended_ns: int
    state: int
    reason: int
    crc32c: int
    sender_crc32c: int


class RecordSpanRow(NamedTuple):
    """struct record_span with its head."""

    kind: int
    record_bytes: int
    flags: int
    flow: bytes
    first_offset: int
    end_offset: int
    first_batch_block: int
    last_batch_block: int
    crc_before: int
    crc_after: int


class SegmentFooterRow(NamedTuple):
    """struct segment_footer without its zeros."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    segment_sequence: int
    batch_count: int
    record_count: int
    records_offset: int
    record_bytes: int
    batches_end: int
    payload_bytes: int
    closed_ns: int
    records_crc32c: int
    span_count: int
    last_part_offset: int = 0
    last_part_record_bytes: int = 0
    part_count: int = 0


Row = TypeVar("Row", bound=tuple[object, ...])


class Layout(Generic[Row]):
    """One struct: its C name, its fields as (C name, code of the struct module), its size."""

    def __init__(self, name: str, row: Callable[..., Row], fields: tuple[tuple[str, str], ...]):
        self.name = name
        self.fields = fields
        self._row = row
        self._struct = struct.Struct("<" + "".join(code for _, code in fields))
        self.size_bytes: int = self._struct.size

    def unpack(self, data: Bytes, offset: int = 0) -> Row:
        """Return the struct at `offset`; the caller has seen to it that all of it is there."""
        return self._row(*self._struct.unpack_from(data, offset))

    def pack(self, row: Row) -> bytes:
        """Return the struct's bytes, zeros included; crc32c goes in as the row has it."""
        return self._struct.pack(*row)

    def offsets(self) -> dict[str, int]:
        """Return where each field begins."""
        result, codes = {}, "<"
        for name, code in self.fields:
            result[name] = struct.calcsize(codes)
            codes += code
        return result


IDENTITY: Final = (("magic", "8s"), ("crc32c", "I"), ("version", "I"), ("store_uuid", "16s"))
_HEAD = (
    ("head.kind", "H"),
    ("head.record_bytes", "H"),
    ("head.flags", "I"),
    ("head.flow", "16s"),
)

SUPERBLOCK: Final = Layout(
    "superblock",
    SuperblockRow,
    (
        *IDENTITY,
        ("generation", "Q"),
        ("store_bytes", "Q"),
        ("segments_offset", "Q"),
        ("segment_bytes", "Q"),
        ("segment_count", "I"),
        ("block_bytes", "I"),
        ("created_ns", "Q"),
        ("label", "64s"),
        ("zero", "3952x"),
    ),
)
SEGMENT_HEADER: Final = Layout(
    "segment_header",
    SegmentHeaderRow,
    (
        *IDENTITY,
        ("segment_sequence", "Q"),
        ("segment_index", "I"),
        ("worker_index", "I"),
        ("opened_ns", "Q"),
        ("zero", "4040x"),
    ),
)
COMMIT_MARK: Final = Layout(
    "commit_mark",
    CommitMarkRow,
    (
        *IDENTITY,
        ("segment_sequence", "Q"),
        ("mark_sequence", "Q"),
        ("batches_committed", "I"),
        ("reserved", "I"),
        ("committed_end", "Q"),
        ("zero", "4032x"),
    ),
)
BATCH_HEADER: Final = Layout(
    "batch_header",
    BatchHeaderRow,
    (
        ("magic", "8s"),
        ("crc32c", "I"),
        ("header_bytes", "I"),
        ("store_uuid", "16s"),
        ("segment_sequence", "Q"),
        ("batch_index", "I"),
        ("batches_committed", "I"),
        ("batch_bytes", "Q"),
        ("record_count", "I"),
        ("record_bytes", "I"),
        ("flags", "I"),
        ("reserved", "I"),
        ("payload_bytes", "Q"),
        ("made_ns", "Q"),
        ("zero", "40x"),
    ),
)
RECORD_HEAD: Final = Layout(
    "record_head",
    RecordHeadRow,
    (("kind", "H"), ("record_bytes", "H"), ("flags", "I"), ("flow", "16s")),
)
EXTENT: Final = Layout(
    "record_extent",
    RecordExtentRow,
    (
        *_HEAD,
        ("stream_offset", "Q"),
        ("payload_offset", "I"),
        ("bytes", "I"),
        ("crc_before", "I"),
        ("crc_after", "I"),
    ),
)
OPEN: Final = Layout(
    "record_open",
    RecordOpenRow,
    (
        *_HEAD,
        ("started_ns", "Q"),
        ("stream_offset", "Q"),
        ("peer_address", "16s"),
        ("peer_port", "H"),
        ("peer_family", "B"),
        ("protocol", "B"),
        ("listener_bytes", "H"),
        ("name_bytes", "H"),
        ("labels_bytes", "H"),
        ("reserved", "6x"),
    ),
)
CLOSE: Final = Layout(
    "record_close",
    RecordCloseRow,
    (
        *_HEAD,
        ("stream_bytes", "Q"),
        ("ended_ns", "Q"),
        ("state", "I"),
        ("reason", "I"),
        ("crc32c", "I"),
        ("sender_crc32c", "I"),
    ),
)
SPAN: Final = Layout(
    "record_span",
    RecordSpanRow,
    (
        *_HEAD,
        ("first_offset", "Q"),
        ("end_offset", "Q"),
        ("first_batch_block", "I"),
        ("last_batch_block", "I"),
        ("crc_before", "I"),
        ("crc_after", "I"),
    ),
)
SEGMENT_FOOTER: Final = Layout(
    "segment_footer",
    SegmentFooterRow,
    (
        *IDENTITY,
        ("segment_sequence", "Q"),
        ("batch_count", "I"),
        ("record_count", "I"),
        ("records_offset", "Q"),
        ("record_bytes", "Q"),
        ("batches_end", "Q"),
        ("payload_bytes", "Q"),
        ("closed_ns", "Q"),
        ("records_crc32c", "I"),
        ("span_count", "I"),
        ("last_part_offset", "Q"),
        ("last_part_record_bytes", "Q"),
        ("part_count", "I"),
        ("reserved", "4x"),
        ("zero", "3976x"),
    ),
)


def block_crc32c(data: Bytes) -> int:
    """Return the CRC32C (Castagnoli, RFC 3720 appendix B.4) of a struct, its own field as 0."""
    view = memoryview(data)
    return crc32c(view[_CRC_END:], crc32c(_CRC_AS_ZERO, crc32c(view[:CRC_OFFSET])))


def is_intact(data: Bytes) -> bool:
    """Return whether the struct that fills `data` has the CRC32C that it states."""
    stated: int = struct.unpack_from("<I", data, CRC_OFFSET)[0]
    return stated == block_crc32c(data)


def sealed(data: bytes) -> bytes:
    """Return `data` with its CRC32C filled in."""
    crc = struct.pack("<I", block_crc32c(data))
    return data[:CRC_OFFSET] + crc + data[_CRC_END:]


def sequence_of(generation: int, counter: int) -> int:
    """Return the segment_sequence of the counter-th segment that a generation opens."""
    assert 0 < counter <= SEQUENCE_COUNTER_MAX, counter
    return generation << SEQUENCE_COUNTER_BITS | counter


def generation_of(segment_sequence: int) -> int:
    """Return the generation that opened the segment."""
    return segment_sequence >> SEQUENCE_COUNTER_BITS


def footer_bytes_max(segment_bytes: int) -> int:
    """Return the most that a segment's footer takes (segment_footer_bytes_max() of the core)."""
    return min(segment_bytes // 8, FOOTER_BYTES_MAX)


def round_up(value: int, unit: int) -> int:
    """Return the lowest multiple of `unit` that is at least `value`."""
    return -(-value // unit) * unit

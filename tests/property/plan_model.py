# SPDX-License-Identifier: Apache-2.0
"""The promises of plan.h, implemented again: slow, in Python, from its text alone.

`expect` says of one fragment's bytes which are direct and which are copied for
which reason; `read_batch` takes a batch apart by the record format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import crc32c

BATCH_HEADER: Final = struct.Struct("<8sII16sQIIQIIIIQQ40s")
RECORD_HEAD: Final = struct.Struct("<HHI16s")
RECORD_EXTENT: Final = struct.Struct("<HHI16sQIIII")
KIND_EXTENT: Final = 1
FLAG_CRC32C: Final = 1


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def round_down(value: int, unit: int) -> int:
    return value // unit * unit


@dataclass(frozen=True, slots=True)
class Expected:
    """Bytes of one fragment, direct and by reason; and where a merge may follow."""

    direct: int = 0
    head: int = 0
    tail: int = 0
    small: int = 0
    boundary: int = 0
    padded_in_place: int = 0
    direct_end: int | None = None


def expect(
    begin: int,
    end: int,
    *,
    slack: int,
    mem_align: int,
    virt_mask: int,
    copy_below: int,
    direct_end: int | None,
) -> Expected:
    """Of the bytes at addresses [begin, end); slack is 0 if the fragment was cut.

    direct_end: the address behind the last iovec, if that is a direct one.
    """
    edge = max(mem_align, virt_mask + 1)
    head = min(end, round_up(begin, mem_align)) - begin
    tail = (end - begin - head) % mem_align
    middle = end - begin - head - tail
    first, last, padding = round_up(begin, edge), round_down(end, edge), 0
    lacks = round_up(end, edge) - end
    if end > first and lacks < mem_align and lacks <= slack:
        last, padding = end + lacks, lacks
    if first >= last:
        return Expected(head=head, tail=tail, boundary=middle)
    body = min(last, end) - first
    if last - first < copy_below and not (begin == first == direct_end):
        small = min(middle, body)
        return Expected(head=head, tail=tail, small=small, boundary=middle - small)
    direct_tail = 0 if padding else tail
    return Expected(
        direct=body,
        head=head,
        tail=direct_tail,
        boundary=end - begin - head - direct_tail - body,
        padded_in_place=padding,
        direct_end=last if last >= end else None,
    )


@dataclass(frozen=True, slots=True)
class Extent:
    flow: bytes
    stream_offset: int
    payload_offset: int
    bytes: int
    crc_before: int
    crc_after: int


@dataclass(slots=True)
class BatchRead:
    header_bytes: int
    payload_bytes: int
    flags: int
    record_count: int
    payload: bytes
    extents: list[Extent] = field(default_factory=list)


def _extents(records: bytes) -> Iterator[Extent]:
    at = 0
    while at < len(records):
        kind, record_bytes, flags, _ = RECORD_HEAD.unpack_from(records, at)
        assert (kind, record_bytes, flags) == (KIND_EXTENT, RECORD_EXTENT.size, 0)
        yield Extent(*RECORD_EXTENT.unpack_from(records, at)[3:])
        at += record_bytes
    assert at == len(records)


def read_batch(image: bytes) -> BatchRead:
    """Takes a batch of extents apart; asserts what format.h says of its header."""
    fields = BATCH_HEADER.unpack_from(image)
    magic, crc, header_bytes, _uuid, _sequence, _index, _committed, batch_bytes = fields[:8]
    record_count, record_bytes, flags, reserved, payload_bytes, _made_ns, zero = fields[8:]
    assert magic == b"INGESTBT"
    assert batch_bytes == len(image)
    assert not any(zero)
    assert reserved == 0
    blanked = image[:8] + bytes(4) + image[12:header_bytes]
    assert crc == crc32c.crc32c(blanked)
    records_end = BATCH_HEADER.size + record_bytes
    assert records_end <= header_bytes
    assert not any(image[records_end:header_bytes]), "the header is filled up with zeros"
    read = BatchRead(header_bytes, payload_bytes, flags, record_count, image[header_bytes:])
    read.extents.extend(_extents(image[BATCH_HEADER.size : records_end]))
    assert len(read.extents) == record_count
    assert sum(extent.bytes for extent in read.extents) == payload_bytes
    return read

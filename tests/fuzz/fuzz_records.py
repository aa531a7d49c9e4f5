# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: the decoders of single structs, without a store around them.

The first number of the input chooses the decoder. Each gets a valid struct with
edits; mostly the CRC32C is put right, so that what lies behind it is reached.
"""

from __future__ import annotations

from typing import Final

import atheris

with atheris.instrument_imports(include=["ingestd.store"]):
    from ingestd.errors import NotAStoreError, StoreDamagedError
    from ingestd.store.format import layout
    from ingestd.store.format.records import (
        STREAM_BYTES_MAX,
        Batch,
        Place,
        Records,
        decode_records,
    )
    from ingestd.store.metadata.superblock import COPIES, read_superblock

from support.fuzzing import edits, fields_of, fields_of_records, maybe_sealed, run
from support.store_builder import MIB, Close, Extent, Open, StoreBuilder

EDITS_MAX: Final = 6
FLOW: Final = b"\xf0" * 16
SEGMENT_INDEX: Final = 1


def _builder() -> StoreBuilder:
    """A closed segment of one batch with a record of each kind."""
    builder = StoreBuilder(segment_count=2, label="fuzz")
    segment = builder.segment(SEGMENT_INDEX)
    segment.batch(
        Open(FLOW, name="a name", labels="key=value"), Extent(FLOW, b"x" * 5000), Close(FLOW)
    )
    segment.close()
    return builder


BASE: Final = _builder()
SEGMENT_AT: Final = layout.SEGMENTS_OFFSET + SEGMENT_INDEX * MIB
BATCH_AT: Final = SEGMENT_AT + layout.SEGMENT_DATA_BLOCK * BASE.block_bytes
BATCH_OFFSET: Final = BATCH_AT - SEGMENT_AT
SUPERBLOCK: Final = bytes(BASE.image[: layout.SUPERBLOCK.size_bytes])
BATCH: Final = bytes(BASE.image[BATCH_AT : BATCH_AT + BASE.block_bytes])
FOOTER: Final = layout.SEGMENT_FOOTER.unpack(
    BASE.image, SEGMENT_AT + MIB - layout.SEGMENT_FOOTER.size_bytes
)
RECORDS_AT: Final = SEGMENT_AT + FOOTER.records_offset
RECORDS: Final = bytes(BASE.image[RECORDS_AT : RECORDS_AT + FOOTER.record_bytes])
SUPERBLOCK_FIELDS: Final = fields_of(layout.SUPERBLOCK)
BATCH_FIELDS: Final = [
    *fields_of(layout.BATCH_HEADER),
    *fields_of_records(
        BATCH,
        layout.BATCH_HEADER.size_bytes,
        layout.BATCH_HEADER.size_bytes + layout.BATCH_HEADER.unpack(BATCH).record_bytes,
    ),
]
RECORDS_FIELDS: Final = fields_of_records(RECORDS, 0, len(RECORDS))
PLACE: Final = Place(BASE.store_uuid, layout.sequence_of(BASE.generation, 1), MIB, BASE.block_bytes)
assert PLACE.decode_batch(BATCH, BATCH_OFFSET, 0) is not None
assert decode_records(RECORDS, FOOTER.record_count) is not None


class _Superblocks:
    """What read_superblock asks of a device."""

    path = "the device"

    def __init__(self, copies: dict[int, bytes]) -> None:
        self._copies = copies

    def read(self, offset: int, size: int) -> bytes:
        return self._copies[offset][:size]


def _superblock(source: atheris.FuzzedDataProvider) -> None:
    copies = {
        at: maybe_sealed(source, edits(source, SUPERBLOCK, SUPERBLOCK_FIELDS, EDITS_MAX))
        for _, at in COPIES
    }
    try:
        reading = read_superblock(_Superblocks(copies))  # type: ignore[arg-type]
    except (NotAStoreError, StoreDamagedError):
        return
    found = reading.superblock
    again = read_superblock(  # type: ignore[arg-type]
        _Superblocks({at: found.encode() for _, at in COPIES})
    )
    assert again.warnings == ()
    assert again.superblock == found
    end = found.segment_offset(found.segment_count - 1) + found.segment_bytes
    assert end <= found.store_bytes


def _batch(source: atheris.FuzzedDataProvider) -> None:
    index = source.ConsumeIntInRange(-1, 2)
    blocks_count = source.ConsumeIntInRange(1, 2)
    base = BATCH.ljust(blocks_count * BASE.block_bytes, b"\0")
    data = maybe_sealed(source, edits(source, base, BATCH_FIELDS, EDITS_MAX))
    batch = PLACE.decode_batch(data, BATCH_OFFSET, index if index >= 0 else None)
    if batch is not None:
        _check_batch(batch, data)


def _check_batch(batch: Batch, data: bytes) -> None:
    assert BATCH_OFFSET < batch.payload_offset <= batch.end <= MIB
    assert batch.payload_offset - BATCH_OFFSET == len(data)
    for extent in batch.records.extents:
        assert batch.payload_offset + extent.payload_offset + extent.bytes_count <= batch.end
    _check_records(batch.records, batch.header.record_count)


def _records(source: atheris.FuzzedDataProvider) -> None:
    count = FOOTER.record_count + source.ConsumeIntInRange(-3, 3)
    data = edits(source, RECORDS, RECORDS_FIELDS, EDITS_MAX) + source.ConsumeBytes(64)
    data = data[: len(data) - source.ConsumeIntInRange(0, 64)]
    records = decode_records(data, count)
    if records is not None:
        _check_records(records, count)


def _raw_records(source: atheris.FuzzedDataProvider) -> None:
    count = source.ConsumeIntInRange(0, 8)
    records = decode_records(source.ConsumeBytes(4096), count)
    if records is not None:
        _check_records(records, count)


def _check_records(records: Records, count: int) -> None:
    """What comes out is in its limits, and can be shown."""
    assert len(records.extents) + len(records.events) + len(records.spans) <= count
    for extent in records.extents:
        assert extent.stream_offset + extent.bytes_count <= STREAM_BYTES_MAX
    for span in records.spans:
        assert span.first_offset <= span.end_offset <= STREAM_BYTES_MAX
    for event in records.events:
        assert len(event.raw) == event.row.record_bytes
        assert len(event.flow) == layout.FORMAT_UUID_BYTES
        if isinstance(event.row, layout.RecordOpenRow):
            event.texts()
            event.peer()


DECODERS: Final = (_superblock, _batch, _records, _raw_records)


def decode(data: bytes) -> None:
    """One struct to one decoder."""
    source = atheris.FuzzedDataProvider(data)
    DECODERS[source.ConsumeIntInRange(0, len(DECODERS) - 1)](source)


if __name__ == "__main__":
    run(decode)

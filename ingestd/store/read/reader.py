# SPDX-License-Identifier: Apache-2.0
"""Reading a flow's bytes back, in stream order, each checked before it is given out.

Invariants: only bytes of the flow's extents are given, at the stream offsets
that their batches state; where there are checksums, each extent's is checked
and so is that it begins where the one before it ended. An extent of more than
READ_BYTES_MAX is given in pieces, its last one only after its checksum was
found right. Every iterator has memory of its own; one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from ingestd.errors import StoreDamagedError, StoreError, UsageError
from ingestd.store.device.device import READ_BYTES_MAX
from ingestd.store.format.layout import RecordExtentRow
from ingestd.store.format.records import Batch, Place
from ingestd.store.format.segment import Span
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import StoreImage
from ingestd.store.read.read_ahead import AHEAD_BYTES, Window, read_batch
from ingestd.store.read.scan import Scanner

# Small extents are joined to pieces of about this size.
PIECE_BYTES: Final = 1024 * 1024
# Of a batch that is mostly this flow's, what follows is wanted too.
STREAM_AHEAD_BYTES: Final = 4 * 1024 * 1024


def read_flow(
    image: StoreImage, flow: Flow, offset: int | None = None, length: int | None = None
) -> Iterator[bytes]:
    """Return an iterator over the flow's bytes from `offset` on, `length` at most.

    Without an offset, it begins with the first byte that is there. Raises
    UsageError at once if `offset` lies behind the flow's end or before what is
    left of it, or a number is negative. From the iterator, before the bytes in
    question are given out: StoreDamagedError, or StoreError if a daemon
    overwrote or removed them meanwhile.
    """
    offset = flow.first_offset if offset is None else offset
    if offset < 0 or (length is not None and length < 0):
        raise UsageError("offset and length must not be negative")
    if offset > flow.bytes:
        raise UsageError(
            f"flow {flow.flow} has {flow.bytes} bytes: the offset {offset} lies behind its end"
        )
    if offset < flow.first_offset:
        raise UsageError(
            f"flow {flow.flow} begins at byte {flow.first_offset}, as what was before it is"
            f" overwritten: the offset {offset} must not be below that"
        )
    end = flow.bytes if length is None else min(flow.bytes, offset + length)
    return _join(_read(image, flow, offset, end))


def _join(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces; one that is large enough passes as it is."""
    held: list[bytes] = []
    held_bytes = 0
    try:
        for piece in pieces:
            held.append(piece)
            held_bytes += len(piece)
            if held_bytes >= PIECE_BYTES:
                yield b"".join(held) if len(held) > 1 else piece
                held, held_bytes = [], 0
    except StoreDamagedError:
        # What was read and checked before the damage is the caller's all the same.
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)


def _read(image: StoreImage, flow: Flow, start: int, end: int) -> Iterator[bytes]:
    lacking = next((gap for gap in flow.missing if gap[1] > start and gap[0] < end), None)
    for span in flow.spans:
        if lacking and span.first_offset >= lacking[1]:
            break
        if span.end_offset > start and span.first_offset < end:
            reader = _SpanReader(image, flow, span, start, end)
            try:
                yield from reader.pieces()
            except StoreDamagedError:
                reader.check_life()
                raise
    if lacking:
        raise StoreDamagedError(
            f"flow {flow.flow} of {image.path} lacks its bytes {lacking[0]} to {lacking[1]}, which"
            f" a damaged segment had: what lies around them is read with an offset and a length,"
            f" such as --offset {lacking[1]}; ingestd verify {image.path} names the segment"
        )


@dataclass(slots=True)
class _Position:
    """The position in a span: the next byte of the stream, and the CRC32C before it."""

    offset: int
    crc: int


class _SpanReader:
    """Reads [start, end) of a flow as far as it lies in one span."""

    def __init__(self, image: StoreImage, flow: Flow, span: Span, start: int, end: int) -> None:
        superblock = image.superblock
        self._path = image.path
        self._flow = flow
        self._span = span
        self._start = start
        self._end = min(end, span.end_offset)
        self._block_bytes = superblock.block_bytes
        self._base = superblock.segment_offset(span.segment_index)
        self._window = Window(image.device, self._base, superblock.segment_bytes)
        self._scanner = Scanner(image.device, superblock, live=True) if image.served else None
        self._place = Place(
            superblock.store_uuid,
            span.segment_sequence,
            superblock.segment_bytes,
            superblock.block_bytes,
        )

    def pieces(self) -> Iterator[bytes]:
        """Give the bytes, walking from the span's first batch to its last."""
        span = self._span
        position = _Position(span.first_offset, span.crc_before)
        at = span.first_batch_block * self._block_bytes
        batch_index: int | None = None
        ahead_bytes = AHEAD_BYTES
        while at <= span.last_batch_block * self._block_bytes and position.offset < self._end:
            batch = read_batch(self._window, self._place, at, batch_index, ahead_bytes)
            if batch is None:
                raise self._damage(at, "there is no whole batch header")
            mine = [e for e in batch.records.extents if e.flow == span.flow]
            for extent in mine:
                yield from self._extent(batch, extent, position)
                if position.offset >= self._end:
                    return
            ahead_bytes = self._ahead_bytes(batch, mine, position)
            at, batch_index = batch.end, batch.header.batch_index + 1
        if position.offset < self._end:
            raise self._damage(at, f"the flow's bytes from {position.offset} on are not there")

    def check_life(self) -> None:
        """Raise StoreError if a daemon has given the segment another life meanwhile."""
        if self._scanner is None:
            return
        if not self._scanner.is_in_life(self._span.segment_index, self._span.segment_sequence):
            raise StoreError(
                f"flow {self._flow.flow} of {self._path}: its bytes from {self._span.first_offset}"
                " on were reclaimed while they were read: ingestd ls shows what is left of it"
            )

    def _ahead_bytes(self, batch: Batch, mine: list[RecordExtentRow], position: _Position) -> int:
        """The bytes to read from the next batch on: all of it, if it is mostly this flow's."""
        if 2 * sum(e.bytes_count for e in mine) < batch.header.payload_bytes:
            return AHEAD_BYTES
        return min(STREAM_AHEAD_BYTES, self._end - position.offset + AHEAD_BYTES)

    def _extent(
        self, batch: Batch, extent: RecordExtentRow, position: _Position
    ) -> Iterator[bytes]:
        """Give what is wanted of one extent, and move the position behind it."""
        first, end = extent.stream_offset, extent.stream_offset + extent.bytes_count
        if first < self._span.first_offset or first >= self._span.end_offset:
            return
        at = batch.payload_offset + extent.payload_offset
        if first != position.offset:
            raise self._damage(at, f"byte {first} of the flow lies where {position.offset} should")
        if batch.has_crc32c and extent.crc_before != position.crc:
            raise self._damage(at, f"the checksums before and behind byte {first} disagree")
        if end > self._start:
            yield from self._bytes(batch, extent, at)
        position.offset, position.crc = end, extent.crc_after

    def _bytes(self, batch: Batch, extent: RecordExtentRow, at: int) -> Iterator[bytes]:
        """Read an extent; all of it if it has a checksum, else only what is wanted."""
        base = extent.stream_offset
        offset, end = base, base + extent.bytes_count
        wanted_end = min(end, self._end)
        if not batch.has_crc32c:
            offset, end = max(offset, self._start), wanted_end
        crc = extent.crc_before
        while offset < end:
            size = min(READ_BYTES_MAX, end - offset)
            data = self._window.get(at + offset - base, size)
            if len(data) < size:
                raise self._damage(at, "the device ends")
            if not batch.has_crc32c:
                # Nothing else would show it. The header goes before anything else does.
                self.check_life()
            if batch.has_crc32c:
                crc = crc32c(data, crc)
                if offset + size == end and crc != extent.crc_after:
                    raise self._damage(
                        at, f"bytes {base} to {end} of the flow do not match their checksum"
                    )
            piece = data[max(0, self._start - offset) : max(0, wanted_end - offset)]
            if piece:
                yield bytes(piece)
            offset += size

    def _damage(self, at: int, text: str) -> StoreDamagedError:
        return StoreDamagedError(
            f"flow {self._flow.flow} cannot be read from {self._path} at byte {self._base + at}"
            f" (segment {self._span.segment_index}): {text}; read up to there with a length,"
            " and run: ingestd verify"
        )

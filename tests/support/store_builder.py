# SPDX-License-Identifier: Apache-2.0
"""A second writer of the store's format, in plain Python: what the readers are tested with.

It places batches, marks and footers by the rules of docs/format.md and by none
of the code under test but the structs of layout.py, which are compared with
core/format/format.h. The store is built in memory, together with a model of what each
flow holds, and then written to a file.

Invariants: `used` has every range of bytes that a checksum covers and that
counts; `FlowModel.data` is what was sent, whether or not it was stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from crc32c import crc32c

from ingestd.store.format import footer_part, layout
from ingestd.store.format.layout import round_up, sealed

MIB: Final = 1024 * 1024
CREATED_NS: Final = 1_767_312_000_123_456_789
SECOND_NS: Final = 1_000_000_000
EXTENT_ALIGN: Final = 512

Lost: TypeAlias = Literal["no", "all", "header", "payload", "payload_tail"]


@dataclass
class FlowModel:
    """What a sender sent so far, and the CRC32C of it, if no part went without."""

    data: bytearray = field(default_factory=bytearray)
    crc: int = 0
    has_crc: bool = True


@dataclass(frozen=True)
class Open:
    """An OPEN record to come; the flow resumes where its model ends."""

    flow: bytes
    peer: tuple[int, bytes, int] = (4, bytes([192, 0, 2, 1]), 4000)
    listener: str = "data"
    name: str = ""
    labels: str = ""
    protocol: int = 1


@dataclass(frozen=True)
class Extent:
    """Bytes of a flow to come; `at` overrides the stream offset."""

    flow: bytes
    data: bytes
    at: int | None = None


@dataclass(frozen=True)
class Close:
    """A CLOSE record to come."""

    flow: bytes
    state: int = layout.FLOW_STATE_SEALED
    reason: int = layout.CLOSE_REASON_NONE


Item: TypeAlias = Open | Extent | Close


class StoreBuilder:
    """A store in memory. `fill`: what its bytes were before it was formatted."""

    def __init__(
        self,
        *,
        segment_count: int = 4,
        segment_bytes: int = MIB,
        block_bytes: int = 4096,
        generation: int = 1,
        store_uuid: bytes = b"\x11" * 16,
        label: str = "",
        fill: bytes | bytearray | None = None,
    ) -> None:
        self.segment_count = segment_count
        self.segment_bytes = segment_bytes
        self.block_bytes = block_bytes
        self.generation = generation
        self.store_uuid = store_uuid
        self.label = label
        self.store_bytes = layout.SEGMENTS_OFFSET + segment_count * segment_bytes
        self.image = bytearray(fill if fill is not None else bytes(self.store_bytes))
        assert len(self.image) == self.store_bytes
        self.flows: dict[bytes, FlowModel] = {}
        self.used: list[tuple[int, int]] = []
        self.clock_ns = CREATED_NS
        self.counter = 0
        self.write_superblocks()

    def write_superblocks(self, copies: str = "AB") -> None:
        """Write the copies named, with the present generation."""
        row = layout.SuperblockRow(
            magic=layout.SUPERBLOCK_MAGIC,
            crc32c=0,
            version=layout.FORMAT_VERSION,
            store_uuid=self.store_uuid,
            generation=self.generation,
            store_bytes=self.store_bytes,
            segments_offset=layout.SEGMENTS_OFFSET,
            segment_bytes=self.segment_bytes,
            segment_count=self.segment_count,
            block_bytes=self.block_bytes,
            created_ns=CREATED_NS,
            label=self.label.encode(),
        )
        data = sealed(layout.SUPERBLOCK.pack(row))
        for name, offset in (("A", 0), ("B", layout.SUPERBLOCK_B_OFFSET)):
            if name in copies:
                self.put(offset, data, used=True)

    def raise_generation(self) -> None:
        """Begin the next life of the daemon."""
        self.generation += 1
        self.counter = 0
        self.write_superblocks()

    def put(self, offset: int, data: bytes, *, used: bool) -> None:
        """Lay bytes into the image."""
        assert offset + len(data) <= self.store_bytes
        self.image[offset : offset + len(data)] = data
        if used:
            self.used.append((offset, offset + len(data)))

    def now_ns(self) -> int:
        """A clock that advances by a second with each reading."""
        self.clock_ns += SECOND_NS
        return self.clock_ns

    def model(self, flow: bytes) -> FlowModel:
        """The model of a flow, a new one at first."""
        return self.flows.setdefault(flow, FlowModel())

    def segment(
        self, index: int, *, worker_index: int = 0, write_header: bool = True
    ) -> SegmentWriter:
        """Open a segment with the generation's next sequence."""
        self.counter += 1
        sequence = layout.sequence_of(self.generation, self.counter)
        writer = SegmentWriter(self, index, sequence)
        if write_header:
            row = layout.SegmentHeaderRow(
                magic=layout.SEGMENT_MAGIC,
                crc32c=0,
                version=layout.FORMAT_VERSION,
                store_uuid=self.store_uuid,
                segment_sequence=sequence,
                segment_index=index,
                worker_index=worker_index,
                opened_ns=self.now_ns(),
            )
            self.put(writer.base, sealed(layout.SEGMENT_HEADER.pack(row)), used=True)
        return writer

    def save(self, path: Path) -> Path:
        """Write the image to a file, the zeros left out."""
        with path.open("wb") as file:
            file.truncate(self.store_bytes)
            for at in range(0, self.store_bytes, 64 * 1024):
                piece = self.image[at : at + 64 * 1024]
                if piece.count(0) < len(piece):
                    file.seek(at)
                    file.write(piece)
        return path


@dataclass
class _FlowPart:
    """What of a flow lies in a segment: the footer's SPAN to come."""

    first_offset: int
    end_offset: int
    first_block: int
    last_block: int
    crc_before: int
    crc_after: int
    flags: int = 0


class SegmentWriter:
    """A segment being filled, batch after batch."""

    def __init__(self, store: StoreBuilder, index: int, sequence: int) -> None:
        self.store = store
        self.index = index
        self.sequence = sequence
        self.base = layout.SEGMENTS_OFFSET + index * store.segment_bytes
        self.at = layout.SEGMENT_DATA_BLOCK * store.block_bytes
        self.batch_offsets: list[int] = []
        self.payload_bytes = 0
        self.mark_sequence = 0
        self._copies: list[bytes] = []
        self._parts: list[tuple[bytes, _FlowPart]] = []
        self._last_parts: dict[bytes, _FlowPart] = {}
        self.part_count = 0
        self._last_part = (0, 0)  # its block's offset, its records' bytes

    @property
    def batch_count(self) -> int:
        """How many batches were appended, lost ones included."""
        return len(self.batch_offsets)

    @property
    def room_bytes(self) -> int:
        """What is left, two blocks and the records of a footer kept free."""
        footer = sum(map(len, self._copies)) + len(self._parts) * layout.SPAN.size_bytes
        kept = round_up(footer + 8192, self.store.block_bytes) + 2 * self.store.block_bytes
        return self.store.segment_bytes - self.at - kept

    def batch(
        self, *items: Item, checksum: bool = True, committed: int = 0, lost: Lost = "no"
    ) -> None:
        """Append a batch; `lost`: which part of it never reached the device."""
        records: list[bytes] = []
        payload = bytearray()
        written: list[tuple[int, int]] = []
        for item in items:
            if isinstance(item, Open):
                records.append(self._open(item))
            elif isinstance(item, Close):
                records.append(self._close(item, checksum))
            else:
                payload.extend(bytes(-len(payload) % EXTENT_ALIGN))
                written.append((len(payload), len(payload) + len(item.data)))
                records.append(self._extent(item, len(payload), checksum))
                payload += item.data
        flags = layout.BATCH_HAS_CRC32C if checksum else 0
        self._append(b"".join(records), len(records), payload, written, flags, committed, lost)

    def _append(
        self,
        records: bytes,
        record_count: int,
        payload: bytearray,
        written: list[tuple[int, int]],
        flags: int,
        committed: int,
        lost: Lost,
    ) -> None:
        block_bytes = self.store.block_bytes
        header_bytes = round_up(layout.BATCH_HEADER.size_bytes + len(records), block_bytes)
        padded = payload.ljust(round_up(len(payload), block_bytes), b"\xee")
        is_part = bool(flags & layout.BATCH_IS_PART)
        payload_bytes = 0 if is_part else sum(end - first for first, end in written)
        row = layout.BatchHeaderRow(
            magic=layout.BATCH_MAGIC,
            crc32c=0,
            header_bytes=header_bytes,
            store_uuid=self.store.store_uuid,
            segment_sequence=self.sequence,
            batch_index=self.batch_count,
            batches_committed=committed,
            batch_bytes=header_bytes + len(padded),
            record_count=record_count,
            record_bytes=len(records),
            flags=flags,
            reserved=0,
            payload_bytes=payload_bytes,
            made_ns=self.store.now_ns(),
        )
        header = sealed((layout.BATCH_HEADER.pack(row) + records).ljust(header_bytes, b"\0"))
        at = self.base + self.at
        counts = lost == "no"
        if lost not in ("all", "header"):
            self.store.put(at, header, used=counts)
        if lost == "payload_tail":
            padded = padded[: max(0, len(payload) - 1) // block_bytes * block_bytes]
        if lost not in ("all", "payload"):
            self.store.put(at + header_bytes, bytes(padded), used=False)
        if counts and flags:
            begin = at + header_bytes
            self.store.used += [(begin + first, begin + end) for first, end in written]
        self.batch_offsets.append(self.at)
        self.at += header_bytes + len(padded) if counts else row.batch_bytes
        self.payload_bytes += payload_bytes
        assert self.at < self.store.segment_bytes

    def _head(self, kind: int, size: int, flags: int, flow: bytes) -> tuple[int, int, int, bytes]:
        return kind, size, flags, flow

    def _part(self, flow: bytes, offset: int, crc: int) -> _FlowPart:
        block = self.at // self.store.block_bytes
        part = self._last_parts.get(flow)
        if part is None or (part.end_offset != offset and part.first_offset != part.end_offset):
            # A connection has a part of its own where it does not follow the one before.
            part = _FlowPart(offset, offset, block, block, crc, crc)
            self._parts.append((flow, part))
            self._last_parts[flow] = part
        part.last_block = block
        return part

    def _open(self, item: Open) -> bytes:
        model = self.store.model(item.flow)
        texts = [text.encode() for text in (item.listener, item.name, item.labels)]
        size = round_up(layout.OPEN.size_bytes + sum(map(len, texts)), 8)
        family, address, port = item.peer
        row = layout.RecordOpenRow(
            *self._head(layout.RECORD_OPEN, size, 0, item.flow),
            self.store.now_ns(),
            len(model.data),
            address.ljust(16, b"\0"),
            port,
            family,
            item.protocol,
            *map(len, texts),
        )
        raw = (layout.OPEN.pack(row) + b"".join(texts)).ljust(size, b"\0")
        self._copies.append(raw)
        self._part(item.flow, len(model.data), model.crc).flags |= layout.SPAN_HAS_OPEN
        return raw

    def _close(self, item: Close, checksum: bool) -> bytes:
        model = self.store.model(item.flow)
        checksum = checksum and model.has_crc
        row = layout.RecordCloseRow(
            *self._head(
                layout.RECORD_CLOSE,
                layout.CLOSE.size_bytes,
                layout.CLOSE_HAS_CRC32C if checksum else 0,
                item.flow,
            ),
            len(model.data),
            self.store.now_ns(),
            item.state,
            item.reason,
            model.crc if checksum else 0,
            0,
        )
        raw = layout.CLOSE.pack(row)
        self._copies.append(raw)
        self._part(item.flow, len(model.data), model.crc).flags |= layout.SPAN_HAS_CLOSE
        return raw

    def _extent(self, item: Extent, payload_offset: int, checksum: bool) -> bytes:
        model = self.store.model(item.flow)
        offset = len(model.data) if item.at is None else item.at
        before = model.crc if checksum else 0
        model.data += item.data
        model.has_crc &= checksum
        model.crc = crc32c(item.data, model.crc) if checksum else 0
        row = layout.RecordExtentRow(
            *self._head(layout.RECORD_EXTENT, layout.EXTENT.size_bytes, 0, item.flow),
            offset,
            payload_offset,
            len(item.data),
            before,
            model.crc,
        )
        part = self._part(item.flow, offset, before)
        if part.first_offset == part.end_offset:
            part.first_offset, part.crc_before = offset, before
        part.end_offset, part.crc_after = offset + len(item.data), model.crc
        return layout.EXTENT.pack(row)

    def mark(self, batches_committed: int, *, used: bool = True) -> None:
        """Write the next commit mark."""
        self.mark_sequence += 1
        ends = [*self.batch_offsets, self.at]
        row = layout.CommitMarkRow(
            magic=layout.MARK_MAGIC,
            crc32c=0,
            version=layout.FORMAT_VERSION,
            store_uuid=self.store.store_uuid,
            segment_sequence=self.sequence,
            mark_sequence=self.mark_sequence,
            batches_committed=batches_committed,
            reserved=0,
            committed_end=ends[batches_committed],
        )
        number = self.mark_sequence % layout.SEGMENT_MARKS_COUNT
        at = self.base + (layout.SEGMENT_MARK_BLOCK + number) * self.store.block_bytes
        self.store.put(at, sealed(layout.COMMIT_MARK.pack(row)), used=used)

    def part(self, *, checksum: bool = True, committed: int = 0, lost: Lost = "no") -> None:
        """Append a part of the footer: all records so far that are in none."""
        records, record_count, span_count = self._take_records()
        row = footer_part.FooterPartRow(
            layout.PART_MAGIC, 0, layout.FORMAT_VERSION, self.store.store_uuid, self.sequence,
            self.part_count + 1, record_count, len(records), *self._last_part,
            crc32c(records), span_count,
        )  # fmt: skip
        block_bytes = self.store.block_bytes
        payload = bytearray(sealed(footer_part.FOOTER_PART.pack(row)).ljust(block_bytes, b"\0"))
        self._last_part = (self.at + block_bytes, len(records))
        self.part_count += 1
        flags = layout.BATCH_IS_PART | (layout.BATCH_HAS_CRC32C if checksum else 0)
        covered = [
            (0, footer_part.FOOTER_PART.size_bytes),
            (block_bytes, block_bytes + len(records)),
        ]
        self._append(b"", 0, payload + records, covered, flags, committed, lost)

    def _take_records(self) -> tuple[bytes, int, int]:
        """The records that no part has, with their number and that of SPANs; these begin anew."""
        rows = [*self._copies]
        for flow, part in self._parts:
            row = layout.RecordSpanRow(
                *self._head(layout.RECORD_SPAN, layout.SPAN.size_bytes, part.flags, flow),
                part.first_offset,
                part.end_offset,
                part.first_block,
                part.last_block,
                part.crc_before,
                part.crc_after,
            )
            rows.append(layout.SPAN.pack(row))
        span_count = len(self._parts)
        self._copies, self._parts, self._last_parts = [], [], {}
        return b"".join(rows), len(rows), span_count

    def close(self, *, lose_records: bool = False) -> None:
        """Write the footer; the marks do not count from here on."""
        block_bytes, segment_bytes = self.store.block_bytes, self.store.segment_bytes
        records, record_count, span_count = self._take_records()
        records_offset = segment_bytes - block_bytes - round_up(len(records), block_bytes)
        assert records_offset >= self.at
        footer = layout.SegmentFooterRow(
            magic=layout.FOOTER_MAGIC,
            crc32c=0,
            version=layout.FORMAT_VERSION,
            store_uuid=self.store.store_uuid,
            segment_sequence=self.sequence,
            batch_count=self.batch_count,
            record_count=record_count,
            records_offset=records_offset,
            record_bytes=len(records),
            batches_end=self.at,
            payload_bytes=self.payload_bytes,
            closed_ns=self.store.now_ns(),
            records_crc32c=crc32c(records),
            span_count=span_count,
            last_part_offset=self._last_part[0],
            last_part_record_bytes=self._last_part[1],
            part_count=self.part_count,
        )
        if not lose_records:
            self.store.put(self.base + records_offset, records, used=True)
        end = self.base + segment_bytes - block_bytes
        self.store.put(end, sealed(layout.SEGMENT_FOOTER.pack(footer)), used=True)
        first = self.base + block_bytes * layout.SEGMENT_MARK_BLOCK
        behind = first + block_bytes * layout.SEGMENT_MARKS_COUNT
        self.store.used = [r for r in self.store.used if not first <= r[0] < behind]

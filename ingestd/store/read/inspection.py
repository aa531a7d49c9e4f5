# SPDX-License-Identifier: Apache-2.0
"""Inspection of one place of a store: superblocks, fixed places, a segment, a batch.

Invariants: nothing is written, nobody's help is needed, and damage is an answer, not an
error: an exception is raised only where the store's geometry is not known, or what
was asked for cannot be. While a daemon writes, what is half there is read again.
Owned by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ingestd.errors import StoreDamagedError, UsageError
from ingestd.store.device.claim import is_claimed
from ingestd.store.device.device import Device
from ingestd.store.device.holder import HOLDER_MAGIC, HOLDER_OFFSET, HOLDER_RECORD
from ingestd.store.format.footer_part import FOOTER_PART
from ingestd.store.format.layout import (
    BATCH_HEADER,
    BATCH_MAGIC,
    COMMIT_MARK,
    FOOTER_MAGIC,
    MARK_MAGIC,
    PART_MAGIC,
    SEGMENT_DATA_BLOCK,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SEGMENT_MARK_BLOCK,
    SEGMENT_MARKS_COUNT,
    SUPERBLOCK,
    SUPERBLOCK_MAGIC,
    Layout,
)
from ingestd.store.format.records import Batch, batch_header_bytes, is_of_place
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import FREED_MAGIC, FREED_OFFSETS, FREED_RECORD, read_freed
from ingestd.store.metadata.superblock import COPIES, Superblock, read_superblock
from ingestd.store.read.read_ahead import AHEAD_BYTES, Window, read_batch
from ingestd.store.read.scan import SEARCH_BYTES, Scanner, extent_crc32c
from ingestd.store.read.verdict import Struct, Verdict, fields_of, judge, read_struct

TRIES: Final = 3
RETRY_INTERVAL_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A batch of a segment, shortly: `offset` from the segment's start; what vouches for it."""

    index: int
    offset: int
    batch_bytes: int
    record_count: int
    payload_bytes: int
    status: str
    is_part: bool  # of the footer


@dataclass(slots=True)
class SegmentReport:
    """A segment: its blocks, what the scan makes of it, its batches up to the first that is not."""

    image: SegmentImage
    header: Struct
    marks: list[Struct]
    footer: Struct
    batches: list[BatchLine]
    is_freed: bool  # by the freed record, whatever its header says

    @property
    def is_damaged(self) -> bool:
        """Return whether the scan found loss that no crash explains."""
        return self.image.state is SegmentState.DAMAGED and not self.is_freed


@dataclass(slots=True)
class ExtentReport:
    """A run of a flow's bytes: where it lies on the device, and whether its bytes are right."""

    offset: int
    crc32c: int | None  # as computed, where the batch has checksums
    is_whole: bool | None  # None: nothing to compare with


@dataclass(slots=True)
class BatchReport:
    """A batch; `is_expected`: it lies where the walk finds it, and was not searched for."""

    header: Struct
    batch: Batch | None
    status: str
    is_expected: bool
    extents: list[ExtentReport] = field(default_factory=list)
    part: Struct | None = None  # what it is of the footer, if it is

    @property
    def is_damaged(self) -> bool:
        """Return whether bytes are lost that were committed."""
        if self.header.is_damaged or (self.part is not None and self.part.is_damaged):
            return True
        wrong = any(extent.is_whole is False for extent in self.extents)
        return wrong and self.status == COMMITTED


COMMITTED: Final = "committed"
WHOLE: Final = "whole by its checksums, not known to be flushed"
DOES_NOT_COUNT: Final = "does not count"


def superblocks(device: Device) -> list[Struct]:
    """Return both copies, also where neither is whole."""
    return [
        _steady(partial(read_struct, device, SUPERBLOCK, SUPERBLOCK_MAGIC, offset, None))
        for _, offset in COPIES
    ]


class Inspector:
    """Looks at one open store. Raises what read_superblock() does: nothing is known without it."""

    def __init__(self, device: Device) -> None:
        reading = read_superblock(device)
        self.device = device
        self.superblock: Superblock = reading.superblock
        self.warnings = reading.warnings
        self.served = is_claimed(device)
        self._scanner = Scanner(device, self.superblock, live=self.served, thorough=not self.served)

    def fixed_places(self) -> list[Struct]:
        """Return the structs in front of the segments, but for superblocks and removed flows."""
        places: list[tuple[Layout[Any], bytes, int]] = [
            (HOLDER_RECORD, HOLDER_MAGIC, HOLDER_OFFSET),
            *((FREED_RECORD, FREED_MAGIC, offset) for offset in FREED_OFFSETS),
        ]
        return [self._read(layout, magic, offset) for layout, magic, offset in places]

    def segments(self) -> Iterator[SegmentImage]:
        """Give what the scan makes of each segment that is not free."""
        freed = read_freed(self.device, self.superblock)
        for index in range(self.superblock.segment_count):
            (image,) = freed.without_reclaimed([self._scanner.scan(index)])
            if image.state is not SegmentState.FREE:
                yield image

    def segment(self, index: int) -> SegmentReport:
        """Return a segment's blocks and batches. Raises UsageError if there is no such one."""
        self._check_index(index)
        for left in reversed(range(TRIES)):
            report = self._segment_once(index)
            again = self._scanner.read_head(index)[: SEGMENT_HEADER.size_bytes]
            if not left or not self.served or report.header.fields == self._head_fields(again):
                break
            time.sleep(RETRY_INTERVAL_S)  # the daemon has begun another life of the segment
        return report

    def batch(self, index: int, batch_index: int) -> BatchReport:
        """Return a batch, by the walk, or where that is broken by a search behind it.

        Raises UsageError if there is nothing of a batch of that number.
        """
        report = self.segment(index)
        image = report.image
        sequence = self._sequence(report)
        place, window = self._scanner.place(sequence), self._scanner.window(index)
        at, number = self._data_offset(), 0
        batch = read_batch(window, place, at, number)
        while batch is not None and number < batch_index:
            at, number = batch.end, number + 1
            batch = read_batch(window, place, at, number)
        is_expected = number == batch_index
        if batch is None:
            if is_expected and (broken := self._broken_batch(window, image, at, sequence)):
                return broken
            batch = self._search(window, sequence, at, batch_index)
            is_expected = False
        if batch is None:
            raise UsageError(
                f"segment {index} of {self.device.path} has {number} batches that can be found,"
                f" and none of number {batch_index}: ingestd inspect {self.device.path} segment"
                f" {index} lists them"
            )
        header = Struct(
            BATCH_HEADER.name,
            self.superblock.segment_offset(index) + batch.offset,
            Verdict.WHOLE,
            "" if is_expected else f"found behind batch {number}, which is missing",
            fields_of(BATCH_HEADER, BATCH_HEADER.pack(batch.header)),
        )
        found = BatchReport(header, batch, _status(image, batch), is_expected)
        found.extents = self._extents(window, index, batch)
        if batch.is_part:
            offset = self.superblock.segment_offset(index) + batch.payload_offset
            found.part = self._read(FOOTER_PART, PART_MAGIC, offset, sequence)
        return found

    def _segment_once(self, index: int) -> SegmentReport:
        base, block_bytes = self.superblock.segment_offset(index), self.superblock.block_bytes
        image = self._scanner.scan(index)
        header = self._read(SEGMENT_HEADER, SEGMENT_MAGIC, base)
        sequence = image.sequence or None
        marks = [
            self._read(COMMIT_MARK, MARK_MAGIC, base + number * block_bytes, sequence)
            for number in range(SEGMENT_MARK_BLOCK, SEGMENT_MARK_BLOCK + SEGMENT_MARKS_COUNT)
        ]
        footer_offset = base + self.superblock.segment_bytes - block_bytes
        footer = self._read(SEGMENT_FOOTER, FOOTER_MAGIC, footer_offset, sequence)
        freed = read_freed(self.device, self.superblock)
        is_freed = bool(image.sequence) and freed.is_reclaimed(image.sequence)
        report = SegmentReport(image, header, marks, footer, [], is_freed)
        report.batches = [
            BatchLine(
                number,
                batch.offset,
                batch.header.batch_bytes,
                batch.header.record_count,
                batch.header.payload_bytes,
                _status(image, batch),
                batch.is_part,
            )
            for number, batch in enumerate(self._walk(index, self._sequence(report)))
        ]
        return report

    def _walk(self, index: int, sequence: int) -> Iterator[Batch]:
        place, window, number = self._scanner.place(sequence), self._scanner.window(index), 0
        at = self._data_offset()
        while batch := read_batch(window, place, at, number):
            yield batch
            at, number = batch.end, number + 1

    def _sequence(self, report: SegmentReport) -> int:
        """The generation whose batches are looked for: the header's, else another struct's."""
        for found in (report.header, *report.marks, report.footer):
            if found.verdict is Verdict.WHOLE:
                return int(found.fields["segment_sequence"])
        window = self._scanner.window(report.image.index)
        head = bytes(window.get(self._data_offset(), BATCH_HEADER.size_bytes))
        if head.startswith(BATCH_MAGIC) and len(head) == BATCH_HEADER.size_bytes:
            return BATCH_HEADER.unpack(head).segment_sequence
        return 0

    def _broken_batch(
        self, window: Window, image: SegmentImage, at: int, sequence: int
    ) -> BatchReport | None:
        """The header at byte `at` of the segment, if it is one of this life that is not whole."""
        head = bytes(window.get(at, BATCH_HEADER.size_bytes, AHEAD_BYTES))
        if len(head) < BATCH_HEADER.size_bytes:
            return None
        header_bytes = batch_header_bytes(head, self.superblock.block_bytes)
        data = bytes(window.get(at, header_bytes or self.superblock.block_bytes, AHEAD_BYTES))
        uuid = self.superblock.store_uuid
        verdict, text = judge(data, BATCH_HEADER, BATCH_MAGIC, uuid, sequence)
        if verdict is Verdict.WHOLE:
            verdict, text = (
                Verdict.DAMAGED,
                "whole by its CRC32C, and its fields contradict each other or its place",
            )
        if verdict not in (Verdict.DAMAGED, Verdict.TORN):
            return None
        if image.state is not SegmentState.DAMAGED:
            # By a crash, or by the daemon that is writing it.
            verdict, text = Verdict.TORN, f"{text}; it was never committed"
        offset = self.superblock.segment_offset(image.index) + at
        header = Struct(BATCH_HEADER.name, offset, verdict, text, fields_of(BATCH_HEADER, data))
        return BatchReport(header, None, DOES_NOT_COUNT, is_expected=True)

    def _search(self, window: Window, sequence: int, at: int, batch_index: int) -> Batch | None:
        """Look behind byte `at` of the segment for a whole header with that number."""
        place, block_bytes = self._scanner.place(sequence), self.superblock.block_bytes
        while at + block_bytes <= self.superblock.segment_bytes:
            size = min(SEARCH_BYTES, self.superblock.segment_bytes - at)
            chunk = bytes(window.get(at, size))
            if len(chunk) < block_bytes:
                break
            for step in range(0, len(chunk), block_bytes):
                if chunk.startswith(BATCH_MAGIC, step) and is_of_place(
                    memoryview(chunk)[step:], place
                ):
                    found = read_batch(window, place, at + step, batch_index)
                    if found is not None:
                        return found
            at += len(chunk)
        return None

    def _extents(self, window: Window, index: int, batch: Batch) -> list[ExtentReport]:
        base = self.superblock.segment_offset(index) + batch.payload_offset
        reports = []
        for number, extent in enumerate(batch.records.extents):
            crc: int | None = None
            is_whole: bool | None = None
            if batch.has_crc32c:
                try:
                    crc = extent_crc32c(window, batch, number)
                    is_whole = crc == extent.crc_after
                except StoreDamagedError:
                    is_whole = False
            reports.append(ExtentReport(base + extent.payload_offset, crc, is_whole))
        return reports

    def _read(
        self, layout: Layout[Any], magic: bytes, offset: int, sequence: int | None = None
    ) -> Struct:
        uuid = self.superblock.store_uuid
        return _steady(partial(read_struct, self.device, layout, magic, offset, uuid, sequence))

    def _head_fields(self, data: bytes) -> dict[str, Any]:
        verdict, _ = judge(data, SEGMENT_HEADER, SEGMENT_MAGIC, self.superblock.store_uuid)
        return {} if verdict is Verdict.ABSENT else fields_of(SEGMENT_HEADER, data)

    def _data_offset(self) -> int:
        return SEGMENT_DATA_BLOCK * self.superblock.block_bytes

    def _check_index(self, index: int) -> None:
        if index >= self.superblock.segment_count:
            raise UsageError(
                f"{self.device.path} has segments 0 to {self.superblock.segment_count - 1},"
                f" and none of number {index}"
            )


def _status(image: SegmentImage, batch: Batch) -> str:
    """Return why a batch counts, by the rules of docs/format.md, "Recovery"."""
    if batch.end <= image.committed_end:
        return COMMITTED
    return WHOLE if batch.end <= image.batches_end else DOES_NOT_COUNT


def _steady(read: Callable[[], Struct]) -> Struct:
    """Read again what is not whole: somebody may just be writing it."""
    found = read()
    for _ in range(TRIES - 1):
        if found.verdict not in (Verdict.DAMAGED, Verdict.TORN):
            break
        time.sleep(RETRY_INTERVAL_S)
        found = read()
    return found

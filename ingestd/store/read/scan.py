# SPDX-License-Identifier: Apache-2.0
"""Scanning one segment: what of it is whole, what was lost, what is of no concern.

Invariants: a batch counts only if its header is whole and of this segment's
life, every batch before it counts, and it is known not to be torn: a commit
mark, a footer or a later header says that it is on stable media, or all its
extents, or what of the footer lies in it, have the CRC32C that they state. Scanning
never writes, and whatever the bytes are, it ends with an answer. Several threads may
scan at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from ingestd.errors import StoreDamagedError
from ingestd.store.device.device import READ_BYTES_MAX, Device
from ingestd.store.format.layout import (
    BATCH_HEADER,
    BATCH_MAGIC,
    COMMIT_MARK,
    FOOTER_MAGIC,
    MARK_MAGIC,
    SEGMENT_DATA_BLOCK,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SEGMENT_MARK_BLOCK,
    SEGMENT_MARKS_COUNT,
    Bytes,
    CommitMarkRow,
    SegmentFooterRow,
    SegmentHeaderRow,
    round_up,
)
from ingestd.store.format.records import (
    UNIT_BYTES,
    Batch,
    Place,
    Records,
    decode_block,
    is_of_place,
    is_remains,
    is_torn,
)
from ingestd.store.format.segment import SegmentImage, SegmentState, Span, Tally
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.footer_records import FooterReader, read_part
from ingestd.store.read.read_ahead import AHEAD_BYTES, Window, read_batch

TAIL_BYTES: Final = 16 * 1024
SEARCH_BYTES: Final = 1024 * 1024
TRIES: Final = 3
RETRY_INTERVAL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Scanner:
    """Scans segments of one store.

    `live`: a daemon is writing meanwhile, so that what is half there is no
    damage. Where batches are lost, what lies behind them is searched for proof
    that more were once committed; `thorough`: also where nothing seems lost.
    `wanted`: of a footer without any of these flows' ids nothing is decoded.
    """

    device: Device
    superblock: Superblock
    live: bool = False
    thorough: bool = False
    wanted: frozenset[bytes] | None = None

    def scan(self, index: int) -> SegmentImage:
        """Return the segment's image; never raises for what its bytes are."""
        try:
            for _ in range(TRIES):
                image, head = self._scan_once(index)
                if image.state in (SegmentState.FREE, SegmentState.CLOSED):
                    return image
                if not self.live or (
                    image.state is SegmentState.OPEN and self.read_head(index)[:4096] == head
                ):
                    return image
                # The daemon gave the segment another life, or a block was half written.
                time.sleep(RETRY_INTERVAL_S)
        except StoreDamagedError as error:
            return _damaged(index, str(error))
        return image

    def _scan_once(self, index: int) -> tuple[SegmentImage, bytes]:
        """One attempt; also the header that it rests on."""
        base = self.superblock.segment_offset(index)
        if base + self.superblock.segment_bytes > self.device.size_bytes:
            return _damaged(index, f"segment {index} lies behind the device's end"), b""
        head = self.read_head(index)
        block = head[: SEGMENT_HEADER.size_bytes]
        row = decode_block(SEGMENT_HEADER, SEGMENT_MAGIC, block, self.superblock.store_uuid)
        if row is None or row.segment_index != index:
            return self._scan_headless(index, block, head), block
        image = SegmentImage(
            index=index,
            state=SegmentState.OPEN,
            sequence=row.segment_sequence,
            worker_index=row.worker_index,
            opened_ns=row.opened_ns,
            mark=self._best_mark(head, row),
        )
        tail = self._read_tail(base)
        footer_block = tail[-self.superblock.block_bytes :][: SEGMENT_FOOTER.size_bytes]
        footer = decode_block(
            SEGMENT_FOOTER, FOOTER_MAGIC, footer_block, self.superblock.store_uuid
        )
        if footer is not None and footer.segment_sequence == row.segment_sequence:
            image.footer = footer
            reader = FooterReader(self.device, self.superblock, index, footer)
            records = reader.records(tail, self.wanted)
            if records is not None:
                return _closed(image, footer, records), block
            # A footer is one device write: power loss may leave its block without its records.
        # Under a daemon, half a footer is one that is being written.
        remains = (
            footer is None
            and not self.live
            and not is_torn(footer_block)
            and is_remains(
                footer_block, FOOTER_MAGIC, self.superblock.store_uuid, row.segment_sequence
            )
        )
        self._walk(image, footer_remains=remains)
        return image, block

    def is_in_life(self, index: int, sequence: int) -> bool:
        """Return whether the segment still has the header of that sequence."""
        base, size = self.superblock.segment_offset(index), SEGMENT_HEADER.size_bytes
        block = self.device.read(base, size)
        row = decode_block(SEGMENT_HEADER, SEGMENT_MAGIC, block, self.superblock.store_uuid)
        return row is not None and row.segment_sequence == sequence

    def has_footer(self, index: int, sequence: int) -> bool:
        """Return whether the segment has a footer of that sequence, the worker's last word.

        Raises StoreDamagedError if the device cannot read.
        """
        end = self.superblock.segment_offset(index) + self.superblock.segment_bytes
        block = self.device.read(end - self.superblock.block_bytes, SEGMENT_FOOTER.size_bytes)
        row = decode_block(SEGMENT_FOOTER, FOOTER_MAGIC, block, self.superblock.store_uuid)
        return row is not None and row.segment_sequence == sequence

    def place(self, sequence: int) -> Place:
        """Return what a batch of the segment with that sequence must fit."""
        return Place(
            self.superblock.store_uuid,
            sequence,
            self.superblock.segment_bytes,
            self.superblock.block_bytes,
        )

    def window(self, index: int) -> Window:
        """Return a window on a segment."""
        return Window(
            self.device, self.superblock.segment_offset(index), self.superblock.segment_bytes
        )

    def read_head(self, index: int) -> bytes:
        """The blocks in front of the first batch, the reserve left out: one read."""
        blocks = SEGMENT_MARK_BLOCK + SEGMENT_MARKS_COUNT
        return self.device.read(
            self.superblock.segment_offset(index), blocks * self.superblock.block_bytes
        )

    def _read_tail(self, base: int) -> bytes:
        """The footer block and what fits before it: mostly all of the footer's records."""
        size = round_up(TAIL_BYTES, self.superblock.block_bytes)
        return self.device.read(base + self.superblock.segment_bytes - size, size)

    def mark_blocks(self, head: Bytes) -> Iterator[Bytes]:
        """Give the structs of both mark blocks out of what read_head() returned."""
        for number in range(SEGMENT_MARKS_COUNT):
            at = (SEGMENT_MARK_BLOCK + number) * self.superblock.block_bytes
            yield head[at : at + COMMIT_MARK.size_bytes]

    def _best_mark(self, head: bytes, row: SegmentHeaderRow) -> CommitMarkRow | None:
        best: CommitMarkRow | None = None
        for block in self.mark_blocks(head):
            mark = decode_block(COMMIT_MARK, MARK_MAGIC, block, self.superblock.store_uuid)
            if mark is None or mark.segment_sequence != row.segment_sequence:
                continue
            if best is None or mark.mark_sequence > best.mark_sequence:
                best = mark
        return best

    def _walk(self, image: SegmentImage, *, footer_remains: bool) -> None:
        """Fill in the image of a segment without a usable footer, batch by batch."""
        place, window = self.place(image.sequence), self.window(image.index)
        tally = Tally(image.index, image.sequence, self.superblock.block_bytes)
        covered = max(
            image.mark.batches_committed if image.mark else 0,
            image.footer.batch_count if image.footer else 0,
        )
        # Waits for a later header that covers it: as many as one commit takes, about.
        pending: deque[Batch] = deque()
        at = SEGMENT_DATA_BLOCK * self.superblock.block_bytes
        image.batches_end = at
        while batch := read_batch(window, place, at, tally.batch_count + len(pending)):
            covered = max(covered, min(batch.header.batches_committed, batch.header.batch_index))
            pending.append(batch)
            while pending and pending[0].header.batch_index < covered:
                image.batches_end = image.committed_end = pending[0].end
                tally.add(pending.popleft(), durable=True)
            at = batch.end
        found = tally.batch_count + len(pending)
        whole = 0
        while whole < len(pending) and batch_is_whole(window, pending[whole]):
            whole += 1
        if (
            not self.live
            and found >= covered
            and (self.thorough or whole < len(pending) or batch_remains(window, place, at))
        ):
            covered = max(covered, self._search(window, place, at, found))
        accepted = 0
        for batch in pending:
            is_covered = batch.header.batch_index < covered
            if not is_covered and accepted >= whole and not batch_is_whole(window, batch):
                break
            image.batches_end = batch.end
            if is_covered:
                image.committed_end = batch.end
            tally.add(batch, durable=is_covered)
            accepted += 1
        image.spans, image.events, image.parts = tally.spans, tally.events, tally.parts
        image.batch_count, image.payload_bytes = tally.batch_count, tally.payload_bytes
        image.batches_dropped = len(pending) - accepted
        image.batches_missing = max(0, covered - found)
        _judge(image, footer_remains=footer_remains)

    def _search(self, window: Window, place: Place, at: int, found: int) -> int:
        """Look behind the last batch for a header that says how many were committed.

        Returns that number, 0 if there is none. A batch that was lost in a crash
        was never committed, so that a number above `found` proves damage.
        """
        covered, block_bytes = 0, self.superblock.block_bytes
        while at + block_bytes <= self.superblock.segment_bytes:
            chunk = bytes(window.get(at, min(SEARCH_BYTES, self.superblock.segment_bytes - at)))
            if len(chunk) < block_bytes:
                break
            for step in range(0, len(chunk), block_bytes):
                # What a sender laid into payload costs no checksum: it cannot know these.
                if chunk[step : step + len(BATCH_MAGIC)] != BATCH_MAGIC or not is_of_place(
                    memoryview(chunk)[step:], place
                ):
                    continue
                later = read_batch(window, place, at + step, None)
                if later is not None and later.header.batch_index > found:
                    covered = max(covered, later.header.batches_committed)
            at += len(chunk)
        return covered

    def _scan_headless(self, index: int, block: bytes, head: bytes) -> SegmentImage:
        """A segment without a valid header: free, unless it has contents that a header preceded.

        A segment that was freed has zeros in its place. Footer and marks follow a
        flush of the header, a batch may be there before it.
        """
        uuid = self.superblock.store_uuid
        if not any(block[:UNIT_BYTES]):
            return SegmentImage(index=index, state=SegmentState.FREE)
        tail = self._read_tail(self.superblock.segment_offset(index))
        footer_block = tail[-self.superblock.block_bytes :][: SEGMENT_FOOTER.size_bytes]
        window = self.window(index)
        first = bytes(
            window.get(SEGMENT_DATA_BLOCK * self.superblock.block_bytes, BATCH_HEADER.size_bytes)
        )
        has_contents = (
            decode_block(SEGMENT_FOOTER, FOOTER_MAGIC, footer_block, uuid) is not None
            or any(decode_block(COMMIT_MARK, MARK_MAGIC, b, uuid) for b in self.mark_blocks(head))
            # A torn header was never flushed, and nothing behind it was ever acknowledged.
            or (
                is_remains(block, SEGMENT_MAGIC, uuid, None)
                and (first[:8] == BATCH_MAGIC and first[16:32] == uuid and not is_torn(block))
            )
        )
        if has_contents:
            return _damaged(index, f"segment {index}: its header is damaged")
        return SegmentImage(index=index, state=SegmentState.FREE)


def _judge(image: SegmentImage, *, footer_remains: bool) -> None:
    """Decide whether what was found of a segment without a footer can be all."""
    if image.batches_missing:
        image.state = SegmentState.DAMAGED
        image.warnings.append(
            f"segment {image.index}: batch {image.batch_count + image.batches_dropped} is damaged,"
            f" and with it {image.batches_missing} that were committed cannot be found"
        )
    elif footer_remains and image.batches_dropped:
        image.state = SegmentState.DAMAGED
        image.warnings.append(
            f"segment {image.index}: its footer is damaged, and nothing else proves that its last"
            f" {image.batches_dropped} batches are whole"
        )


def _damaged(index: int, text: str) -> SegmentImage:
    return SegmentImage(index=index, state=SegmentState.DAMAGED, warnings=[text])


def _closed(image: SegmentImage, footer: SegmentFooterRow, records: Records) -> SegmentImage:
    """The image of a segment whose footer is trusted."""
    image.state = SegmentState.CLOSED
    image.batch_count = footer.batch_count
    image.batches_end = image.committed_end = footer.batches_end
    image.payload_bytes = footer.payload_bytes
    image.events = records.events
    image.spans = [Span.of_row(row, image.index, image.sequence) for row in records.spans]
    return image


def batch_is_whole(window: Window, batch: Batch) -> bool:
    """Return whether the batch's payload proves by its CRCs that it is not torn."""
    if batch.is_part and read_part(window, batch) is None:
        return False
    return batch.has_crc32c and all(
        extent_crc32c(window, batch, number) == extent.crc_after
        for number, extent in enumerate(batch.records.extents)
    )


def extent_crc32c(window: Window, batch: Batch, number: int) -> int:
    """Return the CRC32C of the flow up to and including a batch's extent, as it lies there."""
    extent = batch.records.extents[number]
    crc, at = extent.crc_before, batch.payload_offset + extent.payload_offset
    end = at + extent.bytes_count
    while at < end:
        # What follows in the batch is wanted next, most likely.
        ahead_bytes = min(READ_BYTES_MAX, batch.end - at)
        data = window.get(at, min(READ_BYTES_MAX, end - at), ahead_bytes)
        if not data:
            return ~crc & 0xFFFFFFFF
        crc = crc32c(data, crc)
        at += len(data)
    return crc


def batch_remains(window: Window, place: Place, at: int) -> bool:
    """Return whether at `at` lies a header of this segment's life that is not whole."""
    head = bytes(window.get(at, BATCH_HEADER.size_bytes, AHEAD_BYTES))
    if len(head) < BATCH_HEADER.size_bytes:
        return False
    header_bytes = BATCH_HEADER.unpack(head).header_bytes
    if BATCH_HEADER.size_bytes <= header_bytes <= AHEAD_BYTES:
        head = bytes(window.get(at, header_bytes, AHEAD_BYTES))
    return is_remains(head, BATCH_MAGIC, place.store_uuid, place.segment_sequence)

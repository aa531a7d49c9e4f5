# SPDX-License-Identifier: Apache-2.0
"""Verifying a store: every structure, every checksum, every flow.

Invariants: verifying writes nothing. Where checksums are on, each byte that an
acknowledgement rests on is read and checked: superblocks, segment headers,
marks in use, batch headers, payload, footers. A finding is `damage`, or `doubt`
where a crash between two writes would have left the same. Under a daemon that
writes meanwhile, what is half there is no finding. One thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final, TypeAlias

from ingestd.errors import StoreDamagedError
from ingestd.store.format.layout import (
    COMMIT_MARK,
    FOOTER_MAGIC,
    MARK_MAGIC,
    SEGMENT_DATA_BLOCK,
    SEGMENT_FOOTER,
    RecordSpanRow,
)
from ingestd.store.format.records import Batch, Place, decode_block, is_remains
from ingestd.store.format.segment import SegmentImage, SegmentState, Span, Tally
from ingestd.store.metadata.footer import has_room
from ingestd.store.read.footer_records import read_part, whole_parts
from ingestd.store.read.image import StoreImage, read_image
from ingestd.store.read.read_ahead import Window, read_batch
from ingestd.store.read.scan import Scanner, batch_remains, extent_crc32c

DAMAGE: Final = "damage"
DOUBT: Final = "doubt"
AHEAD_BYTES: Final = 4 * 1024 * 1024
FINDINGS_MAX: Final = 1000

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that is not as it should be: `where` names the object, `what` the fault."""

    severity: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}"

    def as_dict(self) -> dict[str, str]:
        """Return the finding as it goes into JSON."""
        return asdict(self)


@dataclass(slots=True)
class VerifyReport:
    """The extent of a verification and its findings; counts of bytes are of payload."""

    path: str
    store_uuid: str
    served: bool
    segments: dict[str, int]
    flows: int = 0
    batches: int = 0
    bytes_checked: int = 0
    bytes_without_checksum: int = 0
    findings: list[Discrepancy] = field(default_factory=list)
    findings_omitted: int = 0
    damages: int = 0  # findings of that severity, those that are not kept included

    def add(self, finding: Discrepancy) -> None:
        """Keep a finding, or only count it where there are too many to read.

        Damage takes the place of a doubt, so that doubts never hide it.
        """
        is_damage = finding.severity == DAMAGE
        kept_damages = min(self.damages, FINDINGS_MAX)
        self.damages += is_damage
        if len(self.findings) == FINDINGS_MAX:
            self.findings_omitted += 1
            if not is_damage or kept_damages == FINDINGS_MAX:
                return
            self.findings.pop()  # a doubt: all damage stands before them
        self.findings.insert(kept_damages if is_damage else len(self.findings), finding)

    @property
    def is_damaged(self) -> bool:
        """Return whether a finding is more than a doubt; if one is, one of these is kept."""
        return any(finding.severity == DAMAGE for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return the report as it goes into JSON."""
        return asdict(self)


def verify_store(path: str, progress: Progress | None = None) -> VerifyReport:
    """Read and check all that a store holds.

    `progress` is called with the bytes done and those to do, in bytes of
    segments. Raises NotAStoreError, StoreDamagedError (no superblock is whole)
    or StoreError; all else is a finding.
    """
    with read_image(path, thorough=True) as image:
        report = VerifyReport(
            path, image.superblock.uuid, image.served, image.segment_counts(), len(image.flows)
        )
        for text in image.warnings:
            report.add(Discrepancy(DAMAGE, path, text))
        used = [s for s in image.segments if s.state is not SegmentState.FREE and s.sequence]
        total_bytes = sum(segment.batches_end for segment in used)
        done_bytes = 0
        for segment in used:
            if progress:
                progress(done_bytes, total_bytes)
            _SegmentCheck(image, segment, report).run()
            done_bytes += segment.batches_end
        if progress:
            progress(done_bytes, total_bytes)
        for anomaly in image.anomalies:
            severity = DAMAGE if anomaly.is_damage else DOUBT
            report.add(Discrepancy(severity, f"flow {anomaly.flow}", anomaly.text))
        return report


_Run: TypeAlias = tuple[bytes, int, int, int, int, int, int]


class _SegmentCheck:
    """Checks one segment that is in use, and adds to the report."""

    def __init__(self, image: StoreImage, segment: SegmentImage, report: VerifyReport) -> None:
        self._image = image
        self._segment = segment
        self._report = report
        self._superblock = image.superblock
        self._scanner = Scanner(image.device, image.superblock, live=image.served)
        self._where = f"segment {segment.index}"
        self._findings: list[Discrepancy] = []

    def run(self) -> None:
        """Walk the batches and compare them with the image and the footer."""
        try:
            window = self._scanner.window(self._segment.index)
            place = self._scanner.place(self._segment.sequence)
            tally = self._walk(window, place)
            if self._segment.state is SegmentState.CLOSED:
                self._check_footer(tally)
            elif not self._image.served:
                self._check_open(window, place)
        except StoreDamagedError as error:
            self._find(DAMAGE, str(error))
        # What a daemon has begun to overwrite is not damaged.
        if self._image.served and not self._scanner.is_in_life(
            self._segment.index, self._segment.sequence
        ):
            return
        for finding in self._findings:
            self._report.add(finding)

    def _find(self, severity: str, what: str) -> None:
        self._findings.append(Discrepancy(severity, self._where, what))

    def _walk(self, window: Window, place: Place) -> Tally:
        """Check each batch that the image counts."""
        segment, block_bytes = self._segment, self._superblock.block_bytes
        tally = Tally(segment.index, segment.sequence, block_bytes)
        at = SEGMENT_DATA_BLOCK * block_bytes
        for index in range(segment.batch_count):
            batch = read_batch(window, place, at, index, AHEAD_BYTES)
            if batch is None:
                self._find(
                    DAMAGE,
                    f"the header of batch {index} at byte {at} is damaged, and the"
                    f" {segment.batch_count - index} batches from it on cannot be checked",
                )
                return tally
            self._check_batch(window, batch)
            tally.add(batch, durable=True)
            at = batch.end
        return tally

    def _check_batch(self, window: Window, batch: Batch) -> None:
        self._report.batches += 1
        if batch.is_part and read_part(window, batch) is None:
            self._find(
                DAMAGE,
                f"batch {batch.header.batch_index} at byte {batch.offset}: the part of the"
                " footer that it is does not match its checksum",
            )
        if not batch.has_crc32c:
            self._report.bytes_without_checksum += batch.header.payload_bytes
            return
        self._report.bytes_checked += batch.header.payload_bytes
        for number, extent in enumerate(batch.records.extents):
            if extent_crc32c(window, batch, number) != extent.crc_after:
                end = extent.stream_offset + extent.bytes_count
                self._find(
                    DAMAGE,
                    f"batch {batch.header.batch_index} at byte {batch.offset}: bytes"
                    f" {extent.stream_offset} to {end} of flow {uuid.UUID(bytes=extent.flow)}"
                    " do not match their checksum",
                )

    def _check_footer(self, tally: Tally) -> None:
        """Compare the footer with what the batches themselves say."""
        segment, footer = self._segment, self._segment.footer
        assert footer is not None
        if tally.batch_count != footer.batch_count:
            return  # the walk has said why
        if tally.payload_bytes != footer.payload_bytes:
            self._find(
                DAMAGE,
                f"its footer states {footer.payload_bytes} bytes of payload, its batches of"
                f" {tally.payload_bytes}",
            )
        if [event.raw for event in tally.events] != [event.raw for event in segment.events]:
            self._find(DAMAGE, "its footer's OPEN and CLOSE records are not those of its batches")
        if _runs(segment.spans) != _runs(tally.spans):
            self._find(DAMAGE, "its footer's spans are not those of its batches")

    def _check_open(self, window: Window, place: Place) -> None:
        """Look at what the scan had to pass over in a segment without a footer."""
        segment = self._segment
        if segment.batches_dropped:
            self._find(
                DOUBT,
                f"{segment.batches_dropped} batches from batch {segment.batch_count} on are torn or"
                " were not committed",
            )
        elif segment.batches_end < self._superblock.segment_bytes and batch_remains(
            window, place, segment.batches_end
        ):
            self._find(DOUBT, f"batch {segment.batch_count} at byte {segment.batches_end} is torn")
        for number, block in enumerate(self._blocks()):
            self._check_block(number, block)
        if segment.footer is not None:
            self._find(DOUBT, "the records of its footer are torn or damaged")
        chain = whole_parts(self._image.device, self._superblock, segment)
        if not has_room(segment, self._superblock, chain):
            self._find(DOUBT, "it has no room for a footer")

    def _blocks(self) -> list[bytes]:
        """Both marks and the footer block."""
        base = self._superblock.segment_offset(self._segment.index)
        head = self._scanner.read_head(self._segment.index)
        footer_at = base + self._superblock.segment_bytes - self._superblock.block_bytes
        footer = self._image.device.read(footer_at, SEGMENT_FOOTER.size_bytes)
        return [*map(bytes, self._scanner.mark_blocks(head)), footer]

    def _check_block(self, number: int, block: bytes) -> None:
        store_uuid, sequence = self._superblock.store_uuid, self._segment.sequence
        is_footer = number == 2
        if is_footer:
            valid = decode_block(SEGMENT_FOOTER, FOOTER_MAGIC, block, store_uuid) is not None
            magic, name = FOOTER_MAGIC, "its footer"
        else:
            valid = decode_block(COMMIT_MARK, MARK_MAGIC, block, store_uuid) is not None
            magic, name = MARK_MAGIC, f"its commit mark {number}"
        if not valid and is_remains(block, magic, store_uuid, sequence):
            self._find(DOUBT, f"{name} is torn or damaged")


def _runs(spans: list[Span]) -> list[_Run]:
    """The runs of flows' bytes that spans make up.

    A footer has a span for each connection, the batches do not show where one
    connection of a flow ends and the next begins: spans that follow are joined.
    """
    runs: list[_Run] = []
    for row in sorted((span.row() for span in spans), key=_place_of):
        flow, first, end, first_block, last_block, before, after = _run_of(row)
        last = runs[-1] if runs else None
        if last is not None and (last[0], last[2]) == (flow, first):
            is_empty = last[1] == last[2]
            runs[-1] = (
                flow,
                last[1],
                end,
                last[3],
                last_block,
                before if is_empty else last[5],
                last[6] if first == end else after,
            )
        else:
            runs.append((flow, first, end, first_block, last_block, before, after))
    return [run for run in runs if run[2] > run[1]]


def _place_of(row: RecordSpanRow) -> tuple[bytes, int, int, int]:
    return row.flow, row.first_offset, row.first_batch_block, row.end_offset


def _run_of(row: RecordSpanRow) -> _Run:
    """The fields of a span that follow from the extents alone."""
    return (
        row.flow,
        row.first_offset,
        row.end_offset,
        row.first_batch_block,
        row.last_batch_block,
        row.crc_before,
        row.crc_after,
    )

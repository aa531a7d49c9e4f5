# SPDX-License-Identifier: Apache-2.0
"""Scanning segments for an opening that has a catalogue to ask about flows.

Invariants: a segment that is not closed is read as without a catalogue. A closed one counts as
closed if its footer is whole; records are not decoded. They are not even read where the catalogue
has the segment, header and footer are those that it knows, and an earlier opening flushed the
device after they had been read: only the last life's footers may have been lost since with the
device's cache. Owned by the opening, whose threads may scan at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingestd.errors import StoreDamagedError
from ingestd.store.catalogue.catalogue import Catalogue
from ingestd.store.catalogue.feeder import CatalogueFeeder
from ingestd.store.catalogue.rows import SegmentFacts
from ingestd.store.catalogue.schema import CatalogueError
from ingestd.store.device.device import Device
from ingestd.store.format.layout import (
    FOOTER_MAGIC,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    footer_bytes_max,
    generation_of,
)
from ingestd.store.format.records import decode_block
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.metadata.tombstones import read_removals
from ingestd.store.read.image import StoreImage
from ingestd.store.read.scan import Scanner
from ingestd.store.serve.compaction import COPY_BYTES_MAX, SEGMENTS_MAX, SMALL_BYTES

_NOTHING: Final[frozenset[bytes]] = frozenset()


def open_catalogue(
    catalogues: Path | None, superblock: Superblock
) -> tuple[Catalogue | None, dict[int, SegmentFacts]]:
    """Return a store's catalogue, and the closed segments that it has, by index.

    None: there is to be none, or it cannot be used now.
    """
    if catalogues is None:
        return None, {}
    try:
        catalogue = Catalogue.open(catalogues, superblock.store_uuid)
    except CatalogueError:
        return None, {}
    try:
        with catalogue.snapshot() as snapshot:
            return catalogue, {s.place: s for s in snapshot.segments() if s.is_closed}
    except CatalogueError:
        catalogue.take_away()  # and made anew by the feeder
        return None, {}


@dataclass(frozen=True, slots=True)
class QuickScan:
    """Scans a segment, as Scanner does; of a closed one it returns no spans and no events.

    `known`: what the catalogue has, by index.
    """

    device: Device
    superblock: Superblock
    known: Mapping[int, SegmentFacts]

    def __call__(self, index: int) -> SegmentImage:
        """Return the segment's image; never raises for what its bytes are."""
        facts = self.known.get(index)
        if facts is not None and generation_of(facts.sequence) < self.superblock.generation:
            try:
                vouched = self._vouched(facts)
            except StoreDamagedError:
                vouched = None  # whatever cannot be read, the scan says
            if vouched is not None:
                return vouched
        scanner = Scanner(self.device, self.superblock, thorough=True, wanted=_NOTHING)
        return scanner.scan(index)

    def _vouched(self, facts: SegmentFacts) -> SegmentImage | None:
        """The segment's image, if header and footer are what the catalogue has seen."""
        base, uuid = self.superblock.segment_offset(facts.place), self.superblock.store_uuid
        block = self.device.read(base, SEGMENT_HEADER.size_bytes)
        header = decode_block(SEGMENT_HEADER, SEGMENT_MAGIC, block, uuid)
        if header is None or (header.segment_index, header.segment_sequence, header.opened_ns) != (
            facts.place,
            facts.sequence,
            facts.opened_ns,
        ):
            return None
        end = base + self.superblock.segment_bytes
        block = self.device.read(end - self.superblock.block_bytes, SEGMENT_FOOTER.size_bytes)
        footer = decode_block(SEGMENT_FOOTER, FOOTER_MAGIC, block, uuid)
        if footer is None or (
            footer.segment_sequence,
            footer.closed_ns,
            footer.records_crc32c,
        ) != (facts.sequence, facts.closed_ns, facts.records_crc32c):
            return None
        return SegmentImage(
            index=facts.place,
            state=SegmentState.CLOSED,
            sequence=facts.sequence,
            worker_index=facts.worker_index,
            opened_ns=facts.opened_ns,
            batch_count=facts.batch_count,
            batches_end=facts.batches_end,
            committed_end=facts.batches_end,
            payload_bytes=facts.payload_bytes,
            footer=footer,
        )


def load_newest(
    device: Device, superblock: Superblock, image: StoreImage, feeder: CatalogueFeeder
) -> bool:
    """Give the image what compaction looks at: the newest small segments with what is in them.

    Returns whether that could be done; the flows are those of these segments alone.
    """
    scanner = Scanner(device, superblock)
    flow_ids: set[bytes] = set()
    for segment in _run_at_most(image.segments, superblock):
        loaded = scanner.scan(segment.index) if segment.footer else segment
        if loaded.state is not SegmentState.CLOSED:
            break
        image.segments[segment.index] = loaded
        flow_ids.update(span.flow for span in loaded.spans)
        flow_ids.update(event.flow for event in loaded.events)
    image.flows = []
    if not flow_ids:
        return True
    answers = feeder.answers()
    if answers is None:
        return False
    try:
        found = answers.find(flow_ids).flows
    except CatalogueError:
        return False
    removed = read_removals(device, superblock).flows
    image.flows = [flow for flow in found.values() if flow.flow_id not in removed]
    return True


def _run_at_most(segments: list[SegmentImage], superblock: Superblock) -> list[SegmentImage]:
    """The newest segments that compaction may take by their sizes; none if it is one alone."""
    newest = sorted(
        (s for s in segments if s.state is not SegmentState.FREE),
        key=lambda s: s.sequence,
        reverse=True,
    )
    run: list[SegmentImage] = []
    batch_bytes = record_bytes = 0
    for segment in newest[:SEGMENTS_MAX]:
        is_small = segment.batches_end <= max(SMALL_BYTES, 2 * batch_bytes)
        batch_bytes += segment.batches_end
        if segment.footer:
            record_bytes += segment.footer.record_bytes
            record_bytes += segment.footer.part_count * segment.footer.last_part_record_bytes
        # Of what it passes over, as it was copied before, it counts nothing: so twice as much.
        fits = batch_bytes <= 2 * COPY_BYTES_MAX and record_bytes <= footer_bytes_max(
            superblock.segment_bytes
        )
        if segment.state is not SegmentState.CLOSED or not (is_small and fits):
            break
        run.append(segment)
    return run if len(run) > 1 else []

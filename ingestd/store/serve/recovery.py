# SPDX-License-Identifier: Apache-2.0
"""Recovery: what the opening of a store for writing finds, and puts right.

Invariants: nothing is concluded from the absence of bytes before they were
looked for, nor made permanent before what was found is on stable media; a
crash at any point leaves a store that the next opening recovers to the same
flows; recovering a recovered store changes nothing but the generation. Where there is a catalogue,
of a closed segment only what vouches for it is read, and every other check is as without one.
Owned by the thread that opens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from ingestd.errors import StoreDamagedError
from ingestd.store.catalogue.feeder import CatalogueFeeder
from ingestd.store.catalogue.schema import CatalogueError
from ingestd.store.device.device import READ_BYTES_MAX, Device
from ingestd.store.device.holder import write_holder
from ingestd.store.format.layout import GENERATION_MAX, SEGMENT_DATA_BLOCK, sequence_of
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.footer import build_footer
from ingestd.store.metadata.freed_record import clear_headers
from ingestd.store.metadata.superblock import (
    Superblock,
    SuperblockReading,
    check_store,
    raised,
    read_superblock,
    write_superblocks,
)
from ingestd.store.read.flows import STATE_INTERRUPTED, Flow
from ingestd.store.read.footer_records import whole_parts
from ingestd.store.read.image import StoreImage, image_of
from ingestd.store.serve.compaction import Compaction, compact_newest
from ingestd.store.serve.quick_scan import QuickScan, load_newest, open_catalogue
from ingestd.store.serve.segments_in_use import SegmentsInUse

# The first of a generation's sequences is that of the segment that the opening may make.
COMPACTED_COUNTER: Final = 1
# So many segments are fed to the catalogue before the store is ready; more are fed later.
FED_AT_OPENING_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class RecoverySummary:
    """The results of opening a store.

    The counts of segments are those after the recovery: `segments_open` are
    older ones that hold no room for a footer. `segments_recovered` were left
    open and got one; `segments_freed` were opened and never used; of
    `segments_compacted`, what they held was put together in one. None: the flows were not counted,
    as there is a catalogue that does not have all of them yet.
    """

    segments_free: int
    segments_open: int
    segments_closed: int
    segments_damaged: int
    segments_recovered: int
    segments_freed: int
    flows: int | None
    flows_interrupted: int | None
    batches_dropped: int
    seconds: float
    warnings: tuple[str, ...]
    segments_compacted: int = 0


class Recovered(NamedTuple):
    """A store that was opened; `flows` None: nobody looked for them, as there is a catalogue.

    `used_count`: sequences of this generation that the opening has used already.
    """

    superblock: Superblock
    segments: list[SegmentImage]
    flows: list[Flow] | None
    summary: RecoverySummary
    used_count: int
    in_use: SegmentsInUse
    feeder: CatalogueFeeder | None


def recover(
    device: Device,
    expected_uuid: str | None,
    control: str,
    on_progress: Callable[[int, int], None],
    catalogues: Path | None,
) -> Recovered:
    """Recover a store that is locked; as of open_for_serving()."""
    started_s = time.monotonic()
    reading = read_superblock(device)
    check_store(device, reading.superblock, expected_uuid)
    # The daemon that wrote last may have died before its flush: what is read
    # from here on is on stable media before anything rests on it.
    device.sync()
    catalogue, known = open_catalogue(catalogues, reading.superblock)
    quick_scan = QuickScan(device, reading.superblock, known) if catalogue is not None else None
    image = image_of(
        device, reading, live=False, thorough=True, on_progress=on_progress, scan=quick_scan
    )
    clear_headers(device, reading.superblock, image.half_freed)
    superblock = raised(reading.superblock, _next_generation(device, reading, image.segments))
    write_holder(device, superblock.store_uuid, control)
    write_superblocks(device, superblock)
    outcome = _put_right(device, superblock, image, on_progress)
    in_use = SegmentsInUse(s for s in image.segments if s.state is not SegmentState.FREE)
    feeder = None
    if catalogues is not None:
        is_damaged = image.segment_counts()["damaged"] > 0
        feeder = CatalogueFeeder(
            catalogues, device, superblock, in_use, is_damaged=is_damaged, catalogue=catalogue
        )
    counts: Counter[str] | None
    if catalogue is not None and feeder is not None:
        counts = _fed(feeder, image)
        may_compact = counts is not None and load_newest(device, superblock, image, feeder)
    else:
        counts, may_compact = Counter(flow.state for flow in image.flows), True
    compaction = Compaction(None, ())
    if may_compact:
        sequence = sequence_of(superblock.generation, COMPACTED_COUNTER)
        compaction = compact_newest(device, superblock, image, sequence)
        in_use.discard(compaction.freed)
        if compaction.made is not None:
            in_use.add(compaction.made.index, compaction.made.sequence)
    summary = _summary(image, outcome, counts, time.monotonic() - started_s)
    summary = replace(summary, segments_compacted=len(compaction.freed))
    used_count = COMPACTED_COUNTER if compaction.made else 0
    flows = image.flows if catalogue is None else None
    return Recovered(superblock, image.segments, flows, summary, used_count, in_use, feeder)


def _put_right(
    device: Device,
    superblock: Superblock,
    image: StoreImage,
    on_progress: Callable[[int, int], None],
) -> list[bool]:
    """Settle every segment that was left open; return of each whether it was written to."""
    count = len(image.segments)

    def each() -> Iterator[SegmentImage]:
        for segment in image.segments:
            on_progress(count, count)
            yield segment

    again = [_write_again(device, superblock, segment) for segment in each()]
    if any(again):
        device.sync()
    outcome = [_settle(device, superblock, segment) for segment in each()]
    if any(outcome):
        device.sync()
    return outcome


def _fed(feeder: CatalogueFeeder, image: StoreImage) -> Counter[str] | None:
    """Bring the catalogue up to date, if that is soon done; return its flows by state.

    None: it is not up to date, or cannot be used: whoever feeds it meets that again, and says so.
    """
    with suppress(CatalogueError):
        feeder.begin(image.segments)
        feeder.turn(FED_AT_OPENING_MAX)
        if feeder.unfed_count == 0:
            return feeder.counts()
    return None


def _next_generation(
    device: Device, reading: SuperblockReading, segments: list[SegmentImage]
) -> int:
    """A generation that no segment can have: sequences are never used twice.

    A copy of the superblock that cannot be read may have been one ahead of the
    other, and a segment of that generation may have lost its header. Raises
    StoreDamagedError where there is none: no store lives through so many openings.
    """
    highest = max([reading.superblock.generation, *(segment.generation for segment in segments)])
    following = highest + (2 if reading.warnings else 1)
    if following > GENERATION_MAX:
        raise StoreDamagedError(
            f"{device.path} states generation {highest}, after which there is none: copy its"
            " flows to another store with: ingestd cat"
        )
    return following


def _write_again(device: Device, superblock: Superblock, segment: SegmentImage) -> bool:
    """Write what counts without word of a flush where it lies; return whether there is such.

    A flush that failed may have dropped it from the device's cache, and the daemon
    that knew is gone. A later flush would succeed and vouch for nothing.
    """
    if segment.state is not SegmentState.OPEN or segment.batch_count == 0:
        return False
    base, block_bytes = superblock.segment_offset(segment.index), superblock.block_bytes
    if segment.committed_end == 0:
        device.write(base, device.read(base, block_bytes))
    begin = max(segment.committed_end, SEGMENT_DATA_BLOCK * block_bytes)
    for at in range(begin, segment.batches_end, READ_BYTES_MAX):
        size = min(READ_BYTES_MAX, segment.batches_end - at)
        device.write(base + at, device.read(base + at, size))
    return begin < segment.batches_end


def _settle(device: Device, superblock: Superblock, segment: SegmentImage) -> bool:
    """Give a segment that an earlier generation left open its footer, or free it.

    Returns whether something was written; `segment` is changed to what it is now.
    """
    if segment.state is not SegmentState.OPEN:
        return False
    base = superblock.segment_offset(segment.index)
    if segment.batch_count == 0 and segment.footer is None:
        device.write(base, bytes(superblock.block_bytes))
        segment.state = SegmentState.FREE
        return True
    chain = whole_parts(device, superblock, segment)
    footer = build_footer(segment, superblock, time.time_ns(), chain)
    if footer is None:
        segment.warnings.append(f"segment {segment.index} has no room for a footer")
        return False
    device.write(base + superblock.segment_bytes - len(footer), footer)
    segment.state = SegmentState.CLOSED
    return True


def _summary(
    image: StoreImage, outcome: list[bool], flows: Counter[str] | None, seconds: float
) -> RecoverySummary:
    """Return what is to be known of a recovery; `flows`: counts by state."""
    counts = image.segment_counts()
    written = [segment for segment, did in zip(image.segments, outcome, strict=True) if did]
    freed = sum(segment.state is SegmentState.FREE for segment in written)
    warnings = list(image.warnings)
    warnings += [w for s in image.segments for w in s.warnings if w not in warnings]
    return RecoverySummary(
        segments_free=counts["free"],
        segments_open=counts["open"],
        segments_closed=counts["closed"],
        segments_damaged=counts["damaged"],
        segments_recovered=len(written) - freed,
        segments_freed=freed,
        flows=None if flows is None else flows.total(),
        flows_interrupted=None if flows is None else flows[STATE_INTERRUPTED],
        batches_dropped=sum(segment.batches_dropped for segment in image.segments),
        seconds=seconds,
        warnings=tuple(warnings),
    )

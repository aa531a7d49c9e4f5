# SPDX-License-Identifier: Apache-2.0
"""Putting the newest segments together, where each holds little: what restarts leave behind.

Every life of a daemon begins with segments of its own, so that one that is restarted
again and again would fill a store with segments of a few blocks each. The opening
copies the batches of the newest closed ones into one segment, and gives these back.

Invariants: a segment is only copied, or reclaimed, if every flow in it is sealed and
lies in it as a whole; so to a reader the copy is a later connection that sent all of
the flow again, whose bytes take the place of the earlier ones (docs/format.md), and a
crash at any point leaves each flow shown once. The copy's header is written last, when
batches and footer are on stable media and were read back; the originals go when the
header is, too. Only a run of the newest is taken, so that the order of sequences stays
the order in which flows came. Owned by the opening; nothing else writes meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ingestd.errors import StoreError
from ingestd.store.device.device import READ_BYTES_MAX, Device
from ingestd.store.format.layout import (
    BATCH_HEADER,
    FORMAT_VERSION,
    SEGMENT_DATA_BLOCK,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    SegmentHeaderRow,
    footer_bytes_max,
    sealed,
)
from ingestd.store.format.records import Batch, CloseEvent, OpenEvent
from ingestd.store.format.segment import SegmentImage, SegmentState, Tally
from ingestd.store.metadata.footer import build_footer, footer_bytes
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.flows import STATE_SEALED, Flow
from ingestd.store.read.image import StoreImage
from ingestd.store.read.read_ahead import read_batch
from ingestd.store.read.scan import Scanner, batch_is_whole

# A run grows over an older segment only while that is no larger than this, or than twice
# what is gathered already: each byte is copied a few times in its life, not at each start.
SMALL_BYTES: Final = 1024 * 1024
SEGMENTS_MIN: Final = 4  # fewer are not worth the copying at every start
SEGMENTS_MAX: Final = 64  # of one run
COPY_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Compaction:
    """The result of a compaction: the segment that was made, if one was, and those reclaimed."""

    made: SegmentImage | None
    freed: tuple[SegmentImage, ...]


class CopyError(Exception):
    """The copy is not what was read: the originals stay."""


def compact_newest(
    device: Device, superblock: Superblock, image: StoreImage, sequence: int
) -> Compaction:
    """Put a run of the newest small segments together, under a sequence of this generation.

    Changes the images of the segments concerned to what they are then. A copy that
    cannot be made is left out. Raises StoreError if the device cannot flush, or refuses
    to reclaim a segment, which is as safe as a crash.
    """
    free = [segment for segment in image.segments if segment.state is SegmentState.FREE]
    is_sound = all(segment.state is not SegmentState.DAMAGED for segment in image.segments)
    if image.segments_missing_count or not is_sound:
        return Compaction(None, ())  # what is not there may have had a part of any flow
    run, superseded = _newest_run(image, superblock)
    made = None
    if len(run) >= SEGMENTS_MIN and free:
        target = min(free, key=lambda segment: segment.index)
        try:
            made = _copy(device, superblock, run, target.index, sequence)
        except (CopyError, StoreError):
            if device.has_failed_flush:
                raise
        else:
            image.segments[target.index] = made
    gone = [*superseded, *(run if made else [])]
    _free(device, superblock, gone)
    return Compaction(made, tuple(gone))


# --- Which ------------------------------------------------------------------------------


def _newest_run(
    image: StoreImage, superblock: Superblock
) -> tuple[list[SegmentImage], list[SegmentImage]]:
    """Return the newest segments that may be put together, oldest first; and copied ones.

    Of the latter, a crash kept the header after the copy had been made.
    """
    newest = sorted(
        (s for s in image.segments if s.state is not SegmentState.FREE),
        key=lambda s: s.sequence,
        reverse=True,
    )[:SEGMENTS_MAX]
    flows = _flows_of(newest, image.flows)
    homes: dict[bytes, int] = {}
    run: list[SegmentImage] = []
    superseded: list[SegmentImage] = []
    total_bytes = record_bytes = 0
    for segment in newest:
        ids = _ids(segment)
        if segment.state is not SegmentState.CLOSED or not ids:
            break
        if all(flow in homes for flow in ids):
            superseded.append(segment)
            continue
        size_bytes = segment.batches_end
        total_bytes += size_bytes
        record_bytes += footer_bytes(segment, superblock)
        is_small = size_bytes <= max(SMALL_BYTES, 2 * (total_bytes - size_bytes))
        fits = (
            total_bytes <= min(superblock.segment_bytes // 2, COPY_BYTES_MAX)
            and record_bytes <= footer_bytes_max(superblock.segment_bytes) // 2
        )
        if not (is_small and fits and _is_whole_in(segment, ids, flows, homes)):
            break
        homes.update(dict.fromkeys(ids, segment.index))
        run.append(segment)
    return run[::-1], superseded


def _ids(segment: SegmentImage) -> set[bytes]:
    return {span.flow for span in segment.spans} | {event.flow for event in segment.events}


def _flows_of(segments: Iterable[SegmentImage], flows: Iterable[Flow]) -> dict[bytes, Flow]:
    """The flows that are shown, of those that lie in these segments."""
    wanted = set().union(*map(_ids, segments))
    return {flow.flow_id: flow for flow in flows if flow.flow_id in wanted}


def _is_whole_in(
    segment: SegmentImage, ids: set[bytes], flows: dict[bytes, Flow], homes: dict[bytes, int]
) -> bool:
    """Return whether all its flows are sealed, lie in this segment alone, and in no newer one."""
    ends = {
        event.flow: event.row.stream_bytes
        for event in segment.events
        if isinstance(event, CloseEvent)
    }
    begun = {
        event.flow
        for event in segment.events
        if isinstance(event, OpenEvent) and event.row.stream_offset == 0
    }
    for flow_id in ids:
        flow = flows.get(flow_id)  # None: it was removed
        if flow is None or flow.state != STATE_SEALED or flow_id in homes:
            return False
        if flow.first_offset or flow.missing or ends.get(flow_id) != flow.bytes:
            return False
        if flow_id not in begun:
            return False
        if any(span.segment_sequence != segment.sequence for span in flow.spans):
            return False
    return True


# --- Copying ----------------------------------------------------------------------------


def _copy(
    device: Device,
    superblock: Superblock,
    run: Sequence[SegmentImage],
    index: int,
    sequence: int,
) -> SegmentImage:
    """Write batches and footer of the new segment, read them back, then write its header."""
    base, block_bytes = superblock.segment_offset(index), superblock.block_bytes
    at = SEGMENT_DATA_BLOCK * block_bytes
    tally = Tally(index, sequence, block_bytes)
    # A header may be torn, behind its first 512 bytes, into what was there before. With a
    # valid footer that would look like damage, so that nothing may be there but zeros.
    device.write(base, bytes(block_bytes))
    for segment in run:
        for batch in _batches(device, superblock, segment):
            if batch.is_part:
                continue  # the copy's footer has all records
            moved = _moved(batch, at, sequence, tally.batch_count)
            _write_batch(device, superblock, (segment, batch), base, moved)
            tally.add(moved, durable=True)
            at = moved.end
    newest = run[-1]
    made = SegmentImage(
        index=index,
        state=SegmentState.CLOSED,
        sequence=sequence,
        worker_index=newest.worker_index,
        opened_ns=newest.opened_ns,
        batch_count=tally.batch_count,
        batches_end=at,
        committed_end=at,
        payload_bytes=tally.payload_bytes,
        spans=tally.spans,
        events=tally.events,
    )
    closed_ns = newest.footer.closed_ns if newest.footer else newest.opened_ns
    footer = build_footer(made, superblock, closed_ns)
    if footer is None or len(footer) > footer_bytes_max(superblock.segment_bytes):
        raise CopyError
    device.sync()
    device.write(base + superblock.segment_bytes - len(footer), footer)
    device.sync()
    if sum(1 for _ in _batches(device, superblock, made)) != made.batch_count:
        raise CopyError
    device.write(base, _header(superblock, made))
    device.sync()
    return made


def _batches(device: Device, superblock: Superblock, segment: SegmentImage) -> list[Batch]:
    """The batches of a closed segment. Raises CopyError where one is not whole."""
    scanner = Scanner(device, superblock)
    window, place = scanner.window(segment.index), scanner.place(segment.sequence)
    at = SEGMENT_DATA_BLOCK * superblock.block_bytes
    found: list[Batch] = []
    while at < segment.batches_end:
        batch = read_batch(window, place, at, len(found))
        if batch is None or (batch.has_crc32c and not batch_is_whole(window, batch)):
            raise CopyError
        found.append(batch)
        at = batch.end
    return found


def _moved(batch: Batch, at: int, sequence: int, batch_index: int) -> Batch:
    row = batch.header._replace(
        crc32c=0, segment_sequence=sequence, batch_index=batch_index, batches_committed=0
    )
    return replace(batch, offset=at, header=row)


def _write_batch(
    device: Device,
    superblock: Superblock,
    source: tuple[SegmentImage, Batch],
    base: int,
    moved: Batch,
) -> None:
    """Write a batch at its new place: its header anew, what is behind it as it was."""
    segment, batch = source
    begin = superblock.segment_offset(segment.index) + batch.offset
    head_bytes = batch.header.header_bytes
    head = device.read(begin, head_bytes)
    header = sealed(BATCH_HEADER.pack(moved.header) + head[BATCH_HEADER.size_bytes :])
    device.write(base + moved.offset, header)
    for at in range(head_bytes, batch.header.batch_bytes, READ_BYTES_MAX):
        size = min(READ_BYTES_MAX, batch.header.batch_bytes - at)
        device.write(base + moved.offset + at, device.read(begin + at, size))


def _header(superblock: Superblock, made: SegmentImage) -> bytes:
    row = SegmentHeaderRow(
        magic=SEGMENT_MAGIC,
        crc32c=0,
        version=FORMAT_VERSION,
        store_uuid=superblock.store_uuid,
        segment_sequence=made.sequence,
        segment_index=made.index,
        worker_index=made.worker_index,
        opened_ns=made.opened_ns,
    )
    return sealed(SEGMENT_HEADER.pack(row)).ljust(superblock.block_bytes, b"\0")


def _free(device: Device, superblock: Superblock, segments: Sequence[SegmentImage]) -> None:
    """Give segments back whose flows all lie elsewhere: nothing that is shown goes with them."""
    for segment in segments:
        device.write(superblock.segment_offset(segment.index), bytes(superblock.block_bytes))
        segment.state = SegmentState.FREE
    if segments:
        device.sync()

# SPDX-License-Identifier: Apache-2.0
"""Reclaimed segments: the freed record that names them, and reclaiming them.

Two copies of the record lie between superblock B and the segments, written in
turn. Without it, a flow whose first bytes are not there has lost them. It also names
segments that are reclaimed together, by their sequences: whatever their headers
say, these are free, so that no crash leaves some of them.

Invariants: the record is on stable media before the first header goes, and the
header is gone from stable media before the segment is handed out. A segment's
header is all in its first 512 bytes, so that no crash leaves half of one. Who
reclaims segments holds the mutex, from looking at them to having reclaimed them;
any thread may read.
"""

from __future__ import annotations

import struct
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

from ingestd.errors import StoreError
from ingestd.store.device.device import Device
from ingestd.store.format.layout import FORMAT_VERSION, Layout, sealed
from ingestd.store.format.records import decode_block
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.superblock import Superblock

FREED_MAGIC: Final = b"INGESTFR"
FREED_OFFSETS: Final = (576 * 1024, 640 * 1024)
FREED_RANGES_MAX: Final = 252
_RANGE: Final = struct.Struct("<QQ")

Range: TypeAlias = tuple[int, int]  # sequences, both included


class FreedRow(NamedTuple):
    """The struct `freed_record` of docs/format.md."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    record_number: int
    freed_sequence: int
    segments_count: int
    payload_bytes: int
    ranges: bytes


FREED_RECORD: Final = Layout(
    "freed_record",
    FreedRow,
    (
        ("magic", "8s"),
        ("crc32c", "I"),
        ("version", "I"),
        ("store_uuid", "16s"),
        ("record_number", "Q"),
        ("freed_sequence", "Q"),
        ("segments_count", "Q"),
        ("payload_bytes", "Q"),
        ("ranges", f"{FREED_RANGES_MAX * _RANGE.size}s"),
    ),
)


@dataclass(frozen=True, slots=True)
class Freed:
    """The segments that a store has reclaimed in its life; `sequence`: the highest of a segment.

    `ranges`: of sequences, in order; segments that have one of these are free.
    """

    record_number: int = 0
    sequence: int = 0
    segments_count: int = 0
    payload_bytes: int = 0
    ranges: tuple[Range, ...] = ()

    def is_reclaimed(self, sequence: int) -> bool:
        """Return whether a segment was reclaimed, though its header may be there."""
        at = bisect_right(self.ranges, (sequence, sys.maxsize)) - 1
        return at >= 0 and self.ranges[at][0] <= sequence <= self.ranges[at][1]

    def without_reclaimed(self, segments: Iterable[SegmentImage]) -> list[SegmentImage]:
        """Return segments as they count: what was reclaimed is free."""
        return [
            SegmentImage(segment.index, SegmentState.FREE)
            if segment.sequence and self.is_reclaimed(segment.sequence)
            else segment
            for segment in segments
        ]


def read_freed(device: Device, superblock: Superblock) -> Freed:
    """Return the newer of both copies that are whole; all zeros if none is.

    Raises StoreDamagedError if the device cannot read.
    """
    best = Freed()
    for offset in FREED_OFFSETS:
        data = device.read(offset, FREED_RECORD.size_bytes)
        row = decode_block(FREED_RECORD, FREED_MAGIC, data, superblock.store_uuid)
        if row is not None and row.record_number > best.record_number:
            best = Freed(
                row.record_number,
                row.freed_sequence,
                row.segments_count,
                row.payload_bytes,
                _decoded(row.ranges),
            )
    return best


def _decoded(data: bytes) -> tuple[Range, ...]:
    """Return the ranges in order, and none of them overlapping another."""
    pairs = (_RANGE.unpack_from(data, at) for at in range(0, len(data), _RANGE.size))
    merged: list[Range] = []
    for first, last in sorted(pair for pair in pairs if 0 < pair[0] <= pair[1]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def clear_headers(device: Device, superblock: Superblock, indexes: Iterable[int]) -> None:
    """Do, durably, what giving segments up had left to do. Raises StoreError."""
    cleared = [superblock.segment_offset(index) for index in indexes]
    for offset in cleared:
        device.write(offset, bytes(superblock.block_bytes))
    if cleared:
        device.sync()


class Reclaimer:
    """Reclaims segments of one store; whoever calls reclaim() holds `mutex`.

    `on_reclaimed` is called with segments once their headers are gone, under the mutex.
    """

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        on_reclaimed: Callable[[Sequence[SegmentImage]], None] = lambda _: None,
    ) -> None:
        self.mutex = threading.Lock()
        self._on_reclaimed = on_reclaimed
        self._device = device
        self._superblock = superblock
        self._freed = read_freed(device, superblock)
        # Who opens the store ends what was begun, before anything else is reclaimed.
        self._going: list[Range] = []
        self._gone = list(self._freed.ranges)

    def announce(self, ranges: Iterable[Range]) -> None:
        """Reclaim, durably and at once, all segments with such sequences; done() follows.

        Each is to be given to reclaim() then. Raises StoreError if the device refuses: then
        they may be reclaimed or not, as it turns out at the next record.
        """
        assert self.mutex.locked()
        going = sorted({*self._going, *ranges})
        if len(going) > FREED_RANGES_MAX:
            raise StoreError(
                f"{self._device.path} has {len(going)} runs of segments that were not reclaimed to"
                f" the end, as the device refused; {FREED_RANGES_MAX} find room: the next start"
                " gives them up"
            )
        self._going = going
        self._write(replace(self._freed, record_number=self._freed.record_number + 1))

    def done(self, ranges: Iterable[Range]) -> None:
        """Know that no header is left of what was announced."""
        assert self.mutex.locked()
        self._gone = [*ranges, *self._gone][:FREED_RANGES_MAX]
        self._going = [pair for pair in self._going if pair not in self._gone]

    def reclaim(self, segments: Sequence[SegmentImage], *, heads_go: bool) -> None:
        """Make segments free, durably; `heads_go`: flows that are shown may begin in them.

        Raises StoreError if the device refuses: then none may be handed out.
        """
        assert self.mutex.locked()
        freed = self._freed
        sequences = [segment.sequence for segment in segments] if heads_go else []
        self._write(
            Freed(
                record_number=freed.record_number + 1,
                sequence=max(freed.sequence, *sequences) if sequences else freed.sequence,
                segments_count=freed.segments_count + len(segments),
                payload_bytes=freed.payload_bytes + sum(s.payload_bytes for s in segments),
            )
        )
        clear_headers(self._device, self._superblock, [segment.index for segment in segments])
        self._on_reclaimed(segments)

    def _write(self, now: Freed) -> None:
        # Who read segments before they went reads the record after that, and finds them in it.
        ranges = [*self._going, *self._gone][:FREED_RANGES_MAX]
        row = FreedRow(
            magic=FREED_MAGIC,
            crc32c=0,
            version=FORMAT_VERSION,
            store_uuid=self._superblock.store_uuid,
            record_number=now.record_number,
            freed_sequence=now.sequence,
            segments_count=now.segments_count,
            payload_bytes=now.payload_bytes,
            ranges=b"".join(_RANGE.pack(*pair) for pair in ranges),
        )
        block = sealed(FREED_RECORD.pack(row)).ljust(self._superblock.block_bytes, b"\0")
        self._device.write(FREED_OFFSETS[now.record_number % len(FREED_OFFSETS)], block)
        self._device.sync()
        self._freed = now

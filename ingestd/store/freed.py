# SPDX-License-Identifier: Apache-2.0
"""Segments given up on purpose: the record of it, and giving them up.

Two copies of the record lie between superblock B and the segments, written in
turn. Without it, a flow whose first bytes are not there has lost them.

Invariants: the record is on stable media before the first header goes, and the
header is gone from stable media before the segment is handed out. A segment's
header is all in its first 512 bytes, so that no crash leaves half of one. Who
gives up segments holds the mutex, from looking at them to having given them up;
any thread may read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingestd.store.device import Device
from ingestd.store.layout import FORMAT_VERSION, Layout, sealed
from ingestd.store.records import decode_block
from ingestd.store.segment import SegmentImage
from ingestd.store.superblock import Superblock

FREED_MAGIC: Final = b"INGESTFR"
FREED_OFFSETS: Final = (576 * 1024, 640 * 1024)


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
        ("zero", "4032x"),
    ),
)


@dataclass(frozen=True, slots=True)
class Freed:
    """What a store has given up in its life; `sequence`: the highest one of a segment."""

    record_number: int = 0
    sequence: int = 0
    segments_count: int = 0
    payload_bytes: int = 0


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
                row.record_number, row.freed_sequence, row.segments_count, row.payload_bytes
            )
    return best


class Freer:
    """Gives up segments of one store; whoever calls give_up() holds `mutex`."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self.mutex = threading.Lock()
        self._device = device
        self._superblock = superblock
        self._freed = read_freed(device, superblock)

    def give_up(self, segments: Sequence[SegmentImage], *, heads_go: bool) -> None:
        """Make segments free, durably; `heads_go`: flows that are shown may begin in them.

        Raises StoreError if the device refuses: then none may be handed out.
        """
        assert self.mutex.locked()
        freed, device, superblock = self._freed, self._device, self._superblock
        sequences = [segment.sequence for segment in segments] if heads_go else []
        now = Freed(
            record_number=freed.record_number + 1,
            sequence=max(freed.sequence, *sequences) if sequences else freed.sequence,
            segments_count=freed.segments_count + len(segments),
            payload_bytes=freed.payload_bytes + sum(s.payload_bytes for s in segments),
        )
        row = FreedRow(
            magic=FREED_MAGIC,
            crc32c=0,
            version=FORMAT_VERSION,
            store_uuid=superblock.store_uuid,
            record_number=now.record_number,
            freed_sequence=now.sequence,
            segments_count=now.segments_count,
            payload_bytes=now.payload_bytes,
        )
        block = sealed(FREED_RECORD.pack(row)).ljust(superblock.block_bytes, b"\0")
        device.write(FREED_OFFSETS[now.record_number % len(FREED_OFFSETS)], block)
        device.sync()
        for segment in segments:
            device.write(superblock.segment_offset(segment.index), bytes(superblock.block_bytes))
        device.sync()
        self._freed = now

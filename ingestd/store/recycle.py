# SPDX-License-Identifier: Apache-2.0
"""Which segment of a full store goes first: the oldest that is closed.

Invariants: a segment that is being written is never given up, nor one that is
damaged; whether one is closed is read from the store, as its footer is the
worker's last word about it. The last closed segment stays. Under the freer's
mutex, as others give up segments too, no segment is given up twice. One thread
calls recycle() and note_granted(); all else is for any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from ingestd.errors import StoreError
from ingestd.store.device import Device
from ingestd.store.freed import Freer
from ingestd.store.layout import FOOTER_MAGIC, SEGMENT_FOOTER
from ingestd.store.records import decode_block
from ingestd.store.scan import Scanner
from ingestd.store.segment import SegmentImage, SegmentState
from ingestd.store.superblock import Superblock

# What a worker may hold: SEGMENTS_LIVE_MAX and SEGMENTS_READY_MAX of core/writer.h.
HELD_BY_WORKER_MAX: Final = 8
CLOSED_KEPT_MIN: Final = 1
NEWS_COUNT_MAX: Final = 1024


class Overwritten(NamedTuple):
    """One segment that went; `flows` are the ids of those that had bytes in it."""

    segment_index: int
    sequence: int
    payload_bytes: int
    flows: tuple[bytes, ...]


class Recycler:
    """Gives up the segments of one store, oldest first.

    `ended`: (sequence, index) of segments that no worker writes to any more.
    Raises StoreError if so few segments are left that workers could hold all.
    """

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        freer: Freer,
        ended: Iterable[tuple[int, int]],
        *,
        usable_count: int,
        workers_count: int,
    ) -> None:
        needed_count = workers_count * HELD_BY_WORKER_MAX + CLOSED_KEPT_MIN + 1
        if usable_count < needed_count:
            raise StoreError(
                f"{device.path} has {usable_count} segments, and overwriting the oldest needs"
                f" {needed_count} with this number of workers: format it with a smaller"
                ' --segment-size, or set on_full = "reject"'
            )
        self.error: StoreError | None = None  # the device refused; nothing more is given up
        self._device = device
        self._superblock = superblock
        self._scanner = Scanner(device, superblock, live=True)
        self._freer = freer
        self._begun = deque(sorted(ended))  # of this and earlier lives, oldest first
        self._news: deque[Overwritten] = deque(maxlen=NEWS_COUNT_MAX)
        self.segments_count = 0
        self.payload_bytes = 0

    def note_granted(self, index: int, sequence: int) -> None:
        """Know of a segment that a worker is about to begin; sequences only grow."""
        with self._freer.mutex:
            self._begun.append((sequence, index))

    def forget(self, index: int, sequence: int) -> None:
        """Know of a segment that another gave up; the caller holds the freer's mutex."""
        with suppress(ValueError):
            self._begun.remove((sequence, index))

    def recycle(self) -> int | None:
        """Give up the oldest closed segment and return its index; None: not now.

        Sets `error` if the device refuses.
        """
        if self.error is not None:
            return None
        try:
            with self._freer.mutex:
                return self._recycle()
        except StoreError as error:
            self.error = error
            return None

    def _recycle(self) -> int | None:
        found = self._closed(CLOSED_KEPT_MIN + 1)
        if len(found) <= CLOSED_KEPT_MIN:
            return None
        sequence, index = found[0]
        segment = self._scanner.scan(index)
        if segment.state is not SegmentState.CLOSED or segment.sequence != sequence:
            return None  # its footer is half written
        self._freer.give_up([segment], heads_go=True)
        self._begun.remove((sequence, index))
        self._tell(segment)
        return index

    def _closed(self, count_max: int) -> list[tuple[int, int]]:
        """The oldest segments with a footer of their life."""
        found: list[tuple[int, int]] = []
        for sequence, index in self._begun:
            if self._has_footer(sequence, index):
                found.append((sequence, index))
                if len(found) == count_max:
                    break
        return found

    def _has_footer(self, sequence: int, index: int) -> bool:
        end = self._superblock.segment_offset(index) + self._superblock.segment_bytes
        block = self._device.read(end - self._superblock.block_bytes, SEGMENT_FOOTER.size_bytes)
        row = decode_block(SEGMENT_FOOTER, FOOTER_MAGIC, block, self._superblock.store_uuid)
        return row is not None and row.segment_sequence == sequence

    def _tell(self, segment: SegmentImage) -> None:
        flows = {span.flow: None for span in segment.spans if span.end_offset > span.first_offset}
        self._news.append(
            Overwritten(segment.index, segment.sequence, segment.payload_bytes, tuple(flows))
        )
        self.segments_count += 1
        self.payload_bytes += segment.payload_bytes

    def take_overwritten(self) -> list[Overwritten]:
        """Return, and forget, which segments went; the oldest news give way to newer ones."""
        return [self._news.popleft() for _ in range(len(self._news))]

# SPDX-License-Identifier: Apache-2.0
"""Eviction in a full store: the oldest closed segment goes first.

Invariants: a segment that is being written is never evicted, nor one that is
damaged; whether one is closed is read from the store, as its footer is the
worker's last word about it. The last closed segment stays. Under the reclaimer's
mutex, as others reclaim segments too, no segment is evicted twice. A segment
that cannot be read is passed over, as recovery would, and looked at again later.
One thread calls recycle(), which alone waits for the device; all else is for any.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from ingestd.core_limits import SEGMENTS_LIVE_MAX, SEGMENTS_READY_MAX
from ingestd.errors import StoreDamagedError, StoreError
from ingestd.store.device.device import Device
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import Reclaimer
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.scan import Scanner

HELD_BY_WORKER_MAX: Final = SEGMENTS_LIVE_MAX + SEGMENTS_READY_MAX
CLOSED_KEPT_MIN: Final = 1
REPORTS_COUNT_MAX: Final = 1024
# After the device refused: so long nothing is evicted, twice as long each time.
RETRY_PAUSE_MIN_S: Final = 1.0
RETRY_PAUSE_MAX_S: Final = 300.0
# After a segment could not be read: so long it is passed over.
UNREADABLE_PAUSE_S: Final = 300.0


class Overwritten(NamedTuple):
    """One segment that went; `flows` are the ids of those that had bytes in it."""

    segment_index: int
    sequence: int
    payload_bytes: int
    flows: tuple[bytes, ...]


class Evictor:
    """Evicts the segments of one store, oldest first.

    `ended`: (sequence, index) of segments that no worker writes to any more.
    Raises StoreError if so few segments are left that workers could hold all.
    """

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        reclaimer: Reclaimer,
        ended: Iterable[tuple[int, int]],
        *,
        usable_count: int,
        workers_count: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        needed_count = workers_count * HELD_BY_WORKER_MAX + CLOSED_KEPT_MIN + 1
        if usable_count < needed_count:
            raise StoreError(
                f"{device.path} has {usable_count} segments, and overwriting the oldest needs"
                f" {needed_count} with this number of workers: format it with a smaller"
                ' --segment-size, or set on_full = "reject"'
            )
        self.error: StoreError | None = None  # why nothing is evicted, as of the last try
        self._clock = clock
        self._pause_s = 0.0
        self._retry_at_s = 0.0
        self._passed_over: dict[tuple[int, int], float] = {}  # until when
        self._half_evicted: SegmentImage | None = None  # the device refused in the middle
        self._begun_mutex = threading.Lock()  # for the queue alone: nobody waits for the device
        self._device = device
        self._superblock = superblock
        self._scanner = Scanner(device, superblock, live=True)
        self._reclaimer = reclaimer
        self._begun = deque(sorted(ended))  # of this and previous generations, oldest first
        self._reports: deque[Overwritten] = deque(maxlen=REPORTS_COUNT_MAX)
        self.segments_count = 0
        self.payload_bytes = 0

    def note_granted(self, index: int, sequence: int) -> None:
        """Know of a segment that a worker is about to begin; sequences only grow."""
        with self._begun_mutex:
            self._begun.append((sequence, index))

    def forget(self, index: int, sequence: int) -> None:
        """Note a segment that another reclaimed; the caller holds the reclaimer's mutex."""
        half = self._half_evicted
        if half is not None and (half.sequence, half.index) == (sequence, index):
            self._half_evicted = None  # it may be granted to a worker from now on
        with self._begun_mutex, suppress(ValueError):
            self._begun.remove((sequence, index))

    def recycle(self) -> int | None:
        """Evict the oldest closed segment and return its index; None: not now.

        Sets `error` if the device refuses to write; it is tried again after a pause,
        but never after a flush that failed.
        """
        if self.error is not None and self._clock() < self._retry_at_s:
            return None
        try:
            with self._reclaimer.mutex:
                index = self._recycle()
        except StoreError as error:
            self._pause_s = min(max(2 * self._pause_s, RETRY_PAUSE_MIN_S), RETRY_PAUSE_MAX_S)
            if self._device.has_failed_flush:
                self._pause_s = math.inf
            self._retry_at_s = self._clock() + self._pause_s
            self.error = error
            return None
        self.error, self._pause_s = None, 0.0
        return index

    def _recycle(self) -> int | None:
        segment = self._half_evicted or self._oldest()
        if segment is None:
            return None
        # Until it is done, nobody knows what of it is on the device.
        self._half_evicted = segment
        self._reclaimer.reclaim([segment], heads_go=True)
        self._half_evicted = None
        self.forget(segment.index, segment.sequence)
        self._report(segment)
        return segment.index

    def _oldest(self) -> SegmentImage | None:
        """The oldest segment that can be evicted, when another one stays."""
        found = self._closed(CLOSED_KEPT_MIN + 1)
        while len(found) > CLOSED_KEPT_MIN:
            sequence, index = found.popleft()
            segment = self._scanner.scan(index)
            if segment.state in (SegmentState.DAMAGED, SegmentState.FREE):
                # What is free here was reclaimed, and the device refused in the middle of it.
                self._pass_over(sequence, index)
                found = self._closed(CLOSED_KEPT_MIN + 1)
            elif segment.state is not SegmentState.CLOSED or segment.sequence != sequence:
                return None  # its footer is half written
            else:
                return segment
        return None

    def _closed(self, count_max: int) -> deque[tuple[int, int]]:
        """The oldest segments with a footer of their life that can be read."""
        found: deque[tuple[int, int]] = deque()
        with self._begun_mutex:
            begun = list(self._begun)
        now_s = self._clock()
        self._passed_over = {
            place: until_s for place, until_s in self._passed_over.items() if until_s > now_s
        }
        for place in begun:
            if place in self._passed_over:
                continue
            try:
                sequence, index = place
                has_footer = self._scanner.has_footer(index, sequence)
            except StoreDamagedError:
                self._pass_over(*place)
                continue
            if has_footer:
                found.append(place)
                if len(found) == count_max:
                    break
        return found

    def _pass_over(self, sequence: int, index: int) -> None:
        self._passed_over[sequence, index] = self._clock() + UNREADABLE_PAUSE_S

    def _report(self, segment: SegmentImage) -> None:
        flows = {span.flow: None for span in segment.spans if span.end_offset > span.first_offset}
        self._reports.append(
            Overwritten(segment.index, segment.sequence, segment.payload_bytes, tuple(flows))
        )
        self.segments_count += 1
        self.payload_bytes += segment.payload_bytes

    def take_overwritten(self) -> list[Overwritten]:
        """Return, and forget, which segments went; the oldest reports give way to newer ones."""
        return [self._reports.popleft() for _ in range(len(self._reports))]

# SPDX-License-Identifier: Apache-2.0
"""A store that the daemon has opened: locked and recovered, with free segments to hand out.

Invariants: a segment is handed out once, and is in use from then on until it is reclaimed.
take_segment() may be called by any thread.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Final

from ingestd.errors import StoreError
from ingestd.store.catalogue.removed_parts import image_of_removed
from ingestd.store.catalogue.source import CataloguedFlowSource
from ingestd.store.device.device import Device
from ingestd.store.device.opening import open_locked
from ingestd.store.format.layout import SEQUENCE_COUNTER_MAX, sequence_of
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import Reclaimer
from ingestd.store.read.flow_source import FlowSource
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import StoreImage
from ingestd.store.read.point_query import Found
from ingestd.store.reclaim.eviction import Evictor, Overwritten
from ingestd.store.reclaim.sweep import Sweeper
from ingestd.store.serve.backing_check import is_elsewhere, loss_of, missing_bytes
from ingestd.store.serve.backing_space import BackingSpace
from ingestd.store.serve.recovery import Recovered, RecoverySummary, recover

# The kernel takes an io_uring down after its process is gone, and holds the store's file
# meanwhile: some tenths of a second, seconds on a busy machine.
HELD_WAIT_S: Final = 5.0

__all__ = ["HELD_WAIT_S", "RecoverySummary", "ServedStore", "open_for_serving"]


class ServedStore:
    """A store that this process alone writes to; close it, or use it as a context manager."""

    def __init__(self, device: Device, recovered: Recovered) -> None:
        superblock = recovered.superblock
        segments = recovered.segments
        self._flows = recovered.flows
        self._ended = [(s.sequence, s.index) for s in segments if s.state is SegmentState.CLOSED]
        self.feeder = recovered.feeder  # None: there is no catalogue
        self._in_use = recovered.in_use
        self._recycler: Evictor | None = None
        self._reclaimer = Reclaimer(device, superblock, self._in_use.discard)
        self.superblock = superblock
        self.recovery = recovered.summary
        self._device = device
        self._free = [s.index for s in segments if s.state is SegmentState.FREE]
        self._counter = self._counter_first = recovered.used_count
        self._mutex = threading.Lock()
        self._recycles_ahead = False
        self._room: BackingSpace | None = None  # of a file that has lost space
        self._roomless: list[int] = []  # free, but without space
        self.sweeper = Sweeper(
            device,
            superblock,
            self._reclaimer,
            live=True,
            forget=self._forget,
            hand_out=self._hand_out,
        )

    @property
    def fd(self) -> int:
        """Open for reading and writing with O_DIRECT; -1 once closed."""
        return self._device.fd

    @property
    def token(self) -> bytes:
        """The token of this opening, which the holder record in the store has as well."""
        return self._device.token

    def loss(self) -> int | None:
        """Return why the store is not there any more, an errno of backing_check.py; None: it is."""
        return loss_of(self._device, self.superblock)

    @property
    def missing_bytes(self) -> int:
        """The bytes of a store file that have no space on its file system."""
        return missing_bytes(self._device, self.superblock)

    def reserve_room(self) -> int:
        """Ask for the space that a store file has lost; return how many segments are without.

        Those are not handed out: writing to them would fail. Waits for the file system. By
        one thread, before the first take_segment(), and again while it returns any.
        """
        if self._room is None:
            if self.missing_bytes == 0:
                return 0
            self._room = BackingSpace(self._device, self.superblock)
            with self._mutex:
                self._roomless, self._free = self._free, []
        self._room.reserve_rest()
        with self._mutex:
            waiting = sorted(self._roomless)
        for index in waiting:
            if self._room.reserve(index):
                with self._mutex:
                    self._roomless.remove(index)
                    heapq.heappush(self._free, index)
        return self.segments_without_room

    @property
    def is_sparse(self) -> bool:
        """Return whether reserve_room() found that the store's file had lost space."""
        return self._room is not None

    @property
    def segments_without_room(self) -> int:
        """The number of free segments of a store file that have lost their space."""
        with self._mutex:
            return len(self._roomless)

    def is_elsewhere(self) -> bool:
        """Return whether `path` leads to something else by now, or to nothing."""
        return is_elsewhere(self._device)

    @property
    def path(self) -> str:
        """The store's file or block device."""
        return self._device.path

    @property
    def segments_free_count(self) -> int:
        """The number of segments that take_segment() can still hand out."""
        with self._mutex:
            return len(self._free)

    def take_recovered_flows(self) -> list[Flow] | None:
        """Return the flows that the opening found, and forget them: there may be many.

        None: the opening did not look for them, as there is a catalogue to be asked.
        """
        flows, self._flows = self._flows, None
        return flows

    def overwrite_oldest(self, workers_count: int) -> None:
        """Have the oldest evicted when none is free: by take_segment(), or recycle_ahead().

        Before the first take_segment(). Raises StoreError if there are too few segments.
        """
        assert self._counter == self._counter_first
        usable_count = len(self._free) + len(self._ended)
        self._recycler = Evictor(
            self._device,
            self.superblock,
            self._reclaimer,
            self._ended,
            usable_count=usable_count,
            workers_count=workers_count,
        )

    @property
    def is_overwriting(self) -> bool:
        """Return whether a segment may be had later, though take_segment() gives none now."""
        return self._recycler is not None and self._recycler.error is None

    def recycle_ahead(self, count: int) -> int:
        """Evict the oldest segments until so many are free, or none can be; return how many went.

        Waits for the device. By one thread; from the first call on, take_segment()
        leaves it to this one, and never waits.
        """
        assert self._recycler is not None, self.path
        self._recycles_ahead = True
        recycled_count = 0
        # What is free and has no space yet is not made up for by evicting old flows.
        while self.segments_free_count + self.segments_without_room < count:
            index = self._recycler.recycle()
            if index is None:
                break
            self._hand_out(index)
            recycled_count += 1
        return recycled_count

    @property
    def overwriting_error(self) -> StoreError | None:
        """The reason why the oldest segments are not overwritten, as they should be."""
        return self._recycler.error if self._recycler else None

    @property
    def overwritten(self) -> tuple[int, int]:
        """The number of segments overwritten since the opening, and their bytes of payload."""
        if self._recycler is None:
            return 0, 0
        return self._recycler.segments_count, self._recycler.payload_bytes

    def take_overwritten(self) -> list[Overwritten]:
        """Return, and forget, which segments were evicted."""
        return self._recycler.take_overwritten() if self._recycler else []

    @property
    def segments_granted_count(self) -> int:
        """The number of segments that take_segment() has handed out; each may mean one closed."""
        with self._mutex:
            return self._counter - self._counter_first

    def _forget(self, segment: SegmentImage) -> None:
        """Know of a segment that the sweeper reclaimed; under the reclaimer's mutex."""
        if self._recycler is not None:
            self._recycler.forget(segment.index, segment.sequence)

    def _hand_out(self, index: int) -> None:
        """Let take_segment() hand out a segment again, once it has space."""
        with self._mutex:
            if self._room is None or self._room.is_reserved(index):
                heapq.heappush(self._free, index)
            else:
                self._roomless.append(index)

    def take_segment(self) -> tuple[int, int] | None:
        """Return index and sequence of a free segment, lowest index first; None: store full."""
        index = self._take_free()
        if index is None and self._recycler is not None and not self._recycles_ahead:
            index = self._recycler.recycle()
        if index is None:
            return None
        with self._mutex:
            self._counter += 1
            assert self._counter <= SEQUENCE_COUNTER_MAX
            sequence = sequence_of(self.superblock.generation, self._counter)
        self._in_use.add(index, sequence)
        if self._recycler is not None:
            self._recycler.note_granted(index, sequence)
        return index, sequence

    def _take_free(self) -> int | None:
        with self._mutex:
            return heapq.heappop(self._free) if self._free else None

    def find_flows(self, wanted: Set[bytes], is_stopped: Callable[[], bool]) -> Found:
        """Look for flows by their ids; as of lookup.find_flows(). Any thread may call."""
        return self._answering(is_stopped).find(wanted)

    def removal_image(
        self, asked: Iterable[bytes], is_stopped: Callable[[], bool]
    ) -> StoreImage | None:
        """Return an image for the removal of flows, and the sweep of removed ones, alone.

        None: there is none to be had without reading the whole store. As image_of_removed().
        """
        feeder = self.feeder
        answers = feeder.answers(is_stopped) if feeder and feeder.unfed_older_count == 0 else None
        return None if answers is None else image_of_removed(answers, asked)

    def flow_source(self, is_stopped: Callable[[], bool] = lambda: False) -> FlowSource:
        """Return who lists the store's flows; a reading ends soon after `is_stopped`."""
        return self._answering(is_stopped)

    @property
    def has_catalogue(self) -> bool:
        """Return whether questions are answered without a reading of the whole store."""
        return self.feeder is not None and self.feeder.is_ready

    def _answering(self, is_stopped: Callable[[], bool]) -> CataloguedFlowSource:
        return CataloguedFlowSource(self.feeder, self._device, self.superblock, is_stopped)

    def close(self) -> None:
        """Release the store and its lock; a second call does nothing."""
        if self.feeder is not None:
            self.feeder.close()
        self._device.close()

    def __enter__(self) -> ServedStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_for_serving(
    path: str,
    *,
    expected_uuid: str | None = None,
    control: str = "",
    on_wait: Callable[[float], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    catalogues: Path | None = None,
) -> ServedStore:
    """Lock a store, recover it, and raise its generation.

    `catalogues`: the directory in which its catalogue is kept; None: it has none.
    A store that is held is waited for, up to HELD_WAIT_S; `on_wait` is called
    once then, with that number of seconds. `on_progress` is called as image_of()
    does, and is still called after the scan; what it raises ends the opening,
    which is as safe as a crash. `control`: as of write_holder(). Raises NotAStoreError,
    StoreBusyError, StoreDamagedError or StoreError; of a UUID that is not the
    expected one, StoreError.
    """
    device = open_locked(path, wait_s=HELD_WAIT_S, on_wait=on_wait)
    try:
        recovered = recover(device, expected_uuid, control, on_progress or _no_progress, catalogues)
        return ServedStore(device, recovered)
    except BaseException:
        device.close()
        raise


def _no_progress(_done_count: int, _total_count: int) -> None:
    """Nobody wants to know."""

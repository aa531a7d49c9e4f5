# SPDX-License-Identifier: Apache-2.0
"""Removing flows of a store that this process holds, and giving their segments back.

Invariants: a removal is on stable media before the first segment goes, and so is the
freed record that names those which go together; a
freed record before the first header, the headers before a segment is discarded
or anyone is granted it; an id leaves the table only when no segment holds anything of it. Owned
by one thread, but for stop(), `removed` and the counts, which are for any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ingestd.errors import StoreError
from ingestd.store.device.device import Device
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import Reclaimer
from ingestd.store.metadata.superblock import Superblock, SuperblockReading
from ingestd.store.metadata.tombstones import Tombstones, read_removals
from ingestd.store.read.image import ScanStoppedError, StoreImage, image_of
from ingestd.store.read.scan import Scanner
from ingestd.store.reclaim.candidates import (
    REASON_RETENTION,
    Candidate,
    Group,
    ReclaimPlan,
    flows_gone,
    plan_reclaim,
)
from ingestd.store.reclaim.discard import discard_segment, require_discard
from ingestd.store.reclaim.presence import Presence, damaged_indexes, flows_of

# So many are reclaimed under the mutex at a time: who grants segments may wait for it.
FREED_AT_ONCE_MAX: Final = 16


@dataclass
class SweepCounts:
    """Counts since the opening, by reason: flows removed, segments and bytes freed."""

    flows: Counter[str] = field(default_factory=Counter)
    segments: Counter[str] = field(default_factory=Counter)
    payload_bytes: Counter[str] = field(default_factory=Counter)
    discarded_bytes: int = 0


class Swept(NamedTuple):
    """The segments that were reclaimed, and the flows of which nothing is left.

    `blocked_count`: as of ReclaimPlan. `held_count`: of removed flows that are in the table
    only for what damaged segments may hold of them. `discard_error`: why one of the segments
    was not discarded, as it should be.
    """

    freed: list[Candidate]
    gone: frozenset[bytes]
    blocked_count: int
    held_count: int
    discard_error: StoreError | None


class Sweeper:
    """`live`: workers write to the store meanwhile.

    `forget` is called under the reclaimer's mutex with each segment that is reclaimed,
    `hand_out` with its index once it may be granted.
    """

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        reclaimer: Reclaimer,
        *,
        live: bool,
        forget: Callable[[SegmentImage], None],
        hand_out: Callable[[int], None],
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._reclaimer = reclaimer
        self._live = live
        self._forget = forget
        self._hand_out = hand_out
        self._scanner = Scanner(device, superblock, live=live)
        self._table: Tombstones = read_removals(device, superblock)
        self.removed: frozenset[bytes] = self._table.flows
        self.counts = SweepCounts()
        self.blocked_count = 0  # as of the last sweep's Swept
        self.held_count = 0
        # Of removed flows, those of which nothing can lie in a damaged segment, as was seen once.
        self._certain: set[bytes] = set()
        self._discards = False
        self._is_stopping = False
        self._discard_error: StoreError | None = None

    def discard_freed(self) -> None:
        """Discard segments that are reclaimed from now on.

        Raises StoreError if this is no device that can.
        """
        require_discard(self._device)
        self._discards = True

    def stop(self) -> None:
        """Let a scan or a sweep end soon; what it leaves, the next opening finds."""
        self._is_stopping = True

    @property
    def room_count(self) -> int:
        """The number of flows that can be removed before some segment is reclaimed."""
        return self._table.room_count

    def scan(self) -> StoreImage:
        """Return an image of the store; it is not to be closed.

        Raises StoreDamagedError, and ScanStoppedError after stop().
        """
        reading = SuperblockReading(self._superblock, ())

        def look_for_stop(_done_count: int, _total_count: int) -> None:
            if self._is_stopping:
                raise ScanStoppedError

        return image_of(
            self._device, reading, live=self._live, thorough=False, on_progress=look_for_stop
        )

    @property
    def may_retry(self) -> bool:
        """Return whether what the device refused may be retried: never after a failed flush."""
        return not self._device.has_failed_flush

    def remove(self, flows: Iterable[bytes], reason: str) -> None:
        """Have flows removed, durably. Raises StoreError as Tombstones.add() does."""
        self._table.add(flows)
        self.counts.flows[reason] += len(self._table.flows - self.removed)
        self.removed = self._table.flows

    def sweep(
        self,
        image: StoreImage,
        expired: frozenset[bytes] = frozenset(),
        claim: Callable[[bytes], bool] = lambda _: True,
        release: Callable[[bytes], None] = lambda _: None,
        reason: str = REASON_RETENTION,
    ) -> Swept:
        """Give back, durably, every segment in which nothing is kept.

        `expired`: flows that need not be kept; of these, each that goes is claimed
        before, and stays where `claim` refuses; a claim that was not needed is released;
        `reason`: why they need not be kept. Raises StoreError if the device refuses: then
        claims stay.
        """
        removed = self.removed
        self._discard_error = None
        plan = self._plan(image, expired, claim, release, reason)
        if plan.removals:
            self.remove(plan.removals, reason)
        freed: list[Candidate] = []
        alone: frozenset[bytes] = frozenset()
        for group in plan.groups:
            done, went = self._free_group(group)
            freed += done
            alone |= went
        alone -= removed | self.removed
        for flow in _flows_of(plan.segments) - alone - removed - self.removed:
            release(flow)
        self.counts.flows[reason] += len(alone)
        self.blocked_count = plan.blocked_count
        indexes = {item.segment.index for item in freed}
        unseen = flows_gone(image.segments, indexes, self.removed)
        gone = unseen
        if not is_readable(image):
            self._certain &= self.removed
            is_cut = image.segments_missing_count > 0
            self._certain |= Presence(image.segments, self.removed, is_cut=is_cut).certain
            gone &= self._certain
        self.held_count = len(unseen - gone)
        return Swept(freed, gone | alone, plan.blocked_count, self.held_count, self._discard_error)

    def _plan(
        self,
        image: StoreImage,
        expired: frozenset[bytes],
        claim: Callable[[bytes], bool],
        release: Callable[[bytes], None],
        reason: str,
    ) -> ReclaimPlan:
        """Decide, until every flow that goes is claimed."""
        claimed: set[bytes] = set()
        elsewhere: frozenset[bytes] = frozenset()
        if not is_readable(image):
            elsewhere = expired - Presence(image.segments, expired).whole
        while True:
            plan = plan_reclaim(
                image.segments,
                removed=self.removed,
                expired=expired,
                room_count=self._table.room_count,
                elsewhere=elsewhere,
                reason=reason,
            )
            going = {flow for item in plan.segments for flow in item.flows} - self.removed
            fed = {flow for flow in going - claimed if not claim(flow)}
            claimed |= going - fed
            if not fed:
                for flow in claimed - going:
                    release(flow)
                return plan
            expired -= fed

    def _free_group(self, group: Group) -> tuple[list[Candidate], frozenset[bytes]]:
        """Give back a group; return as _free(), and the flows that went with it.

        Only what went counts: somebody else may have been quicker, or the end has come.
        """
        if not group.ranges:
            done = self._free(group.segments)
            return done, _flows_of(done)
        if self._is_stopping:
            return [], frozenset()
        with self._reclaimer.mutex:
            self._reclaimer.announce(group.ranges)
        done = self._free(group.segments)
        if not self._is_stopping:
            with self._reclaimer.mutex:
                self._reclaimer.done(group.ranges)
        return done, _flows_of(group.segments)

    def _free(self, wanted: Sequence[Candidate]) -> list[Candidate]:
        """Give segments back, durably; return those that were still what they had been.

        Raises StoreError if the device refuses.
        """
        done: list[Candidate] = []
        for at in range(0, len(wanted), FREED_AT_ONCE_MAX):
            if self._is_stopping:
                break
            same = self._reclaim(wanted[at : at + FREED_AT_ONCE_MAX])
            for item in same:
                self._discard(item.segment.index)
                self._hand_out(item.segment.index)
                self.counts.segments[item.reason] += 1
                self.counts.payload_bytes[item.reason] += item.segment.payload_bytes
            done += same
        return done

    def _reclaim(self, wanted: Sequence[Candidate]) -> list[Candidate]:
        with self._reclaimer.mutex:
            same = [item for item in wanted if self._is_same(item)]
            if same:
                self._reclaimer.reclaim([item.segment for item in same], heads_go=False)
            for item in same:
                self._forget(item.segment)
        return same

    def _discard(self, index: int) -> None:
        """Outside the mutex, as it may take long; a segment that was not discarded is as good."""
        if not self._discards or self._is_stopping:
            return
        try:
            self.counts.discarded_bytes += discard_segment(self._device, self._superblock, index)
        except StoreError as error:
            self._discard_error = error

    def _is_same(self, item: Candidate) -> bool:
        """Return whether the segment was not reclaimed by somebody else since it was looked at.

        And whether there is nothing in it but what the decision rests on, whoever read it then.
        """
        now = self._scanner.scan(item.segment.index)
        is_same = now.state is SegmentState.CLOSED and now.sequence == item.segment.sequence
        return is_same and flows_of(now) <= item.flows

    def drop(self, flows: Iterable[bytes]) -> None:
        """Let flows of which nothing is left go out of the table. Raises StoreError."""
        self._table.drop(flow for flow in flows if flow in self.removed)
        self.removed = self._table.flows


def is_readable(image: StoreImage) -> bool:
    """Return whether all segments can be read, so that what is not seen is not there."""
    return not image.segments_missing_count and not damaged_indexes(image.segments)


def _flows_of(segments: Iterable[Candidate]) -> frozenset[bytes]:
    return frozenset(flow for item in segments for flow in item.flows)

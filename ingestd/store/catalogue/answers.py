# SPDX-License-Identifier: Apache-2.0
"""Answers about a served store's flows: the catalogue, and the segments that it does not have.

Invariants: an answer is what a reading of the whole store gives, however far the catalogue has
come. It may lack segments: these are read. It may have segments that are gone, or have put flows
together under a context that is not the present one: flows that this concerns are put together
anew from their parts. Removed flows are never given: the table of removals is read last. Any
thread may ask; all of it may wait for the device.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from ingestd.store.catalogue.catalogue import Catalogue, assembled
from ingestd.store.catalogue.schema import Context
from ingestd.store.catalogue.snapshot import Snapshot
from ingestd.store.device.device import Device
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.metadata.tombstones import read_removals
from ingestd.store.read.flow_source import (
    EVERY_FLOW,
    OLDEST_FIRST,
    FlowFilter,
    FlowOrder,
    selected,
)
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import ScanStoppedError
from ingestd.store.read.point_query import Found
from ingestd.store.read.scan import Scanner


class _Overlay(NamedTuple):
    """Flows that are not as the catalogue's table has them: hidden ids, and what takes their place.

    `is_whole`: every segment that had to be read could be.
    """

    hidden: frozenset[bytes]
    flows: list[Flow]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """The flows of a store that this process serves.

    `in_use`: returns the segments that are granted and not reclaimed, sequences and indexes;
    `is_damaged`: a segment that is not among these could not be read when the store was opened.
    A reading ends with ScanStoppedError soon after is_stopped() is true. All raise StoreError,
    and CatalogueError.
    """

    catalogue: Catalogue
    device: Device
    superblock: Superblock
    in_use: Callable[[], Mapping[int, int]]
    is_damaged: bool
    is_stopped: Callable[[], bool]

    def flows(
        self,
        wanted: FlowFilter = EVERY_FLOW,
        order: FlowOrder = OLDEST_FIRST,
        limit: int | None = None,
    ) -> Iterator[Flow]:
        """Give the flows that match, `limit` at most, as they are needed."""
        with self.catalogue.snapshot() as snapshot:
            hidden, others, _ = self._overlay(snapshot)
            removed = read_removals(self.device, self.superblock).flows
            rows = (f for f in snapshot.flows(wanted, order) if f.flow_id not in hidden)
            merged = heapq.merge(
                rows,
                selected(others, wanted, order),
                key=order.sort.key_of,
                reverse=order.is_descending,
            )
            shown = (flow for flow in merged if flow.flow_id not in removed)
            yield from islice(shown, limit)

    def flow(self, flow_id: bytes) -> Flow | None:
        """Return one flow, with its spans; None if the store has none of that id."""
        found = self.find(frozenset([flow_id])).flows.get(flow_id)
        removed = read_removals(self.device, self.superblock).flows
        return None if flow_id in removed else found

    def find(self, wanted: Set[bytes]) -> Found:
        """Look for flows by their ids, removed ones included; with their spans."""
        with self.catalogue.snapshot() as snapshot:
            _, flows, is_whole = self._overlay(snapshot, frozenset(wanted))
        return Found({flow.flow_id: flow for flow in flows}, is_whole)

    def _overlay(self, snapshot: Snapshot, wanted: frozenset[bytes] | None = None) -> _Overlay:
        """Put together what cannot be taken from the table of flows, or just what is wanted."""
        fed = snapshot.sequences()
        # After the snapshot: what is neither in it nor here had been reclaimed before.
        in_use = self.in_use()
        segments = [
            self._scanned(index, sequence, wanted)
            for sequence, index in in_use.items()
            if sequence not in fed
        ]
        # Read last: whatever was reclaimed before a segment was scanned is known by then.
        freed = read_freed(self.device, self.superblock)
        gone = {s for s in fed if s not in in_use or freed.is_reclaimed(s)}
        segments = freed.without_reclaimed(segments)
        has_damage = any(segment.state is SegmentState.DAMAGED for segment in segments)
        context = Context(
            self.superblock.generation, freed.sequence > 0, self.is_damaged or has_damage
        )
        if wanted is None:
            ids = snapshot.flow_ids_in(gone)
            ids.update(event.flow for segment in segments for event in segment.events)
            ids.update(span.flow for segment in segments for span in segment.spans)
            if snapshot.context != context:
                ids |= snapshot.flow_ids_not_plain()
        else:
            ids = set(wanted)
            for segment in segments:
                segment.spans = [span for span in segment.spans if span.flow in wanted]
                segment.events = [event for event in segment.events if event.flow in wanted]
        flows, _ = assembled([*snapshot.parts_of(ids, gone), *segments], context)
        return _Overlay(frozenset(ids), flows, not context.has_damage)

    def _scanned(self, index: int, sequence: int, wanted: frozenset[bytes] | None) -> SegmentImage:
        """Read a segment that the catalogue does not have; it may not be begun yet."""
        if self.is_stopped():
            raise ScanStoppedError
        image = Scanner(self.device, self.superblock, live=True, wanted=wanted).scan(index)
        if image.sequence not in (0, sequence):
            return SegmentImage(index, SegmentState.FREE)  # what it was before, or is by now
        return image

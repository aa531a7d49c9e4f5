# SPDX-License-Identifier: Apache-2.0
"""A query for a few flows of a served store: one reading of it, whatever their number.

Invariants: nothing is written; of a segment with a footer only that is read, and only
decoded where one of the ids is in it; what is kept in memory are those flows' spans
and records. Ends soon when it is to. Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import NamedTuple

from ingestd.store.device.device import Device
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.assembly import assemble
from ingestd.store.read.flows import Flow
from ingestd.store.read.scan import Scanner


class QueryStoppedError(Exception):
    """Raised where a lookup was to end; no error of the store."""


class Found(NamedTuple):
    """The flows that are there; `is_whole`: every segment could be read."""

    flows: dict[bytes, Flow]
    is_whole: bool


def find_flows(
    device: Device, superblock: Superblock, wanted: Set[bytes], is_stopped: Callable[[], bool]
) -> Found:
    """Look for flows by their ids in a store that this process serves.

    Raises StoreError if the device refuses, QueryStoppedError soon after `is_stopped`.
    """
    wanted = frozenset(wanted)
    scanner = Scanner(device, superblock, live=True, wanted=wanted)
    segments: list[SegmentImage] = []
    is_whole = True
    for index in range(superblock.segment_count):
        if is_stopped():
            raise QueryStoppedError
        segment = scanner.scan(index)
        is_whole &= segment.state is not SegmentState.DAMAGED
        segment.spans = [span for span in segment.spans if span.flow in wanted]
        segment.events = [event for event in segment.events if event.flow in wanted]
        if segment.spans or segment.events:
            segments.append(segment)
    # Read last: whatever was reclaimed before a segment was scanned is known by then.
    freed = read_freed(device, superblock)
    flows, _ = assemble(
        freed.without_reclaimed(segments),
        generation=superblock.generation,
        live=True,
        freed_sequence=freed.sequence,
    )
    return Found({flow.flow_id: flow for flow in flows}, is_whole)

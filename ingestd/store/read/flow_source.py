# SPDX-License-Identifier: Apache-2.0
"""A source of flows: who lists and looks up the flows of one store asks it, and not the segments.

Invariants: a source never shows a flow whose removal is on stable media when it is asked; the
flows that flows() gives come in the order that was asked for, each once. What it returns are
values: their spans may be empty, as a listing needs none. Each says which threads may ask.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import translate
from typing import Any, Protocol

from ingestd.store.device.device import Device
from ingestd.store.metadata.superblock import Superblock, SuperblockReading
from ingestd.store.metadata.tombstones import read_removals
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import ScanStoppedError, StoreImage, image_of
from ingestd.store.read.point_query import QueryStoppedError, find_flows


class FlowSort(Enum):
    """The order of a listing; flows that are alike in it come in the order of their ids."""

    STARTED = "started"  # flows without an OPEN record first
    ENDED = "ended"  # flows that are not over first
    NAME = "name"  # flows without one first
    BYTES = "bytes"

    def key_of(self, flow: Flow) -> tuple[Any, str]:
        """Return what a flow is ordered by."""
        values = {
            FlowSort.STARTED: flow.started_ns,
            FlowSort.ENDED: flow.ended_ns,
            FlowSort.NAME: flow.name or "",
            FlowSort.BYTES: flow.bytes,
        }
        return values[self], flow.flow


@dataclass(frozen=True, slots=True)
class FlowOrder:
    """A key, and whether what is largest in it comes first (ids among equals go with it)."""

    sort: FlowSort = FlowSort.STARTED
    is_descending: bool = False

    @classmethod
    def parse(cls, text: str) -> FlowOrder:
        """Return the order that a text such as "bytes" or "-bytes" names. Raises ValueError."""
        return cls(FlowSort(text.removeprefix("-")), text.startswith("-"))


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Conditions on the flows of a listing; each that is given must hold.

    `states`: any of these; `name_glob`: as of fnmatch(3), case counts, a flow without a name has
    an empty one; `labels`: all of these; `since_ns` and `until_ns`: Unix times in ns, the flow
    began at or after the one and before the other.
    """

    states: frozenset[str] = frozenset()
    name_glob: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    listener: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether every flow matches."""
        return self == FlowFilter()

    def matcher(self) -> Callable[[Flow], bool]:
        """Return a function that says whether a flow matches."""
        name = re.compile(translate(self.name_glob)).match if self.name_glob is not None else None
        labels = self.labels.items()

        def matches(flow: Flow) -> bool:
            return (
                (not self.states or flow.state in self.states)
                and (self.listener is None or flow.listener == self.listener)
                and (self.since_ns is None or flow.started_ns >= self.since_ns)
                and (self.until_ns is None or flow.started_ns < self.until_ns)
                and (name is None or name(flow.name or "") is not None)
                and labels <= flow.labels.items()
            )

        return matches


EVERY_FLOW = FlowFilter()
OLDEST_FIRST = FlowOrder()


class FlowSource(Protocol):
    """The flows of one store. All of it may wait for the device, and be called by any thread."""

    def flows(
        self,
        wanted: FlowFilter = EVERY_FLOW,
        order: FlowOrder = OLDEST_FIRST,
        limit: int | None = None,
    ) -> Iterator[Flow]:
        """Give the flows that match, `limit` at most. Raises StoreError, from the iterator too."""
        ...

    def flow(self, flow_id: bytes) -> Flow | None:
        """Return one flow; None if the store has none of that id. Raises StoreError."""
        ...


def selected(
    flows: Iterable[Flow],
    wanted: FlowFilter = EVERY_FLOW,
    order: FlowOrder = OLDEST_FIRST,
    limit: int | None = None,
) -> Iterator[Flow]:
    """Give of some flows those that match, in order, `limit` at most."""
    matches = wanted.matcher()
    found = (flow for flow in flows if matches(flow))
    key = order.sort.key_of
    if limit is not None:
        choose = heapq.nlargest if order.is_descending else heapq.nsmallest
        return iter(choose(limit, found, key))
    return iter(sorted(found, key=key, reverse=order.is_descending))


class ImageFlowSource:
    """The flows of an image: as the store was when it was read. Any thread may ask."""

    def __init__(self, image: StoreImage) -> None:
        self._image = image

    def flows(
        self,
        wanted: FlowFilter = EVERY_FLOW,
        order: FlowOrder = OLDEST_FIRST,
        limit: int | None = None,
    ) -> Iterator[Flow]:
        """Give the flows that match."""
        return selected(self._image.flows, wanted, order, limit)

    def flow(self, flow_id: bytes) -> Flow | None:
        """Return one flow."""
        return next((flow for flow in self._image.flows if flow.flow_id == flow_id), None)


class StoreFlowSource:
    """The flows of a store that this process serves, read from its segments: right, and slow.

    Each listing holds all flows of the store in memory while it lasts. A reading ends with
    ScanStoppedError soon after is_stopped() is true. Any thread may ask.
    """

    def __init__(
        self, device: Device, superblock: Superblock, is_stopped: Callable[[], bool]
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._is_stopped = is_stopped

    def flows(
        self,
        wanted: FlowFilter = EVERY_FLOW,
        order: FlowOrder = OLDEST_FIRST,
        limit: int | None = None,
    ) -> Iterator[Flow]:
        """Give the flows that match, as the store is now. Raises StoreError, ScanStoppedError."""

        def look_for_stop(_done_count: int, _total_count: int) -> None:
            if self._is_stopped():
                raise ScanStoppedError

        image = image_of(
            self._device,
            SuperblockReading(self._superblock, ()),
            live=True,
            thorough=False,
            on_progress=look_for_stop,
        )
        return selected(image.flows, wanted, order, limit)

    def flow(self, flow_id: bytes) -> Flow | None:
        """Return one flow. Raises StoreError, ScanStoppedError."""
        try:
            found = find_flows(self._device, self._superblock, {flow_id}, self._is_stopped)
        except QueryStoppedError:
            raise ScanStoppedError from None
        # Read last: a removal that was answered before is known by now.
        if flow_id in read_removals(self._device, self._superblock).flows:
            return None
        return found.flows.get(flow_id)

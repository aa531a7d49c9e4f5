# SPDX-License-Identifier: Apache-2.0
"""Removing flows because somebody asked, from a store that no daemon serves.

Invariants: what is reported as removed is so on stable media; a flow that was
found and then is there no more counts as removed, whoever did it. One thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ingestd.errors import FlowNotFoundError, IngestdError, StoreError
from ingestd.store.device.device import Device
from ingestd.store.device.holder import write_holder
from ingestd.store.device.opening import open_locked
from ingestd.store.metadata.freed_record import Reclaimer, clear_headers
from ingestd.store.metadata.superblock import check_store, read_superblock
from ingestd.store.metadata.tombstones import FLOWS_MAX
from ingestd.store.read.flow_source import FlowFilter
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import StoreImage, id_prefix
from ingestd.store.reclaim.candidates import REASON_REMOVED
from ingestd.store.reclaim.sweep import Sweeper

# What cannot be undone is not done because of a typing mistake.
REMOVAL_DIGITS_MIN: Final = 8


class DeletionResult(NamedTuple):
    """The result for one flow: `error` None if it is removed; it had `bytes_count` bytes."""

    flow: str
    bytes_count: int
    error: IngestdError | None


@dataclass
class DeletionReport:
    """The results for the flows that were named, and the number of segments freed."""

    outcomes: list[DeletionResult] = field(default_factory=list)
    segments_freed_count: int = 0


def remove_flows(
    path: str, wanted: Sequence[str] = (), selected: FlowFilter | None = None
) -> DeletionReport:
    """Remove flows that are named by id or the first characters of it, and those selected.

    Raises UsageError, before anything is removed, if one of them is no id, or less than
    REMOVAL_DIGITS_MIN digits of one; StoreBusyError if a process holds the store,
    NotAStoreError, StoreDamagedError or StoreError; what concerns one flow is in the report.
    """
    for name in wanted:
        id_prefix(name, REMOVAL_DIGITS_MIN)
    with open_locked(path, wait_s=0) as device:
        deletion = _Deletion(path, wanted, selected)
        deletion.remove(device)
    return deletion.report


class _Deletion:
    """One removal from a store that this process holds."""

    def __init__(self, path: str, wanted: Sequence[str], selected: FlowFilter | None) -> None:
        self.report = DeletionReport()
        self._path = path
        self._wanted = list(dict.fromkeys(wanted))
        self._selected = selected
        self._flows: dict[bytes, Flow] = {}  # those found and not done

    def remove(self, device: Device) -> None:
        """Do it all; the result of each flow is in the report then."""
        superblock = read_superblock(device).superblock
        check_store(device, superblock)
        write_holder(device, superblock.store_uuid)
        # A daemon may have died before its flush: what is read must be there for good.
        device.sync()
        sweeper = Sweeper(
            device,
            superblock,
            Reclaimer(device, superblock),
            live=False,
            forget=lambda _: None,
            hand_out=lambda _: None,
        )
        image = sweeper.scan()
        clear_headers(device, superblock, image.half_freed)
        self._resolve(image)
        if len(self._flows) > sweeper.room_count:
            # More than the table has room for go with their segments, as far as they can.
            swept = sweeper.sweep(image, frozenset(self._flows), reason=REASON_REMOVED)
            self.report.segments_freed_count += len(swept.freed)
            for flow in self._flows.keys() & (swept.gone | sweeper.removed):
                self._done(flow)
            sweeper.drop(swept.gone)
            image = sweeper.scan()
        while True:
            fitting = list(self._flows)[: sweeper.room_count]
            sweeper.remove(fitting, REASON_REMOVED)
            for flow in fitting:
                self._done(flow)
            swept = sweeper.sweep(image)
            self.report.segments_freed_count += len(swept.freed)
            sweeper.drop(swept.gone)
            if not self._flows or not sweeper.room_count:
                break
            image = sweeper.scan()  # as segments have gone
        for flow in list(self._flows):
            self._done(flow, no_room_error(self._path, self._flows[flow].flow))

    def _resolve(self, image: StoreImage) -> None:
        by_id = {flow.flow: flow for flow in image.flows}
        for name in self._wanted:
            try:
                flow = by_id.get(name) or image.find(name)
            except FlowNotFoundError as error:
                self.report.outcomes.append(DeletionResult(name, 0, error))
            else:
                self._flows[flow.flow_id] = flow
        if self._selected is not None:
            matches = self._selected.matcher()
            self._flows |= {flow.flow_id: flow for flow in image.flows if matches(flow)}

    def _done(self, flow_id: bytes, error: IngestdError | None = None) -> None:
        flow = self._flows.pop(flow_id)
        bytes_count = flow.bytes - flow.first_offset
        self.report.outcomes.append(DeletionResult(flow.flow, bytes_count, error))


def no_room_error(path: str, flow: str) -> StoreError:
    """Return the error of a flow that is not removed as the table of removed flows is full."""
    return StoreError(
        f"flow {flow} of {path} was not removed, as {FLOWS_MAX} removed"
        " flows, the most there may be, wait for their segments to be reclaimed:"
        " that happens once nothing in these is kept; remove what lies beside them"
    )

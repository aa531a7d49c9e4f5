# SPDX-License-Identifier: Apache-2.0
"""Removing flows because somebody asked: in a store of our own, or by the daemon that serves it.

Invariants: what is reported as removed is so on stable media; a flow that was
found and then is there no more counts as removed, whoever did it. A daemon may
come and go meanwhile. One thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ingestd.errors import (
    FlowInUseError,
    FlowNotFoundError,
    IngestdError,
    StoreBusyError,
    StoreError,
)
from ingestd.store.device.claim import is_claimed
from ingestd.store.device.device import Device
from ingestd.store.device.holder import write_holder
from ingestd.store.device.opening import open_device, open_locked
from ingestd.store.metadata.freed_record import Reclaimer, clear_headers
from ingestd.store.metadata.request_block import (
    REQUESTS_MAX,
    UNANSWERED,
    Request,
    RequestBlock,
    RequestState,
)
from ingestd.store.metadata.superblock import check_store, read_superblock
from ingestd.store.metadata.tombstones import FLOWS_MAX
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import StoreImage, id_prefix, read_image
from ingestd.store.reclaim.candidates import REASON_REMOVED
from ingestd.store.reclaim.sweep import Sweeper

# The daemon looks for requests once a second, and reads the store's footers to decide.
ANSWER_TIMEOUT_S: Final = 30.0
# Once it has seen a request it will answer, however long reading a large store takes.
SEEN_TIMEOUT_S: Final = 600.0
# What cannot be undone is not done because of a typing mistake.
REMOVAL_DIGITS_MIN: Final = 8
POLL_INTERVAL_S: Final = 0.1
WITHDRAW_TRIES: Final = 3


class DeletionResult(NamedTuple):
    """The result for one flow: `error` None if it is removed; it had `bytes_count` bytes."""

    flow: str
    bytes_count: int
    error: IngestdError | None


@dataclass
class DeletionReport:
    """The results for the flows that were named, and the number of segments freed.

    `is_served`: a daemon did it, which gives segments back by and by.
    """

    outcomes: list[DeletionResult] = field(default_factory=list)
    segments_freed_count: int = 0
    is_served: bool = False


def remove_flows(
    path: str, wanted: Sequence[str], timeout_s: float = ANSWER_TIMEOUT_S
) -> DeletionReport:
    """Remove flows, each named by its id or the first characters of it.

    Raises UsageError, before anything is removed, if one of them is no id, or less than
    REMOVAL_DIGITS_MIN digits of one; StoreBusyError if a process that is no daemon
    holds the store for `timeout_s`, NotAStoreError, StoreDamagedError or StoreError;
    what concerns one flow is in the report.
    """
    for name in wanted:
        id_prefix(name, REMOVAL_DIGITS_MIN)
    removal = _Deletion(path, wanted, timeout_s)
    while not removal.alone() and not removal.by_daemon():
        time.sleep(POLL_INTERVAL_S)
    return removal.report


class _Deletion:
    """One command's work, which continues with what is left when a daemon starts or ends."""

    def __init__(self, path: str, wanted: Sequence[str], timeout_s: float) -> None:
        self.report = DeletionReport()
        self._path = path
        self._wanted = list(dict.fromkeys(wanted))
        self._timeout_s = timeout_s
        # Put off by every answer, and by each word that the daemon has seen a request.
        self._deadline_s = time.monotonic() + timeout_s
        self._is_seen = False  # by the daemon, since its last answer
        self._token = secrets.randbits(32)
        self._flows: dict[bytes, Flow] | None = None  # those found and not done; None: not looked

    # --- Without a daemon -----------------------------------------------------------

    def alone(self) -> bool:
        """Do it all, if the store can be had."""
        try:
            device = open_locked(self._path, wait_s=0)
        except StoreBusyError as error:
            if error.is_lasting or time.monotonic() >= self._deadline_s:
                raise
            return False
        with device:
            self.report.is_served = False
            self._remove(device)
        return True

    def _remove(self, device: Device) -> None:
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
        flows = self._resolve(image)
        present = {flow.flow_id for flow in image.flows}
        for flow in [flow for flow in flows if flow not in present]:
            self._done(flow)
        while True:
            fitting = list(flows)[: sweeper.room_count]
            sweeper.remove(fitting, REASON_REMOVED)
            for flow in fitting:
                self._done(flow)
            swept = sweeper.sweep(image)
            self.report.segments_freed_count += len(swept.freed)
            sweeper.drop(swept.gone)
            if not flows or not sweeper.room_count:
                break
            image = sweeper.scan()  # as segments have gone
        for flow in list(flows):
            self._done(flow, self._no_room(flow))

    def _resolve(self, image: StoreImage) -> dict[bytes, Flow]:
        """Find what was named, once: later it may be gone because we asked for it."""
        if self._flows is None:
            self._flows = {}
            by_id = {flow.flow: flow for flow in image.flows}
            for name in self._wanted:
                try:
                    flow = by_id.get(name) or image.find(name)
                except FlowNotFoundError as error:
                    self.report.outcomes.append(DeletionResult(name, 0, error))
                else:
                    self._flows[flow.flow_id] = flow
        return self._flows

    def _done(self, flow_id: bytes, error: IngestdError | None = None) -> None:
        assert self._flows is not None
        flow = self._flows.pop(flow_id)
        bytes_count = flow.bytes - flow.first_offset
        self._deadline_s = time.monotonic() + self._timeout_s
        self._is_seen = False
        self.report.outcomes.append(DeletionResult(flow.flow, bytes_count, error))

    # --- By the daemon --------------------------------------------------------------

    def by_daemon(self) -> bool:
        """Ask the daemon that holds the store; False if it went away before all was answered."""
        with open_device(self._path, write=True) as device:
            if not is_claimed(device):
                return False
            self.report.is_served = True
            superblock = read_superblock(device).superblock
            if self._flows is None:
                with read_image(self._path) as image:
                    self._resolve(image)
            box = RequestBlock(device, superblock)
            # What was read until now took its time, and was nobody's fault.
            self._deadline_s = time.monotonic() + self._timeout_s
            try:
                return self._ask(device, box)
            finally:
                self._withdraw(box)

    def _ask(self, device: Device, box: RequestBlock) -> bool:
        assert self._flows is not None
        while self._flows:
            with box.locked() as is_ours:
                if is_ours:
                    self._exchange(box)
            if not self._flows:
                break
            if not is_claimed(device):
                return False
            if time.monotonic() >= self._deadline_s:
                self._stop_waiting()
                break
            time.sleep(POLL_INTERVAL_S)
        return True

    def _exchange(self, box: RequestBlock) -> None:
        """Take the answers out of the block, and put in what is not asked yet."""
        assert self._flows is not None
        before = box.read()
        after = []
        asked = set()
        for request in before:
            is_mine = request.token == self._token and request.flow in self._flows
            if is_mine and request.state not in UNANSWERED:
                self._done(request.flow, self._error_of(request))
            else:
                after.append(request)
                asked.add(request.flow if is_mine else b"")
                if is_mine and request.state is RequestState.SEEN and not self._is_seen:
                    self._is_seen = True
                    self._deadline_s = time.monotonic() + max(self._timeout_s, SEEN_TIMEOUT_S)
        fresh = [flow for flow in self._flows if flow not in asked]
        room = max(0, REQUESTS_MAX - len(after))
        after += [Request(flow, self._token) for flow in fresh[:room]]
        if after != before:
            box.write(after)

    def _error_of(self, request: Request) -> IngestdError | None:
        assert self._flows is not None
        name = self._flows[request.flow].flow
        if request.state is RequestState.IN_USE:
            return FlowInUseError(
                f"flow {name} of {self._path} is being received: end its connection, and ask again"
            )
        if request.state is RequestState.NO_ROOM:
            return self._no_room(request.flow)
        return None

    def _no_room(self, flow: bytes) -> StoreError:
        assert self._flows is not None
        return StoreError(
            f"flow {self._flows[flow].flow} of {self._path} was not removed, as {FLOWS_MAX} removed"
            " flows, the most there may be, wait for their segments to be reclaimed:"
            " that happens once nothing in these is kept; remove what lies beside them"
        )

    def _stop_waiting(self) -> None:
        assert self._flows is not None
        for flow_id, flow in list(self._flows.items()):
            error = StoreBusyError(
                f"flow {flow.flow} of {self._path}: the process that holds the store did not"
                f" answer in time: see with ingestd ls whether it is removed, and ask again"
            )
            self._done(flow_id, error)

    def _withdraw(self, box: RequestBlock) -> None:
        """Leave nothing of ours in the block."""
        for _ in range(WITHDRAW_TRIES):
            with box.locked() as is_ours:
                if is_ours:
                    before = box.read()
                    after = [request for request in before if request.token != self._token]
                    if after != before:
                        box.write(after)
                    return
            time.sleep(POLL_INTERVAL_S)

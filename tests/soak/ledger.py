# SPDX-License-Identifier: Apache-2.0
"""Acknowledgements to senders, kept apart from the daemon and compared with what its stores show.

Invariants: a flow's bytes are known from its seed alone. What was acknowledged
is there, whole and right; it may be missing only where somebody removed the flow,
or where the store overwrites its oldest and this was among the oldest: then its
first bytes, and nothing else. Bytes that nobody sent are shown by no store.
note() is called by many threads; the rest by the driver's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final

from ingestd.errors import StoreError
from ingestd.store.format.segment import SegmentState, Span
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import StoreImage
from ingestd.store.read.reader import read_flow
from soak.content import HEAD_BYTES, Content, seed_of
from soak.sender import Begun
from support.observe import wait_until

# Of each worker: segments that it may be filling or have in reserve while others are reclaimed.
HELD_BY_WORKER_MAX: Final = 8
NEWS_TIMEOUT_S: Final = 20.0


@dataclass(slots=True)
class Record:
    """One flow; `told` bytes are acknowledged, and all of them if `checksum` is there."""

    store: str
    seed: int
    size: int
    begun: Begun | None = None  # None: a raw flow
    told: int = 0
    checksum: str | None = None
    connections_count: int = 0
    floor: int = 0  # no segment with a sequence below holds anything of it
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # bytes by sequence
    removal: str = ""  # "asked": it may go any moment; "done": it is gone


class Ledger:
    """All flows of all stores; `complaints` are sentences, each a failure."""

    def __init__(self, overwriting: set[str], workers_count: int) -> None:
        self.complaints: list[str] = []
        self.acknowledged_bytes = 0
        self.compared_bytes = 0
        self.heads_missing_count = 0
        self._overwriting = overwriting
        self._held_max = workers_count * HELD_BY_WORKER_MAX
        self._mutex = threading.Lock()
        self._flows: dict[str, Record] = {}
        self._raw: dict[int, Record] = {}  # by seed
        self._raw_peers: dict[str, list[Record]] = {}
        self._floors: dict[str, int] = {}

    # --- Reports of senders ----------------------------------------------------------

    def note(self, kind: str, *what: Any) -> None:
        """Take one report of a sender."""
        with self._mutex:
            getattr(self, f"_note_{kind}")(*what)

    def _note_complaint(self, text: str) -> None:
        self.complaints.append(text)

    def _note_begun(self, begun: Begun) -> None:
        floor = self._floors.get(begun.store, 0)
        self._flows[begun.flow] = Record(begun.store, begun.seed, begun.size, begun, floor=floor)

    def _note_raw(self, store: str, peer: str, seed: int, size: int) -> None:
        record = Record(store, seed, size, floor=self._floors.get(store, 0), connections_count=1)
        self._raw[seed] = record
        self._raw_peers.setdefault(peer, []).append(record)

    def _note_raw_answer(self, store: str, seed: int, answer: dict[str, Any]) -> None:
        record = self._flows[answer["flow"]] = self._raw[seed]
        self._note_told(answer["flow"], answer["bytes"])
        if answer["state"] == "sealed":
            record.checksum = answer["checksum"]

    def _note_accepted(self, flow: str, offset: int) -> None:
        record = self._flows[flow]
        record.connections_count += 1
        if offset < record.told and not self._may_be_gone(record):
            self.complaints.append(f"{flow} was accepted at {offset}: {record}")
        elif offset > record.told:
            self._note_told(flow, offset)

    def _note_told(self, flow: str, offset: int) -> None:
        record = self._flows[flow]
        self.acknowledged_bytes += max(0, offset - record.told)
        record.told = max(record.told, offset)

    def _note_sealed(self, flow: str, size: int, checksum: str) -> None:
        self._note_told(flow, size)
        self._flows[flow].checksum = checksum

    def _note_lost(self, flow: str, code: str) -> None:
        record = self._flows[flow]
        if not self._may_be_gone(record):
            self.complaints.append(f"{flow} was refused as {code}: {record}")

    def _may_be_gone(self, record: Record) -> bool:
        """Whether only a look at the store, which a sender does not have, can say more."""
        return bool(record.removal) or record.store in self._overwriting

    # --- What the driver does --------------------------------------------------------

    def unfinished(self, count: int) -> list[Begun]:
        """Flows of protocol ingest, the latest first, that somebody may resume."""
        with self._mutex:
            found = []
            for record in reversed(self._flows.values()):
                if record.begun and record.checksum is None and not record.removal:
                    found.append(record.begun._replace(told=record.told))
                if len(found) == count:
                    break
            return found

    def removable(self, store: str) -> list[str]:
        """Flows of a store that can be asked to go."""
        with self._mutex:
            flows = self._flows.items()
            return [f for f, r in flows if r.store == store and r.told and not r.removal]

    def note_removal(self, flows: Iterable[str], state: str) -> None:
        """Say that flows may go ("asked"), are gone ("done"), or stay ("")."""
        with self._mutex:
            for flow in flows:
                self._flows[flow].removal = state

    def forget(self, store: str) -> None:
        """A store was formatted anew."""
        with self._mutex:
            self._flows = {key: r for key, r in self._flows.items() if r.store != store}
            self._raw = {key: r for key, r in self._raw.items() if r.store != store}
            self._floors[store] = 0

    def counts(self) -> tuple[int, int]:
        """How many flows are known, and how many of them have a receipt."""
        with self._mutex:
            return len(self._flows), sum(r.checksum is not None for r in self._flows.values())

    # --- Comparing -------------------------------------------------------------------

    def snapshot(self, store: str) -> dict[str, Record]:
        """What is known now: an image that is read after this shows at least as much."""
        with self._mutex:
            return {f: copy(r) for f, r in self._flows.items() if r.store == store}

    def compare(
        self, name: str, known: dict[str, Record], image: StoreImage, read: list[Flow] | None = None
    ) -> None:
        """Compare an image with what was known before; the bytes of `read`, else of all flows.

        Raises AssertionError with what is wrong.
        """
        shown = {flow.flow: flow for flow in image.flows}
        judge = _Judge(image, is_overwriting=name in self._overwriting, held_max=self._held_max)
        for flow_id, record in known.items():
            flow = shown.get(flow_id)
            self.heads_missing_count += judge.judge(flow_id, record, flow)
        for flow in image.flows if read is None else read:
            self._compare_bytes(name, flow, image)
        self._note_places(name, image, shown)

    def _compare_bytes(self, name: str, flow: Flow, image: StoreImage) -> None:
        """Whatever a store shows of a flow is what was sent."""
        try:
            data = b"".join(read_flow(image, flow))
        except StoreError:
            # Overwritten while it was read.
            if not image.served or name not in self._overwriting:
                raise
            return
        record = wait_until(
            lambda: self._record_of(name, flow, data), f"somebody sent {flow}", NEWS_TIMEOUT_S
        )
        wrong_at = Content(record.seed).first_difference([data], flow.first_offset)
        assert wrong_at is None, f"{flow.flow} is wrong at byte {wrong_at}: {flow}, {record}"
        assert flow.first_offset + len(data) == flow.bytes <= record.size, (flow, record)
        if record.begun is not None and flow.first_offset == 0 and flow.protocol is not None:
            told = (record.begun.name, record.begun.labels)
            assert (flow.name, flow.labels) == told, (flow, record)
        self.compared_bytes += len(data)

    def compare_whole(self, record: Record, data: bytes) -> None:
        """These are all bytes of a flow with a receipt."""
        assert len(data) == record.size, (len(data), record)
        assert Content(record.seed).first_difference([data], 0) is None, record

    def _record_of(self, name: str, flow: Flow, data: bytes) -> Record | None:
        """Whose flow this is: by its id, by what it holds, or by its sender's address."""
        with self._mutex:
            record = self._flows.get(flow.flow)
            if record is not None:
                return record
            at = -flow.first_offset % (64 * 1024)
            if len(data) >= at + HEAD_BYTES:
                return self._raw.get(seed_of(data[at:]))
            for record in self._raw_peers.get(flow.peer or "", []):
                wanted = Content(record.seed).get(flow.first_offset, flow.bytes)
                if record.store == name and wanted == data and flow.bytes <= record.size:
                    return record
            # Too little is left of it to know whose it was.
            is_rest = flow.first_offset > 0 and name in self._overwriting
            return _rest(name, flow, self._raw.values(), data) if is_rest else None

    def _note_places(self, name: str, image: StoreImage, shown: dict[str, Flow]) -> None:
        """Remember where bytes lie, to know later whether they were among the oldest."""
        if name not in self._overwriting:
            return
        filling = [s.sequence for s in image.segments if s.state is SegmentState.OPEN]
        closed = [s.sequence for s in image.segments if s.state is SegmentState.CLOSED]
        with self._mutex:
            if image.served and filling:
                self._floors[name] = min(filling)
            elif closed:
                self._floors[name] = max(closed)
            for flow_id, flow in shown.items():
                record = self._flows.get(flow_id)
                if record is not None:
                    for span in flow.spans:
                        record.places[span.segment_sequence] = _place(span)


def _place(span: Span) -> tuple[int, int]:
    return span.first_offset, span.end_offset


def _rest(name: str, flow: Flow, records: Iterable[Record], data: bytes) -> Record | None:
    for record in records:
        wanted = Content(record.seed).get(flow.first_offset, flow.bytes)
        if record.store == name and flow.bytes <= record.size and wanted == data:
            return record
    return None


class _Judge:
    """Says of each flow whether an image shows what was acknowledged of it."""

    def __init__(self, image: StoreImage, *, is_overwriting: bool, held_max: int) -> None:
        self._is_overwriting = is_overwriting
        self._held_max = held_max
        self._is_served = image.served
        used = [s for s in image.segments if s.state is not SegmentState.FREE]
        self._present = {s.sequence for s in used}
        self._closed = sorted(s.sequence for s in used if s.state is SegmentState.CLOSED)
        self._freed = read_freed(image.device, image.superblock).sequence

    def judge(self, flow_id: str, record: Record, flow: Flow | None) -> bool:
        """Raise AssertionError if bytes are missing that should be there; whether any are."""
        what = f"{flow_id}: {record} is shown as {flow}"
        if record.removal == "asked" or record.told == 0:
            return False
        if record.removal == "done":
            assert flow is None or not flow.bytes, f"removed, and there: {what}"
            return False
        if flow is None:
            self._must_be_oldest(record, 0, record.told, what)
            return True
        end = flow.durable_bytes if self._is_served else flow.bytes
        if flow.first_offset:
            self._must_be_oldest(record, 0, flow.first_offset, what)
        if end < record.told:
            # Connections of several workers fill segments side by side: the later part of a
            # flow may lie in the older segment. What is behind the hole is not shown.
            assert record.connections_count > 1, what
            self._must_be_oldest(record, end, end + 1, what)
        elif self._has_lost_its_seal(record, flow):
            assert self._freed >= record.floor, what
        elif record.checksum is not None:
            assert (flow.state, flow.bytes) == ("sealed", record.size), what
            assert flow.checksum in (record.checksum, None), what
            assert flow.checksum or flow.first_offset, what
        return flow.first_offset > 0

    def _has_lost_its_seal(self, record: Record, flow: Flow) -> bool:
        """All bytes are there, and the last connection's record lay in an older segment."""
        is_lost = record.checksum is not None and flow.state != "sealed"
        return is_lost and self._is_overwriting and record.connections_count > 1

    def _must_be_oldest(self, record: Record, start: int, end: int, what: str) -> None:
        """The bytes [start, end) may be missing, as the store gave up its oldest segments."""
        assert self._is_overwriting, f"acknowledged, and missing: {what}"
        assert self._freed >= record.floor, f"younger than all that went: {what}"
        for sequence in _sequences_in(record, start, end):
            assert sequence not in self._present, f"missing, and its segment is there: {what}"
            older_count = sum(other < sequence for other in self._closed)
            assert older_count <= self._held_max, f"missing, and {older_count} older stay: {what}"


def _sequences_in(record: Record, start: int, end: int) -> Iterator[int]:
    """The segments in which bytes of [start, end) were seen."""
    for sequence, (first, behind) in record.places.items():
        if max(start, first) < min(end, behind):
            yield sequence

# SPDX-License-Identifier: Apache-2.0
"""Flows of many connections: over workers, lives of the daemon and crashes.

A model follows each flow: what was reported as durable must stay, what is shown
is a prefix of what was sent last, and a connection that resumes it does so at the
end of what recovery shows, or before, and then takes the place of the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestd.daemon.admission.flow_index import Known, known_of
from ingestd.store.device.device import Device
from ingestd.store.format import layout
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import DAMAGE, verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import Close, Extent, Item, Lost, Open, SegmentWriter, StoreBuilder

FLOWS = [bytes([0xF0 + number]) * 16 for number in range(3)]
WORKERS_COUNT = 2
LIVES_MAX = 3
STEPS_MAX = 12
SIZES = st.sampled_from([1, 511, 4096, 5000, 20_000])
LOST: tuple[Lost, ...] = ("no", "all", "header", "payload", "payload_tail")


@pytest.fixture(autouse=True, scope="module")
def _no_flush() -> Iterator[None]:
    """No machine fails here in mid-test: what a flush is for is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "sync", lambda _device: None)
        yield


@dataclass
class Truth:
    """What is known of a flow besides the builder's model of its bytes."""

    durable: int = 0  # reported to the sender
    sealed: bool = False
    live: bool = False
    worker: int = 0


@dataclass
class Life:
    """One run of a daemon: a segment for each worker, and how much of it is committed."""

    builder: StoreBuilder
    checksum: bool
    segments: list[SegmentWriter] = field(default_factory=list)
    waiting: list[list[tuple[bytes, int]]] = field(default_factory=list)

    def write(self, worker: int, *items: Item, lost: Lost = "no") -> None:
        self.segments[worker].batch(*items, checksum=self.checksum, lost=lost)
        for item in items:
            end = len(self.builder.model(item.flow).data)
            self.waiting[worker].append((item.flow, end))

    def commit(self, worker: int, truths: dict[bytes, Truth]) -> None:
        self.segments[worker].mark(self.segments[worker].batch_count)
        for flow, end in self.waiting[worker]:
            truths[flow].durable = max(truths[flow].durable, end)
        self.waiting[worker].clear()


class Lives:
    """Draws the lives of a store, one after the other, in one file."""

    def __init__(self, data: st.DataObject, path: Path) -> None:
        self.data = data
        self.path = path
        self.builder = StoreBuilder(segment_count=WORKERS_COUNT * LIVES_MAX)
        self.truths = {flow: Truth() for flow in FLOWS}
        self.shown: dict[bytes, bytes] = {}  # at the last restart
        self.bytes_made = 0
        self.index = 0

    def contents(self, size: int) -> bytes:
        """Bytes that were never sent before."""
        self.bytes_made += 1
        return (b"%d;" % self.bytes_made * (size // 2 + 1))[:size]

    def begin_life(self) -> Life:
        life = Life(self.builder, self.data.draw(st.sampled_from([True, True, False])))
        for worker in range(WORKERS_COUNT):
            life.segments.append(self.builder.segment(self.index, worker_index=worker))
            life.waiting.append([])
            self.index += 1
        return life

    def step(self, life: Life) -> None:
        flow = self.data.draw(st.sampled_from(FLOWS))
        truth = self.truths[flow]
        if truth.sealed:
            return
        if not truth.live:
            truth.worker = self.data.draw(st.integers(0, WORKERS_COUNT - 1))
            truth.live = True
            life.write(truth.worker, Open(flow, protocol=2), self.some(flow))
        elif self.data.draw(st.booleans()):
            life.write(truth.worker, self.some(flow))
        else:
            # A connection ends by a CLOSE record that is committed: only then another begins.
            truth.sealed = self.data.draw(st.integers(0, 2)) == 0
            state = layout.FLOW_STATE_SEALED if truth.sealed else layout.FLOW_STATE_INTERRUPTED
            life.write(truth.worker, Close(flow, state, layout.CLOSE_REASON_NONE))
            life.commit(truth.worker, self.truths)
            truth.live = False

    def some(self, flow: bytes) -> Extent:
        return Extent(flow, self.contents(self.data.draw(SIZES)))

    def crash(self, life: Life) -> None:
        """The last batches of each worker were under way: any of them may be lost, or torn."""
        for worker in range(WORKERS_COUNT):
            for _ in range(self.data.draw(st.integers(0, 3))):
                flows = [
                    flow
                    for flow, truth in self.truths.items()
                    if truth.live and truth.worker == worker
                ]
                if flows:
                    flow = self.data.draw(st.sampled_from(flows))
                    lost = self.data.draw(st.sampled_from(LOST))
                    life.write(worker, self.some(flow), lost=lost)
        for truth in self.truths.values():
            truth.live = False

    def restart(self) -> None:
        """Recover, compare with the model, and resume the flows where they are to be."""
        self.builder.save(self.path)
        with open_for_serving(str(self.path)) as store:
            assert store.recovery.segments_damaged == 0
            known = {flow.flow_id: known_of(flow) for flow in store.take_recovered_flows()}
            self.builder.generation = store.superblock.generation
        self.builder.counter = 0
        self.builder.image = bytearray(self.path.read_bytes())
        self.check(known)
        for flow, model in self.builder.flows.items():
            truth, found = self.truths[flow], known.get(flow, Known(False, 0, 0, True))
            if truth.sealed:
                continue
            base, crc, has_crc = found.bytes_count, found.crc, found.is_crc_known
            if base and self.data.draw(st.integers(0, 4)) == 0:
                # A daemon that knows less may let a flow resume earlier.
                base = self.data.draw(st.integers(0, base - 1))
                crc, has_crc = 0, base == 0
                truth.durable = min(truth.durable, base)
            model.data = bytearray(self.shown.get(flow, b"")[:base])
            model.crc, model.has_crc = crc, has_crc

    def check(self, known: dict[bytes, Known]) -> None:
        with read_image(str(self.path)) as image:
            shown = {flow.flow_id: flow for flow in image.flows}
            assert shown.keys() == known.keys()
            for flow, truth in self.truths.items():
                sent = bytes(self.builder.model(flow).data)
                if flow not in shown:
                    assert truth.durable == 0
                    continue
                found = b"".join(read_flow(image, shown[flow]))
                assert len(found) == known[flow].bytes_count >= truth.durable
                assert self.is_right(flow, found, sent)
                assert known[flow].is_sealed == truth.sealed
                if known[flow].is_crc_known and shown[flow].checksum:
                    assert shown[flow].checksum == f"crc32c:{crc32c(found):08x}"
        damages = [f for f in verify_store(str(self.path)).findings if f.severity == DAMAGE]
        assert damages == []

    def is_right(self, flow: bytes, found: bytes, sent: bytes) -> bool:
        """What is shown are the first bytes sent; or, where a connection that resumed
        earlier has left nothing, still those that it was to replace."""
        is_right = found in (sent[: len(found)], self.shown.get(flow))
        self.shown[flow] = found
        return is_right


@settings(
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_flows_go_on_over_lives_and_workers(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        lives = Lives(data, Path(directory) / "store.img")
        for _ in range(data.draw(st.integers(1, LIVES_MAX))):
            life = lives.begin_life()
            for _ in range(data.draw(st.integers(0, STEPS_MAX))):
                lives.step(life)
            lives.crash(life)
            lives.restart()

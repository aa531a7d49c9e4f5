# SPDX-License-Identifier: Apache-2.0
"""The catalogue's answers over random lives of a store are those of a reading of all of it.

Hypothesis prints the steps that failed and how to run them again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestd.errors import StoreError
from ingestd.store.catalogue import schema
from ingestd.store.device.device import Device
from ingestd.store.format import layout
from ingestd.store.metadata.superblock import SuperblockReading
from ingestd.store.read.flow_source import FlowFilter, FlowOrder, FlowSort, selected
from ingestd.store.read.flows import STATES, Flow
from ingestd.store.read.image import StoreImage, image_of
from ingestd.store.reclaim.candidates import flows_gone, plan_reclaim
from ingestd.store.reclaim.eviction import Evictor
from ingestd.store.serve.served_store import ServedStore, open_for_serving
from support.store_builder import MIB, SegmentWriter, StoreBuilder
from support.store_histories import FLOWS_MAX, History, fill_segment, flow_id, histories

CAREFUL = settings(
    max_examples=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
STEPS_MIN, STEPS_MAX = 8, 20
FLOWS = [flow_id(number) for number in range(FLOWS_MAX)]


@pytest.fixture(autouse=True, scope="module")
def _no_flush_and_copies_count() -> Iterator[None]:
    """Flushes cost time; and a copy of a catalogue, which is refused, stands for an older one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "sync", lambda _device: None)
        patch.setattr(schema, "_inode", lambda _path: 0)
        yield


class World:
    """A store on a file, a daemon's part of it while it is open, and its catalogue."""

    def __init__(self, history: History, directory: Path, draw: st.DrawFn) -> None:
        self.history = history
        self.builder: StoreBuilder = history.builder
        self.path = self.builder.save(directory / "store.img")
        self.catalogues = directory / "catalogues"
        self.older = directory / "older"
        self.draw = draw
        self.store: ServedStore | None = None
        self.unclosed: list[SegmentWriter] = []

    # --- Steps ----------------------------------------------------------------------

    def open(self) -> None:
        """The daemon starts anew; the one before had no time to end."""
        self.kill()
        self.store = open_for_serving(str(self.path), catalogues=self.catalogues)
        self.builder.generation = self.store.superblock.generation

    def kill(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store, self.unclosed = None, []

    def turn(self) -> None:
        if self.store is not None and self.store.feeder is not None:
            self.store.feeder.turn()

    def write(self) -> None:
        """A worker fills a segment, and has not ended it yet, or has."""
        granted = self.store.take_segment() if self.store is not None else None
        if granted is None:
            return
        index, sequence = granted
        if self.draw(st.integers(0, 4)) == 0:
            return  # it was granted, and is not begun
        self._read()
        self.builder.counter = (sequence & layout.SEQUENCE_COUNTER_MAX) - 1
        writer = self.builder.segment(index)
        assert writer.sequence == sequence
        fill_segment(self.draw, self.history, writer, FLOWS, self.draw(st.booleans()), True)
        self._save(index)
        block = writer.base + MIB - self.builder.block_bytes
        footer = self.builder.image[block : block + 40]
        if not (
            footer[:8] == layout.FOOTER_MAGIC and footer[32:] == sequence.to_bytes(8, "little")
        ):
            self.unclosed.append(writer)

    def fill(self) -> None:
        """A worker fills a segment and ends it."""
        self.write()
        self.end()

    def end(self) -> None:
        """A segment that a worker fills gets its footer."""
        if not self.unclosed:
            return
        writer = self.unclosed.pop(0)
        self._read()
        writer.close()
        self._save(writer.index)

    def remove(self) -> None:
        if self.store is not None:
            flows = self.draw(st.sets(st.sampled_from(FLOWS), max_size=3))
            self.store.sweeper.remove(flows, "removed")

    def sweep(self) -> None:
        if self.store is not None:
            expired = frozenset(self.draw(st.sets(st.sampled_from(FLOWS), max_size=3)))
            image = self.store.removal_image((), lambda: False)
            if image is None or expired:
                image = self.store.sweeper.scan()
            self.store.sweeper.sweep(image, expired)

    def check_removal(self, image: StoreImage) -> None:
        """Compare what would be removed and reclaimed with what the whole store says."""
        assert self.store is not None
        whole = self.image()
        assert {f.flow_id: f.bytes for f in image.flows} == {
            f.flow_id: f.bytes for f in whole.flows if f.flow_id in FLOWS[:2]
        }
        for removed in (self.store.sweeper.removed, self.store.sweeper.removed | set(FLOWS[:2])):
            plans = [plan_reclaim(i.segments, removed=removed) for i in (image, whole)]
            indexes = [[item.segment.index for item in plan.segments] for plan in plans]
            assert indexes[0] == indexes[1]
            gone = [flows_gone(i.segments, set(indexes[0]), removed) for i in (image, whole)]
            assert gone[0] == gone[1]

    def evict(self) -> None:
        """The oldest closed segment goes, as in a store that overwrites."""
        if self.store is None:
            return
        store = self.store
        segments = [(s.sequence, s.index) for s in self.image().segments if s.sequence]
        evictor = Evictor(
            store._device,
            store.superblock,
            store._reclaimer,
            segments,
            usable_count=99,
            workers_count=1,
        )
        index = evictor.recycle()
        if index is not None:
            store._hand_out(index)

    def damage(self) -> None:
        """A block of a segment that nobody writes to goes bad, while no daemon runs."""
        self.kill()
        index = self.draw(st.integers(0, self.builder.segment_count - 1))
        block = self.draw(st.sampled_from((0, 1, layout.SEGMENT_DATA_BLOCK, -1)))
        self._read()
        base = layout.SEGMENTS_OFFSET + index * MIB
        at = base + block * self.builder.block_bytes + (MIB if block < 0 else 0)
        self.builder.image[at + 40] ^= 1
        self._save(index)

    def keep(self) -> None:
        """Keep a copy of the catalogue as it is at this moment."""
        shutil.rmtree(self.older, ignore_errors=True)
        if self.catalogues.exists():
            shutil.copytree(self.catalogues, self.older)

    def put_back(self) -> None:
        """The catalogue is the one of an earlier time, or gone, or not one at all."""
        self.kill()
        shutil.rmtree(self.catalogues, ignore_errors=True)
        if self.older.exists():
            shutil.copytree(self.older, self.catalogues)
        kind = self.draw(st.sampled_from(("older", "older", "truncated", "garbage")))
        for file in self.catalogues.glob("*.sqlite") if kind != "older" else ():
            data = file.read_bytes()
            half = data[: len(data) // 2]
            file.write_bytes(half if kind == "truncated" else b"\x5a" * 4096 + data[4096:])

    def _read(self) -> None:
        self.builder.image[:] = self.path.read_bytes()

    def _save(self, index: int) -> None:
        base = layout.SEGMENTS_OFFSET + index * MIB
        with self.path.open("r+b") as file:
            file.seek(base)
            file.write(self.builder.image[base : base + MIB])

    # --- What is compared -----------------------------------------------------------

    def image(self) -> StoreImage:
        assert self.store is not None
        return image_of(
            self.store._device,
            SuperblockReading(self.store.superblock, ()),
            live=True,
            thorough=False,
        )

    def check(self) -> None:
        """Compare listings and look-ups with a reading of the whole store."""
        if self.store is None:
            return
        feeder = self.store.feeder
        assert feeder is not None
        assert feeder.is_ready
        image = self.image()
        shown = {flow.flow_id: flow for flow in image.flows}
        source = feeder.answers()  # what flow_source() asks, if nothing fails
        assert source is not None
        for order in (FlowOrder(), FlowOrder(FlowSort.BYTES, True), FlowOrder(FlowSort.NAME)):
            expected = [replace(f, spans=()) for f in selected(image.flows, order=order)]
            assert [replace(f, spans=()) for f in source.flows(order=order)] == expected
        wanted = FlowFilter(states=frozenset(self.draw(st.sets(st.sampled_from(STATES)))))
        expected = [replace(f, spans=()) for f in selected(image.flows, wanted, limit=2)]
        assert [replace(f, spans=()) for f in source.flows(wanted, limit=2)] == expected
        for flow in FLOWS:
            assert _whole(source.flow(flow)) == _whole(shown.get(flow))
        is_whole = source.find(set(FLOWS)).is_whole
        assert is_whole == (image.segment_counts()["damaged"] == 0)
        removal_image = self.store.removal_image(FLOWS[:2], lambda: False)
        if removal_image is not None:
            self.check_removal(removal_image)


def _whole(flow: Flow | None) -> tuple[Any, ...] | None:
    """What is read of a flow, and where; not what was known durable of an ended generation."""
    if flow is None:
        return None
    spans = [
        (s.segment_index, s.segment_sequence, s.first_offset, s.end_offset, s.first_batch_block)
        for s in flow.spans
    ]
    return replace(flow, spans=()), spans


@CAREFUL
@given(data=st.data(), history=histories(stale=False))
def test_answers_are_those_of_the_whole_store(data: st.DataObject, history: History) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(history, Path(directory), data.draw)
        steps: list[Callable[[], None]] = [
            *(world.open, world.turn, world.write, world.end, world.remove, world.sweep),
            *(world.evict, world.damage, world.keep, world.put_back),
            *(
                world.fill,
                world.fill,
                world.fill,
                world.turn,
                world.turn,
                world.evict,
            ),  # more often
        ]
        world.open()
        try:
            world.check()
            for _ in range(data.draw(st.integers(STEPS_MIN, STEPS_MAX))):
                step = data.draw(st.sampled_from(steps))
                try:
                    step()
                except StoreError:
                    assert step in (world.open, world.sweep), step
                world.check()
        finally:
            world.kill()

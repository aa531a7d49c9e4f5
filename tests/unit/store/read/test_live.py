# SPDX-License-Identifier: Apache-2.0
"""Reading a store while somebody writes it: nothing acknowledged is missing, nothing is wrong."""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.scan import Scanner
from ingestd.store.read.verify import verify_store
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16
BATCHES = 150


class LiveBuilder(StoreBuilder):
    """Writes everything to the file at once, each write in two halves, the later half first."""

    def __init__(self, path: Path, **arguments: Any) -> None:
        self.fd = -1
        super().__init__(**arguments)
        self.save(path)
        self.fd = os.open(path, os.O_RDWR)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def put(self, offset: int, data: bytes, *, used: bool) -> None:
        super().put(offset, data, used=used)
        if self.fd >= 0:
            middle = len(data) // 2
            os.pwrite(self.fd, data[middle:], offset + middle)
            os.pwrite(self.fd, data[:middle], offset)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveBuilder]:
    """A store of 24 segments that this process holds as its daemon would."""
    builder = LiveBuilder(tmp_path / "store.img", segment_count=24)
    yield builder
    os.close(builder.fd)


@pytest.mark.parametrize("checksum", [True, False])
def test_what_is_acknowledged_is_always_there(
    live: LiveBuilder, tmp_path: Path, seed: int, checksum: bool
) -> None:
    chance = random.Random(seed)
    acknowledged: dict[bytes, int] = {}
    failures: list[BaseException] = []

    def write() -> None:
        try:
            _fill(live, chance, acknowledged, checksum)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    path, images = str(tmp_path / "store.img"), 0
    while writer.is_alive() or images == 0:
        expected = dict(acknowledged)
        with read_image(path) as image:
            assert (image.served, image.warnings) == (True, [])
            flows = {flow.flow_id: flow for flow in image.flows}
            for flow_id, durable_bytes in expected.items():
                assert flows[flow_id].durable_bytes >= durable_bytes
            for flow in chance.sample(image.flows, min(4, len(image.flows))):
                shown = b"".join(read_flow(image, flow))
                assert len(shown) == flow.bytes
                assert live.flows[flow.flow_id].data.startswith(shown)
        assert verify_store(path).findings == []
        images += 1
    writer.join()
    assert failures == []
    with read_image(path) as image:
        assert {f.flow_id: f.durable_bytes for f in image.flows} == acknowledged
        assert {f.state for f in image.flows} == {"sealed"}


def _fill(
    live: LiveBuilder, chance: random.Random, acknowledged: dict[bytes, int], checksum: bool
) -> None:
    """Write flows of a few batches, with a mark behind each, as long as there is room."""
    free = iter(range(live.segment_count))
    segment = live.segment(next(free))
    for number in range(BATCHES):
        flow = number.to_bytes(2, "little") * 8
        data = chance.randbytes(chance.choice((1, 4096, 40_000)))
        if segment.room_bytes < 200_000:
            segment.close()
            segment = live.segment(next(free))
        segment.batch(Open(flow), Extent(flow, data), checksum=checksum)
        segment.batch(Extent(flow, data[::-1]), Close(flow), checksum=checksum)
        segment.mark(segment.batch_count)
        acknowledged[flow] = 2 * len(data)


def test_a_segment_that_begins_another_life_is_scanned_again(
    live: LiveBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = b"\x0d" * 16, b"\x0e" * 16
    first = live.segment(0)
    first.batch(Open(old), Extent(old, b"old" * 3000))
    walk = Scanner._walk
    swaps: list[int] = []

    def swapping_walk(scanner: Scanner, image: SegmentImage, *, footer_remains: bool) -> None:
        if not swaps:
            swaps.append(image.sequence)
            again = live.segment(0)
            again.batch(Open(new), Extent(new, b"new" * 10))
        walk(scanner, image, footer_remains=footer_remains)

    monkeypatch.setattr(Scanner, "_walk", swapping_walk)
    with read_image(str(tmp_path / "store.img")) as image:
        assert [flow.flow_id for flow in image.flows] == [new]
        assert image.segments[0].state is SegmentState.OPEN
        assert image.segments[0].sequence == swaps[0] + 1
        assert image.warnings == []


def test_a_daemon_that_starts_meanwhile_changes_what_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generation rises between the superblock's reading and the segments'."""
    builder = StoreBuilder()
    builder.segment(0).batch(Open(FLOW), Extent(FLOW, b"x" * 10))
    path = builder.save(tmp_path / "store.img")
    scan = Scanner.scan
    fds: list[int] = []

    def starting_scan(scanner: Scanner, index: int) -> SegmentImage:
        if not fds and index == 0:
            fds.append(os.open(path, os.O_RDWR))
            fcntl.flock(fds[0], fcntl.LOCK_EX)
            builder.raise_generation()
            builder.save(path)
        return scan(scanner, index)

    monkeypatch.setattr(Scanner, "scan", starting_scan)
    try:
        with read_image(str(path)) as image:
            assert image.superblock.generation == 2
            assert image.served
            assert image.find("ab").state == "interrupted"
            assert image.find("ab").durable_bytes == 10
    finally:
        os.close(fds[0])

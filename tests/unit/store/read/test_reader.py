# SPDX-License-Identifier: Apache-2.0
"""Reading flows back: every range, damage before it is given out, and what stays unread."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.errors import StoreDamagedError, UsageError
from ingestd.store.device.device import Device
from ingestd.store.read import reader
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16
OTHER = b"\xcd" * 16
MIB = 1024 * 1024
SEED = 20231114


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


def mixed(segment_bytes: int = MIB) -> StoreBuilder:
    """Two flows in three segments, with extents of many sizes."""
    builder = StoreBuilder(segment_bytes=segment_bytes)
    chance = random.Random(SEED)
    for index in (2, 0, 3):
        segment = builder.segment(index)
        if index == 2:
            segment.batch(Open(FLOW), Open(OTHER))
        while segment.room_bytes > 200_000:
            pieces = [
                Extent(chance.choice((FLOW, FLOW, OTHER)), chance.randbytes(chance.choice(SIZES)))
                for _ in range(chance.randint(1, 5))
            ]
            segment.batch(*pieces)
        segment.close()
    return builder


SIZES = (1, 511, 512, 1448, 4096, 30_000)


def test_every_range(path: Path) -> None:
    builder = mixed()
    builder.save(path)
    chance = random.Random(SEED)
    with read_image(str(path)) as image:
        for flow_id in (FLOW, OTHER):
            flow = image.find(flow_id.hex())
            sent = bytes(builder.flows[flow_id].data)
            assert b"".join(read_flow(image, flow)) == sent
            assert b"".join(read_flow(image, flow, flow.bytes)) == b""
            assert b"".join(read_flow(image, flow, 0, 0)) == b""
            for _ in range(40):
                offset = chance.randrange(len(sent))
                length = chance.choice((1, 100, 5000, 300_000, len(sent)))
                got = b"".join(read_flow(image, flow, offset, length))
                assert got == sent[offset : offset + length], (SEED, offset, length)


def test_two_readers_do_not_disturb_each_other(path: Path) -> None:
    builder = mixed()
    builder.save(path)
    with read_image(str(path)) as image:
        flows = [image.find(flow.hex()) for flow in (FLOW, OTHER, FLOW)]
        readers = [read_flow(image, flow) for flow in flows]
        got = [bytearray() for _ in readers]
        busy = set(range(len(readers)))
        while busy:
            for number in sorted(busy):
                piece = next(readers[number], None)
                if piece is None:
                    busy.discard(number)
                else:
                    got[number] += piece
        assert got == [builder.flows[flow.flow_id].data for flow in flows]


def test_positions_that_make_no_sense(path: Path) -> None:
    mixed().save(path)
    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        with pytest.raises(UsageError, match="behind its end"):
            read_flow(image, flow, flow.bytes + 1)
        for offset, length in ((-1, None), (0, -1)):
            with pytest.raises(UsageError, match="negative"):
                read_flow(image, flow, offset, length)


def drain(pieces: Iterator[bytes], got: bytearray) -> None:
    for piece in pieces:
        got += piece


def damaged(path: Path, builder: StoreBuilder, at: int) -> None:
    builder.image[at] ^= 1
    builder.save(path)


def simple(*, checksum: bool = True) -> tuple[StoreBuilder, int]:
    """Three batches of one flow in a closed segment; also where the segment begins."""
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 4096), checksum=checksum)
    segment.batch(Extent(FLOW, b"b" * 4096), checksum=checksum)
    segment.batch(Extent(FLOW, b"c" * 4096), Close(FLOW), checksum=checksum)
    segment.close()
    return builder, segment.base


def test_damage_is_not_given_out(path: Path) -> None:
    builder, base = simple()
    damaged(path, builder, base + 4 * 4096 + 3 * 4096)
    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        got = bytearray()
        with pytest.raises(StoreDamagedError, match=r"bytes 4096 to 8192 .* checksum"):
            drain(read_flow(image, flow), got)
        assert got == b"a" * 4096, "what is before the damage can be had"
        assert b"".join(read_flow(image, flow, 8192)) == b"c" * 4096, "and what is behind it"
        assert b"".join(read_flow(image, flow, 0, 4096)) == b"a" * 4096


def test_a_damaged_header_is_not_passed_over(path: Path) -> None:
    builder, base = simple()
    damaged(path, builder, base + 6 * 4096 + 30)
    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        with pytest.raises(StoreDamagedError, match=r"segment 0.*no whole batch header"):
            b"".join(read_flow(image, flow))
        assert b"".join(read_flow(image, flow, 0, 4096)) == b"a" * 4096


def test_checksums_must_join(path: Path) -> None:
    """Every extent is right by itself, but they are not of one stream."""
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 100))
    builder.flows[FLOW].crc ^= 1
    segment.batch(Extent(FLOW, b"b" * 100))
    segment.close()
    builder.save(path)
    with (
        read_image(str(path)) as image,
        pytest.raises(StoreDamagedError, match="before and behind byte 100 disagree"),
    ):
        b"".join(read_flow(image, image.find(FLOW.hex())))


def test_without_checksums_nothing_is_checked(path: Path) -> None:
    builder, base = simple(checksum=False)
    damaged(path, builder, base + 4 * 4096 + 3 * 4096)
    with read_image(str(path)) as image:
        got = b"".join(read_flow(image, image.find(FLOW.hex())))
        assert len(got) == 12288
        assert got != builder.flows[FLOW].data


def test_large_extents_come_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of one read is lowered, so that an extent exceeds it."""
    limit = 64 * 1024
    monkeypatch.setattr(reader, "READ_BYTES_MAX", limit)
    builder = StoreBuilder()
    segment = builder.segment(0)
    chance = random.Random(SEED)
    segment.batch(Open(FLOW), Extent(FLOW, chance.randbytes(5 * limit + 7)))
    segment.close()
    builder.save(path)
    sent = bytes(builder.flows[FLOW].data)
    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        assert b"".join(read_flow(image, flow)) == sent
        first, end = limit + 100, 3 * limit + 5
        assert b"".join(read_flow(image, flow, first, end - first)) == sent[first:end]
    damaged(path, builder, segment.base + 5 * 4096)
    with read_image(str(path)) as image:
        got = bytearray()
        with pytest.raises(StoreDamagedError, match="checksum"):
            drain(read_flow(image, image.find(FLOW.hex())), got)
        assert len(got) < len(sent), "the last piece comes only when the checksum was right"


def test_a_flow_alone_is_read_in_large_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = StoreBuilder(segment_bytes=8 * MIB, segment_count=1)
    segment = builder.segment(0)
    segment.batch(Open(FLOW))
    for _ in range(100):
        segment.batch(Extent(FLOW, b"z" * 60_000))
    segment.close()
    builder.save(path)
    reads: list[int] = []
    fill = Device.fill

    def counting(device: Device, offset: int, memory: memoryview) -> int:
        reads.append(len(memory))
        return fill(device, offset, memory)

    with read_image(str(path)) as image:
        flow = image.find(FLOW.hex())
        monkeypatch.setattr(Device, "fill", counting)
        assert sum(map(len, read_flow(image, flow))) == 6_000_000
    assert len(reads) <= 6
    assert sum(reads) < 8_000_000, "what was read twice is little"

# SPDX-License-Identifier: Apache-2.0
"""What the image of a store shows: states, durable bytes, holes, and what it refuses to show."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from crc32c import crc32c

from ingestd.errors import FlowNotFoundError, NotAStoreError, StoreDamagedError, StoreError
from ingestd.store.format import layout
from ingestd.store.format.segment import SegmentState
from ingestd.store.read.image import StoreImage, read_image
from ingestd.store.read.reader import read_flow
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16
OTHER = b"\xcd" * 16
ID = "abababab-abab-abab-abab-abababababab"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


def image_of(builder: StoreBuilder, path: Path) -> StoreImage:
    return read_image(str(builder.save(path)))


def bytes_of(image: StoreImage, flow: bytes) -> bytes:
    return b"".join(read_flow(image, image.find(flow.hex())))


def test_a_fresh_store_is_empty(path: Path) -> None:
    with image_of(StoreBuilder(label="fresh"), path) as image:
        assert image.flows == []
        assert image.superblock.label == "fresh"
        assert image.segment_counts() == {"free": 4, "open": 0, "closed": 0, "damaged": 0}
        assert (image.served, image.warnings) == (False, [])


def test_a_sealed_flow_shows_everything(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(2)
    segment.batch(Open(FLOW, name="run-7", labels="a=1\nb=x=y"), Extent(FLOW, b"x" * 5000))
    segment.batch(Extent(FLOW, b"y" * 70000), Close(FLOW))
    segment.close()
    with image_of(builder, path) as image:
        flow = image.find("ab")
        assert flow.as_dict() == {
            "flow": ID,
            "name": "run-7",
            "peer": "192.0.2.1:4000",
            "listener": "data",
            "state": "sealed",
            "bytes": 75000,
            "durable_bytes": 75000,
            "started": "2026-01-02T00:00:02.123456Z",
            "ended": "2026-01-02T00:00:04.123456Z",
            "checksum": f"crc32c:{crc32c(b'x' * 5000 + b'y' * 70000):08x}",
            "first_offset": 0,
            "head_overwritten": False,
            "labels": {"a": "1", "b": "x=y"},
            "protocol": "raw",
            "reason": None,
            "missing": [],
        }
        assert image.segments[2].state is SegmentState.CLOSED
        assert bytes_of(image, FLOW) == b"x" * 5000 + b"y" * 70000


@pytest.mark.parametrize("closed", [False, True])
def test_an_empty_flow_can_be_sealed(path: Path, closed: bool) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW, peer=(6, b"\0" * 15 + b"\1", 5)), Close(FLOW))
    if closed:
        segment.close()
    with image_of(builder, path) as image:
        flow = image.find(ID)
        assert (flow.state, flow.bytes, flow.checksum) == ("sealed", 0, "crc32c:00000000")
        assert flow.peer == "[::1]:5"
        assert bytes_of(image, FLOW) == b""


def test_flows_share_batches_and_span_segments(path: Path) -> None:
    builder = StoreBuilder()
    first = builder.segment(3)
    first.batch(Open(FLOW), Open(OTHER), Extent(FLOW, b"a" * 777), Extent(OTHER, b"b" * 1448))
    first.batch(Extent(OTHER, b"c" * 3), Extent(FLOW, b"d" * 4097))
    first.close()
    second = builder.segment(1)
    second.batch(Extent(FLOW, b"e"), Close(FLOW), Extent(OTHER, b"f" * 9000))
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == builder.flows[FLOW].data
        assert bytes_of(image, OTHER) == builder.flows[OTHER].data
        assert [f.state for f in image.flows] == ["sealed", "interrupted"]
        # The open segment's batch was never covered by anything.
        assert image.find("cd").durable_bytes == 1451
        assert image.find("cd").bytes == 10451


@pytest.mark.parametrize("lost", ["all", "header", "payload", "payload_tail"])
def test_a_torn_batch_ends_the_scan(path: Path, lost: str) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 10000))
    segment.batch(Extent(FLOW, b"b" * 10000), lost=lost)  # type: ignore[arg-type]
    segment.batch(Extent(FLOW, b"c" * 10000), Close(FLOW))
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == b"a" * 10000
        assert image.find(ID).state == "interrupted"
        assert image.segments[0].state is SegmentState.OPEN
        dropped = 2 if lost.startswith("payload") else 0
        assert image.segments[0].batches_dropped == dropped


def test_without_checksums_only_a_mark_proves(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000), checksum=False)
    segment.batch(Extent(FLOW, b"b" * 1000), checksum=False)
    segment.batch(Extent(FLOW, b"c" * 1000), checksum=False)
    with image_of(builder, path) as image:
        assert image.flows == []
    segment.mark(1)
    segment.mark(2)
    with image_of(builder, path) as image:
        flow = image.find(ID)
        assert (flow.bytes, flow.durable_bytes, flow.checksum) == (2000, 2000, None)
        assert bytes_of(image, FLOW) == b"a" * 1000 + b"b" * 1000
        assert image.segments[0].batches_dropped == 1


def test_a_later_header_proves_too(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000), checksum=False)
    segment.batch(Extent(FLOW, b"b" * 1000), checksum=False, committed=1)
    with image_of(builder, path) as image:
        assert image.find(ID).bytes == 1000


def test_a_mark_of_an_earlier_life_proves_nothing(path: Path) -> None:
    builder = StoreBuilder()
    old = builder.segment(0)
    for _ in range(3):
        old.batch(Open(OTHER), Extent(OTHER, b"o" * 1000), checksum=False)
    old.mark(3)
    builder.raise_generation()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000), checksum=False)
    with image_of(builder, path) as image:
        assert image.flows == []


def test_batches_of_an_earlier_life_are_stale(path: Path) -> None:
    builder = StoreBuilder()
    old = builder.segment(0)
    for _ in range(5):
        old.batch(Open(OTHER), Extent(OTHER, b"o" * 4096))
    old.close()
    builder.raise_generation()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 4096))
    with image_of(builder, path) as image:
        assert [f.flow for f in image.flows] == [ID]
        assert image.segments[0].batch_count == 1


def test_a_mark_behind_a_lost_batch_is_damage(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    segment.batch(Extent(FLOW, b"b" * 1000), lost="all")
    segment.mark(2)
    with image_of(builder, path) as image:
        assert image.segments[0].state is SegmentState.DAMAGED
        assert image.segments[0].batches_missing == 1
        assert "segment 0: batch 1 is damaged" in image.warnings[0]
        assert bytes_of(image, FLOW) == b"a" * 1000


def test_a_damaged_footer_falls_back_to_the_batches(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000), checksum=False)
    segment.batch(Extent(FLOW, b"b" * 1000), Close(FLOW), checksum=False)
    segment.close(lose_records=True)
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == b"a" * 1000 + b"b" * 1000
        assert image.find(ID).state == "sealed"
        assert image.warnings == []


def test_bytes_behind_a_hole_are_not_shown(path: Path) -> None:
    builder = StoreBuilder()
    first = builder.segment(0)
    first.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    first.batch(Extent(FLOW, b"b" * 1000), lost="all")
    second = builder.segment(1)
    second.batch(Extent(FLOW, b"c" * 1000), Close(FLOW))
    second.close()
    with image_of(builder, path) as image:
        flow = image.find(ID)
        assert (flow.bytes, flow.state) == (1000, "interrupted")
        assert bytes_of(image, FLOW) == b"a" * 1000
        assert any("1000 to 2000 are not there" in a.text for a in image.anomalies)


def test_what_lay_behind_a_hole_never_comes_back(path: Path) -> None:
    """The next generation's sender resumes at the hole; the old tail must not be joined to it."""
    builder = StoreBuilder()
    first = builder.segment(0)
    first.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    second = builder.segment(1)
    second.batch(Extent(FLOW, b"OLD" * 100, at=1500))
    second.close()
    builder.raise_generation()
    model = builder.flows[FLOW]
    model.data, model.crc = bytearray(b"a" * 1000), crc32c(b"a" * 1000)
    third = builder.segment(2)
    third.batch(Open(FLOW), Extent(FLOW, b"new" * 200), Close(FLOW))
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == b"a" * 1000 + b"new" * 200
        assert image.find(ID).state == "sealed"


def test_bytes_that_are_there_twice_are_shown_once(path: Path) -> None:
    builder = StoreBuilder()
    first = builder.segment(0)
    first.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    first.close()
    second = builder.segment(1)
    second.batch(Extent(FLOW, b"b" * 1000, at=500))
    second.close()
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == b"a" * 1000
        assert [a.is_damage for a in image.anomalies] == [True]
        assert "bytes 500 to 1000 are there twice" in image.anomalies[0].text


def test_a_later_life_may_take_the_place_of_a_tail(path: Path) -> None:
    """Its OPEN record says where: whatever lay behind is no longer the flow's."""
    builder = StoreBuilder()
    first = builder.segment(0)
    first.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    first.batch(Extent(FLOW, b"OLD" * 500))
    first.close()
    builder.raise_generation()
    model = builder.flows[FLOW]
    model.data, model.crc, model.has_crc = bytearray(b"a" * 1000 + b"OLD" * 100), 0, False
    second = builder.segment(1)
    second.batch(Open(FLOW), Extent(FLOW, b"new" * 200))
    second.batch(Close(FLOW))
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == b"a" * 1000 + b"OLD" * 100 + b"new" * 200
        flow = image.find(ID)
        # The CRC32C at the place where it resumes was not kept: there is none of the whole.
        assert (flow.state, flow.bytes, flow.checksum) == ("sealed", 1900, None)
        assert image.anomalies == []


def test_a_flow_of_several_workers_ends_as_it_ended_last(path: Path) -> None:
    """The worker that had it last began its segment earlier than the other one."""
    builder = StoreBuilder()
    ours, theirs = builder.segment(0), builder.segment(1, worker_index=1)
    theirs.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    theirs.batch(Close(FLOW, layout.FLOW_STATE_INTERRUPTED, layout.CLOSE_REASON_PEER))
    ours.batch(Open(FLOW), Extent(FLOW, b"b" * 1000))
    ours.batch(Close(FLOW))
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == b"a" * 1000 + b"b" * 1000
        assert (image.find(ID).state, image.find(ID).reason) == ("sealed", None)


def test_open_only_while_someone_serves(path: Path) -> None:
    builder = StoreBuilder()
    builder.segment(0).batch(Open(FLOW), Extent(FLOW, b"a"))
    builder.save(path)
    with read_image(str(path)) as image:
        assert (image.find(ID).state, image.served) == ("interrupted", False)
        assert image.find(ID).ended is None
    holder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with read_image(str(path)) as image:
            assert (image.find(ID).state, image.served) == ("open", True)
    finally:
        os.close(holder)


def test_a_flow_of_an_earlier_generation_is_interrupted_and_durable(path: Path) -> None:
    builder = StoreBuilder()
    builder.segment(0).batch(Open(FLOW), Extent(FLOW, b"a" * 10))
    builder.raise_generation()
    builder.save(path)
    holder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with read_image(str(path)) as image:
            flow = image.find(ID)
            assert (flow.state, flow.durable_bytes) == ("interrupted", 10)
    finally:
        os.close(holder)


def test_a_close_record_tells_why(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    close = Close(FLOW, layout.FLOW_STATE_INTERRUPTED, layout.CLOSE_REASON_IDLE)
    segment.batch(Open(FLOW), Extent(FLOW, b"a"), close)
    with image_of(builder, path) as image:
        flow = image.find(ID)
        assert (flow.state, flow.reason) == ("interrupted", "idle_timeout")
        assert flow.ended is not None


def test_find_names_the_candidates(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    near = b"\xab" * 15 + b"\xac"
    segment.batch(Open(FLOW), Open(near), Extent(FLOW, b"a"), Extent(near, b"b"))
    with image_of(builder, path) as image:
        assert image.find("ABABABAB-abab-abab-abab-ababababABAC").flow_id == near
        with pytest.raises(FlowNotFoundError, match=f"2 flows.*{ID}"):
            image.find("abab")
        with pytest.raises(FlowNotFoundError, match="no flow 'ff'"):
            image.find("ff")


@pytest.mark.parametrize("name", ["A", "B"])
def test_one_superblock_suffices(path: Path, name: str) -> None:
    builder = StoreBuilder()
    at = 0 if name == "A" else layout.SUPERBLOCK_B_OFFSET
    builder.image[at + 100] ^= 1
    with image_of(builder, path) as image:
        assert image.superblock.store_uuid == builder.store_uuid
        assert f"superblock {name}" in image.warnings[0]


def test_the_higher_generation_counts(path: Path) -> None:
    builder = StoreBuilder(generation=5)
    builder.generation = 6
    builder.write_superblocks("A")
    with image_of(builder, path) as image:
        assert (image.superblock.generation, image.warnings) == (6, [])


def test_both_superblocks_damaged(path: Path) -> None:
    builder = StoreBuilder()
    builder.image[100] ^= 1
    builder.image[layout.SUPERBLOCK_B_OFFSET + 9] ^= 1
    with pytest.raises(StoreDamagedError, match="both of its superblocks"):
        image_of(builder, path)


def test_more_segments_than_there_is_device(path: Path) -> None:
    """However many a superblock claims, looking at the store ends, and soon."""
    builder = StoreBuilder()
    builder.segment_count = layout.SEGMENT_COUNT_MAX
    builder.store_bytes = layout.SEGMENTS_OFFSET + builder.segment_count * builder.segment_bytes
    builder.write_superblocks()
    path.write_bytes(builder.image)
    with read_image(str(path)) as image:
        assert image.segment_counts()["damaged"] == layout.SEGMENT_COUNT_MAX - 4
        assert "its end is missing" in image.warnings[0]
    builder.segment_count += 1
    builder.store_bytes += builder.segment_bytes
    builder.write_superblocks()
    path.write_bytes(builder.image)
    with pytest.raises(StoreDamagedError, match="both of its superblocks"):
        read_image(str(path))


def test_a_label_that_is_not_utf8_is_shown_without_what_is_not(path: Path) -> None:
    builder = StoreBuilder()
    row = layout.SUPERBLOCK.unpack(builder.image)._replace(label=b"a\xc3\0\xff")
    for at in (0, layout.SUPERBLOCK_B_OFFSET):
        builder.put(at, layout.sealed(layout.SUPERBLOCK.pack(row)), used=True)
    with image_of(builder, path) as image:
        assert image.superblock.label == "a"


def test_no_store_at_all(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(NotAStoreError, match="is not a store"):
        read_image(str(path))
    with pytest.raises(NotAStoreError, match="neither a block device nor a regular file"):
        read_image(str(tmp_path))
    with pytest.raises(NotAStoreError, match="does not exist"):
        read_image(str(tmp_path / "nothing"))
    with pytest.raises(NotAStoreError, match="neither"):
        read_image("/dev/zero")
    (tmp_path / "empty").touch()
    with pytest.raises(NotAStoreError):
        read_image(str(tmp_path / "empty"))


def test_a_file_system_without_direct_io() -> None:
    with pytest.raises(StoreError, match="O_DIRECT"):
        read_image("/proc/version")


def test_another_version_is_named(path: Path) -> None:
    builder = StoreBuilder()
    for at in (0, layout.SUPERBLOCK_B_OFFSET):
        block = bytearray(builder.image[at : at + 4096])
        block[12] = 9
        builder.image[at : at + 4096] = layout.sealed(bytes(block))
    with pytest.raises(NotAStoreError, match=r"version 9.*versions up to 2"):
        image_of(builder, path)


def test_a_truncated_store_shows_what_is_left(path: Path) -> None:
    builder = StoreBuilder()
    for index, flow in ((0, FLOW), (3, OTHER)):
        segment = builder.segment(index)
        segment.batch(Open(flow), Extent(flow, b"z" * 100), Close(flow))
        segment.close()
    builder.save(path)
    os.truncate(path, builder.store_bytes - 1)
    with read_image(str(path)) as image:
        assert [f.flow_id for f in image.flows] == [FLOW]
        assert image.segment_counts()["damaged"] == 1
        assert "its end is missing" in image.warnings[0]


def test_larger_blocks(path: Path) -> None:
    builder = StoreBuilder(block_bytes=16384, segment_count=2)
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 50000))
    segment.batch(Extent(FLOW, b"b" * 50000))
    segment.mark(2)
    with image_of(builder, path) as image:
        assert bytes_of(image, FLOW) == builder.flows[FLOW].data
        assert image.find(ID).durable_bytes == 100000


GARBAGE = bytes(range(1, 256)) * 33


def test_a_torn_footer_is_none(path: Path) -> None:
    """Recovery was writing it when power failed: of its block one unit of 512 bytes is there."""
    builder = StoreBuilder(fill=GARBAGE[:8192] * (5 * 1024 * 1024 // 8192))
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000), checksum=False)
    segment.batch(Extent(FLOW, b"b" * 1000), checksum=False)
    segment.mark(1)
    end = layout.SEGMENTS_OFFSET + builder.segment_bytes
    before = bytes(builder.image[end - 8192 : end])
    segment.close()
    builder.image[end - 8192 : end - 4096] = before[:4096]
    builder.image[end - 3584 : end] = before[4608:]
    with image_of(builder, path) as image:
        assert image.segments[0].state is SegmentState.OPEN
        assert bytes_of(image, FLOW) == b"a" * 1000


@pytest.mark.parametrize("torn", [True, False])
def test_a_torn_header_frees_its_segment(path: Path, torn: bool) -> None:
    """It was not flushed, so nothing was acknowledged; one in which a bit flipped is damage."""
    builder = StoreBuilder(fill=GARBAGE[:8192] * (5 * 1024 * 1024 // 8192))
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 1000))
    at = layout.SEGMENTS_OFFSET + 512
    if torn:
        builder.image[at : at + 512] = GARBAGE[:512]
    else:
        builder.image[at] ^= 1
    with image_of(builder, path) as image:
        expected = SegmentState.FREE if torn else SegmentState.DAMAGED
        assert image.segments[0].state is expected
        assert image.flows == []

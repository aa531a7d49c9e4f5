# SPDX-License-Identifier: Apache-2.0
"""Images whose counts and sizes are lies: what they cost a reader is bounded by what is there."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from ingestd.store.format import layout
from ingestd.store.format.layout import SEGMENT_FOOTER, SEGMENTS_OFFSET, sealed
from ingestd.store.read import scan
from ingestd.store.read.image import read_image
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16
MIB = 1024 * 1024


def closed_segment(segment_bytes: int = MIB) -> StoreBuilder:
    builder = StoreBuilder(segment_bytes=segment_bytes)
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"x" * 4096), Close(FLOW))
    segment.close()
    return builder


def test_a_footer_that_states_a_whole_segment_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records would be read, and held, before their checksum could be compared."""
    builder = closed_segment(64 * MIB)
    end = SEGMENTS_OFFSET + 64 * MIB
    row = SEGMENT_FOOTER.unpack(bytes(builder.image[end - 4096 :][: SEGMENT_FOOTER.size_bytes]))
    lie = row._replace(crc32c=0, records_offset=row.batches_end, record_bytes=63 * MIB)
    builder.image[end - 4096 : end - 4096 + SEGMENT_FOOTER.size_bytes] = sealed(
        SEGMENT_FOOTER.pack(lie)
    )
    path = str(builder.save(tmp_path / "one.store"))
    tracemalloc.start()
    try:
        with read_image(path) as image:
            assert [flow.state for flow in image.flows] == ["sealed"], "the batches are there"
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 32 * MIB


def test_a_superblock_that_tells_of_a_million_segments(tmp_path: Path) -> None:
    builder = closed_segment()
    builder.segment_count = 2**20
    builder.store_bytes = SEGMENTS_OFFSET + builder.segment_count * builder.segment_bytes
    builder.write_superblocks()
    path = tmp_path / "one.store"
    path.write_bytes(builder.image[: SEGMENTS_OFFSET + 2 * MIB])
    with read_image(str(path)) as image:
        assert len(image.segments) == 2
        assert len(image.warnings) == 1
        assert "its end is missing" in image.warnings[0]
        assert image.segment_counts()["damaged"] == 2**20 - 2
        assert image.find("abab").state == "sealed"


def test_a_flow_whose_end_was_cut_off_with_the_device(tmp_path: Path) -> None:
    builder = StoreBuilder()
    for index, item in enumerate((Open(FLOW), Extent(FLOW, b"x" * 5000), Close(FLOW))):
        segment = builder.segment((0, 3, 1)[index])
        segment.batch(item)
        segment.close()
    path = tmp_path / "one.store"
    path.write_bytes(builder.image[: SEGMENTS_OFFSET + 3 * MIB])
    with read_image(str(path)) as image:
        flow = image.find("abab")
        assert (flow.state, flow.bytes, flow.missing) == ("damaged", 5000, ((0, 5000),))


def test_batch_headers_in_payload_cost_no_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender may lay them there, at each block; it knows neither the UUID nor the sequence."""
    builder = StoreBuilder()
    segment = builder.segment(0)
    false = (layout.BATCH_MAGIC + bytes(4) + (65536).to_bytes(4, "little")).ljust(4096, b"\0")
    segment.batch(Open(FLOW), Extent(FLOW, false * 64))
    path = str(builder.save(tmp_path / "one.store"))
    tried = []
    real = scan.read_batch

    def count(window: object, place: object, at: int, index: int | None, *more: int) -> object:
        if index is None:
            tried.append(at)
        return real(window, place, at, index, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "read_batch", count)
    with read_image(path, thorough=True) as image:
        assert image.find("abab").bytes == 64 * 4096
    assert tried == []

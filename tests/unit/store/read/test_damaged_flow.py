# SPDX-License-Identifier: Apache-2.0
"""A flow of which a damaged segment had a part: what is shown of it, and what can still be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.cli import main
from ingestd.errors import StoreDamagedError
from ingestd.store.format.layout import SEGMENTS_OFFSET
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store
from support.store_builder import Close, Extent, Item, Open, StoreBuilder

FLOW, OTHER = b"\xab" * 16, b"\xcd" * 16
PART = 100_000
DATA = [bytes([number]) * PART for number in b"abcd"]


def add(builder: StoreBuilder, index: int, *items: Item) -> None:
    """One batch in a segment of its own, which is closed."""
    segment = builder.segment(index)
    segment.batch(*items)
    segment.close()


def three_segments(*, is_sealed: bool = True) -> StoreBuilder:
    """One flow in three closed segments, and another that is whole in the second."""
    builder = StoreBuilder()
    add(builder, 0, Open(FLOW), Extent(FLOW, DATA[0]))
    add(builder, 1, Open(OTHER), Extent(FLOW, DATA[1]), Extent(OTHER, b"whole"), Close(OTHER))
    add(builder, 2, Extent(FLOW, DATA[2]), *([Close(FLOW)] if is_sealed else []))
    return builder


def drain(pieces: Iterator[bytes], got: bytearray) -> None:
    for piece in pieces:
        got += piece


def without(builder: StoreBuilder, path: Path, *indices: int) -> str:
    """Overwrite the headers of these segments, as a stray write does."""
    for index in indices:
        at = SEGMENTS_OFFSET + index * builder.segment_bytes
        builder.image[at : at + 4096] = b"\x5a" * 4096
    return str(builder.save(path / "one.store"))


@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        ([0], [(0, PART)]),
        ([1], [(PART, 2 * PART)]),
        ([0, 1], [(0, 2 * PART)]),
    ],
)
def test_a_sealed_flow_is_damaged_not_interrupted(
    tmp_path: Path, lost: list[int], missing: list[tuple[int, int]]
) -> None:
    path = without(three_segments(), tmp_path, *lost)
    with read_image(path) as image:
        flow = image.find(FLOW.hex())
        assert (flow.state, flow.bytes, list(flow.missing)) == ("damaged", 3 * PART, missing)
        assert flow.resume_bytes == missing[0][0]
        got = bytearray()
        with pytest.raises(StoreDamagedError, match=f"lacks its bytes {missing[0][0]} to"):
            drain(read_flow(image, flow), got)
        assert got == b"".join(DATA)[: missing[0][0]]
        behind = b"".join(read_flow(image, flow, missing[-1][1]))
        assert behind == b"".join(DATA[:3])[missing[-1][1] :]
    assert main(["cat", path, FLOW.hex(), "-o", str(tmp_path / "out")]) == 6
    assert not (tmp_path / "out").exists()
    report = verify_store(path)
    assert report.is_damaged
    assert any("are missing: a damaged segment" in finding.what for finding in report.findings)


def test_what_lies_around_the_hole_can_be_read(tmp_path: Path) -> None:
    path = without(three_segments(), tmp_path, 1)
    with read_image(path) as image:
        flow = image.find(FLOW.hex())
        assert b"".join(read_flow(image, flow, 0, PART)) == DATA[0]
        assert b"".join(read_flow(image, flow, 2 * PART + 5, 50)) == DATA[2][5:55]
        for offset, length in ((PART - 1, 2), (2 * PART - 1, 2), (PART, 1)):
            with pytest.raises(StoreDamagedError):
                list(read_flow(image, flow, offset, length))


def test_an_end_that_is_gone(tmp_path: Path) -> None:
    """The last bytes lay in another segment than the CLOSE record."""
    builder = StoreBuilder()
    add(builder, 0, Open(FLOW), Extent(FLOW, DATA[0]))
    add(builder, 1, Extent(FLOW, DATA[1]))
    add(builder, 2, Close(FLOW))
    path = without(builder, tmp_path, 1)
    with read_image(path) as image:
        flow = image.find(FLOW.hex())
        assert (flow.state, flow.missing) == ("damaged", ((PART, 2 * PART),))


def test_without_a_damaged_segment_it_is_a_crash(tmp_path: Path) -> None:
    """The same hole, left by a write that was lost: nothing acknowledged, nothing damaged."""
    builder = three_segments()
    at = SEGMENTS_OFFSET + builder.segment_bytes
    builder.image[at : at + builder.segment_bytes] = bytes(builder.segment_bytes)
    with read_image(str(builder.save(tmp_path / "one.store"))) as image:
        flow = image.find(FLOW.hex())
        assert (flow.state, flow.bytes, flow.missing) == ("interrupted", PART, ())


def test_other_flows_stay_as_they_are(tmp_path: Path) -> None:
    path = without(three_segments(), tmp_path, 0)
    with read_image(path) as image:
        flow = image.find(OTHER.hex())
        assert (flow.state, flow.missing) == ("sealed", ())
        assert b"".join(read_flow(image, flow)) == b"whole"
    path = without(three_segments(is_sealed=False), tmp_path, 2)
    with read_image(path) as image:
        flow = image.find(FLOW.hex())
        assert (flow.state, flow.bytes) == ("interrupted", 2 * PART), "nothing tells of more"


def test_a_sender_that_fills_the_hole_mends_it(tmp_path: Path) -> None:
    """It resumes at the first byte that is missing, and sends all behind it again."""
    builder = three_segments()
    without(builder, tmp_path, 1)
    builder.raise_generation()
    model = builder.flows[FLOW]
    del model.data[PART:]
    add(builder, 3, Open(FLOW), Extent(FLOW, DATA[3]), Close(FLOW))
    with read_image(str(builder.save(tmp_path / "one.store"))) as image:
        flow = image.find(FLOW.hex())
        assert (flow.state, flow.missing) == ("sealed", ())
        assert b"".join(read_flow(image, flow)) == DATA[0] + DATA[3]

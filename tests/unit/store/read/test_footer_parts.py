# SPDX-License-Identifier: Apache-2.0
"""Footers in parts: what readers and recovery make of them, whole, torn and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.cli import main
from ingestd.store.format import layout
from ingestd.store.format.segment import SegmentState
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import Close, Extent, Open, SegmentWriter, StoreBuilder

FLOWS = [bytes([0xA0 + number]) * 16 for number in range(4)]
LONG = b"\xee" * 16
PARTS_COUNT = 3
BLOCK = 4096


def fill(builder: StoreBuilder, *, has_parts: bool = True) -> SegmentWriter:
    """A segment of a few short flows and a long one, with a part behind each of the first."""
    segment = builder.segment(0)
    segment.batch(Open(LONG, name="long"), Extent(LONG, b"x" * 5000))
    for number, flow in enumerate(FLOWS):
        segment.batch(Open(flow), Extent(flow, b"%d" % number * 700), Close(flow))
        segment.batch(Extent(LONG, b"y" * 4000))
        if has_parts and number < PARTS_COUNT:
            segment.part()
    segment.batch(Close(LONG))
    return segment


def shown(path: Path) -> dict[bytes, tuple[str, bytes]]:
    with read_image(str(path)) as image:
        return {f.flow_id: (f.state, b"".join(read_flow(image, f))) for f in image.flows}


def state_of(path: Path) -> SegmentState:
    with read_image(str(path)) as image:
        return image.segments[0].state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


@pytest.fixture
def expected(tmp_path: Path) -> dict[bytes, tuple[str, bytes]]:
    """What the same segment shows whose footer has no parts."""
    builder = StoreBuilder()
    fill(builder, has_parts=False).close()
    return shown(builder.save(tmp_path / "plain.img"))


def test_parts_and_footer_are_read_as_one(
    path: Path, expected: dict[bytes, tuple[str, bytes]]
) -> None:
    builder = StoreBuilder()
    fill(builder).close()
    builder.save(path)
    assert shown(path) == expected
    assert len(expected) == len(FLOWS) + 1
    with read_image(str(path)) as image:
        (segment, *_) = image.segments
        assert segment.state is SegmentState.CLOSED
        assert segment.footer is not None
        assert segment.footer.part_count == PARTS_COUNT
        assert len(segment.events) == 2 * len(FLOWS) + 2
        # A flow has a span in each part that has anything of it.
        assert sum(span.flow == LONG for span in segment.spans) == PARTS_COUNT + 1
    assert verify_store(str(path)).findings == []


def part_blocks(builder: StoreBuilder, segment: SegmentWriter) -> list[int]:
    """Where the parts' own blocks lie in the image."""
    headers = [(at, layout.BATCH_HEADER.unpack(builder.image, segment.base + at))
               for at in segment.batch_offsets]  # fmt: skip
    return [segment.base + at + BLOCK for at, h in headers if h.flags & layout.BATCH_IS_PART]


@pytest.mark.parametrize("number", range(PARTS_COUNT))
@pytest.mark.parametrize("at", [3, 44, 48, 56, 64, BLOCK + 30])
def test_a_damaged_part_leaves_the_batches_to_tell(
    path: Path, expected: dict[bytes, tuple[str, bytes]], number: int, at: int
) -> None:
    builder = StoreBuilder()
    segment = fill(builder)
    segment.close()
    builder.image[part_blocks(builder, segment)[number] + at] ^= 0x10
    builder.save(path)
    assert state_of(path) is SegmentState.OPEN
    assert shown(path) == expected
    report = verify_store(str(path))
    assert any("the part of the footer that it is" in f.what for f in report.findings), report
    # The next daemon's footer names the parts before the damaged one, and has the rest itself.
    with open_for_serving(str(path)), read_image(str(path)) as image:
        footer = image.segments[0].footer
        assert image.segments[0].state is SegmentState.CLOSED
        assert footer is not None
        assert footer.part_count == number
    assert shown(path) == expected


def crash_at(lost: str, committed: int) -> Callable[[StoreBuilder], SegmentWriter]:
    def fill_to(builder: StoreBuilder) -> SegmentWriter:
        segment = builder.segment(0)
        segment.batch(Open(FLOWS[0]), Extent(FLOWS[0], b"a" * 700), Close(FLOWS[0]))
        segment.part(lost=lost)  # type: ignore[arg-type]
        segment.batch(Open(FLOWS[1]), Extent(FLOWS[1], b"b" * 700), Close(FLOWS[1]))
        if committed:
            segment.mark(committed)
        return segment

    return fill_to


@pytest.mark.parametrize("lost", ["all", "header", "payload", "payload_tail"])
def test_a_torn_part_ends_the_segment(path: Path, lost: str) -> None:
    """As any other batch does: nothing behind it was acknowledged."""
    builder = StoreBuilder()
    crash_at(lost, 1)(builder)
    builder.save(path)
    assert set(shown(path)) == {FLOWS[0]}
    with open_for_serving(str(path)):
        pass
    assert shown(path) == {FLOWS[0]: ("sealed", b"a" * 700)}
    assert verify_store(str(path)).findings == []


def test_a_recovered_footer_names_the_parts_that_are_there(path: Path) -> None:
    builder = StoreBuilder()
    fill(builder)
    before = shown(builder.save(path))
    with open_for_serving(str(path)), read_image(str(path)) as image:
        (segment, *_) = image.segments
        assert segment.footer is not None
        assert segment.footer.part_count == PARTS_COUNT
        assert segment.footer.record_count == 4 + 1  # one flow's, a seal, and two spans
    assert shown(path) == before
    assert verify_store(str(path)).findings == []


def test_a_chain_that_does_not_fall_is_no_footer(
    path: Path, expected: dict[bytes, tuple[str, bytes]]
) -> None:
    """Every checksum is right, and the first part names the last."""
    from ingestd.store.format.footer_part import FOOTER_PART

    builder = StoreBuilder()
    segment = fill(builder)
    segment.close()
    first, *_, last = part_blocks(builder, segment)
    row = FOOTER_PART.unpack(builder.image, first)
    named = FOOTER_PART.unpack(builder.image, last)
    lie = row._replace(
        previous_offset=last - segment.base, previous_record_bytes=named.record_bytes
    )
    builder.image[first : first + BLOCK] = layout.sealed(FOOTER_PART.pack(lie))
    builder.save(path)
    assert state_of(path) is SegmentState.OPEN
    assert shown(path) == expected


def test_inspect_shows_parts(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = StoreBuilder()
    segment = fill(builder)
    segment.close()
    builder.save(path)
    assert main(["inspect", str(path), "segment", "0"]) == 0
    assert capsys.readouterr().out.count("committed, part of the footer") == PARTS_COUNT
    number = 3  # OPEN and bytes of the long flow, a short one, more of the long one, the part
    assert main(["inspect", str(path), "batch", f"0.{number}"]) == 0
    said = capsys.readouterr().out
    assert "part of the footer" in said
    assert "previous_offset" in said
    assert main(["inspect", str(path), "batch", f"0.{number}", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["part"]
    assert fields["verdict"] == "whole"

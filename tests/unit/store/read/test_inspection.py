# SPDX-License-Identifier: Apache-2.0
"""`ingestd inspect`: what it says of whole and damaged stores, and its exit codes."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ingestd.cli import main
from ingestd.cli.inspect_command import parse_place
from ingestd.errors import IngestdError, NotAStoreError, StoreDamagedError, UsageError
from ingestd.store.device.opening import open_device
from ingestd.store.format.layout import SEGMENTS_OFFSET, SUPERBLOCK_B_OFFSET
from ingestd.store.read.inspection import COMMITTED, DOES_NOT_COUNT, Inspector, superblocks
from ingestd.store.read.verdict import Verdict
from support.store_builder import MIB, Close, Extent, Open, SegmentWriter, StoreBuilder

FLOW = bytes(range(16))
OTHER = bytes(range(1, 17))
TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def built() -> tuple[StoreBuilder, SegmentWriter]:
    """Segment 1 is closed, with three batches; segment 2 is open, its third not committed."""
    store = StoreBuilder(label="rack 3")
    segment = store.segment(1)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 5000))
    segment.batch(Extent(FLOW, b"b" * 7000), committed=1)
    segment.batch(Close(FLOW), committed=2)
    segment.mark(3)
    segment.close()
    segment = store.segment(2)
    segment.batch(Open(OTHER), Extent(OTHER, b"c" * 9000))
    segment.batch(Extent(OTHER, b"d" * 100), committed=1)
    segment.mark(2)
    segment.batch(Extent(OTHER, b"e" * 100), checksum=False)
    return store, segment


@pytest.fixture
def path(built: tuple[StoreBuilder, SegmentWriter], tmp_path: Path) -> Path:
    return built[0].save(tmp_path / "store")


def _flip(path: Path, offset: int, size: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        there = file.read(size)
        file.seek(offset)
        file.write(bytes(byte ^ 0x5A for byte in there))


def _json(capsys: Capture, *words: str, code: int = 0) -> dict[str, Any]:
    assert main(["inspect", *words, "--json"]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_a_place_is_named_by_words() -> None:
    assert parse_place([]) == ("", ())
    assert parse_place(["superblock"]) == ("superblock", ())
    assert parse_place(["segment", "0"]) == ("segment", (0,))
    assert parse_place(["batch", "12.34"]) == ("batch", (12, 34))


@pytest.mark.parametrize(
    "text", ["segment", "segment +1", "segment 01", "batch 1", "batch 1.2.3", "footer", "segment ²"]
)
def test_what_is_no_place_is_refused(text: str, path: Path, capsys: Capture) -> None:
    assert main(["inspect", str(path), *text.split()]) == UsageError.exit_code
    assert "no place of a store" in capsys.readouterr().err


def test_superblocks(path: Path, capsys: Capture) -> None:
    told = _json(capsys, str(path), "superblock")
    assert [copy["offset"] for copy in told["superblocks"]] == [0, SUPERBLOCK_B_OFFSET]
    for copy in told["superblocks"]:
        assert copy["verdict"] == "whole"
        assert copy["fields"]["label"] == "rack 3"
        assert copy["fields"]["store_uuid"] == "11111111-1111-1111-1111-111111111111"
        assert copy["fields"]["segment_bytes"] == MIB


def test_a_damaged_superblock_is_shown_and_is_an_error(path: Path, capsys: Capture) -> None:
    _flip(path, 50)
    told = _json(capsys, str(path), "superblock", code=StoreDamagedError.exit_code)
    assert [copy["verdict"] for copy in told["superblocks"]] == ["damaged", "whole"]
    assert told["superblocks"][0]["fields"]["segment_bytes"] == MIB
    # Everything else is seen by the other copy.
    assert _json(capsys, str(path), "segment", "1")["segment"]["state"] == "closed"
    _flip(path, SUPERBLOCK_B_OFFSET + 50)
    told = _json(capsys, str(path), "superblock", code=StoreDamagedError.exit_code)
    assert [copy["verdict"] for copy in told["superblocks"]] == ["damaged", "damaged"]
    assert main(["inspect", str(path), "segment", "1"]) == StoreDamagedError.exit_code


def test_what_is_no_store(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(2 * MIB))
    told = _json(capsys, str(path), "superblock", code=NotAStoreError.exit_code)
    assert [copy["verdict"] for copy in told["superblocks"]] == ["absent", "absent"]
    assert main(["inspect", str(path)]) == NotAStoreError.exit_code
    assert main(["inspect", str(path / "none")]) == NotAStoreError.exit_code


def test_all_places(path: Path, capsys: Capture) -> None:
    told = _json(capsys, str(path))
    assert [place["name"] for place in told["places"]] == [
        "holder_record",
        "freed_record",
        "freed_record",
    ]
    assert {place["verdict"] for place in told["places"]} == {"absent"}
    assert [(s["index"], s["state"], s["batches"]) for s in told["segments"]] == [
        (1, "closed", 3),
        (2, "open", 2),
    ]
    assert main(["inspect", str(path)]) == 0
    assert "1.1" in capsys.readouterr().out


def test_segments(path: Path, capsys: Capture) -> None:
    told = _json(capsys, str(path), "segment", "1")
    assert [block["verdict"] for block in told["blocks"]] == ["whole", "absent", "whole", "whole"]
    assert [line["counts"] for line in told["batches"]] == [COMMITTED] * 3
    assert [event["kind_name"] for event in told["events"]] == ["OPEN", "CLOSE"]
    (span,) = told["spans"]
    assert (span["flow"], span["first_offset"], span["end_offset"]) == (TEXT, 0, 12000)
    told = _json(capsys, str(path), "segment", "2")
    assert [line["counts"] for line in told["batches"]] == [COMMITTED, COMMITTED, DOES_NOT_COUNT]
    assert _json(capsys, str(path), "segment", "0")["segment"]["state"] == "free"
    assert main(["inspect", str(path), "segment", "4"]) == UsageError.exit_code


def test_batches(built: tuple[StoreBuilder, SegmentWriter], path: Path, capsys: Capture) -> None:
    told = _json(capsys, str(path), "batch", "2.0")
    assert told["header"]["offset"] == built[1].base + built[1].batch_offsets[0]
    (extent,) = told["extents"]
    assert extent["whole"] is True
    assert built[0].image[extent["device_offset"] :][:9000] == b"c" * 9000
    assert told["events"][0]["protocol_name"] == "raw"
    told = _json(capsys, str(path), "batch", "2.2")
    assert (told["counts"], told["extents"][0]["whole"]) == (DOES_NOT_COUNT, None)
    assert main(["inspect", str(path), "batch", "2.3"]) == UsageError.exit_code
    assert "3 batches" in capsys.readouterr().err
    for words in (["batch", "1.2"], ["segment", "1"], ["superblock"]):
        assert main(["inspect", str(path), *words]) == 0
        assert "whole" in capsys.readouterr().out


def test_payload_that_changed_is_named(
    built: tuple[StoreBuilder, SegmentWriter], path: Path, capsys: Capture
) -> None:
    segment = built[1]
    _flip(path, segment.base + segment.batch_offsets[0] + 4096 + 8999)
    told = _json(capsys, str(path), "batch", "2.0", code=StoreDamagedError.exit_code)
    (extent,) = told["extents"]
    assert extent["whole"] is False
    assert extent["computed_crc"] != extent["crc_after"]


def test_a_header_that_changed_is_shown_and_what_lies_behind_it_found(
    built: tuple[StoreBuilder, SegmentWriter], path: Path, capsys: Capture
) -> None:
    segment = built[1]
    _flip(path, segment.base + segment.batch_offsets[0] + 77)
    told = _json(capsys, str(path), "batch", "2.0", code=StoreDamagedError.exit_code)
    assert told["header"]["verdict"] == "damaged"
    assert told["header"]["fields"]["batch_index"] == 0
    told = _json(capsys, str(path), "batch", "2.1")
    assert told["expected"] is False
    assert told["counts"] == DOES_NOT_COUNT
    assert _json(capsys, str(path), "segment", "2", code=StoreDamagedError.exit_code)["segment"][
        "warnings"
    ]


def test_a_segment_without_its_header_is_looked_at(
    built: tuple[StoreBuilder, SegmentWriter], path: Path, capsys: Capture
) -> None:
    _flip(path, built[1].base + 20)
    told = _json(capsys, str(path), "segment", "2", code=StoreDamagedError.exit_code)
    assert told["blocks"][0]["verdict"] == "damaged"
    assert len(told["batches"]) == 3
    assert _json(capsys, str(path), "batch", "2.1")["counts"] == DOES_NOT_COUNT


def test_an_earlier_life_is_told_apart(tmp_path: Path, capsys: Capture) -> None:
    store = StoreBuilder()
    segment = store.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 5000), Close(FLOW))
    segment.mark(1)
    segment.close()
    store.raise_generation()
    store.segment(0).batch(Open(OTHER), Extent(OTHER, b"b"))
    told = _json(capsys, str(store.save(tmp_path / "store")), "segment", "0")
    verdicts = [block["verdict"] for block in told["blocks"]]
    assert (verdicts[0], verdicts[3]) == ("whole", "stale")
    assert "1.1" in told["blocks"][3]["text"]
    assert len(told["batches"]) == 1


def test_a_foreign_store_is_told_apart(tmp_path: Path) -> None:
    old = StoreBuilder(store_uuid=b"\x22" * 16)
    old.segment(0).batch(Open(FLOW), Extent(FLOW, b"a"))
    store = StoreBuilder(fill=old.image)
    with open_device(str(store.save(tmp_path / "store"))) as device:
        report = Inspector(device).segment(0)
    assert report.header.verdict is Verdict.FOREIGN
    assert report.batches == []
    assert not report.is_damaged


def test_no_damage_is_too_much(
    built: tuple[StoreBuilder, SegmentWriter], tmp_path: Path, seed: int
) -> None:
    """Whatever is flipped, each place is shown or refused by an error of the tree."""
    chance = random.Random(seed)
    for round_number in range(40):
        path = built[0].save(tmp_path / f"store{round_number}")
        for _ in range(chance.randint(1, 6)):
            base = chance.choice([0, SUPERBLOCK_B_OFFSET, SEGMENTS_OFFSET + MIB, built[1].base])
            at = base + chance.choice([0, 4096, 8192, 16384, 28672, 32768, MIB - 4096])
            _flip(path, min(at, built[0].store_bytes - 4096) + chance.randrange(200), 3)
        with open_device(str(path)) as device:
            assert len(superblocks(device)) == 2
            try:
                inspector = Inspector(device)
            except IngestdError:
                continue
            assert len(list(inspector.segments())) <= 4
            for index in range(4):
                inspector.segment(index)
                for number in range(4):
                    with suppress(UsageError):
                        inspector.batch(index, number)

# SPDX-License-Identifier: Apache-2.0
"""Commands on a real store: made by `format`, or built by the tests' own writer."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path

import pytest

from ingestd.cli import main
from support.store_builder import Close, Extent, Open, StoreBuilder

Capture = pytest.CaptureFixture[str]
BinaryCapture = pytest.CaptureFixture[bytes]

SEALED = uuid.UUID("10000000-0000-4000-8000-000000000001")
CUT_OFF = uuid.UUID("20000000-0000-4000-8000-000000000002")
CONTENT = random.Random(7).randbytes(300_000)  # the seed is part of the name of the bytes


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a sealed flow over two batches, and one that its daemon left open."""
    builder = StoreBuilder(label="built")
    segment = builder.segment(0)
    segment.batch(
        Open(SEALED.bytes, name="run 1"),
        Extent(SEALED.bytes, CONTENT[:100_001]),
        Open(CUT_OFF.bytes),
        Extent(CUT_OFF.bytes, b"half"),
    )
    segment.batch(Extent(SEALED.bytes, CONTENT[100_001:]), Close(SEALED.bytes))
    segment.mark(2)
    return str(builder.save(tmp_path / "store"))


def test_format_then_look(tmp_path: Path, capsys: Capture) -> None:
    path = str(tmp_path / "new")
    assert main(["format", path, "--size", "16MiB", "--segment-size", "2MiB", "--label", "x"]) == 0
    told = capsys.readouterr().out
    assert "segments  7 of 2 MiB (2097152 bytes)" in told
    store_uuid = told.split("UUID")[1].split()[0]
    assert str(uuid.UUID(store_uuid)) == store_uuid
    assert main(["ls", path, "--json"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["verify", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store_uuid"] == store_uuid
    assert main(["format", path]) == 8
    assert "--force" in capsys.readouterr().err
    assert main(["format", path, "--force"]) == 0
    assert store_uuid not in capsys.readouterr().out


def test_ls(store: str, capsys: Capture) -> None:
    assert main(["ls", store, "--json"]) == 0
    sealed, cut_off = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert sealed["flow"] == str(SEALED)
    assert (sealed["state"], sealed["bytes"], sealed["name"]) == ("sealed", 300_000, "run 1")
    assert sealed["checksum"].startswith("crc32c:")
    assert (cut_off["flow"], cut_off["state"]) == (str(CUT_OFF), "interrupted")


@pytest.mark.parametrize(
    ("arguments", "first", "end"),
    [
        ([], 0, 300_000),
        (["--offset", "100000"], 100_000, 300_000),
        (["--length", "10KiB"], 0, 10_240),
        (["--offset", "100000", "--length", "2"], 100_000, 100_002),
        (["--offset", "300000"], 300_000, 300_000),
        (["--offset", "299999", "--length", "1GiB"], 299_999, 300_000),
    ],
)
def test_cat(
    store: str, arguments: list[str], first: int, end: int, capfdbinary: BinaryCapture
) -> None:
    assert main(["cat", store, "1000", *arguments]) == 0
    assert capfdbinary.readouterr() == (CONTENT[first:end], b"")


def test_cat_of_no_flow(store: str, capsys: Capture) -> None:
    assert main(["cat", store, "3"]) == 10
    assert main(["cat", store, ""]) == 2
    assert main(["cat", store, "1", "--offset", "300001"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("ingestd: error: ") for line in lines)


def test_damage_is_found_and_told(store: str, capfdbinary: BinaryCapture) -> None:
    assert main(["verify", store]) == 0
    with Path(store).open("r+b") as file:
        at = file.read().index(CONTENT[150_000:150_032])
        file.seek(at)
        file.write(b"\xff" + bytes([CONTENT[150_001] ^ 1]))
    capfdbinary.readouterr()
    assert main(["verify", store]) == 6
    out, err = capfdbinary.readouterr()
    assert b"damage: segment 0" in out
    assert b"findings shown are damage" in err
    assert main(["cat", store, "1"]) == 6
    out, err = capfdbinary.readouterr()
    assert out == CONTENT[: len(out)]
    assert len(out) < 150_000
    assert err.startswith(b"ingestd: error: ")


@pytest.mark.parametrize("name", ["", " ", "-", "--"])
def test_rm_of_no_flow(store: str, name: str, capsys: Capture) -> None:
    before = Path(store).read_bytes()
    assert main(["rm", store, "--", name]) == 2
    assert "ingestd ls shows" in capsys.readouterr().err
    assert Path(store).read_bytes() == before


def test_rm(store: str, capsys: Capture) -> None:
    assert main(["rm", store, str(SEALED)[:8], "30000000", "40000000"]) == 10
    told = capsys.readouterr()
    assert told.out == f"flow {SEALED}: removed, 292 KiB (300000 bytes)\n"
    # The segment is not closed before the store was recovered.
    assert f"note: 0 segments of {store} are free by it" in told.err
    assert [line.split("'")[1] for line in told.err.splitlines()[1:]] == ["30000000", "40000000"]
    assert main(["cat", store, str(SEALED)]) == 10
    assert "has no flow" in capsys.readouterr().err
    assert main(["info", store]) == 0
    assert "1 flows, 292 KiB (300000 bytes) of them not reclaimed yet" in capsys.readouterr().out
    assert main(["ls", store, "--json"]) == 0
    (left,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert left["flow"] == str(CUT_OFF)

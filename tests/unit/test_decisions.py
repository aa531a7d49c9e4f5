# SPDX-License-Identifier: Apache-2.0
"""ARCHITECTURE.md is one page whose names are there; each decision is a dated record."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
RECORDS = ROOT / "docs" / "decisions"
PAGE_LINES_MAX = 150
RECORD_LINES_MAX = 40
PARTS = ("Context", "Decision", "Price", "Alternatives")


def _records() -> list[Path]:
    return sorted(path for path in RECORDS.glob("*.md") if path.name != "README.md")


def test_each_decision_is_a_dated_record_of_four_parts() -> None:
    assert _records()
    for path in _records():
        text = path.read_text(encoding="utf-8")
        date = re.match(r"(\d{4}-\d\d-\d\d)-[a-z0-9-]+\.md$", path.name)
        assert date, path.name
        assert re.match(rf"# .+\n\nDecided {date[1]}\.", text), path.name
        assert tuple(re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)) == PARTS, path.name
        assert len(text.splitlines()) <= RECORD_LINES_MAX, path.name


def test_the_list_has_every_record_by_date() -> None:
    text = (RECORDS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| \[(.+)\]\((.+)\) \|$", text, re.MULTILINE)
    assert sorted(name for _, _, name in rows) == [path.name for path in _records()]
    assert [date for date, _, _ in rows] == sorted(date for date, _, _ in rows)
    for date, title, name in rows:
        assert name.startswith(date)
        assert (RECORDS / name).read_text(encoding="utf-8").startswith(f"# {title}\n")


def test_architecture_is_one_page() -> None:
    assert len(ARCHITECTURE.read_text(encoding="utf-8").splitlines()) <= PAGE_LINES_MAX


def test_every_step_names_one_room() -> None:
    """The path of a byte: each step is in a room of the core that is there."""
    path = ARCHITECTURE.read_text(encoding="utf-8").partition("## Rooms")[0]
    rows = re.findall(r"^\| ([a-z ]+) \| `([\w/]+)/` \|", path, re.MULTILINE)
    steps = [step for step, _ in rows]
    assert steps == [
        *("accept", "hello", "receive", "append", "place"),
        *("write done", "flush done", "commit", "ack"),
    ]
    for _, room in rows:
        assert (ROOT / "ingestd" / "core" / room).is_dir(), room


def test_every_room_is_named() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    for part, is_named in (("core", "`{}/`"), ("daemon", "`{}`"), ("store", "`{}`")):
        for path in (ROOT / "ingestd" / part).iterdir():
            if path.is_dir() and any(path.iterdir()) and not path.name.startswith("__"):
                assert is_named.format(path.name) in text, (part, path.name)


def test_files_that_a_change_touches_are_there() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8").partition("## What a change touches")[2]
    rows = [row.split("|")[1:4] for row in re.findall(r"^\| \*\*.*$", text, re.MULTILINE)]
    assert len(rows) == 3
    for _, core, python in rows:
        for folder, cell in (("ingestd/core", core), ("ingestd", python)):
            paths = re.findall(r"`((?:\w+/)*\w+(?:/|\.(?:c|h|py|pyx)))`", cell)
            assert paths or cell.strip().startswith("nothing"), cell
            gone = [path for path in paths if not (ROOT / folder / path).exists()]
            assert not gone

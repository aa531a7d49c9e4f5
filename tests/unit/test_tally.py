# SPDX-License-Identifier: Apache-2.0
"""The counting of faults that are tried, and the table that is made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fault import run_faults

from support import tally

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest
from fault import run_faults
from support import tally

@pytest.mark.fault("clock")
def test_kept():
    tally.tried(3)
    with tally.acknowledged(1000):
        pass

@pytest.mark.fault("log")
def test_lost():
    with tally.acknowledged(70):
        pass
    with tally.acknowledged(9):
        assert False

@pytest.mark.fault("log")
def test_left_out():
    pytest.skip("not here")

def test_no_fault():
    with tally.acknowledged(5):
        pass

@pytest.mark.fault("no such")
def test_unknown():
    pass
"""


def run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[tally.Line]:
    """The lines of a run of the tests above."""
    (directory / "test_made_up.py").write_text(TESTS, encoding="utf-8")
    file = directory / "lines"
    monkeypatch.setenv(tally.FILE_VARIABLE, str(file))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.delenv("CI", raising=False)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "support.tally", "--rootdir", str(directory), str(directory)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    return [tally.Line(**json.loads(text)) for text in file.read_text().splitlines()]


def test_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes whose comparison failed are lost; what could not run was not tried."""
    lines = {line.test.partition("::")[2]: line for line in run(tmp_path, monkeypatch)}
    shown = {
        name: (line.fault, line.outcome, line.tries, line.acknowledged_bytes, line.lost_bytes)
        for name, line in lines.items()
    }
    assert shown == {
        "test_kept": ("clock", "passed", 3, 1000, 0),
        "test_lost": ("log", "failed", 1, 79, 9),
        "test_left_out": ("log", "skipped", 0, 0, 0),
        "test_unknown": ("no such", "failed", 0, 0, 0),
    }


def test_every_fault_is_tried_by_a_test() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    marked = {key for text in texts for key in re.findall(r'mark\.fault\("(\w+)"\)', text)}
    assert marked == set(tally.FAULTS)


def test_the_table_adds_up_and_goes_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        tally.Line(tries=3, acknowledged_bytes=10, fault="log", test="tests/a.py::x"),
        tally.Line(tries=1, acknowledged_bytes=5, lost_bytes=2, fault="log", test="tests/b.py::y"),
        tally.Line(fault="clock", test="tests/c.py::z", outcome="skipped"),
    ]
    document = tmp_path / "document.md"
    document.write_text(f"before\n{run_faults.BEGIN}old\n{run_faults.END}\nbehind\n")
    monkeypatch.setattr(run_faults, "DOCUMENT", document)
    run_faults.insert(run_faults.table(lines, 2, 7))
    text = document.read_text()
    assert text.startswith(
        f"before\n{run_faults.BEGIN}Rounds: 2, from seed 7 on; tests: 3, of which 0"
    )
    assert text.endswith(f"{run_faults.END}\nbehind\n")
    assert f"| {tally.FAULTS['log']} | 4 | 15 | 2 | `a.py`, `b.py` |" in text
    assert f"| {tally.FAULTS['clock']} | 0 | 0 | 0 |" in text
    assert "old" not in text

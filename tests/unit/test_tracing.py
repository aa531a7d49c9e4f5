# SPDX-License-Identifier: Apache-2.0
"""Static probes: in the built core as documented; and what the script makes of their events."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import uuid
from pathlib import Path
from types import ModuleType

import pytest

import ingestd.core

ROOT = Path(__file__).resolve().parents[2]
FLOW = uuid.UUID("01a21901-b86b-7600-8e45-4d0ae52178e5")
OTHER = uuid.UUID("02a21901-b86b-7600-8e45-4d0ae52178e5")
HAS_HEADER = (
    subprocess.run(
        ["gcc", "-E", "-x", "c", "-", "-o", "/dev/null"],
        input="#include <sys/sdt.h>\n",
        capture_output=True,
        text=True,
        check=False,
    ).returncode
    == 0
)


def _documented() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `ingestd:(\w+)` \| ([\w, ]+) \|", text, re.MULTILINE)
    return {name: arguments.split(", ") for name, arguments in rows}


def _declared() -> dict[str, list[str]]:
    """Probes of the header, with the names of their arguments."""
    text = (ROOT / "ingestd" / "core" / "base" / "trace.h").read_text(encoding="utf-8")
    found = re.findall(r"^ +PROBE(\d)\((\w+), ([\w, ]+)\);$", text, re.MULTILINE)
    assert all(int(count) == len(arguments.split(", ")) for count, _, arguments in found)
    return {name: arguments.split(", ") for _, name, arguments in found}


def _core() -> Path:
    (core,) = Path(ingestd.core.__file__).parent.glob("_core.*.so")
    return core


@pytest.fixture
def script() -> ModuleType:
    path = ROOT / "scripts" / "trace_flow.py"
    spec = importlib.util.spec_from_file_location("trace_flow", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trace_flow"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_document_has_every_probe_of_the_header() -> None:
    assert _documented() == _declared()
    assert len(_declared()) == 8


def test_every_probe_is_used_once_or_more() -> None:
    sources = [path.read_text() for path in (ROOT / "ingestd" / "core").rglob("*.c")]
    for name in _declared():
        assert any(f"trace_{name}(" in text for text in sources), name


@pytest.mark.skipif(not HAS_HEADER, reason="systemtap-sdt-dev is missing")
def test_probes_are_in_the_built_core() -> None:
    """As `readelf -n` shows them: provider, name, and as many arguments as documented."""
    done = subprocess.run(
        ["readelf", "-n", _core()], capture_output=True, text=True, check=True
    ).stdout
    notes = re.findall(r"Provider: (\w+)\s+Name: (\w+)\s+.*\s+Arguments: (.*)", done)
    found = {(provider, name, len(arguments.split())) for provider, name, arguments in notes}
    wanted = {("ingestd", name, len(arguments)) for name, arguments in _documented().items()}
    assert found == wanted, "built before sys/sdt.h was there? make clean build"


def _words(flow: uuid.UUID) -> str:
    halves = (flow.bytes[:8], flow.bytes[8:])
    return " ".join(f"{int.from_bytes(half, sys.byteorder):x}" for half in halves)


def _output() -> list[str]:
    """What bpftrace prints of two flows in a batch, out of order as by two buffers."""
    flow, other = _words(FLOW), _words(OTHER)
    return [
        "Attaching 9 probes...",
        f"append 900 7 {flow} 3 0 10 1",  # of a receive that was not seen
        f"receive 1000 7 {flow} 3 100",
        f"append 3000 7 {flow} 3 0 100 1",
        f"receive 2000 7 {other} 4 50",
        f"append 4000 7 {other} 4 0 50 1",
        "place 5000 8 1 70 8192 4096",  # another worker's
        "place 6000 7 1 7 4096 8192",
        "place 6500 7 2 8 4096 8192",
        "write_done 9000 7 1 7 6000",
        "write_done 9500 7 2 8 6500",
        "flush_done 10000 7 7",
        "flush_done 11000 7 8",
        "commit 12000 7 8",
        "commit 12500 7 9",
        f"ack 13000 7 {flow} 3 100 1",
        f"receipt 14000 7 {flow} 3 133",
        f"receipt 15000 7 {other} 4 -32",
    ]


def test_a_life_has_what_concerns_it_in_order(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script.show(_output(), "01A21901-b8", 1, 40)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"flow {FLOW}, thread 7"
    assert [line.split()[2] for line in lines[1:]] == [
        *("receive", "append", "place", "write_done", "flush_done", "commit", "ack", "receipt")
    ]
    assert "after 3 us" in lines[4]
    assert lines[5].split()[0] == "10.0"
    assert "CLOSE record" in lines[7]


def test_lives_are_counted_and_cut(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.show(_output(), "", 2, 4)
    out = capsys.readouterr().out
    assert out.count("flow 0") == 2
    assert "... 4 events more ..." in out
    assert "not sent: errno 32" in out


def test_lines_that_are_no_events_are_passed_over(script: ModuleType) -> None:
    for line in ("", "Lost 3 events", "receive", "commit 1"):
        assert script.parse(line) is None


def test_the_program_names_every_probe(script: ModuleType) -> None:
    text = script.program("/proc/1/root/usr/lib/_core.x.so")
    assert re.findall(r":ingestd:(\w+) ", text) == list(_documented())
    with pytest.raises(SystemExit, match="cannot be looked at"):
        script.core_of(0)

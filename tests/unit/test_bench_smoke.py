# SPDX-License-Identifier: Apache-2.0
"""The benchmark works from end to end at tiny sizes; nothing here looks at time.

Whoever runs `make bench` after months must not find it broken.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import compare, core_bench, way_receiver
from bench.figures import Bar, Figures, bars, throughput
from bench.measure import (
    INGESTD_CRC32C,
    INGESTD_NONE,
    OURS,
    UPPER_BOUND,
    Run,
    scenarios,
)
from bench.receivers import INGESTD, PEERS, BenchError, Job
from bench.report import insert

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
TIMEOUT_S = 240


def _run(receiver: str, round_index: int, seconds: float, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "scenario": "flows-1",
        "receiver": receiver,
        "round": round_index,
        "flows_count": 1,
        "idle_count": 0,
        "payload_bytes": 1024 * MIB,
        "seconds": seconds,
        "cpu_s": 0.3,
        "machine_cpu_s": 0.6,
        "sender_cpu_s": 0.1,
        "baseline_cpu_per_s": 0.0,
        "memory_peak_bytes": 300 * MIB,
        "area_bytes": 256 * MIB,
    }
    return Run(**{**values, **changes})


def test_ratios_are_taken_within_a_round() -> None:
    """A slow minute that falls on both receivers of a round leaves their ratio alone."""
    seconds = {UPPER_BOUND: (1.0, 4.0, 1.0), INGESTD_NONE: (2.0, 8.0, 2.0)}
    runs = [_run(name, i, s) for name, row in seconds.items() for i, s in enumerate(row)]
    figures = Figures(list(reversed(runs)))
    assert figures.ratio(
        ("flows-1", INGESTD_NONE), ("flows-1", UPPER_BOUND), throughput
    ) == pytest.approx(0.5)
    assert figures.median("flows-1", INGESTD_NONE, throughput) == pytest.approx(0.5)
    assert figures.spread("flows-1", UPPER_BOUND, throughput) == pytest.approx((0.25, 1.0))


def test_bars_hold_and_are_missed() -> None:
    slow = [_run(UPPER_BOUND, 0, 1.0), _run(INGESTD_NONE, 0, 3.0), _run(INGESTD_CRC32C, 0, 1.0)]
    verdicts = {bar.text: bar.holds for bar in bars(Figures(slow))}
    assert verdicts[f"{INGESTD_NONE}: one flow, throughput by the upper bound's"] is False
    assert verdicts[f"{INGESTD_CRC32C}: one flow, throughput by the upper bound's"] is True
    assert Bar("", "<=", 1.5, 1.5).holds
    assert not Bar("", "<=", 1.5, 1.6).holds
    assert not Bar("", ">=", 0.9, 0.8).holds


def test_parts_go_between_their_markers() -> None:
    text = "a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb\n"
    assert insert(text, {"x": r"n\1w"}) == text.replace("old", r"n\1w")
    with pytest.raises(BenchError, match="y"):
        insert(text, {"y": "new"})


@pytest.mark.needs_root  # the bench's areas are locked memory, more than 8 MiB
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.skipif(not INGESTD.exists(), reason="ingestd is not installed here")
def test_acknowledgements_are_measured(tmp_path: Path) -> None:
    """Tiny sizes: both questions get an answer, and the document has a place for it."""
    command = [sys.executable, ROOT / "bench" / "ack.py", "--no-docs", "--rounds", "1"]
    command += ["--probes", "3", "--size-mib", "2", "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    for wanted in ("| p99 | ", "| protocol ingest, durable lines | ", "by the device's: "):
        assert wanted in done.stdout, done.stdout
    assert not list(tmp_path.iterdir()), "its files are removed"
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "| p99 | " in insert(document, {"ack": done.stdout})


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.needs_root  # the bench's areas are locked memory, more than 8 MiB
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.skipif(not INGESTD.exists(), reason="ingestd is not installed here")
def test_two_builds_are_measured_in_turn(tmp_path: Path) -> None:
    """This build is the other one as well."""
    command = [sys.executable, ROOT / "bench" / "versions.py", INGESTD, "--rounds", "1"]
    command += ["--size-mib", "2", "--flows", "1", "3", "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| flows-")]
    assert len(table) == 2 * 2 * 2, done.stdout
    assert not list(tmp_path.iterdir()), "its files are removed"


@pytest.mark.needs_root  # a network namespace, and a setting of the kernel
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.skipif(not INGESTD.exists(), reason="ingestd is not installed here")
def test_ways_from_socket_to_file_are_compared(tmp_path: Path) -> None:
    """Each way stores what was sent, copies what its system calls say, and has a row."""
    before = compare.SINGLE_PAGES.read_text()
    command = [sys.executable, ROOT / "bench" / "compare.py", "--no-docs", "--rounds", "1"]
    command += ["--size-mib", "8", "--quiet-wait-s", "0", "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if " | " in line]
    rows = {cells[0]: cells[1:] for cells in lines}
    copies = {name: rows[label][-2:] for name, label in compare.LABELS.items()}
    for name in (UPPER_BOUND, "epoll", "uring-incremental", "splice", *OURS):
        assert copies[name][0] == "1.000", name
    assert copies["uring-multishot"] == ["1.000", "1.000"]
    assert rows[compare.LABELS["splice-direct"]][0] == "refused: Invalid argument"
    assert float(copies["tcp-zerocopy"][0]) < 1
    assert compare.SINGLE_PAGES.read_text() == before
    assert not list(tmp_path.iterdir()), "its files are removed"
    document = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert "| way | " in insert(document, {"ways": done.stdout, "conditions": ""})


def test_a_way_that_stores_other_bytes_has_no_figure(tmp_path: Path) -> None:
    """What lies in the file is compared with the sender's bytes."""
    job = Job(tmp_path, 1, way_receiver.SOURCE_BYTES + 2)
    way = way_receiver.Way("epoll", job, tmp_path / "ways")
    source = bytes(range(256)) * (way_receiver.SOURCE_BYTES // 256)
    way.path.write_bytes(source + source[:2])
    way.check_file()
    way.path.write_bytes(source + source[1:3])
    with pytest.raises(BenchError, match="other bytes"):
        way.check_file()
    way.path.write_bytes(bytes(2 * way_receiver.SOURCE_BYTES))
    with pytest.raises(BenchError, match="nothing"):
        way.check_file()


def test_a_store_of_many_flows_is_measured(tmp_path: Path) -> None:
    """What make bench-catalogue makes is a store that is served, listed and looked into."""
    command = [sys.executable, "-P", str(ROOT / "bench" / "catalogue.py")]
    command += ["--flows", "600", "--directory", str(tmp_path), "--no-docs"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, text=True)
    assert done.returncode == 0, done.stderr
    assert "| a listing of all flows as JSON |" in done.stdout


@pytest.mark.parametrize("engine", core_bench.ENGINES)
def test_a_plain_life_is_played(engine: str) -> None:
    """What make bench-core counts in it ends, and every byte is received; without callgrind."""
    program = core_bench.compiled()
    turns, receives, received_bytes = core_bench.play(program, engine, "none", core_bench.SEED)
    assert received_bytes == core_bench.PAYLOAD_BYTES
    assert turns > 0
    assert receives > 0


def test_payload_is_shared_out_to_the_flows() -> None:
    plan = scenarios(total_bytes=10 * MIB, flow_counts=[1, 3], idle_count=5, peers=["socat"])
    assert [(s.name, s.flows_count, s.idle_count) for s in plan] == [
        ("flows-1", 1, 0),
        ("flows-3", 3, 0),
        ("idle-0", 1, 0),
        ("idle-5", 1, 5),
    ]
    assert plan[0].receivers == (UPPER_BOUND, *OURS, "socat")
    assert plan[1].flow_bytes * 3 >= 10 * MIB


@pytest.mark.needs_root  # the bench's areas are locked memory, more than 8 MiB
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.skipif(not INGESTD.exists(), reason="ingestd is not installed here")
def test_everything_is_measured(tmp_path: Path) -> None:
    """Every receiver that is installed, tiny sizes: each run is whole and is in the JSON."""
    peers = [name for name, (_, program, _) in PEERS.items() if shutil.which(program)]
    result = tmp_path / "bench.json"
    command = [sys.executable, ROOT / "bench" / "run.py", "--no-docs"]
    command += ["--rounds", "1", "--size-mib", "2", "--flows", "1", "8", "--idle", "20"]
    command += ["--baseline-s", "0.02", "--quiet-wait-s", "0", "--planner-fragments", "0"]
    command += ["--directory", tmp_path / "data", "--json", result, "--peers", *peers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads(result.read_text())
    runs = data["runs"]
    one_flow, many = (UPPER_BOUND, *OURS, *peers), (UPPER_BOUND, *OURS)
    wanted = {("flows-1", name) for name in one_flow} | {("flows-8", name) for name in many}
    wanted |= {("idle-0", INGESTD_CRC32C), ("idle-20", INGESTD_CRC32C)}
    assert {(run["scenario"], run["receiver"]) for run in runs} == wanted
    assert len(runs) == len(wanted)
    for run in runs:
        assert run["payload_bytes"] == 2 * MIB
        assert run["seconds"] > 0
        assert run["cpu_s"] > 0
        assert run["gib_per_s"] == pytest.approx(2 / 1024 / run["seconds"])
        if run["receiver"] in OURS:
            assert run["counters"]["ingestd_durable_bytes_total"] == 2 * MIB
            assert run["counters"]["ingestd_received_bytes_total"] == 2 * MIB
            assert run["memory_peak_bytes"] > run["area_bytes"]
    assert all(isinstance(bar["holds"], bool) for bar in data["bars"])
    assert not list((tmp_path / "data").iterdir()), "its files are removed"


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib (extra `bench`) is missing"
)
def test_picture_and_document_are_made(tmp_path: Path) -> None:
    """The same figures give the same picture, and the document has a place for every table."""
    from bench import machine, picture, report

    runs = [
        _run(name, i, 1.0 + i, counters=dict.fromkeys(report_counters(), 1.0))
        for name in (UPPER_BOUND, *OURS, "socat")
        for i in range(2)
    ]
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        picture.draw(runs, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    made = report.Report(
        facts=machine.facts(tmp_path, "cubic"),
        rounds_count=2,
        total_bytes=1024 * MIB,
        date="2000-01-01",
        version="0",
        runs=runs,
        bars=bars(Figures(runs)),
        planner=[],
    )
    parts = report.parts(made)
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    text = insert(document, parts)
    assert "`socat`, then `sync FILE`" in text
    assert "| holds |" in text


def report_counters() -> tuple[str, ...]:
    """Names of the counters that the report shows."""
    from bench.receivers import COUNTERS

    return COUNTERS

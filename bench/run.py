# SPDX-License-Identifier: Apache-2.0
"""Measures ingestd beside its upper bound and other receivers; `make bench`.

Alternates all of them over some rounds, writes every run to a JSON file, and the
medians and ratios as tables and a picture into docs/performance.md. The bars are
printed as held or missed; only with --strict does a missed one fail the command.

    python bench/run.py [--rounds 5] [--size-mib 2048] [--no-docs] [--strict]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from bench import machine, plan_bench, report  # noqa: E402
from bench.figures import Figures, bars  # noqa: E402
from bench.measure import (  # noqa: E402
    QUIET_CPU_PER_S,
    Programs,
    Run,
    Settings,
    run_all,
    scenarios,
)
from bench.receivers import (  # noqa: E402
    INGESTD,
    MIB,
    PEERS,
    BenchError,
    Job,
    missing_packages,
)
from support.native import BENCH, build_executable  # noqa: E402

DOCUMENT: Final = ROOT / "docs" / "performance.md"
PICTURE: Final = ROOT / "docs" / report.PICTURE_NAME


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure ingestd beside other receivers.")
    build = ROOT / "build"
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mib", type=int, default=2048, help="payload of every run")
    parser.add_argument("--flows", type=int, nargs="*", default=[1, 64, 1000])
    parser.add_argument(
        "--idle", type=int, default=10_000, help="idle connections; 0: not measured"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--congestion", default="cubic", help="TCP congestion control of the sender"
    )
    parser.add_argument("--baseline-s", type=float, default=1.0)
    parser.add_argument(
        "--quiet-wait-s",
        type=float,
        default=120,
        help="how long all runs together wait for a quiet machine",
    )
    parser.add_argument("--directory", type=Path, default=build / "bench", help="for the data")
    parser.add_argument("--json", type=Path, default=build / "bench.json")
    parser.add_argument("--planner-fragments", type=int, default=2_000_000, help="0: not measured")
    parser.add_argument(
        "--report-only", action="store_true", help="measure nothing: report what --json holds"
    )
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    parser.add_argument("--strict", action="store_true", help="fail if a bar is missed")
    return parser.parse_args(argv)


def build_programs() -> Programs:
    """Compile the sender and the upper bound."""
    return Programs(
        sender=build_executable("bench_sender", [BENCH / "sender.c"]),
        upper_bound=build_executable(
            "bench_upper_bound",
            [BENCH / "upper_bound.c"],
            flags=["-Wl,--no-as-needed", "-luring"],  # it stands before the source
        ),
    )


def check(arguments: argparse.Namespace) -> None:
    """Everything that can be known before the first run. Raises BenchError."""
    packages = missing_packages(arguments.peers)
    if packages:
        raise BenchError(
            f"peers are missing: apt-get install {' '.join(packages)}, or choose by --peers"
        )
    if not INGESTD.exists():
        raise BenchError(f"{INGESTD} is not there: pip install . with this interpreter's pip")
    largest = max(arguments.flows, default=1)
    job = Job(arguments.directory, largest, -(-arguments.size_mib * MIB // largest))
    # The store, the upper bound's file, and one fresh file per peer.
    wanted = 2 * job.file_bytes + len(arguments.peers) * arguments.size_mib * MIB
    have = shutil.disk_usage(arguments.directory).free
    if have < wanted:
        raise BenchError(
            f"{wanted / 2**30:.1f} GiB of disk are needed and {have / 2**30:.1f} are free:"
            " choose a smaller --size-mib or another --directory"
        )


def show(run: Run) -> None:
    """One line per run as it comes."""
    print(
        f"round {run.round + 1}  {run.scenario:11} {run.receiver:15}"
        f" {run.gib_per_s:6.2f} GiB/s  {run.cpu_s_per_gib:6.3f} own CPU s/GiB"
        f" {run.machine_cpu_s_per_gib:6.3f} machine's"
        f"  (beside: {100 * run.baseline_cpu_per_s:.0f}% of one CPU)",
        flush=True,
    )


def measure_planner(fragments_count: int) -> list[dict[str, Any]]:
    """What the planner costs per fragment; nothing if not wanted."""
    if fragments_count == 0:
        return []
    figures = plan_bench.measure([], rounds_count=7, fragments_count=fragments_count)
    return [asdict(figure) for figure in figures]


def version() -> str:
    """What `ingestd --version` says."""
    done = subprocess.run([INGESTD, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip().rpartition(" ")[2]


def measure(arguments: argparse.Namespace) -> report.Report:
    """All runs, and what they come to."""
    congestion = machine.congestion_control(arguments.congestion)
    plan = scenarios(
        total_bytes=arguments.size_mib * MIB,
        flow_counts=arguments.flows,
        idle_count=arguments.idle,
        peers=arguments.peers,
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        settings = Settings(
            directory=Path(directory),
            rounds_count=arguments.rounds,
            congestion=congestion,
            baseline_s=arguments.baseline_s,
            quiet_wait_s=arguments.quiet_wait_s,
        )
        runs = run_all(plan, settings, build_programs(), show)
        found = machine.facts(Path(directory), congestion)
    planner = measure_planner(arguments.planner_fragments)
    return report.Report(
        facts=found,
        rounds_count=arguments.rounds,
        total_bytes=arguments.size_mib * MIB,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        version=version(),
        runs=runs,
        bars=bars(Figures(runs), planner),
        planner=planner,
    )


def as_json(made: report.Report) -> str:
    """Everything, for other programs; ratios and medians included."""
    data = asdict(made)
    for run, entry in zip(made.runs, data["runs"], strict=True):
        entry["gib_per_s"] = run.gib_per_s
        entry["cpu_s_per_gib"] = run.cpu_s_per_gib
        entry["machine_cpu_s_per_gib"] = run.machine_cpu_s_per_gib
    for bar, entry in zip(made.bars, data["bars"], strict=True):
        entry["holds"] = bar.holds
    return json.dumps(data, indent=2) + "\n"


def from_json(path: Path) -> report.Report:
    """What as_json() has written; ratios and bars are made anew from the runs."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read ({error}): measure first") from None
    fields = set(Run.__dataclass_fields__)
    runs = [Run(**{k: v for k, v in entry.items() if k in fields}) for entry in data["runs"]]
    return report.Report(
        facts=machine.Facts(**data["facts"]),
        rounds_count=data["rounds_count"],
        total_bytes=data["total_bytes"],
        date=data["date"],
        version=data["version"],
        runs=runs,
        bars=bars(Figures(runs), data["planner"]),
        planner=data["planner"],
    )


def measure_and_keep(arguments: argparse.Namespace) -> report.Report:
    """Measure, and write everything to the JSON file."""
    arguments.directory.mkdir(parents=True, exist_ok=True)
    check(arguments)
    made = measure(arguments)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(as_json(made), encoding="utf-8")
    return made


def write_documents(made: report.Report) -> None:
    """The tables and the picture of docs/performance.md."""
    from bench import picture  # matplotlib is needed by nothing else

    picture.draw(made.runs, PICTURE)
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(report.insert(text, report.parts(made)), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, report; 1 if it could not be done, or with --strict if a bar was missed."""
    arguments = parse(argv)
    try:
        report_only = arguments.report_only
        made = from_json(arguments.json) if report_only else measure_and_keep(arguments)
        if not arguments.no_docs:
            write_documents(made)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for bar in made.bars:
        verdict = "holds " if bar.holds else "MISSED"
        print(
            f"{verdict} {bar.text}: {bar.measured:.2f} {bar.unit}, wanted {bar.sense} {bar.limit:g}"
        )
    if max(run.baseline_cpu_per_s for run in made.runs) > QUIET_CPU_PER_S:
        print("The machine was not quiet: other programs ran beside the benchmark.")
    return int(arguments.strict and not all(bar.holds for bar in made.bars))


if __name__ == "__main__":
    os.umask(0o077)
    # As an exception, so that no receiver is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

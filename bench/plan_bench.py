# SPDX-License-Identifier: Apache-2.0
"""Measures the planner: ns, and where valgrind is there instructions, per fragment.

Rounds alternate over the scenarios, so that a noisy minute of the machine falls
on all of them; the figure is the median of the rounds, and the spread is shown.

    python bench/plan_bench.py [--rounds 7] [--json FILE] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # for `support`, as a program

from support.native import BENCH, PURE_SOURCES, build_executable

RUN_TIMEOUT_S: Final = 300
CALLGRIND_FRAGMENTS_COUNT: Final = 200_000


@dataclass(frozen=True, slots=True)
class Figure:
    """What one scenario cost; times in ns, all per fragment but `batches`."""

    scenario: str
    ns_median: float
    ns_min: float
    ns_max: float
    instructions: float | None
    iovecs: float
    direct_bytes: float
    bounced_bytes: float
    padding_bytes: float
    batches: int


def build() -> Path:
    """Compile the benchmark as the core is compiled: with its assertions."""
    return build_executable("plan_bench", [BENCH / "plan_bench.c", *PURE_SOURCES])


def scenario_names(program: Path) -> list[str]:
    done = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def run_once(program: Path, scenario: str, fragments_count: int) -> dict[str, Any]:
    """One run's JSON object, as plan_bench prints it."""
    done = subprocess.run(
        [program, scenario, str(fragments_count)],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def instructions_per_fragment(program: Path, scenario: str, fragments_count: int) -> float | None:
    """Instructions inside bench_loop, from callgrind; None without valgrind."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [
                valgrind,
                "--tool=callgrind",
                "--toggle-collect=bench_loop",
                f"--callgrind-out-file={directory}/out",
                str(program),
                scenario,
                str(fragments_count),
            ],
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=True,
        )
    collected = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    if collected is None:
        raise RuntimeError(f"callgrind said nothing of instructions:\n{done.stderr}")
    return int(collected[1]) / fragments_count


def figure_of(runs: Sequence[dict[str, Any]], instructions: float | None) -> Figure:
    """Sums up the rounds of one scenario; their counts are the same, their times are not."""
    first = runs[0]
    times_ns = [float(run["ns_per_fragment"]) for run in runs]
    count = int(first["fragments"])
    return Figure(
        scenario=first["scenario"],
        ns_median=round(statistics.median(times_ns), 2),
        ns_min=min(times_ns),
        ns_max=max(times_ns),
        instructions=instructions,
        iovecs=first["iovecs"] / count,
        direct_bytes=first["direct_bytes"] / count,
        bounced_bytes=first["bounced_bytes"] / count,
        padding_bytes=first["padding_bytes"] / count,
        batches=int(first["batches"]),
    )


def measure(
    scenarios: Sequence[str],
    *,
    rounds_count: int,
    fragments_count: int,
    callgrind_fragments_count: int = CALLGRIND_FRAGMENTS_COUNT,
) -> list[Figure]:
    """Every scenario, rounds_count times in turn; callgrind once where it is there (0: never)."""
    program = build()
    names = list(scenarios) or scenario_names(program)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds_count):
        for name in names:
            runs[name].append(run_once(program, name, fragments_count))
    instructions = {
        name: instructions_per_fragment(program, name, callgrind_fragments_count)
        if callgrind_fragments_count
        else None
        for name in names
    }
    return [figure_of(runs[name], instructions[name]) for name in names]


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of text."""
    heads = ("scenario", "ns", "min", "max", "instr", "iovecs", "bounced B", "padding B")
    lines = [f"{heads[0]:26}" + "".join(f"{head:>11}" for head in heads[1:])]
    for f in figures:
        instructions = "-" if f.instructions is None else f"{f.instructions:.1f}"
        lines.append(
            f"{f.scenario:26}{f.ns_median:11.1f}{f.ns_min:11.1f}{f.ns_max:11.1f}"
            f"{instructions:>11}{f.iovecs:11.3f}{f.bounced_bytes:11.1f}{f.padding_bytes:11.1f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What the planner costs per fragment.")
    parser.add_argument("scenario", nargs="*", help="all of them if none is named")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fragments", type=int, default=2_000_000)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--no-callgrind", action="store_true")
    arguments = parser.parse_args()
    figures = measure(
        arguments.scenario,
        rounds_count=arguments.rounds,
        fragments_count=arguments.fragments,
        callgrind_fragments_count=0 if arguments.no_callgrind else CALLGRIND_FRAGMENTS_COUNT,
    )
    print(table(figures))
    if arguments.json is not None:
        text = json.dumps([asdict(figure) for figure in figures], indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

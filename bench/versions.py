# SPDX-License-Identifier: Apache-2.0
"""Measures this build of ingestd beside another one, in turn, at several numbers of flows.

    python bench/versions.py OTHER [--rounds 9] [--size-mib 512] [--flows 1 64 1000]

OTHER is the other build's program `ingestd`, in a virtual environment of its own. A ratio
is the median over the rounds of the ratio within a round; its spread tells what is noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from bench.figures import Figures, Value, cpu, throughput  # noqa: E402
from bench.measure import OTHERS, OURS, Run, Scenario, Settings, run_all  # noqa: E402
from bench.receivers import MIB, BenchError  # noqa: E402
from bench.run import build_programs, show  # noqa: E402

VALUES: Final[tuple[tuple[str, Value], ...]] = (
    ("own CPU s/GiB", cpu),
    ("GiB/s", throughput),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure two builds of ingestd in turn.")
    parser.add_argument("other", type=Path, help="the other build's program")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size-mib", type=int, default=512, help="payload of every run")
    parser.add_argument("--flows", type=int, nargs="*", default=[1, 64, 1000])
    parser.add_argument("--congestion", default="cubic")
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="for the data")
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace) -> Figures:
    """Return all runs. Raises BenchError."""
    if not arguments.other.exists():
        raise BenchError(f"{arguments.other} is not there: build it, and name its program")
    plan = [
        Scenario(
            f"flows-{count}", count, -(-arguments.size_mib * MIB // count), 0, (*OURS, *OTHERS)
        )
        for count in arguments.flows
    ]
    programs = replace(build_programs(), other=arguments.other)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        settings = Settings(Path(directory), arguments.rounds, arguments.congestion, 0.5, 120.0)
        runs = run_all(plan, settings, programs, show)
    return Figures(runs)


def rows(figures: Figures) -> list[str]:
    """Return a table: a row for each scenario, checksum and value."""
    lines = ["| flows, checksum | value | this | other | this by other |", "|---|---|--:|--:|--:|"]
    for scenario in figures.scenarios():
        for ours, other in zip(OURS, OTHERS, strict=True):
            for name, value in VALUES:
                cells = [
                    "{:.3f} ({:.3f} to {:.3f})".format(
                        figures.median(scenario, receiver, value),
                        *figures.spread(scenario, receiver, value),
                    )
                    for receiver in (ours, other)
                ]
                ratio = figures.ratio((scenario, ours), (scenario, other), value)
                label = f"{scenario}, {ours.removeprefix('ingestd-')}"
                lines.append(f"| {label} | {name} | {cells[0]} | {cells[1]} | {ratio:.3f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 if something could not be measured."""
    try:
        figures = measure(parse(argv))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("\n".join(rows(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

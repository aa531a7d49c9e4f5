# SPDX-License-Identifier: Apache-2.0
"""Measures the ways from a TCP flow to a file with O_DIRECT side by side; `make compare`.

The same payload by the same sender to each way in turn, in a network namespace of its own
whose loopback has an MTU that fills whole pages (bench/ways has the programs). The table
goes into docs/comparison.md, between its markers; --no-docs leaves that as it is.

    python bench/compare.py [--rounds 5] [--size-mib 1024] [--no-docs]

As root, since a namespace and one setting of the kernel are needed, which is put back.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from bench import machine, report  # noqa: E402
from bench.figures import Figures, cpu, machine_cpu, throughput  # noqa: E402
from bench.measure import (  # noqa: E402
    INGESTD_CRC32C,
    INGESTD_NONE,
    OURS,
    QUIET_CPU_PER_S,
    UPPER_BOUND,
    Programs,
    Quiet,
    Run,
    Scenario,
    Settings,
    run_once,
)
from bench.receivers import INGESTD, MIB, BenchError, run_quietly  # noqa: E402
from bench.run import build_programs, show  # noqa: E402
from bench.way_receiver import DISCARD, WAYS, WayRefusedError  # noqa: E402
from support.native import BENCH, build_executable  # noqa: E402

DOCUMENT: Final = ROOT / "docs" / "comparison.md"
INSIDE: Final = "INGESTD_COMPARE_INSIDE"  # set in the namespace
# 15 pages of payload beside 20 bytes of IPv4, 20 of TCP and 12 of its timestamps.
MTU: Final = 15 * 4096 + 52
# Packets' memory in single pages, as TCP_ZEROCOPY_RECEIVE maps no others (Linux: can_map_frag).
SINGLE_PAGES: Final = Path("/proc/sys/net/core/high_order_alloc_disable")
RECEIVERS: Final = (UPPER_BOUND, *WAYS, *OURS)
LABELS: Final = {
    DISCARD: "recv into one buffer, written nowhere",
    "epoll": "epoll, recv, pwrite",
    UPPER_BOUND: "io_uring, single receives into registered memory (the upper bound)",
    "uring-multishot": "io_uring, multishot, provided buffers",
    "uring-incremental": "io_uring, multishot, buffers filled incrementally",
    "splice": "splice, through the page cache",
    "splice-direct": "splice, to a file with O_DIRECT",
    "tcp-zerocopy": "TCP_ZEROCOPY_RECEIVE, pwrite of what is mapped",
    INGESTD_NONE: 'ingestd, recv, `checksum = "none"`',
    INGESTD_CRC32C: 'ingestd, recv, `checksum = "crc32c"`',
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the ways from a socket to a file.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mib", type=int, default=1024, help="payload of every run")
    parser.add_argument("--congestion", default="cubic")
    parser.add_argument("--baseline-s", type=float, default=0.5)
    parser.add_argument("--quiet-wait-s", type=float, default=120)
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="for the data")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    return parser.parse_args(argv)


def enter_namespace() -> int:
    """Run this program once more in a network namespace of its own; return its exit code."""
    command = ["unshare", "--net", sys.executable, *sys.argv]
    try:
        return subprocess.call(command, env={**os.environ, INSIDE: "1"})
    except OSError as error:
        reason = f"unshare cannot be run ({error.strerror}): apt-get install util-linux"
        raise BenchError(reason) from None


@contextmanager
def single_pages() -> Iterator[None]:
    """Have packets lie in single pages meanwhile. Raises BenchError."""
    try:
        before = SINGLE_PAGES.read_text()
        SINGLE_PAGES.write_text("1\n")
    except OSError as error:
        raise BenchError(f"{SINGLE_PAGES} cannot be set ({error.strerror}): run as root") from None
    try:
        yield
    finally:
        SINGLE_PAGES.write_text(before)


def build() -> Programs:
    """Compile the sender, the upper bound and the ways."""
    ways = build_executable(
        "bench_ways",
        sorted((BENCH / "ways").glob("*.c")),
        flags=["-Wl,--no-as-needed", "-luring"],  # it stands before the sources
    )
    return replace(build_programs(), ways=ways)


def measure(arguments: argparse.Namespace) -> tuple[Figures, dict[str, str], machine.Facts]:
    """All runs, the reasons of those ways that are refused, and what was measured on."""
    congestion = machine.congestion_control(arguments.congestion)
    # A flow ends where it ends: one byte behind the last whole block.
    scenario = Scenario("flows-1", 1, arguments.size_mib * MIB + 1, 0, RECEIVERS)
    programs, quiet = build(), Quiet(arguments.quiet_wait_s)
    runs: list[Run] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        settings = Settings(
            Path(directory),
            arguments.rounds,
            congestion,
            arguments.baseline_s,
            arguments.quiet_wait_s,
        )
        for index in range(arguments.rounds):
            for name in RECEIVERS if index % 2 == 0 else reversed(RECEIVERS):
                try:
                    run = run_once(scenario, name, index, settings, programs, quiet)
                except WayRefusedError as error:
                    refused[name] = str(error)
                    continue
                show(run)
                runs.append(run)
        facts = machine.facts(Path(directory), congestion)
    return Figures(runs), refused, facts


def copies(run: Run) -> tuple[float, float]:
    """Copies per byte of payload that the kernel made, and that the program made."""
    counters = run.counters
    if run.receiver in OURS:
        by_kernel = counters["ingestd_kernel_copied_bytes_total"]
        by_program = counters["ingestd_bounced_bytes_total"]
    elif run.receiver == UPPER_BOUND:
        by_kernel, by_program = float(run.payload_bytes), 0.0  # it counts none: recv, and no more
    else:
        by_kernel, by_program = counters["kernel_copied"], counters["user_copied"]
    return by_kernel / run.payload_bytes, by_program / run.payload_bytes


HEADS: Final = (
    "way",
    "GiB/s, median (least to most)",
    "own CPU s/GiB",
    "by ingestd's (none)",
    "machine's CPU s/GiB beyond discarding",
    "copies per byte: kernel",
    "program",
)


def table(figures: Figures, refused: dict[str, str]) -> str:
    """The table of docs/comparison.md."""
    rows = []
    for name in RECEIVERS:
        if name in refused:
            rows.append([LABELS[name], f"refused: {refused[name].rpartition(': ')[2]}", *[""] * 5])
            continue
        this, scenario = ("flows-1", name), "flows-1"
        low, high = figures.spread(*this, throughput)
        beyond = figures.median(*this, machine_cpu) - figures.median(scenario, DISCARD, machine_cpu)
        by_kernel, by_program = copies(figures.runs[this][-1])
        rows.append(
            [
                LABELS[name],
                f"{figures.median(*this, throughput):.2f} ({low:.2f} to {high:.2f})",
                f"{figures.median(*this, cpu):.3f}",
                f"{figures.ratio(this, (scenario, INGESTD_NONE), cpu):.2f}",
                f"{beyond:.3f}",
                f"{by_kernel:.3f}",
                f"{by_program:.3f}",
            ]
        )
    return report.table(HEADS, rows)


def conditions(arguments: argparse.Namespace, facts: machine.Facts, figures: Figures) -> str:
    """A sentence on what was measured, where and when."""
    runs = [run for found in figures.runs.values() for run in found]
    beside = max(run.baseline_cpu_per_s for run in runs)
    noise = "" if beside <= QUIET_CPU_PER_S else ", **not a quiet machine**"
    return (
        f"One flow of {arguments.size_mib} MiB and a byte, {arguments.rounds} rounds, MTU {MTU};"
        f" {facts.cpu}, {facts.cpus_count} CPUs, Linux {facts.kernel}, {facts.filesystem} on"
        f" {facts.device}; {time.strftime('%Y-%m-%d', time.gmtime())}; at most {beside:.0%} of one"
        f" CPU in use beside{noise}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 1 if it could not be done."""
    arguments = parse(argv)
    try:
        if INSIDE not in os.environ:
            with single_pages():  # the namespace does not show this setting
                return enter_namespace()
        if not INGESTD.exists():
            raise BenchError(f"{INGESTD} is not there: make build")
        run_quietly("ip", "link", "set", "lo", "mtu", str(MTU), "up")
        arguments.directory.mkdir(parents=True, exist_ok=True)
        figures, refused, facts = measure(arguments)
        parts = {
            "ways": table(figures, refused),
            "conditions": conditions(arguments, facts, figures),
        }
        if not arguments.no_docs:
            text = DOCUMENT.read_text(encoding="utf-8")
            DOCUMENT.write_text(report.insert(text, parts), encoding="utf-8")
    except BenchError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(parts.values()))
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    # As an exception, so that no receiver is left behind and the setting is put back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Measures what small and slow flows cost: bytes written, store used, flows per second.

    python bench/small.py [--flows 20000] [--at-once 64] [--rounds 3] [--seconds 5] [--json FILE]

Slow: 1000 flows send 100 bytes each 50 ms, at each alignment that the disk permits; what counts is
written bytes per byte of payload, marks and footers included. Short: raw flows of 100 bytes, each
up to its receipt, in turn with the plainest server in C, which stores nothing (small.c); and what
they take of the store, for a million of them.

Invariant: every figure is of flows that got an answer which says that their bytes are durable.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from bench.receivers import END_TIMEOUT_S, BenchError, Ingestd, Job  # noqa: E402
from ingestd.store.metadata.footer import footer_bytes  # noqa: E402
from ingestd.store.read.image import read_image  # noqa: E402
from support.native import BENCH, build_executable  # noqa: E402

SLOW_FLOWS_COUNT: Final = 1000
FLOW_BYTES: Final = 100
INTERVAL_S: Final = 0.05
ALIGNMENTS: Final = ((4, 512), (512, 512), (512, 4096), (4096, 4096))
AMPLIFICATION_MAX: Final = 2.0
RATE_MIN: Final = 0.6
MILLION_GIB_MAX: Final = 1.0


@dataclass(frozen=True, slots=True)
class Slow:
    """Slow flows at one alignment; None: the disk does not permit it."""

    mem_align: int
    write_align: int
    amplification: float | None


@dataclass(frozen=True, slots=True)
class Short:
    """Short flows: per second, in each round, of ingestd and of the plain server."""

    ingestd: list[float]
    plain: list[float]
    store_bytes_per_flow: float

    def ratio(self) -> float:
        """Return the median of the rounds' ratios."""
        return median(ours / plain for ours, plain in zip(self.ingestd, self.plain, strict=True))


class Small(Ingestd):
    """`ingestd serve`, with an alignment that is stated."""

    def __init__(self, job: Job, alignment: tuple[int, int] | None = None) -> None:
        super().__init__("ingestd", job, "crc32c")
        self._alignment = alignment

    def prepare(self) -> None:
        """As for any run, and what the disk is said to want."""
        super().prepare()
        if self._alignment is not None:
            with self.store.with_suffix(".toml").open("a", encoding="utf-8") as config:
                mem_align, write_align = self._alignment
                config.write(
                    "[store.bench.direct_io]\n"
                    f"mem_align = {mem_align}\nwrite_align = {write_align}\n"
                )

    def counted(self, name: str) -> float:
        """Return the sum of a counter over its labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=END_TIMEOUT_S) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(s.value for family in families for s in family.samples if s.name == name)

    def stop(self) -> None:
        """End the daemon as an operator does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(END_TIMEOUT_S) != 0:
            raise BenchError(f"ingestd ended with code {self.process.returncode}")


def send(program: Path, role: str, port: int, **options: int) -> dict[str, Any]:
    """Run the C program to its end, and return what it says."""
    command = [str(program), role, "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=END_TIMEOUT_S
    )
    if done.returncode != 0:
        raise BenchError(f"small {role} failed: {done.stderr.strip()}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure_slow(program: Path, directory: Path, seconds: int) -> list[Slow]:
    """Measure each alignment; one that is laxer than the disk's ends the daemon at its start."""
    found = []
    flow_bytes = int((seconds + 1) / INTERVAL_S) * FLOW_BYTES
    job = Job(directory, SLOW_FLOWS_COUNT, flow_bytes)
    for alignment in ALIGNMENTS:
        try:
            with Small(job, alignment) as daemon:
                said = send(program, "slow", daemon.port, count=SLOW_FLOWS_COUNT, seconds=seconds)
                written_bytes = daemon.counted("ingestd_written_bytes_total")
                daemon.stop()
            found.append(Slow(*alignment, written_bytes / said["bytes"]))
        except BenchError as error:
            if "did not start" not in str(error):
                raise
            found.append(Slow(*alignment, None))
    return found


def store_bytes(store: Path) -> int:
    """Return what the flows take of a store: the batches of its segments, and the footers."""
    with read_image(str(store)) as image:
        used = [segment for segment in image.segments if segment.sequence]
        footers_bytes = sum(
            image.superblock.segment_bytes - segment.footer.records_offset
            if segment.footer
            else footer_bytes(segment, image.superblock)
            for segment in used
        )
        return footers_bytes + sum(segment.batches_end for segment in used)


def measure_short(program: Path, directory: Path, arguments: argparse.Namespace) -> Short:
    """Measure ingestd and the plain server in turn."""
    job = Job(directory, arguments.flows, FLOW_BYTES)
    wanted = {"count": arguments.flows, "at_once": arguments.at_once}
    ours, plain, used_bytes = list[float](), list[float](), 0
    for _ in range(arguments.rounds):
        with Small(job) as daemon:
            ours.append(arguments.flows / send(program, "flows", daemon.port, **wanted)["seconds"])
            daemon.stop()
            used_bytes = store_bytes(daemon.store)
        with subprocess.Popen(
            [program, "server"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            plain.append(arguments.flows / send(program, "flows", port, **wanted)["seconds"])
            server.kill()
    return Short(ours, plain, used_bytes / arguments.flows)


def table(slow: Sequence[Slow], short: Short) -> str:
    """Return what was measured, a line for each figure, and whether it meets its bar."""
    lines = [
        f"slow flows, mem_align {row.mem_align}, write_align {row.write_align}: "
        + (
            "the disk does not permit it"
            if row.amplification is None
            else f"{row.amplification:.2f} bytes written per byte"
            f" ({'meets' if row.amplification <= AMPLIFICATION_MAX else 'MISSES'}"
            f" {AMPLIFICATION_MAX})"
        )
        for row in slow
    ]
    million_gib = short.store_bytes_per_flow * 1e6 / (1 << 30)
    lines += [
        f"short flows: {median(short.ingestd):,.0f} a second, the plain server"
        f" {median(short.plain):,.0f}: {short.ratio():.2f} of it"
        f" ({'meets' if short.ratio() >= RATE_MIN else 'MISSES'} {RATE_MIN})",
        f"short flows: {short.store_bytes_per_flow:,.0f} bytes of store each,"
        f" {million_gib:.2f} GiB for a million"
        f" ({'meets' if million_gib <= MILLION_GIB_MAX else 'MISSES'} {MILLION_GIB_MAX} GiB)",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What small and slow flows cost.")
    parser.add_argument("--flows", type=int, default=20000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    program = build_executable("bench_small", [BENCH / "small.c"])
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        slow = measure_slow(program, Path(name), arguments.seconds)
        short = measure_short(program, Path(name), arguments)
    print(table(slow, short))
    if arguments.json is not None:
        figures = {"slow": [asdict(row) for row in slow], "short": asdict(short)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

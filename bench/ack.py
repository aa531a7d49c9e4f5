# SPDX-License-Identifier: Apache-2.0
"""Measures what acknowledgements cost: how soon they come, and what they take of the throughput.

    python bench/ack.py [--rounds 7] [--probes 300] [--size-mib 512] [--directory build]

Latency: while 64 other flows come in at a steady rate, flows of 1 MiB are sent,
one after the other, and timed from their last byte to the line that says that
all is durable. In turn with them, the same amount is written beside the store
and flushed: O_DIRECT, fdatasync, on the same file system, under the same load.
Throughput: one large flow by protocol ingest, whose sender reads what is durable
meanwhile, in turn with one by protocol raw, which hears nothing before its end.
Writes its tables into docs/performance.md, but for --no-docs.
"""

from __future__ import annotations

import argparse
import mmap
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from bench import machine, report  # noqa: E402
from bench.figures import Bar  # noqa: E402
from bench.receivers import MIB, BenchError, Ingestd, Job, free_port, write_zeros  # noqa: E402
from support.ingest import Ingest  # noqa: E402
from support.senders import SocketSender  # noqa: E402

DOCUMENT: Final = ROOT / "docs" / "performance.md"
LOAD: Final = Path(__file__).with_name("ack_load.py")
PROBE_BYTES: Final = MIB
LOAD_FLOWS_COUNT: Final = 64
SEND_BYTES: Final = MIB
PAIRS_COUNT: Final = 4  # of flows, in a round
CONGESTION: Final = "cubic"  # see docs/performance.md
DEVICE_SLOTS: Final = 64  # the writes beside go through a file of so many MiB, over and over
SETTLE_S: Final = 1.0
PROBE_S_MAX: Final = 0.15  # a flow and a write beside it, on average, on a slow device
LATENCY_FACTOR_MAX: Final = 2.0
THROUGHPUT_FACTOR_MIN: Final = 0.95
PERCENTILES: Final = (50, 90, 99)


class AckIngestd(Ingestd):
    """The daemon with a second listener, of protocol ingest, on the same store."""

    def __init__(self, job: Job) -> None:
        super().__init__("ingestd", job, "crc32c")
        self.ack_port = free_port()

    def ports(self) -> list[int]:
        """The second listener's too."""
        return [*super().ports(), self.ack_port]

    def prepare(self) -> None:
        """As for other measurements, and the listener."""
        super().prepare()
        with self.store.with_suffix(".toml").open("a", encoding="utf-8") as config:
            config.write(
                f'[listener.ack]\naddress = "127.0.0.1:{self.ack_port}"\nprotocol = "ingest"\n'
            )

    def received_bytes(self) -> float:
        """What has come in so far, on both listeners."""
        return self._counters()["ingestd_received_bytes_total"]


@dataclass
class Latencies:
    """One round, in seconds: of the flows, and of the device beside them.

    `load_mib_per_s` is what came in of the other flows.
    """

    load_mib_per_s: float = 0.0
    flows_s: list[float] = field(default_factory=list)
    device_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times as long a flow's p99 is as the device's own."""
        return percentile(self.flows_s, 99) / percentile(self.device_s, 99)


@dataclass(slots=True)
class Way:
    """One way to send, over the flows of a round: seconds, and CPU seconds of the daemon."""

    bytes_count: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def gib_per_s(self) -> float:
        """Throughput."""
        return self.bytes_count / 2**30 / self.seconds

    @property
    def cpu_s_per_gib(self) -> float:
        """What it takes of the daemon."""
        return self.cpu_s / self.bytes_count * 2**30


@dataclass(slots=True)
class Speeds:
    """One round: flows that are acknowledged meanwhile, and others."""

    acknowledged: Way = field(default_factory=Way)
    raw: Way = field(default_factory=Way)

    @property
    def ratio(self) -> float:
        """What is left of the throughput."""
        return self.acknowledged.gib_per_s / self.raw.gib_per_s


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent lie below."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


class DeviceWriter:
    """Writes and flushes as an independent program would, beside the store."""

    def __init__(self, path: Path) -> None:
        write_zeros(path, DEVICE_SLOTS * PROBE_BYTES)
        self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._memory = mmap.mmap(-1, PROBE_BYTES)
        self._memory.write(os.urandom(PROBE_BYTES))
        self._count = 0

    def time_one_s(self) -> float:
        """Write 1 MiB and have it on stable media."""
        offset = self._count % DEVICE_SLOTS * PROBE_BYTES
        self._count += 1
        started_s = time.perf_counter()
        if os.pwrite(self._fd, self._memory, offset) != PROBE_BYTES:
            raise BenchError("the file system wrote less than was asked: choose another directory")
        os.fdatasync(self._fd)
        return time.perf_counter() - started_s

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        self._memory.close()


def time_flow_s(port: int, data: bytes) -> float:
    """Send a flow; return the time from its last byte to its receipt."""
    with Ingest(("127.0.0.1", port)) as link:
        link.begin(bytes=len(data))
        link.send(data)
        started_s = time.perf_counter()
        link.half_close()
        sealed = link.expect("sealed")
        seconds = time.perf_counter() - started_s
    if sealed["bytes"] != len(data):
        raise BenchError("the receipt is of another number of bytes")
    return seconds


def measure_latency(ingestd: AckIngestd, arguments: argparse.Namespace) -> Latencies:
    """One round, under the load of the other flows."""
    found, data = Latencies(), os.urandom(PROBE_BYTES)
    command = [sys.executable, str(LOAD), str(ingestd.port), str(LOAD_FLOWS_COUNT)]
    command += [str(arguments.load_mib_per_s)]
    device = DeviceWriter(ingestd.job.directory / "device.out")
    with ExitStack() as stack:
        stack.callback(device.close)
        load = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(load.kill)
        time.sleep(SETTLE_S)
        before_bytes, before_s = ingestd.received_bytes(), time.monotonic()
        for _ in range(arguments.probes):
            found.flows_s.append(time_flow_s(ingestd.ack_port, data))
            found.device_s.append(device.time_one_s())
        load_bytes = ingestd.received_bytes() - before_bytes - arguments.probes * PROBE_BYTES
        found.load_mib_per_s = load_bytes / MIB / (time.monotonic() - before_s)
        if load.poll() is not None:
            raise BenchError("the load has ended: the store may be full, see --size-mib")
    return found


def send_all(sock: socket.socket, size_bytes: int, source: int) -> float:
    """Send a flow, reading what is there meanwhile; return the seconds up to its receipt."""
    sock.settimeout(None)  # with one, sendfile() would not wait
    congestion = machine.congestion_control(CONGESTION).encode()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
    started_s = time.perf_counter()
    left = size_bytes
    while left:
        left -= os.sendfile(sock.fileno(), source, 0, min(left, SEND_BYTES))
        if select.select([sock], [], [], 0)[0]:
            sock.recv(65536)
    sock.shutdown(socket.SHUT_WR)
    _to_end(sock, b'"sealed"')
    return time.perf_counter() - started_s


def _to_end(sock: socket.socket, wanted: bytes) -> None:
    """Read to the connection's end; the last line must be the receipt."""
    text = b""
    while piece := sock.recv(65536):
        text += piece
    if wanted not in text.splitlines()[-1]:
        raise BenchError(f"no receipt came: {text[-200:]!r}")


def send_acknowledged(ingestd: AckIngestd, size_bytes: int, source: int) -> float:
    """By protocol ingest: durable lines come, and are read, meanwhile."""
    with Ingest(("127.0.0.1", ingestd.ack_port)) as link:
        link.begin(bytes=size_bytes)
        return send_all(link.sock, size_bytes, source)


def send_raw(ingestd: AckIngestd, size_bytes: int, source: int) -> float:
    """By protocol raw: one line at the end."""
    with SocketSender(("127.0.0.1", ingestd.port)).sock as sock:
        return send_all(sock, size_bytes, source)


def measure_speeds(ingestd: AckIngestd, size_bytes: int) -> Speeds:
    """One round: flows in pairs, the order another from one pair to the next."""
    source = os.memfd_create("source", os.MFD_CLOEXEC)
    os.write(source, os.urandom(SEND_BYTES))
    found = Speeds()
    ways = [(send_acknowledged, found.acknowledged), (send_raw, found.raw)]
    for _ in range(PAIRS_COUNT):
        for send, way in ways:
            cpu_before_s = machine.process_cpu_s(ingestd.pid)
            way.seconds += send(ingestd, size_bytes, source)
            way.cpu_s += machine.process_cpu_s(ingestd.pid) - cpu_before_s
            way.bytes_count += size_bytes
        ways.reverse()
    os.close(source)
    return found


def measure(arguments: argparse.Namespace) -> tuple[list[Latencies], list[Speeds]]:
    """All rounds, each with a daemon of its own on a store formatted anew."""
    latencies, speeds = [], []
    size_bytes = arguments.size_mib * MIB
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="ack-") as directory:
        for number in range(arguments.rounds):
            if arguments.probes:
                job = Job(Path(directory), LOAD_FLOWS_COUNT, latency_bytes(arguments))
                with AckIngestd(job) as ingestd:
                    latencies.append(measure_latency(ingestd, arguments))
                show_latencies(number, latencies[-1])
            if size_bytes:
                with AckIngestd(Job(Path(directory), 2 * PAIRS_COUNT, size_bytes)) as ingestd:
                    speeds.append(measure_speeds(ingestd, size_bytes))
                show_speeds(number, speeds[-1])
    return latencies, speeds


def latency_bytes(arguments: argparse.Namespace) -> int:
    """How much one flow of the load may send in a round, generously: a store's room for it."""
    seconds = SETTLE_S + arguments.probes * PROBE_S_MAX
    load_bytes = seconds * arguments.load_mib_per_s * MIB
    return int(load_bytes + arguments.probes * PROBE_BYTES) // LOAD_FLOWS_COUNT


def show_latencies(number: int, found: Latencies) -> None:
    """One line for a round."""
    parts = [
        f"p{percent} {percentile(found.flows_s, percent) * 1e3:.1f} ms,"
        f" device's {percentile(found.device_s, percent) * 1e3:.1f} ms"
        for percent in PERCENTILES
    ]
    parts.append(f"load {found.load_mib_per_s:.0f} MiB/s")
    print(f"round {number + 1}  last byte to receipt: {'; '.join(parts)}", flush=True)


def show_speeds(number: int, found: Speeds) -> None:
    """One line for a round."""
    print(
        f"round {number + 1}  acknowledged {found.acknowledged.gib_per_s:.2f} GiB/s,"
        f" {found.acknowledged.cpu_s_per_gib:.3f} CPU s/GiB;"
        f" raw {found.raw.gib_per_s:.2f} GiB/s, {found.raw.cpu_s_per_gib:.3f} CPU s/GiB",
        flush=True,
    )


def bars(latencies: Sequence[Latencies], speeds: Sequence[Speeds]) -> list[Bar]:
    """What ingestd holds itself to."""
    made = []
    if latencies:
        text = "a flow of 1 MiB beside 64 others: p99 from last byte to receipt, by the device's"
        ratio = median(found.ratio for found in latencies)
        made.append(Bar(text, "<=", LATENCY_FACTOR_MAX, ratio))
    if speeds:
        text = "one flow: throughput with acknowledgements by that without"
        ratio = median(found.ratio for found in speeds)
        made.append(Bar(text, ">=", THROUGHPUT_FACTOR_MIN, ratio))
    return made


def table_of(latencies: Sequence[Latencies], speeds: Sequence[Speeds]) -> str:
    """The figures in Markdown: medians over the rounds, least and most behind them."""
    lines = []
    if latencies:
        lines += ["| | a flow's last byte to its receipt, ms | device's own write and flush, ms |"]
        lines += ["|---|--:|--:|"]
        for percent in PERCENTILES:
            columns = [f.flows_s for f in latencies], [f.device_s for f in latencies]
            cells = [span([percentile(v, percent) * 1e3 for v in column]) for column in columns]
            lines.append(f"| p{percent} | {' | '.join(cells)} |")
        lines += ["", f"Ratio of the p99s: {span([found.ratio for found in latencies])}."]
        rates = span([found.load_mib_per_s for found in latencies])
        lines += [f"The other flows came in at {rates} MiB/s.", ""]
    if speeds:
        lines += ["| one flow | GiB/s | daemon's CPU s/GiB |", "|---|--:|--:|"]
        names = ("protocol ingest, durable lines", "protocol raw, one receipt")
        ways = [s.acknowledged for s in speeds], [s.raw for s in speeds]
        for name, column in zip(names, ways, strict=True):
            speed = span([way.gib_per_s for way in column])
            lines.append(f"| {name} | {speed} | {span([way.cpu_s_per_gib for way in column])} |")
        lines += ["", f"Ratio of the throughputs: {span([found.ratio for found in speeds])}."]
    return "\n".join(lines).strip()


def span(values: Sequence[float]) -> str:
    """A median with least and most."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def describe(arguments: argparse.Namespace) -> str:
    """The machine and the load, in one line."""
    facts = machine.facts(arguments.directory, machine.congestion_control(CONGESTION))
    return (
        f"{arguments.rounds} rounds of {arguments.probes} flows beside {LOAD_FLOWS_COUNT} others"
        f" that offer {arguments.load_mib_per_s} MiB/s together, and of {arguments.size_mib} MiB in"
        f" one flow; {facts.cpus_count} CPUs ({facts.cpu}), Linux {facts.kernel},"
        f" {facts.filesystem} on {facts.device}; load average {os.getloadavg()[0]:.1f} at the end;"
        f" {time.strftime('%Y-%m-%d')}:"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what acknowledgements cost.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--probes", type=int, default=300, help="flows of a round; 0: none")
    parser.add_argument("--load-mib-per-s", type=int, default=64, help="of the other 64 flows")
    parser.add_argument("--size-mib", type=int, default=512, help="of the one flow; 0: none")
    parser.add_argument("--directory", type=Path, default=ROOT / "build")
    parser.add_argument("--no-docs", action="store_true")
    parser.add_argument("--strict", action="store_true", help="fail if a bar is missed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, tell, and write the document; 1 if it could not be done, or as --strict says."""
    arguments = parse(argv)
    try:
        latencies, speeds = measure(arguments)
        part = f"{describe(arguments)}\n\n{table_of(latencies, speeds)}"
        print(part)
        if not arguments.no_docs:
            text = DOCUMENT.read_text(encoding="utf-8")
            DOCUMENT.write_text(report.insert(text, {"ack": part}), encoding="utf-8")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    made = bars(latencies, speeds)
    for bar in made:
        verdict = "holds " if bar.holds else "MISSED"
        print(f"{verdict} {bar.text}: {bar.measured:.2f} x, wanted {bar.sense} {bar.limit:g}")
    return int(arguments.strict and not all(bar.holds for bar in made))


if __name__ == "__main__":
    sys.exit(main())

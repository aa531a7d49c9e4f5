# SPDX-License-Identifier: Apache-2.0
"""The receivers that the benchmark compares: ingestd, its upper bound, and peers.

Each is prepared (not timed), started until it listens, fed by the sender, and
finished: when finish() returns, every byte is on stable media. CPU seconds are
those of the receiver's own processes from mark() on.

Invariants: whatever happens inside the context manager, no process is left
behind; a receiver that fails, or answers anything but a durable seal, ends the
benchmark with BenchError instead of giving a figure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from prometheus_client.parser import text_string_to_metric_families

from bench import machine

MIB: Final = 1 << 20
BLOCK_BYTES: Final = 4096
READY_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 300.0
POLL_INTERVAL_S: Final = 0.005

INGESTD: Final = Path(sys.executable).with_name("ingestd")
ASYNCIO_RECEIVER: Final = Path(__file__).with_name("asyncio_receiver.py")

# What ingestd counts of a run and the report shows, summed over labels.
COUNTERS: Final = (
    "ingestd_received_bytes_total",
    "ingestd_written_bytes_total",
    "ingestd_durable_bytes_total",
    "ingestd_bounced_bytes_total",
    "ingestd_kernel_copied_bytes_total",
    "ingestd_padding_bytes_total",
    "ingestd_batches_total",
)


class BenchError(Exception):
    """A measurement could not be made; one sentence, and the way out."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be received, and where its files go."""

    directory: Path
    flows_count: int
    flow_bytes: int
    idle_count: int = 0

    @property
    def payload_bytes(self) -> int:
        """All bytes of all flows."""
        return self.flows_count * self.flow_bytes

    @property
    def segment_bytes(self) -> int:
        """What ingestd takes by default on a large store; less where little is sent."""
        return 256 * MIB if self.payload_bytes >= 1024 * MIB else 16 * MIB

    @property
    def file_bytes(self) -> int:
        """Room enough for any receiver's file: payload, padding, an index, spare segments."""
        padding_bytes = self.flows_count * 2 * BLOCK_BYTES
        wanted = self.payload_bytes * 9 // 8 + padding_bytes + 6 * self.segment_bytes
        return -(-wanted // MIB) * MIB


@dataclass(slots=True)
class Outcome:
    """What a receiver says when it has finished."""

    cpu_s: float
    memory_peak_bytes: int | None = None
    counters: dict[str, float] = field(default_factory=dict)


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listened a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_zeros(path: Path, size_bytes: int) -> None:
    """A file whose blocks are all written: later writes meet no unwritten extents."""
    if path.exists() and path.stat().st_size >= size_bytes:
        return
    block = bytes(8 * MIB)
    with path.open("wb") as file:
        for _ in range(-(-size_bytes // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_quietly(*command: str | Path) -> str:
    """Standard output of a command; raises BenchError with its words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Receiver:
    """One run of one receiver; use it as a context manager. Subclasses say how it starts."""

    closes_when_durable = False  # the sender's last closed connection is the end of the run
    area_bytes: int | None = None
    sender_flags: tuple[str, ...] = ()  # what it wants to be sent otherwise

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self.job = job
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        self._cpu_before_s = 0.0

    def command(self) -> list[str | Path]:
        """What to start."""
        raise BenchError(f"{self.name} cannot be started")

    def ports(self) -> list[int]:
        """On all of these it listens once it is ready."""
        return [self.port]

    def prepare(self) -> None:
        """Make what must be there before the start."""

    def finish(self) -> Outcome:
        """Wait until every byte is on stable media."""
        raise BenchError(f"{self.name} cannot be finished")

    def check_answers(self, answers: list[dict[str, Any]]) -> None:
        """Look at what the sender was told; peers tell nothing."""

    def log(self) -> IO[Any] | int:
        """Where stderr goes."""
        return subprocess.PIPE

    def __enter__(self) -> Self:
        self.prepare()
        log = self.log()
        self.process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a pipeline's processes can be ended together
        )
        limit = time.monotonic() + READY_TIMEOUT_S
        while not all(machine.port_is_listening(port) for port in self.ports()):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise BenchError(f"{self.name} did not start to listen")
            time.sleep(POLL_INTERVAL_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self.process
        if process is None:
            return
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    @property
    def pid(self) -> int:
        """The receiver's first process."""
        assert self.process is not None
        return self.process.pid

    def mark(self) -> None:
        """From here on CPU time counts."""
        self._cpu_before_s = machine.tree_cpu_s(self.pid)


class OneShot(Receiver):
    """A receiver that ends by itself when the bytes are on stable media."""

    def __init__(self, name: str, job: Job) -> None:
        super().__init__(name, job)
        self.path = job.directory / f"{name}.out"

    def prepare(self) -> None:
        """A fresh file, as a user would have it; what the last one left to do is done first."""
        self.path.unlink(missing_ok=True)
        run_quietly("sync", "-f", self.job.directory)

    def finish(self) -> Outcome:
        """Wait for the process and, through it, for those that it has waited for."""
        assert self.process is not None
        errors = self.process.stderr
        assert errors is not None
        _, status, usage = os.wait4(self.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode != 0:
            raise BenchError(f"{self.name} failed: {errors.read().strip()}")
        size = self.path.stat().st_size
        if size != self.job.payload_bytes:
            raise BenchError(f"{self.name} stored {size} bytes of {self.job.payload_bytes}")
        cpu_s = usage.ru_utime + usage.ru_stime - self._cpu_before_s
        return Outcome(cpu_s=cpu_s)

    def said(self) -> dict[str, Any]:
        """What a program of ours prints at its end, once it has received everything.

        It counts its CPU time itself, so that taking down its memory is not in it.
        """
        assert self.process is not None
        output, errors = self.process.communicate(timeout=END_TIMEOUT_S)
        if self.process.returncode != 0:
            raise self.failure(self.process.returncode, errors.strip())
        said: dict[str, Any] = json.loads(output)
        if said["bytes"] != self.job.payload_bytes:
            raise BenchError(f"{self.name} received {said['bytes']} bytes")
        return said

    def failure(self, exit_code: int, text: str) -> BenchError:
        """The error of a program that ended with an exit code and these words."""
        del exit_code
        return BenchError(f"{self.name} failed: {text}")


class Socat(OneShot):
    """socat into a file, then sync of that file."""

    def command(self) -> list[str | Path]:
        """As a user would type it."""
        listen = f"TCP-LISTEN:{self.port},bind=127.0.0.1,reuseaddr"
        script = f"socat -u {listen} OPEN:'{self.path}',creat,trunc && sync '{self.path}'"
        return ["sh", "-c", script]


class NetcatDd(OneShot):
    """nc into dd with O_DIRECT."""

    def command(self) -> list[str | Path]:
        """As a user would type it."""
        dd = f"dd of='{self.path}' oflag=direct bs=1M iflag=fullblock conv=fsync status=none"
        return ["sh", "-c", f"nc -d -l 127.0.0.1 {self.port} | {dd}"]


class Mbuffer(OneShot):
    """mbuffer into a file, then sync of that file."""

    def command(self) -> list[str | Path]:
        """As a user would type it."""
        script = f"mbuffer -q -I 127.0.0.1:{self.port} -o '{self.path}' && sync '{self.path}'"
        return ["sh", "-c", script]


class Asyncio(OneShot):
    """A Python receiver with fsync."""

    def command(self) -> list[str | Path]:
        """The program beside this file."""
        return [sys.executable, ASYNCIO_RECEIVER, str(self.port), self.path]


class UpperBound(OneShot):
    """bench/upper_bound.c; its file is written once before."""

    closes_when_durable = True
    # As much is being written as ingestd has under way at most; beside that one slot per flow.
    SLOT_BYTES_MAX: Final = 4 * MIB
    SLOTS_WRITING_BYTES: Final = 64 * MIB
    AREA_BYTES_MAX: Final = 256 * MIB

    def __init__(self, name: str, job: Job, program: Path) -> None:
        super().__init__(name, job)
        self.path = job.directory / "upper-bound.out"
        self.program = program

    def prepare(self) -> None:
        """The file as ingestd's store is: as large, and written before."""
        write_zeros(self.path, self.job.file_bytes)

    def _slot_bytes(self) -> int:
        slot_bytes = self.SLOT_BYTES_MAX
        while self.job.flows_count * slot_bytes > self.AREA_BYTES_MAX - self.SLOTS_WRITING_BYTES:
            slot_bytes //= 2
        return slot_bytes

    def command(self) -> list[str | Path]:
        """Slots for all flows, and more for the writes."""
        slot_bytes = self._slot_bytes()
        slots_count = self.job.flows_count + self.SLOTS_WRITING_BYTES // slot_bytes
        options = {
            "port": self.port,
            "file": self.path,
            "flows": self.job.flows_count,
            "slot-bytes": slot_bytes,
            "slots": slots_count,
        }
        return [self.program, *(f"--{key}={value}" for key, value in options.items())]

    def finish(self) -> Outcome:
        """It is timed by itself: said()."""
        said = self.said()
        return Outcome(cpu_s=said["user_s"] + said["sys_s"])


class Ingestd(Receiver):
    """`ingestd serve` with default settings but for the checksum."""

    closes_when_durable = True
    AREA_BYTES: Final = 256 * MIB
    area_bytes = AREA_BYTES

    def __init__(self, name: str, job: Job, checksum: str, program: Path = INGESTD) -> None:
        super().__init__(name, job)
        self.checksum = checksum
        self.program = program
        self.store = job.directory / "ingestd.store"
        self.metrics_port = free_port()
        self._log: IO[Any] | None = None

    def ports(self) -> list[int]:
        """The metrics come up last."""
        return [self.port, self.metrics_port]

    def log(self) -> IO[Any] | int:
        """The daemon's log: of the last run only."""
        self._log = self.store.with_suffix(".log").open("w")
        return self._log

    def prepare(self) -> None:
        """An empty store in a file that has been written before, and a configuration."""
        size_bytes = self.job.file_bytes
        if self.store.exists() and self.store.stat().st_size < size_bytes:
            self.store.unlink()
        flags = ["--force"] if self.store.exists() else ["--zero", "--size", str(size_bytes)]
        flags += ["--segment-size", str(self.job.segment_bytes)]
        run_quietly(self.program, "format", self.store, *flags)
        connections_max = self.job.flows_count + self.job.idle_count + 64
        self.store.with_suffix(".toml").write_text(
            f'[store.bench]\npath = "{self.store}"\nchecksum = "{self.checksum}"\n'
            f'area = "{self.AREA_BYTES}"\n'
            f'[listener.bench]\naddress = "127.0.0.1:{self.port}"\n'
            f"connections_max = {connections_max}\n"
            f'[metrics]\naddress = "127.0.0.1:{self.metrics_port}"\n'
            '[log]\nformat = "json"\nlevel = "warning"\n',
            encoding="utf-8",
        )

    def command(self) -> list[str | Path]:
        """One daemon for this run."""
        return [self.program, "serve", "-c", self.store.with_suffix(".toml")]

    def check_answers(self, answers: list[dict[str, Any]]) -> None:
        """Every flow must have its receipt: all bytes, durable, sealed."""
        good = sum(
            answer.get("durable") is True
            and answer.get("state") == "sealed"
            and answer.get("bytes") == self.job.flow_bytes
            and (answer.get("checksum") is None) == (self.checksum == "none")
            for answer in answers
        )
        if good != self.job.flows_count:
            raise BenchError(f"{self.name} sealed {good} of {self.job.flows_count} flows")

    def _counters(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=READY_TIMEOUT_S) as answer:
            text = answer.read().decode()
        found = dict.fromkeys(COUNTERS, 0.0)
        seen = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name] += sample.value
                    seen.add(sample.name)
        if seen != set(COUNTERS):
            raise BenchError(f"the metrics lack {', '.join(sorted(set(COUNTERS) - seen))}")
        return found

    def finish(self) -> Outcome:
        """The receipts are out already: take the figures, then stop the daemon."""
        assert self.process is not None
        cpu_s = machine.process_cpu_s(self.pid) - self._cpu_before_s
        memory = machine.memory_peak_bytes(self.pid)
        counters = self._counters()
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(END_TIMEOUT_S) != 0:
            raise BenchError(f"{self.name} ended with code {self.process.returncode}")
        if counters["ingestd_durable_bytes_total"] != self.job.payload_bytes:
            raise BenchError(f"{self.name} counts other durable bytes than were sent")
        return Outcome(cpu_s=cpu_s, memory_peak_bytes=memory, counters=counters)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._log is not None:
            self._log.close()


PEERS: Final = {
    "socat": (Socat, "socat", "socat"),
    "nc-dd": (NetcatDd, "nc", "netcat-openbsd"),
    "mbuffer": (Mbuffer, "mbuffer", "mbuffer"),
    "asyncio": (Asyncio, sys.executable, "python3"),
}


def missing_packages(peers: list[str]) -> list[str]:
    """Debian packages of the peers that are not installed."""
    return [PEERS[name][2] for name in peers if shutil.which(PEERS[name][1]) is None]

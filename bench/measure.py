# SPDX-License-Identifier: Apache-2.0
"""One run: start a receiver, send to it, wait until the bytes are durable, take the figures.

Time runs from the sender's start to the moment at which every byte is on stable
media: for receivers that close their connections only then, to the sender's
last closed connection; for the others, to the end of their process. CPU time is
counted two ways: that of the receiver's own processes, and that of the whole
machine above what it used just before, when receiver and sender stood ready
(writeback and interrupts hide in the kernel's threads).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.receivers import (
    END_TIMEOUT_S,
    PEERS,
    BenchError,
    Ingestd,
    Job,
    Receiver,
    UpperBound,
)
from bench.way_receiver import WAYS, Way

UPPER_BOUND: Final = "upper-bound"
INGESTD_NONE: Final = "ingestd-none"
INGESTD_CRC32C: Final = "ingestd-crc32c"
QUIET_CPU_PER_S: Final = 0.1  # more than that beside the benchmark makes its figures doubtful
OURS: Final = (INGESTD_NONE, INGESTD_CRC32C)
OTHER_NONE: Final = "other-none"  # another build of ingestd
OTHER_CRC32C: Final = "other-crc32c"
OTHERS: Final = (OTHER_NONE, OTHER_CRC32C)


@dataclass(frozen=True, slots=True)
class Programs:
    """The compiled helpers, and another build of ingestd, if it is to be compared with."""

    sender: Path
    upper_bound: Path
    other: Path | None = None
    ways: Path | None = None  # bench/ways, for `make compare`


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is sent, and to whom."""

    name: str
    flows_count: int
    flow_bytes: int
    idle_count: int
    receivers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How often, and from where to where."""

    directory: Path
    rounds_count: int
    congestion: str
    baseline_s: float
    quiet_wait_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one run. CPU figures are seconds; `*_per_s` is CPU seconds per second."""

    scenario: str
    receiver: str
    round: int
    flows_count: int
    idle_count: int
    payload_bytes: int
    seconds: float
    cpu_s: float
    machine_cpu_s: float
    sender_cpu_s: float
    baseline_cpu_per_s: float
    memory_peak_bytes: int | None
    area_bytes: int | None
    counters: dict[str, float] = field(default_factory=dict)

    @property
    def gib(self) -> float:
        """Payload in GiB."""
        return self.payload_bytes / 2**30

    @property
    def gib_per_s(self) -> float:
        """Throughput, data on stable media."""
        return self.gib / self.seconds

    @property
    def cpu_s_per_gib(self) -> float:
        """What the receiver's processes used."""
        return self.cpu_s / self.gib

    @property
    def machine_cpu_s_per_gib(self) -> float:
        """What the machine used, the sender included."""
        return self.machine_cpu_s / self.gib


def scenarios(
    *, total_bytes: int, flow_counts: Sequence[int], idle_count: int, peers: Sequence[str]
) -> list[Scenario]:
    """One flow against everybody, more flows against the upper bound, idle connections."""
    found = []
    for count in flow_counts:
        receivers = (UPPER_BOUND, *OURS, *(peers if count == 1 else ()))
        found.append(Scenario(f"flows-{count}", count, -(-total_bytes // count), 0, receivers))
    if idle_count:
        for idle in (0, idle_count):
            found.append(Scenario(f"idle-{idle}", 1, total_bytes, idle, (INGESTD_CRC32C,)))
    return found


def make_receiver(name: str, job: Job, programs: Programs) -> Receiver:
    """The receiver of a name."""
    if name == UPPER_BOUND:
        return UpperBound(name, job, programs.upper_bound)
    if name in OURS:
        return Ingestd(name, job, name.removeprefix("ingestd-"))
    if name in OTHERS:
        assert programs.other is not None
        return Ingestd(name, job, name.removeprefix("other-"), programs.other)
    if name in WAYS:
        assert programs.ways is not None
        return Way(name, job, programs.ways)
    return PEERS[name][0](name, job)


def _sender(
    programs: Programs, job: Job, receiver: Receiver, congestion: str
) -> subprocess.Popen[str]:
    """The sender, with its idle connections open, waiting for a line."""
    command = [
        str(programs.sender),
        f"--port={receiver.port}",
        f"--flows={job.flows_count}",
        f"--flow-bytes={job.flow_bytes}",
        f"--idle={job.idle_count}",
        f"--congestion={congestion}",
        *receiver.sender_flags,
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if not process.stdout.readline():
        raise BenchError(f"the sender failed: {process.stderr.read().strip()}")
    return process


def _send(process: subprocess.Popen[str], job: Job) -> dict[str, Any]:
    """Let the sender go; what it says in the end."""
    output, errors = process.communicate("\n", timeout=END_TIMEOUT_S)
    if process.returncode != 0:
        raise BenchError(f"the sender failed: {errors.strip()}")
    said: dict[str, Any] = json.loads(output)
    if said["flows_failed"] or said["bytes"] != job.payload_bytes:
        raise BenchError(f"{said['flows_failed']} flows failed in mid-stream")
    if said["idle_kept"] != job.idle_count:
        raise BenchError(f"{said['idle_kept']} of {job.idle_count} idle connections were kept")
    return said


class Quiet:
    """Waits for a quiet machine, `budget_s` at most over all runs together."""

    def __init__(self, budget_s: float) -> None:
        self._left_s = budget_s

    def baseline_cpu_per_s(self, window_s: float) -> float:
        """CPU seconds per second that the machine uses while nothing is sent."""
        while True:
            before_s, start_s = machine.machine_cpu_s(), time.monotonic()
            time.sleep(window_s)
            elapsed_s = time.monotonic() - start_s
            used = (machine.machine_cpu_s() - before_s) / elapsed_s
            if used <= QUIET_CPU_PER_S or self._left_s <= 0:
                return used
            self._left_s -= elapsed_s


def run_once(
    scenario: Scenario,
    name: str,
    round_index: int,
    settings: Settings,
    programs: Programs,
    quiet: Quiet,
) -> Run:
    """Measure one receiver once. Raises BenchError."""
    job = Job(settings.directory, scenario.flows_count, scenario.flow_bytes, scenario.idle_count)
    with make_receiver(name, job, programs) as receiver:
        sender = _sender(programs, job, receiver, settings.congestion)
        try:
            baseline = quiet.baseline_cpu_per_s(settings.baseline_s)
            receiver.mark()
            machine_before_s, start_s = machine.machine_cpu_s(), time.monotonic()
            said = _send(sender, job)
            if receiver.closes_when_durable:
                seconds = float(said["seconds"])
            else:
                outcome = receiver.finish()
                seconds = time.monotonic() - said["started_ns"] * 1e-9
            machine_s = machine.machine_cpu_s() - machine_before_s
            machine_s -= baseline * (time.monotonic() - start_s)
            if receiver.closes_when_durable:
                outcome = receiver.finish()
        finally:
            sender.kill()
            sender.wait()
        receiver.check_answers(said["answers"])
    return Run(
        scenario=scenario.name,
        receiver=name,
        round=round_index,
        flows_count=scenario.flows_count,
        idle_count=scenario.idle_count,
        payload_bytes=job.payload_bytes,
        seconds=seconds,
        cpu_s=outcome.cpu_s,
        machine_cpu_s=machine_s,
        sender_cpu_s=said["user_s"] + said["sys_s"],
        baseline_cpu_per_s=baseline,
        memory_peak_bytes=outcome.memory_peak_bytes,
        area_bytes=receiver.area_bytes,
        counters=outcome.counters,
    )


def run_all(
    plan: Sequence[Scenario],
    settings: Settings,
    programs: Programs,
    progress: Callable[[Run], None],
) -> list[Run]:
    """Every receiver of every scenario in turn, round by round, there and back.

    Alternating spreads a slow minute of the machine over all of them.
    """
    runs = []
    quiet = Quiet(settings.quiet_wait_s)
    order = [(scenario, name) for scenario in plan for name in scenario.receivers]
    for round_index in range(settings.rounds_count):
        for scenario, name in order if round_index % 2 == 0 else reversed(order):
            run = run_once(scenario, name, round_index, settings, programs, quiet)
            progress(run)
            runs.append(run)
    return runs

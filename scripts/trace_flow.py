# SPDX-License-Identifier: Apache-2.0
"""Prints the life of flows from receive to receipt, by bpftrace on the core's static probes.

    python scripts/trace_flow.py PID [--flow BEGINNING-OF-ID] [--count 1] [--lines 40]

As root, with bpftrace, on a daemon whose core was built where sys/sdt.h was (docs/tracing.md).
Attaching costs every event a trap for as long as this runs: look at a busy daemon shortly.

Invariants: the daemon is looked at only; of each flow that is followed at most LINES_MAX
events are kept. Owned by one thread.
"""

from __future__ import annotations

import argparse
import heapq
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

LINES_MAX: Final = 100_000
FLOWS_MAX: Final = 4096  # followed at the same time
# Events of one worker come by several buffers when the scheduler moves its thread.
DISORDER_NS: Final = 200_000_000
ID: Final = "*(uint64 *)arg0, *(uint64 *)(arg0 + 8)"
# Probe -> bpftrace's format and arguments, behind name, time and thread.
PROBES: Final = {
    "receive": ("%lx %lx %lu %lu", f"{ID}, arg1, arg2"),
    "append": ("%lx %lx %lu %lu %lu %lu", f"{ID}, arg1, arg2, arg3, arg4"),
    "place": ("%lu %lu %lu %lu", "arg0, arg1, arg2, arg3"),
    "write_done": ("%lu %lu %lu", "arg0, arg1, arg2"),
    "flush_done": ("%lu", "arg0"),
    "commit": ("%lu", "arg0"),
    "ack": ("%lx %lx %lu %lu %lu", f"{ID}, arg1, arg2, arg3"),
    "receipt": ("%lx %lx %lu %ld", f"{ID}, arg1, arg2"),
}
OF_A_FLOW: Final = frozenset({"receive", "append", "ack", "receipt"})


class Event(NamedTuple):
    """One probe that fired; time first, so that events are put in order by it."""

    time_ns: int
    thread: int
    name: str
    flow: bytes  # empty: of no flow alone
    values: tuple[int, ...]


@dataclass
class Life:
    """What a flow has gone through: the events, and the batches and items that have its bytes."""

    flow: bytes
    thread: int
    events: list[Event] = field(default_factory=list)
    batches: set[int] = field(default_factory=set)  # open ones, by their index in the pool
    items: set[int] = field(default_factory=set)  # placed and not committed

    def add(self, event: Event) -> None:
        """Keep an event, as long as there is room."""
        if len(self.events) < LINES_MAX:
            self.events.append(event)

    def note(self, event: Event) -> None:
        """Take in an event that is no single flow's, if it concerns a batch of this one."""
        values = event.values
        if event.name == "place" and values[0] in self.batches:
            self.batches.discard(values[0])
            self.items.add(values[1])
            self.add(event)
        elif event.name == "write_done" and values[1] in self.items:
            self.add(event)
        elif event.name in ("flush_done", "commit"):
            covered = {item for item in self.items if item < values[0]}
            if covered:
                self.add(event)
            if event.name == "commit":
                self.items -= covered


class Tracer:
    """Puts events in order and together into lives; ended() gives those whose receipt has left."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted.replace("-", "").lower()
        self._waiting: list[Event] = []
        self._lives: dict[bytes, Life] = {}

    def take(self, event: Event) -> Iterator[Life]:
        """Take one event; gives lives that have ended meanwhile."""
        heapq.heappush(self._waiting, event)
        while self._waiting[0].time_ns < event.time_ns - DISORDER_NS:
            yield from self._apply(heapq.heappop(self._waiting))

    def rest(self) -> Iterator[Life]:
        """Take in what still waits for its order."""
        while self._waiting:
            yield from self._apply(heapq.heappop(self._waiting))

    def _apply(self, event: Event) -> Iterator[Life]:
        if event.name not in OF_A_FLOW:
            for life in self._lives.values():
                if life.thread == event.thread:
                    life.note(event)
            return
        if not event.flow.hex().startswith(self._wanted):
            return
        life = self._lives.get(event.flow)
        if life is None:
            # One that began before this did would be shown without its beginning.
            if event.name != "receive" or len(self._lives) >= FLOWS_MAX:
                return
            life = self._lives[event.flow] = Life(event.flow, event.thread)
        life.add(event)
        if event.name == "append":
            life.batches.add(event.values[3])
        if event.name == "receipt":
            yield self._lives.pop(event.flow)


def parse(line: str) -> Event | None:
    """Return the event of a line of bpftrace's output; None for what is no event."""
    words = line.split()
    if len(words) < 4 or words[0] not in PROBES:
        return None
    name, time_ns, thread, *values = words
    flow = b""
    if name in OF_A_FLOW:
        # Two words of the machine's order, in hexadecimal digits.
        flow = b"".join(int(word, 16).to_bytes(8, sys.byteorder) for word in values[:2])
        values = values[2:]
    return Event(int(time_ns), int(thread), name, flow, tuple(map(int, values)))


def describe(event: Event) -> str:
    """Return what an event says, for people."""
    v = event.values
    texts = {
        "receive": lambda: f"{v[1]} bytes from the socket",
        "append": lambda: f"{v[2]} bytes at offset {v[1]} into batch {v[3]}",
        "place": lambda: f"batch {v[0]} is item {v[1]}: {v[3]} bytes at byte {v[2]} of the store",
        "write_done": lambda: (
            f"item {v[1]} is written, after {(event.time_ns - v[2]) / 1000:.0f} us"
        ),
        "flush_done": lambda: f"all before item {v[0]} is flushed",
        "commit": lambda: f"all before item {v[0]} is committed",
        "ack": lambda: f"durable up to {v[1]}{', with its CLOSE record' if v[2] else ''}",
        "receipt": lambda: "the last line is sent" if v[1] >= 0 else f"not sent: errno {-v[1]}",
    }
    return texts[event.name]()


def lines_of(life: Life, lines_max: int) -> Iterator[str]:
    """Give a life's lines: times in microseconds from the first event; the middle is left out."""
    yield f"flow {uuid.UUID(bytes=life.flow)}, thread {life.thread}"
    begin_ns = life.events[0].time_ns
    left_out = max(0, len(life.events) - lines_max)
    for number, event in enumerate(life.events):
        if lines_max // 2 <= number < lines_max // 2 + left_out:
            if number == lines_max // 2:
                yield f"  ... {left_out} events more ..."
            continue
        time_us = (event.time_ns - begin_ns) / 1000
        yield f"  {time_us:12.1f} us  {event.name:10}  {describe(event)}"


def program(core: str) -> str:
    """Return the bpftrace program for the core's shared object."""
    assert not re.search(r"[\s:{}]", core), core
    return "".join(
        f"usdt:{core}:ingestd:{name} "
        f'{{ printf("{name} %lu %lu {form}\\n", nsecs, (uint64)tid, {values}); }}\n'
        for name, (form, values) in PROBES.items()
    )


def core_of(pid: int) -> str:
    """Return the path of the core's shared object that a process has loaded. Raises SystemExit."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    except OSError as error:
        raise SystemExit(
            f"trace_flow: process {pid} cannot be looked at: {error.strerror}"
        ) from None
    found = re.search(r"\s(/\S*/_core\.\S*\.so)$", maps, re.MULTILINE)
    if found is None:
        raise SystemExit(
            f"trace_flow: process {pid} has no core of ingestd loaded: name the daemon's"
        )
    return f"/proc/{pid}/root{found[1]}"


def show(output: Iterable[str], wanted: str, count: int, lines_max: int) -> None:
    """Print the first lives that end."""
    tracer = Tracer(wanted)

    def lives() -> Iterator[Life]:
        for line in output:
            if event := parse(line):
                yield from tracer.take(event)
        yield from tracer.rest()

    for number, life in enumerate(lives(), 1):
        print("\n".join(lines_of(life, lines_max)), flush=True)
        if number == count:
            return


def main() -> int:
    """Run bpftrace, and print what it sees."""
    parser = argparse.ArgumentParser(description="Print the life of flows.")
    parser.add_argument("pid", type=int, help="process of the daemon")
    parser.add_argument("--flow", default="", help="beginning of a flow id (default: any)")
    parser.add_argument("--count", type=int, default=1, help="flows to print (default: 1)")
    parser.add_argument("--lines", type=int, default=40, help="lines of each flow (default: 40)")
    arguments = parser.parse_args()
    core = core_of(arguments.pid)
    if (bpftrace := shutil.which("bpftrace")) is None:
        raise SystemExit("trace_flow: bpftrace is missing: apt-get install bpftrace")
    command = [bpftrace, "-p", str(arguments.pid), "-e", program(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracing:
        assert tracing.stdout is not None
        try:
            show(tracing.stdout, arguments.flow, arguments.count, arguments.lines)
        except KeyboardInterrupt:
            pass
        finally:
            tracing.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""A life of a store as the core's write path lives it on a made-up disk, and what it promised.

tests/core/crash_stage.c plays it and tells what happened, event by event.
Invariant: whatever the moment, `Promises` knows what senders were told, and what
of their bytes a write could have carried.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from support.crash_disk import Disk
from support.native import CORE, PURE_SOURCES, SANITIZERS, TESTS, build_executable
from support.patience import WAIT_S

HEAD: Final = struct.Struct("<IIQQQ")
(FLOW, WRITE, DONE, FLUSH, FLUSHED, PLACED, DURABLE, ANSWER, ENDED) = range(1, 10)


class Event(NamedTuple):
    """One thing that happened; what a, b and data mean, crash_stage.h says by kind."""

    kind: int
    number: int
    a: int
    b: int
    data: bytes


@cache
def stage_program() -> Path:
    """The stage, built with the core's write path under the sanitizers."""
    sources = [*(TESTS / "core").glob("crash_*.c"), *PURE_SOURCES]
    parts = ("batch.c", "device.c", "storage.c", "writer.c")
    sources += [CORE / "storage" / name for name in parts]
    # So few places for acknowledgements that batches wait for them, as with very many flows.
    return build_executable("crash_stage", sources, flags=(*SANITIZERS, "-DACKS_MAX=16u"))


def _run(*arguments: object) -> bytes:
    done = subprocess.run(
        [stage_program(), *map(str, arguments)],
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    command = " ".join(["crash_stage", *map(str, arguments)])
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"
    return done.stdout


@cache
def common_bytes() -> bytes:
    """What all flows are made of: each begins somewhere in it, and goes round."""
    return _run("bytes")


def play(
    seed: int,
    *,
    generation: int,
    checksum: str,
    block_bytes: int,
    store_uuid: bytes,
    segments: list[int],
) -> list[Event]:
    """Return the events of one life on these free segments, in their order."""
    trace = _run(seed, generation, checksum, block_bytes, store_uuid.hex(), *segments)
    return list(_events(trace))


def _events(trace: bytes) -> Iterator[Event]:
    at = 0
    while at < len(trace):
        kind, number, a, b, size = HEAD.unpack_from(trace, at)
        at += HEAD.size
        yield Event(kind, number, a, b, trace[at : at + size])
        at += size


@dataclass(slots=True)
class Promise:
    """Of one flow: its bytes in writes, those acknowledged, and what its sender was told."""

    start: int
    placed_bytes: int = -1  # not even its OPEN record
    durable_bytes: int = 0
    answer: dict[str, Any] | None = None

    def data(self, size: int) -> bytes:
        """The first bytes of what was sent."""
        common = common_bytes()
        rounds = (self.start + size) // len(common) + 1
        return (common * rounds)[self.start : self.start + size]


@dataclass(slots=True)
class Promises:
    """All that one life promised so far, by flow id."""

    flows: dict[bytes, Promise] = field(default_factory=dict)
    _by_number: dict[int, Promise] = field(default_factory=dict)
    has_ended: bool = False

    @property
    def acknowledged_bytes(self) -> int:
        """Of all flows."""
        return sum(promise.durable_bytes for promise in self.flows.values())

    def note(self, event: Event) -> None:
        """Go on by one event."""
        if event.kind == FLOW:
            self._by_number[event.number] = self.flows[event.data] = Promise(event.a)
        elif event.kind == PLACED:
            promise = self._by_number[event.number]
            promise.placed_bytes = max(promise.placed_bytes, event.a)
        elif event.kind == DURABLE:
            self._by_number[event.number].durable_bytes = event.a
        elif event.kind == ANSWER:
            self._by_number[event.number].answer = json.loads(event.data)
        self.has_ended |= event.kind == ENDED


def happen(disk: Disk, event: Event) -> None:
    """Do to the disk what the event says, if it is about the disk."""
    if event.kind == WRITE:
        disk.submit(event.number, event.a, event.data, is_stable=bool(event.b))
    elif event.kind == DONE:
        disk.complete(event.number, event.a)
    elif event.kind == FLUSH:
        disk.flush(event.number)
    elif event.kind == FLUSHED:
        disk.flushed(event.number, failed=bool(event.a))

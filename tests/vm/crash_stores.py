# SPDX-License-Identifier: Apache-2.0
"""What a store must have after its machine or device has gone, by its senders' journals.

Senders write a journal as things happen, in lines that begin with '@':

    @begun STORE SEED BYTES PORT            a connection stands; BYTES at most will be sent
    @receipt STORE FLOW SEED BYTES PORT     its receipt has come: a promise
    @lies STORE, @honest STORE              receipts in between are worth nothing, the device lies

Invariants: a promised flow must be sealed with all of its bytes; any other may be there as far as
it was sent; nothing else may be there. A recovery changes nothing of it.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from engine_stores import Sent, check_image
from write_log import Buffer, Write, crash_states, parse_log

from ingestd.errors import IngestdError
from ingestd.store.read.flows import STATE_SEALED
from ingestd.store.read.image import StoreImage, read_image
from ingestd.store.read.verify import DAMAGE, verify_store
from ingestd.store.serve.served_store import open_for_serving

MEMORY_DIRECTORY = Path("/dev/shm")
MARK_FORMATTED = "formatted"
MARK_END = "dm-log-writes-end"
"""The kernel's own, when the device is removed."""
STATE_LOST = "lost"
FAULTY_STATES_MAX = 10
FAULTS_KEPT_MAX = 4


@dataclass
class Journal:
    """The journal of one store's senders. `worthless` are receipts of a device that lied."""

    store: str
    begun: list[Sent] = field(default_factory=list)
    promised: dict[str, Sent] = field(default_factory=dict)
    worthless: dict[str, Sent] = field(default_factory=dict)
    is_lying: bool = False

    def read(self, output: bytes) -> "Journal":
        """Take in what a machine has put out; half a line at its end is nothing."""
        for line in output.decode(errors="replace").split("\n")[:-1]:
            kind, _, rest = line.strip().partition(" ")
            if rest.split(" ")[0] == self.store:
                self._take(kind, rest.split()[1:])
        return self

    def _take(self, kind: str, words: list[str]) -> None:
        if kind == "@begun":
            seed, size, port = map(int, words)
            self.begun.append(Sent(self.store, None, seed, size, STATE_LOST, port))
        elif kind == "@receipt":
            flow, (seed, size, port) = words[0], map(int, words[1:])
            taken = self.worthless if self.is_lying else self.promised
            taken[flow] = Sent(self.store, flow, seed, size, STATE_SEALED, port)
        elif kind in ("@lies", "@honest"):
            self.is_lying = kind == "@lies"

    def sent(self, flows: Iterable[str] | None = None) -> list[Sent]:
        """Return what is to be expected when only `flows` have their receipts, or all."""
        promised = self.promised if flows is None else {f: self.promised[f] for f in flows}
        return [*promised.values(), *self.begun]


@dataclass
class Verdict:
    """A sum over stores that were judged: what was wrong, and bytes of promised flows lost."""

    states: int = 0
    wrong: int = 0
    lost_bytes: int = 0
    promises: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, faults: list[str], lost_bytes: int, promises: int) -> None:
        """Count one store; only the first faults of the first faulty stores are kept in words."""
        self.states += 1
        self.promises += promises
        self.lost_bytes += lost_bytes
        self.wrong += bool(faults)
        if faults and self.wrong <= FAULTY_STATES_MAX:
            self.faults += [f"at {what}: {fault}" for fault in faults[:FAULTS_KEPT_MAX]]


def judge(path: Path, sent: Sequence[Sent], ring: bytes) -> tuple[list[str], int]:
    """Recover a store as its daemon would, verify it, compare it with what is to be expected.

    It must show the same flows before and after. Returns a sentence for everything that is wrong,
    and the bytes of the promised flows concerned.
    """
    promised = {line.flow: line.bytes for line in sent if line.state == STATE_SEALED}
    try:
        with read_image(str(path)) as image:
            before = _shown(image)
        open_for_serving(str(path)).close()
        with read_image(str(path)) as image:
            after = _shown(image)
            wrong = check_image(image, sent, ring)
        findings = verify_store(str(path)).findings
    except IngestdError as error:
        return [str(error)], sum(promised.values())
    for flow in {flow for flow, _ in before.items() ^ after.items()}:
        text = f"flow {flow} is {before.get(flow)} before the recovery, {after.get(flow)} behind it"
        wrong.setdefault(flow, text)
    faults = [*wrong.values(), *(str(f) for f in findings if f.severity == DAMAGE)]
    return faults, sum(promised.get(flow, 0) for flow in wrong)


def _shown(image: StoreImage) -> dict[str, tuple[str, int, str | None]]:
    """State, bytes and checksum of all flows by their ids."""
    return {flow.flow: (flow.state, flow.bytes, flow.checksum) for flow in image.flows}


def judge_all(paths: Mapping[Path, Journal], ring: bytes) -> Verdict:
    """Judge stores as they lie there, by everything that was promised of them."""
    verdict = Verdict()
    for path, journal in paths.items():
        verdict.add(path.name, *judge(path, journal.sent(), ring), len(journal.promised))
    return verdict


def fast_directory(otherwise: Path) -> Path:
    """Return a directory in memory if it takes direct I/O, which older kernels refuse there."""
    try:
        with tempfile.NamedTemporaryFile(dir=MEMORY_DIRECTORY) as file:
            os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return otherwise
    return MEMORY_DIRECTORY


@dataclass
class Replica:
    """A device's contents, remade from its log; `path` is the file that is judged."""

    path: Path
    size_bytes: int

    def __post_init__(self) -> None:
        self.settled = bytearray(self.size_bytes)
        self._used_bytes = 0

    def settle(self, writes: Iterable[Write]) -> None:
        """Take in writes that stay."""
        for write in writes:
            end = write.offset + len(write.data)
            assert end <= self.size_bytes, write.offset
            self.settled[write.offset : end] = write.data
            self._used_bytes = max(self._used_bytes, end)

    def save(self, loose: Iterable[Write]) -> None:
        """Make the file: what is settled, and some writes on top."""
        with self.path.open("wb", buffering=0) as file:
            file.write(memoryview(self.settled)[: self._used_bytes])
            for write in loose:
                os.pwrite(file.fileno(), write.data, write.offset)
            file.truncate(self.size_bytes)


def replay(
    log: Buffer, replica: Replica, journal: Journal, ring: bytes, choose: Random, torn_count: int
) -> Verdict:
    """Judge every state that a crash may have left, from the formatting of the store on.

    `replica` holds the whole log's outcome afterwards. The marks in the log say which of the
    journal's promises had been made by then.
    """
    verdict, marks = Verdict(), list[str]()
    for state in crash_states(parse_log(log), choose, torn_count):
        replica.settle(state.settled)
        marks += state.marks
        if MARK_FORMATTED not in marks:
            continue
        replica.save(state.loose)
        flows = [mark for mark in marks if mark not in (MARK_FORMATTED, MARK_END)]
        verdict.add(state.what, *judge(replica.path, journal.sent(flows), ring), len(flows))
    return verdict

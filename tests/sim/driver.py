# SPDX-License-Identifier: Apache-2.0
"""Drives the simulator: lives of a store, and at moments of them a look at what would be left.

The program (sim_main.c) is the worker with everything around it; here is the package's own
recovery, on the image that power failing at that moment leaves. Invariant: whatever is chosen here
follows from the seed, so that a run repeats to the byte.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, NamedTuple

from crc32c import crc32c
from sim.removal import remove_while_served

from ingestd.store.format import layout
from ingestd.store.format.layout import sequence_of
from ingestd.store.format.segment import SegmentState
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import DAMAGE, verify_store
from ingestd.store.reclaim.deletion import remove_flows
from ingestd.store.reclaim.presence import flows_of
from ingestd.store.serve.served_store import open_for_serving
from support.crash_disk import Disk
from support.crash_store import Store, store_in_memory
from support.recorded_writes import RecordedWrites

PERIOD: Final = 65521
LIVES_MAX: Final = 4
STREAMS_CARRIED_MAX: Final = 24
SEED_BITS: Final = 48
RECOVERY_CRASHED_OF: Final = 8
REMOVAL_CRASHED_OF: Final = 2
CAREFUL_OF: Final = 12
IMAGE_READ_OF: Final = 3
# Of the program's check points: sim_check_point() in sim_main.c.
KILLED_FIRST_OF: Final = 8
NUMBERS_OF_OPENING: Final = 1 << 40  # of its writes; the worker's own are lower
UNFLUSHED: Final = struct.Struct("<QQQ")


class SimulationError(AssertionError):
    """The simulation has found something; the text says what, and how to see it again."""


class Stream(NamedTuple):
    """What one life has promised of a stream (streams_report in sim_streams.c)."""

    number: int
    is_ingest: bool
    payload_bytes: int
    flow_id: bytes
    port: int
    start: int
    sent_bytes: int
    told_bytes: int
    is_sealed: bool
    final_bytes: int
    was_ended: bool
    failed: bool
    is_fed: bool  # or its end is not known to Python yet


class Kept(NamedTuple):
    """A flow that lies in the store since an earlier life."""

    start: int
    payload_bytes: int
    bytes: int
    state: str
    is_ingest: bool


@dataclass
class Result:
    """What a run came to."""

    seed: int
    lives: int = 0
    points: int = 0
    told_bytes: int = 0
    hashes: list[str] = field(default_factory=list)


def common_bytes() -> bytes:
    """Return what all streams are made of: each begins somewhere in it, and goes round."""
    state, out = 1, bytearray()
    for _ in range(PERIOD):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append(state >> 56)
    return bytes(out)


COMMON: Final = common_bytes()


def stream_data(start: int, size: int) -> bytes:
    """Return the first bytes of a stream that begins at `start`."""
    rounds = (start + size) // PERIOD + 1
    return (COMMON * rounds)[start : start + size]


def parse_stream(line: str) -> Stream:
    """Read one line of the program's report."""
    number, is_ingest, payload, flow_id, *rest = line.split()[1:]
    port, start, sent, told, is_sealed, final, was_ended, failed, is_fed = map(int, rest)
    return Stream(
        int(number), is_ingest == "1", int(payload), bytes.fromhex(flow_id), port, start, sent,
        told, bool(is_sealed), final, bool(was_ended), bool(failed), bool(is_fed),
    )  # fmt: skip


@dataclass
class Run:
    """One seed: a store over a few lives."""

    program: Path
    seed: int
    steps: int
    trace: Path | None = None
    images_of: int = 1  # moments: most of a run's time goes to them, most faults show without
    choose: random.Random = field(init=False)
    kept: dict[bytes, Kept] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)  # removed, ever
    result: Result = field(init=False)
    # Of the life that was lived last: how it ended (drain, crash, failed), and what it promised.
    ended: str = ""
    streams: list[Stream] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choose = random.Random(self.seed)
        self.result = Result(self.seed)

    def play(self) -> Result:
        """Raises SimulationError."""
        choose = self.choose
        checksum = choose.choice(("crc32c", "none"))
        block_bytes = choose.choice((4096, 4096, 4096, 16384))
        with store_in_memory(checksum, block_bytes, choose.choice((3, 5, 8, 12))) as store:
            # What was on the device before must not matter.
            before = choose.randbytes(len(store.bytes)) if choose.randrange(4) == 0 else None
            store.set_up(choose.randbytes(16), 1, before)
            self.live(store)
            for _ in range(choose.randint(0, LIVES_MAX - 1)):
                self.between(store)
                self.live(store)
        return self.result

    def between(self, store: Store) -> None:
        """Go on with the store as it is, less some flows, freed whole, or formatted anew."""
        what = self.choose.choice(("go on", "go on", "remove", "remove", "free", "format"))
        if what == "remove" and self.kept:
            self.remove(store)
        if what in ("go on", "remove"):
            return
        with open_for_serving(str(store.path)) as served:
            generation = served.superblock.generation
        if what == "free":
            store.free_all()
            store.set_up(store.store_uuid, generation, bytes(store.bytes))
        else:
            store.set_up(self.choose.randbytes(16), 1, bytes(store.bytes))
        self.kept.clear()
        self.gone.clear()

    def remove(self, store: Store) -> None:
        """Remove some flows, or all: they do not come back, and nothing else goes."""
        ids = sorted(self.kept)
        gone = self.choose.sample(ids, self.choose.choice((1, len(ids) // 2 or 1, len(ids))))
        report = remove_flows(str(store.path), [flow_id.hex() for flow_id in gone])
        self.forget(gone)
        with read_image(str(store.path)) as found:
            shown = {flow.flow_id for flow in found.flows}
            useless = [
                segment
                for segment in found.segments
                if segment.state is not SegmentState.FREE and not flows_of(segment) & shown
            ]
        if [result.error for result in report.outcomes] != [None] * len(gone):
            raise SimulationError(f"flows were not removed: {report}, seed {self.seed}")
        if shown != self.kept.keys() or useless:
            raise SimulationError(f"{useless} is left of {gone}: make sim SEED={self.seed}")

    def forget(self, gone: list[bytes]) -> None:
        """These flows are removed, and are never to be seen again."""
        self.gone.update(gone)
        self.kept = {key: kept for key, kept in self.kept.items() if key not in self.gone}

    def remove_live(self, store: Store, streams: list[Stream]) -> str:
        """Remove flows while the worker runs; return what the program is to know of it."""

        def may_go(flow: Flow) -> bool:
            stream = find_stream(flow, streams, self.kept)
            return not stream.is_fed if stream is not None else flow.flow_id in self.kept

        disk = unflushed(store)
        disk.after_kill(self.choose).show(store.bytes)
        removal = remove_while_served(str(store.path), self.choose, may_go)
        done = [write for write in removal.writes.done if write is not None]
        Path(f"{store.path}.written").write_bytes(
            b"".join(UNFLUSHED.pack(at, len(data), 1) + data for at, data in done)
        )
        if self.choose.randrange(REMOVAL_CRASHED_OF) == 0:
            cut = self.choose.randrange(len(removal.writes.done) + 1)
            removal.writes.replay(disk, cut, NUMBERS_OF_OPENING)
            disk.lose_power(self.choose, store.bytes)
            self.look(store, streams, is_end=False, why="removal", going=set(removal.flows))
        self.forget(removal.flows)
        numbers = [stream.number for stream in streams if stream.flow_id in self.gone]
        return f"free {' '.join(map(str, removal.freed))}\nremoved {' '.join(map(str, numbers))}\n"

    def live(self, store: Store) -> None:
        """One life of the daemon on this store."""
        with open_for_serving(str(store.path)) as served:
            granted = []
            while segment := served.take_segment():
                granted.append(segment)
            generation = served.superblock.generation
        # The opening may have used a sequence for what it put together.
        used_count = granted[0][1] - sequence_of(generation, 1) if granted else 0
        free = [index for index, _ in granted]
        self.choose.shuffle(free)
        carried = [(key, kept) for key, kept in self.kept.items() if kept.is_ingest]
        carried = carried[:STREAMS_CARRIED_MAX]
        head = f"{generation} {store.store_uuid.hex()} {store.block_bytes}"
        head = f"{head} {int(store.checksum == 'crc32c')} {used_count}"
        lines = [head, " ".join(map(str, free))]
        for number, (key, kept) in enumerate(carried):
            crc = crc32c(stream_data(kept.start, kept.bytes))
            lines.append(
                f"{number} {kept.start} {kept.payload_bytes} {key.hex()} {kept.bytes} {crc}"
                f" {int(store.checksum == 'crc32c')} {int(kept.state == 'sealed')}"
            )
        seed = self.choose.getrandbits(SEED_BITS)
        command = [str(self.program), str(seed), str(self.steps), str(store.path)]
        if self.trace is not None:
            command.append(f"{self.trace}.{self.result.lives}")
        self.result.lives += 1
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "SIM_IMAGES_OF": str(self.images_of)},
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n".join([*lines, ".\n"]))
            process.stdin.flush()
            wrong = self.converse(store, process.stdin, process.stdout)
            assert process.stderr is not None
            tail = process.stderr.read()
            code = process.wait()
        if wrong or code != 0:
            raise SimulationError(
                f"{tail}{wrong}\nmake sim SEED={self.seed} STEPS={self.steps}"
                f"   # life {self.result.lives}, exit {code}"
            )

    def converse(self, store: Store, to: IO[str], come: IO[str]) -> str:
        """Look at the image whenever the program says so; return what is wrong with it, or ""."""
        flows: list[Flow] = []
        streams: list[Stream] = []
        for line in come:
            if line.startswith("hash "):
                self.result.hashes.append(line.split()[1])
                continue
            what, why, step = line.split()
            streams = []
            while (report := come.readline()) and report != ".\n":
                streams.append(parse_stream(report))
            if report != ".\n":
                break
            answer = ""
            try:
                if what == "remove":
                    answer = self.remove_live(store, streams)
                else:
                    flows = self.look(store, streams, is_end=what == "end", why=why)
            except Exception as error:  # whatever recovery stumbles over was found
                to.write("stop\n")
                to.close()
                come.read()
                return f"{what} {why} at step {step}: {type(error).__name__}: {error}"
            self.ended, self.streams = why, streams
            self.result.points += 1
            self.result.told_bytes += sum(stream.told_bytes for stream in streams)
            try:
                to.write(f"{answer}go\n")
                to.flush()
            except BrokenPipeError:
                break
        self.settle(flows, streams)
        return ""

    def settle(self, flows: list[Flow], streams: list[Stream]) -> None:
        """What lies there now nobody may change any more."""
        known = {key: (kept.start, kept.payload_bytes) for key, kept in self.kept.items()}
        kept = {}
        for flow in flows:
            stream = find_stream(flow, streams, self.kept)
            start, payload = (stream.start, stream.payload_bytes) if stream else known[flow.flow_id]
            kept[flow.flow_id] = Kept(
                start, payload, flow.bytes, flow.state, flow.protocol == "ingest"
            )
        self.kept = kept

    def look(
        self,
        store: Store,
        streams: list[Stream],
        *,
        is_end: bool,
        why: str,
        going: Set[bytes] = frozenset(),
    ) -> list[Flow]:
        """Recover what is left, and compare it with what was promised.

        `going`: flows that are there whole, or are not there at all.
        """
        careful = self.choose.randrange(CAREFUL_OF) == 0
        if why == "kill":
            killed = unflushed(store).after_kill(self.choose)
            killed.show(store.bytes)
            open_in_vain(store, killed, self.choose)
        elif self.choose.randrange(RECOVERY_CRASHED_OF) == 0:
            open_in_vain(store, Disk(bytearray(store.bytes)), self.choose)
        if careful:
            check_verified(store)
        with open_for_serving(str(store.path)) as served:
            recovery = served.recovery
            flows = served.take_recovered_flows()
            assert (recovery.segments_damaged, recovery.segments_open) == (0, 0), recovery
            assert recovery.warnings == (), recovery.warnings
            if is_end and why == "drain":
                assert recovery.segments_recovered == 0, "a drain leaves nothing to recover"
        if careful:
            check_again(store)
        # What recovery has found, the next reader finds; of most images recovery's word does.
        if is_end or careful or self.choose.randrange(IMAGE_READ_OF) == 0:
            flows = self.read(store, flows, streams, is_end=is_end)
        shown = {flow.flow_id: flow for flow in flows}
        assert self.kept.keys() - going <= shown.keys(), "a flow of an earlier life is gone"
        assert not shown.keys() & self.gone, "a flow that was removed is back"
        by_port = {
            flow_port(flow): flow
            for flow in flows
            if flow.protocol == "raw" and flow.flow_id not in self.kept
        }
        for stream in streams:
            flow = shown.get(stream.flow_id, by_port.get(stream.port))
            if flow is not None or stream.flow_id not in self.gone | going:
                check_promise(store, stream, flow)
        return flows

    def read(
        self, store: Store, recovered: list[Flow], streams: list[Stream], *, is_end: bool
    ) -> list[Flow]:
        """Read the recovered store as a reader does, all flows' bytes or some."""
        with read_image(str(store.path)) as found:
            assert found.segment_counts()["damaged"] == 0
            flows = list(found.flows)
            first, second = sorted(map(outline, recovered)), sorted(map(outline, flows))
            assert first == second, f"recovered was {first}, and there is {second}"
            read_of = 1 if is_end else self.choose.choice((1, 2, 4))
            for flow in flows:
                if self.choose.randrange(read_of) == 0:
                    data = b"".join(read_flow(found, flow))
                    assert len(data) == flow.bytes, (len(data), flow)
                    self.check_flow(flow, data, streams)
        return flows

    def check_flow(self, flow: Flow, data: bytes, streams: list[Stream]) -> None:
        """A flow's bytes are those that its sender sent."""
        stream = find_stream(flow, streams, self.kept)
        if stream is None:
            kept = self.kept.get(flow.flow_id)
            assert kept is not None, f"a flow of nobody: {flow}"
            assert (flow.bytes, flow.state) == (kept.bytes, kept.state), (flow, kept)
            start = kept.start
        else:
            assert flow.bytes <= stream.sent_bytes, (flow, stream)
            start = stream.start
        assert data == stream_data(start, flow.bytes), f"other bytes: {flow}"
        if flow.checksum is not None:
            assert flow.checksum == f"crc32c:{crc32c(data):08x}", flow
        assert flow.durable_bytes == flow.bytes, flow
        assert flow.state in ("sealed", "interrupted"), flow


def unflushed(store: Store) -> Disk:
    """Return the disk as the program has left it beside the image (disk_dump in sim_disk.c)."""
    disk = Disk(bytearray(store.bytes))
    left = Path(f"{store.path}.unflushed").read_bytes()
    at = number = 0
    while at < len(left):
        offset, size, is_done = UNFLUSHED.unpack_from(left, at)
        at += UNFLUSHED.size
        disk.submit(number, offset, left[at : at + size])
        if is_done:
            disk.complete(number, size)
        at += size
        number += 1
    return disk


def open_in_vain(store: Store, disk: Disk, choose: random.Random) -> None:
    """Power fails while the store is opened."""
    writes = RecordedWrites()
    with writes.recorded(), open_for_serving(str(store.path)):
        pass
    writes.replay(disk, choose.randrange(len(writes.done) + 1), NUMBERS_OF_OPENING)
    disk.lose_power(choose, store.bytes)


def check_verified(store: Store) -> None:
    """What a power failure leaves is no damage."""
    report = verify_store(str(store.path))
    assert [finding for finding in report.findings if finding.severity == DAMAGE] == []


def check_again(store: Store) -> None:
    """Recovery of what was recovered changes nothing but the generation."""
    before = bytes(store.bytes[layout.SEGMENTS_OFFSET :])
    with open_for_serving(str(store.path)) as served:
        assert (served.recovery.segments_recovered, served.recovery.segments_freed) == (0, 0)
        assert served.recovery.warnings == ()
    assert bytes(store.bytes[layout.SEGMENTS_OFFSET :]) == before
    check_verified(store)


def outline(flow: Flow) -> tuple[bytes, str, int, str, str]:
    """Return what counts of a flow, wherever it lies and whether or not that has its footer."""
    return (flow.flow_id, flow.state, flow.bytes, flow.checksum or "", flow.peer or "")


def flow_port(flow: Flow) -> int:
    """Return the port of the flow's peer."""
    assert flow.peer is not None
    return int(flow.peer.rsplit(":", 1)[1])


def find_stream(flow: Flow, streams: list[Stream], kept: dict[bytes, Kept]) -> Stream | None:
    """Return whose bytes a flow has in this life; None: nobody has fed it in it."""
    for stream in streams:
        if stream.flow_id == flow.flow_id:
            return stream
    if flow.protocol == "raw" and flow.flow_id not in kept:
        for stream in streams:
            if not stream.is_ingest and stream.port == flow_port(flow):
                return stream
    return None


def check_promise(store: Store, stream: Stream, flow: Flow | None) -> None:
    """What a stream's senders were told holds."""
    if flow is None:
        assert stream.told_bytes == 0, f"gone: {stream}"
        assert not stream.is_sealed, f"gone: {stream}"
        return
    assert flow.bytes >= stream.told_bytes, (flow, stream)
    if stream.is_sealed:
        assert flow.state == "sealed", (flow, stream)
        assert flow.bytes == stream.final_bytes or stream.final_bytes == 0, (flow, stream)
    elif stream.was_ended and not stream.failed and not stream.is_ingest:
        assert flow.state == "interrupted", (flow, stream)


def simulate(
    program: Path, seed: int, steps: int, *, trace: Path | None = None, images_of: int = 1
) -> Result:
    """Play one seed. Raises SimulationError."""
    return Run(program, seed, steps, trace, images_of).play()


def fresh_seed() -> int:
    """Return a seed that nobody has chosen."""
    return int.from_bytes(os.urandom(4), "little")

# SPDX-License-Identifier: Apache-2.0
"""Stores that the whole worker wrote, in the simulator, then damaged, or written over another one.

tests/property/test_store_recovery.py damages stores of every shape that a model
makes; here the bytes are the core's own, and the damage is many and large.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from sim.build import build
from sim.driver import Run, Stream, stream_data

from ingestd.errors import StoreDamagedError
from ingestd.store.format import layout
from ingestd.store.format.records import UNIT_BYTES
from ingestd.store.read import image
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.crash_store import STORE_BYTES, Serial, Store, store_in_memory
from support.store_builder import MIB

STORES = 12
DAMAGES_OF_STORE = 50
SUCCESSIONS = 10
STEPS = 1200
OVERWRITTEN_BYTES_MAX = 100_000
USED_MIN = 10  # ranges of a store that is worth to be damaged
Range = tuple[int, int]


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "ThreadPoolExecutor", Serial)


@dataclass
class Lived:
    """A life that ended in good order: what is in use of its bytes, and what was sent."""

    bytes: bytes
    starts: dict[bytes, int]  # of each flow, in the simulator's common bytes
    used: list[Range]
    lone: list[Range]  # used structs without which a segment looks free, or not yet closed


def _starts(streams: list[Stream]) -> dict[bytes, int]:
    return {stream.flow_id: stream.start for stream in streams}


def _lived(store: Store, choose: random.Random) -> Lived:
    """Let a store live to a good end; lives in which power or the device fails do not count."""
    while True:
        store.set_up(choose.randbytes(16), 1, None)
        run = Run(build(), choose.getrandbits(63), STEPS)
        run.live(store)
        used, lone = _in_use(store)
        if run.ended == "drain" and len(used) > USED_MIN:
            break
    return Lived(bytes(store.bytes), _starts(run.streams), used, lone)


def _in_use(store: Store) -> tuple[list[Range], list[Range]]:
    """What a checksum covers, and which of it is a struct of which there is but one."""
    used: list[Range] = [(at, at + 4096) for at in (0, layout.SUPERBLOCK_B_OFFSET)]
    lone: list[Range] = []
    sequence = 0  # of the segment; what a segment that was freed has left is not in use
    for at in range(layout.SEGMENTS_OFFSET, STORE_BYTES, 4096):
        data = bytes(store.bytes[at : at + MIB])
        is_batch = data.startswith(layout.BATCH_MAGIC)
        if (at - layout.SEGMENTS_OFFSET) % MIB == 0:
            sequence = 0
        if data.startswith(layout.SEGMENT_MAGIC):
            sequence = layout.SEGMENT_HEADER.unpack(data).segment_sequence
            lone.append((at, at + layout.SEGMENT_HEADER.size_bytes))
        elif is_batch and layout.BATCH_HEADER.unpack(data).segment_sequence == sequence:
            used += [(at + first, at + end) for first, end in _batch_ranges(data)]
    return used + lone, lone


def _batch_ranges(data: bytes) -> Iterator[Range]:
    header = layout.BATCH_HEADER.unpack(data)
    yield 0, header.header_bytes
    at = layout.BATCH_HEADER.size_bytes
    for _ in range(header.record_count):
        head = layout.RECORD_HEAD.unpack(data, at)
        if head.kind == layout.RECORD_EXTENT:
            extent = layout.EXTENT.unpack(data, at)
            first = header.header_bytes + extent.payload_offset
            yield first, first + extent.bytes_count
        at += head.record_bytes


@pytest.mark.timeout(300)
def test_every_damage_is_found_and_none_is_shown(seed: int) -> None:
    choose = random.Random(seed)
    hits = 0
    for _ in range(STORES):
        with store_in_memory("crc32c", choose.choice((4096, 16384))) as store:
            lived = _lived(store, choose)
            assert verify_store(str(store.path)).findings == []
            for _ in range(DAMAGES_OF_STORE):
                store.bytes[:] = lived.bytes
                hit = choose.choice((_flip, _overwrite))(store, lived, choose)
                hits += bool(hit)
                _check_damaged(store, lived, hit)
    print(f"{hits} damages of what was in use, of {STORES * DAMAGES_OF_STORE}")
    assert hits > STORES * DAMAGES_OF_STORE // 2


def _flip(store: Store, lived: Lived, choose: random.Random) -> str:
    """Up to 8 bits, all over what is in use."""
    hit = []
    for _ in range(choose.randint(1, 8)):
        at = choose.randrange(*choose.choice(lived.used))
        store.bytes[at] ^= 1 << choose.randrange(8)
        hit.append(at)
    if bytes(store.bytes) == lived.bytes:
        return ""  # the same bit twice
    return f"bits flipped at {hit}"


def _overwrite(store: Store, lived: Lived, choose: random.Random) -> str:
    """A run of bytes: zeros, noise, or what belongs elsewhere. Returns what used bytes it hit."""
    size = choose.choice((1, 100, 512, 4096, 30_000, OVERWRITTEN_BYTES_MAX))
    first, end = choose.choice(lived.used)
    at = max(0, min(choose.randrange(first, end) - choose.randrange(size), STORE_BYTES - size))
    source = choose.randrange(0, STORE_BYTES - size, 4096)
    garbage = (bytes(size), choose.randbytes(size), lived.bytes[source : source + size])
    store.bytes[at : at + size] = choose.choice(garbage)
    changed = [
        (a, b) for a, b in lived.used if a < at + size and at < b and _differs(store, lived, a, b)
    ]
    # With zeros for its header a segment looks free, as one that was freed does.
    headless = [a for a, _ in lived.lone if not any(store.bytes[a : a + UNIT_BYTES])]
    lone = {a // MIB for a in headless if any(a == c for c, _ in changed)}
    left = [a for a, _ in changed if a // MIB not in lone]
    return f"{size} bytes at {at}" if left else ""


def _differs(store: Store, lived: Lived, first: int, end: int) -> bool:
    return bytes(store.bytes[first:end]) != lived.bytes[first:end]


def _check_damaged(store: Store, lived: Lived, hit: str) -> None:
    """Verify finds it, reading stops before it, recovery does not mend it into something else."""
    try:
        report = verify_store(str(store.path))
    except StoreDamagedError:
        return  # both superblocks, or superblocks that belong to different stores
    assert report.findings or not hit, hit
    _check_prefixes(store, lived.starts)
    with suppress(StoreDamagedError), open_for_serving(str(store.path)):
        pass
    _check_prefixes(store, lived.starts)


def _check_prefixes(store: Store, starts: dict[bytes, int]) -> None:
    """Whatever is shown of a flow are its first bytes."""
    with read_image(str(store.path)) as found:
        for flow in found.flows:
            shown = bytearray()
            with suppress(StoreDamagedError):
                for piece in read_flow(found, flow):
                    shown += piece
            assert flow.flow_id in starts, flow
            assert shown == stream_data(starts[flow.flow_id], len(shown)), flow


@dataclass
class Succession(Run):
    """A life on what an earlier one has left: how much of that lies there yet is counted."""

    base: bytes = b""
    stale_batches: int = 0

    def look(
        self, store: Store, streams: list[Stream], *, is_end: bool, why: str, **more: Any
    ) -> list[Flow]:
        """Count, and look as ever: whatever is shown is this life's."""
        for at in range(layout.SEGMENTS_OFFSET, STORE_BYTES, 4096):
            is_batch = self.base.startswith(layout.BATCH_MAGIC, at)
            self.stale_batches += (
                is_batch and store.bytes[at : at + 128] == self.base[at : at + 128]
            )
        return super().look(store, streams, is_end=is_end, why=why, **more)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("same_store", [True, False])
@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_stale_batches_are_never_taken_for_new_ones(
    seed: int, checksum: str, same_store: bool
) -> None:
    """A life in the very places of another, of other flows: all lies where it lay before."""
    choose = random.Random(seed)
    stale_batches = 0
    for _ in range(SUCCESSIONS):
        with store_in_memory(checksum, 4096) as store:
            store.set_up(choose.randbytes(16), 1, None)
            life_seed = choose.getrandbits(63)
            Run(build(), life_seed, STEPS).live(store)
            uuid = store.store_uuid if same_store else choose.randbytes(16)
            # Formatted anew, a store has the same generations again, and the same sequences.
            with open_for_serving(str(store.path)) as served:
                generation = served.superblock.generation if same_store else 1
            store.set_up(uuid, generation, bytes(store.bytes))
            if same_store:
                store.free_all()
            run = Succession(build(), life_seed, STEPS, base=bytes(store.bytes))
            run.live(store)
            stale_batches += run.stale_batches
    assert stale_batches > SUCCESSIONS

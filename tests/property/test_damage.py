# SPDX-License-Identifier: Apache-2.0
"""Stores that the core's write path wrote, then damaged, or written over an earlier store.

tests/property/test_store_recovery.py damages stores of every shape that a model
makes; here the bytes are the core's own, and the damage is many and large.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from ingestd.errors import StoreDamagedError
from ingestd.store.format import layout
from ingestd.store.format.records import UNIT_BYTES
from ingestd.store.read import image
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.crash_disk import Disk
from support.crash_life import FLUSHED, WRITE, Event, Promises, happen, play
from support.crash_store import SEGMENT_COUNT, STORE_BYTES, Serial, Store, store_in_memory
from support.store_builder import MIB

STORES = 12
DAMAGES_OF_STORE = 50
SUCCESSIONS = 10
POINTS_OF_SUCCESSION = 12
OVERWRITTEN_BYTES_MAX = 100_000
Range = tuple[int, int]


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "ThreadPoolExecutor", Serial)


@dataclass
class Lived:
    """A life that ended in good order: what is in use of its bytes, and what was sent."""

    bytes: bytes
    promises: Promises
    used: list[Range]
    lone: list[Range]  # used structs without which a segment looks free, or not yet closed


def _life(store: Store, seed: int, generation: int = 1) -> list[Event]:
    return play(
        seed,
        generation=generation,
        checksum=store.checksum,
        block_bytes=store.block_bytes,
        store_uuid=store.store_uuid,
        segments=list(range(SEGMENT_COUNT)),
    )


def _lived(store: Store, choose: random.Random) -> Lived:
    """Let a store live to a good end; lives in which the device fails do not count."""
    while True:
        store.set_up(choose.randbytes(16), 1, None)
        events = _life(store, choose.getrandbits(63))
        disk, promises = Disk(bytearray(store.bytes)), Promises()
        for event in events:
            happen(disk, event)
            promises.note(event)
        if promises.has_ended and not any(e.kind == FLUSHED and e.a for e in events):
            break
    store.bytes[:] = disk.image
    used: list[Range] = [(at, at + 4096) for at in (0, layout.SUPERBLOCK_B_OFFSET)]
    lone: list[Range] = []
    for event in events:
        if event.kind == WRITE:
            ranges, is_lone = _ranges_in_use(event)
            used += ranges
            lone += ranges if is_lone else []
    return Lived(bytes(store.bytes), promises, used, lone)


def _ranges_in_use(event: Event) -> tuple[list[Range], bool]:
    """What a checksum covers of a write; whether it is a struct of which there is but one."""
    at, data = event.a, event.data
    if data.startswith(layout.SEGMENT_MAGIC):
        return [(at, at + layout.SEGMENT_HEADER.size_bytes)], True
    if data.startswith(layout.BATCH_MAGIC):
        return [(at + first, at + end) for first, end in _batch_ranges(data)], False
    return [], False


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
    _check_prefixes(store, lived.promises)
    with suppress(StoreDamagedError), open_for_serving(str(store.path)):
        pass
    _check_prefixes(store, lived.promises)


def _check_prefixes(store: Store, promises: Promises) -> None:
    """Whatever is shown of a flow are its first bytes."""
    with read_image(str(store.path)) as found:
        for flow in found.flows:
            shown = bytearray()
            with suppress(StoreDamagedError):
                for piece in read_flow(found, flow):
                    shown += piece
            assert flow.flow_id in promises.flows, flow
            assert shown == promises.flows[flow.flow_id].data(len(shown)), flow


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
            old = Disk(bytearray(store.bytes))
            for event in _life(store, life_seed):
                happen(old, event)
            uuid = store.store_uuid if same_store else choose.randbytes(16)
            # Formatted anew, a store has the same generations again, and the same sequences.
            generation = 1 + same_store
            store.set_up(uuid, generation, bytes(old.image))
            if same_store:
                store.free_all()
            events = _life(store, life_seed, generation)
            base = bytes(store.bytes)
            for _ in range(POINTS_OF_SUCCESSION):
                stale_batches += _crash(
                    store, base, events[: choose.randrange(len(events))], choose
                )
    assert stale_batches > SUCCESSIONS


def _crash(store: Store, base: bytes, events: list[Event], choose: random.Random) -> int:
    """Lose power behind these events; returns how many of their batches still are stale ones."""
    disk, promises = Disk(bytearray(base)), Promises()
    for event in events:
        happen(disk, event)
        promises.note(event)
    disk.lose_power(choose, store.bytes)
    _check_prefixes(store, promises)
    with open_for_serving(str(store.path)) as served:
        assert served.recovery.segments_damaged == 0
    _check_prefixes(store, promises)
    batches = [e.a for e in events if e.kind == WRITE and e.data.startswith(layout.BATCH_MAGIC)]
    stale = [at for at in batches if bytes(store.bytes[at : at + 128]) == base[at : at + 128]]
    return sum(base.startswith(layout.BATCH_MAGIC, at) for at in stale)

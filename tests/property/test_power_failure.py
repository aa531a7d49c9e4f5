# SPDX-License-Identifier: Apache-2.0
"""Power fails at any moment of the core's write path: nothing acknowledged is lost.

The write path's decisions are the core's own (tests/core/crash_stage.c), the disk
loses what it may (tests/support/crash_disk.py), and recovery is the daemon's. A
failure names the seed that repeats it: INGESTD_TEST_SEED.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from crc32c import crc32c

from ingestd.store.format import layout
from ingestd.store.read import image
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import DAMAGE, verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.crash_disk import Disk
from support.crash_life import Promise, Promises, happen, play
from support.crash_store import STORE_BYTES, Serial, Store, store_in_memory
from support.recorded_writes import RecordedWrites

PARTS = 5
POINTS_OF_PART = 1000
POINTS_OF_LIFE = 40
CAREFUL_OF = 5
LIVES_MAX = 4
RECOVERY_CRASHED_OF = 5
KILLED_FIRST_OF = 8
NUMBERS_OF_OPENING = 1 << 40  # of its writes; the daemon's own are lower


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "ThreadPoolExecutor", Serial)


@dataclass
class Lives:
    """A store over its lives; what earlier ones left, nobody may change any more."""

    store: Store
    settled: dict[bytes, tuple[Promise, int, str]] = field(default_factory=dict)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_nothing_acknowledged_is_lost(seed: int, checksum: str, part: int) -> None:
    points = acknowledged_bytes = 0
    choose = random.Random(f"{seed} {checksum} {part}")
    while points < POINTS_OF_PART:
        with store_in_memory(checksum, choose.choice((4096, 4096, 4096, 16384))) as store:
            # What was on the device before must not matter.
            before = choose.choice((None, choose.randbytes(STORE_BYTES)))
            store.set_up(choose.randbytes(16), 1, before)
            lives = Lives(store)
            for _ in range(choose.randint(1, LIVES_MAX)):
                done, told_bytes = _live(lives, choose)
                points += done
                acknowledged_bytes += told_bytes
                if not _between_lives(lives, choose):
                    break
    print(f"{points} crash points, {acknowledged_bytes} bytes acknowledged before them")
    assert acknowledged_bytes > points * 1000


def _live(lives: Lives, choose: random.Random) -> tuple[int, int]:
    """One life of the daemon, with crash points; what the last one leaves, the next life finds."""
    store = lives.store
    with open_for_serving(str(store.path)) as served:
        free = []
        while granted := served.take_segment():
            free.append(granted[0])
        generation = served.superblock.generation
    choose.shuffle(free)
    events = play(
        choose.getrandbits(63),
        generation=generation,
        checksum=store.checksum,
        block_bytes=store.block_bytes,
        store_uuid=store.store_uuid,
        segments=free,
    )
    points = sorted(choose.randrange(len(events) + 1) for _ in range(POINTS_OF_LIFE))
    disk, promises = Disk(bytearray(store.bytes)), Promises()
    at = acknowledged_bytes = 0
    flows: list[Flow] = []
    for point in points:
        for event in events[at:point]:
            happen(disk, event)
            promises.note(event)
        at = point
        if choose.randrange(KILLED_FIRST_OF) == 0:
            # The daemon dies alone, and power fails when the next one has begun to open.
            killed = disk.after_kill(choose)
            killed.show(store.bytes)
            _open_in_vain(store, killed, choose)
        else:
            disk.lose_power(choose, store.bytes)
        flows = _recover(lives, promises, choose)
        acknowledged_bytes += promises.acknowledged_bytes
    known = promises.flows | {key: kept[0] for key, kept in lives.settled.items()}
    lives.settled = {f.flow_id: (known[f.flow_id], f.bytes, f.state) for f in flows}
    return len(points), acknowledged_bytes


def _recover(lives: Lives, promises: Promises, choose: random.Random) -> list[Flow]:
    """Power is back: open for serving, and look; now and then also before, and once more behind."""
    store = lives.store
    careful = choose.randrange(CAREFUL_OF) == 0
    if careful:
        _check(lives, promises)
        _check_verified(store)
    if choose.randrange(RECOVERY_CRASHED_OF) == 0:
        _open_in_vain(store, Disk(bytearray(store.bytes)), choose)
    with open_for_serving(str(store.path)) as served:
        assert (served.recovery.segments_damaged, served.recovery.segments_open) == (0, 0)
        assert served.recovery.warnings == ()
    flows = _check(lives, promises, recovered=True)
    if careful:
        _check_again(store)
    return flows


def _check_again(store: Store) -> None:
    """Recovery of what was recovered changes nothing but the generation."""
    before = bytes(store.bytes[layout.SEGMENTS_OFFSET :])
    with open_for_serving(str(store.path)) as served:
        assert (served.recovery.segments_recovered, served.recovery.segments_freed) == (0, 0)
        assert served.recovery.warnings == ()
    assert bytes(store.bytes[layout.SEGMENTS_OFFSET :]) == before
    _check_verified(store)


def _check_verified(store: Store) -> None:
    """What a power failure leaves is no damage."""
    report = verify_store(str(store.path))
    assert [finding for finding in report.findings if finding.severity == DAMAGE] == []


def _open_in_vain(store: Store, disk: Disk, choose: random.Random) -> None:
    """Power fails while the store is opened."""
    writes = RecordedWrites()
    with writes.recorded(), open_for_serving(str(store.path)):
        pass
    writes.replay(disk, choose.randrange(len(writes.done) + 1), NUMBERS_OF_OPENING)
    disk.lose_power(choose, store.bytes)


def _check(lives: Lives, promises: Promises, *, recovered: bool = False) -> list[Flow]:
    """Compare what a reader is shown with what senders were told and what was written."""
    with read_image(str(lives.store.path)) as found:
        assert found.segment_counts()["damaged"] == 0
        shown = {flow.flow_id: flow for flow in found.flows}
        for key, flow in shown.items():
            data = b"".join(read_flow(found, flow))
            assert len(data) == flow.bytes
            if key in lives.settled:
                promise, size, state = lives.settled[key]
                assert (flow.bytes, flow.state) == (size, state), flow
            else:
                promise = promises.flows[key]  # else it was never sent in this store
                assert flow.bytes <= promise.placed_bytes, (flow, promise)
            assert data == promise.data(flow.bytes), flow
            if flow.checksum is not None:
                assert flow.checksum == f"crc32c:{crc32c(data):08x}"
            if recovered:
                assert flow.durable_bytes == flow.bytes
                assert flow.state in ("sealed", "interrupted"), flow
    assert lives.settled.keys() <= shown.keys()
    for key, promise in promises.flows.items():
        _check_promise(lives.store, promise, shown.get(key))
    return list(shown.values())


def _check_promise(store: Store, promise: Promise, flow: Flow | None) -> None:
    """What its sender was told holds."""
    answer = promise.answer or {}
    if flow is None:
        assert promise.durable_bytes == 0, promise
        assert not answer.get("durable"), promise
        return
    assert flow.bytes >= promise.durable_bytes >= answer.get("bytes", 0), (flow, promise)
    if store.checksum == "none":
        # Nothing but a mark proves them, so what was told was marked.
        assert flow.durable_bytes >= promise.durable_bytes, (flow, promise)
    if answer.get("state") == "sealed":
        assert (flow.state, flow.bytes) == ("sealed", answer["bytes"]), (flow, promise)
        assert flow.checksum == answer["checksum"], (flow, promise)
    # A device that failed says nothing of what it wrote: the seal may be there all the same.
    if answer.get("state") == "interrupted" and answer["error"] != "store_failed":
        assert flow.state == "interrupted", (flow, promise)


def _between_lives(lives: Lives, choose: random.Random) -> bool:
    """Go on as it is, or with all segments freed, or formatted anew; False: no room is left."""
    store, what = lives.store, choose.choice(("go on", "go on", "free", "format"))
    with open_for_serving(str(store.path)) as served:
        generation, room = served.superblock.generation, served.segments_free_count
    if what == "free":
        store.free_all()
        store.set_up(store.store_uuid, generation, bytes(store.bytes))
    elif what == "format":
        store.set_up(choose.randbytes(16), 1, bytes(store.bytes))
    if what != "go on":
        lives.settled.clear()
    return what != "go on" or room > 0

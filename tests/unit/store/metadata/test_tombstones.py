# SPDX-License-Identifier: Apache-2.0
"""The table of removed flows, and removing without a daemon."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.errors import FlowNotFoundError, StoreBusyError, StoreError, UsageError
from ingestd.store.device.opening import open_device, open_locked
from ingestd.store.format.layout import sealed
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.metadata.superblock import read_superblock
from ingestd.store.metadata.tombstones import (
    FLOWS_MAX,
    REMOVAL_SECTOR,
    SECTOR_BYTES,
    SECTOR_FLOWS_MAX,
    TABLE_BYTES,
    TABLE_OFFSET,
    Tombstones,
    read_removals,
)
from ingestd.store.read.flow_source import FlowFilter
from ingestd.store.read.image import read_image
from ingestd.store.read.verify import verify_store
from ingestd.store.reclaim.deletion import remove_flows
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import Close, Extent, Open, StoreBuilder

ONE, TWO, THREE = (bytes([number]) * 16 for number in (0x11, 0x22, 0x33))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of three flows: ONE alone in segment 0, TWO in 1 and 2, THREE in 2."""
    builder = StoreBuilder()
    for number, flows in enumerate(((ONE,), (TWO,), (TWO, THREE))):
        segment = builder.segment(number)
        for flow in flows:
            items = [] if flow in builder.flows else [Open(flow)]
            last = [] if (flow, number) == (TWO, 1) else [Close(flow)]
            segment.batch(*items, Extent(flow, bytes([number]) * 5000), *last)
        segment.close()
    return builder.save(tmp_path / "store.img")


Change = Callable[[Tombstones], None]


def changed(path: Path, change: Change) -> Tombstones:
    with open_locked(str(path)) as device:
        superblock = read_superblock(device).superblock
        change(read_removals(device, superblock))
        return read_removals(device, superblock)


def states(path: Path) -> list[str]:
    with read_image(str(path)) as image:
        return [str(segment.state) for segment in image.segments]


def shown(path: Path) -> set[bytes]:
    with read_image(str(path)) as image:
        return {flow.flow_id for flow in image.flows}


def test_the_structs_fill_their_places() -> None:
    assert REMOVAL_SECTOR.size_bytes == SECTOR_BYTES
    assert TABLE_OFFSET + TABLE_BYTES == 1024 * 1024


def test_ids_come_and_go(path: Path, seed: int) -> None:
    choose = random.Random(seed)
    ids = [choose.randbytes(16) for _ in range(200)]
    table = changed(path, lambda t: t.add(ids[:100]))
    assert table.flows == set(ids[:100])
    table = changed(path, lambda t: t.add(ids[50:]))  # some are there already
    assert table.flows == set(ids)
    assert table.room_count == FLOWS_MAX - 200
    table = changed(path, lambda t: t.drop(ids[20:190]))
    assert table.flows == {*ids[:20], *ids[190:]}
    table = changed(path, lambda t: t.add(ids[20:40]))
    assert table.flows == {*ids[:40], *ids[190:]}
    assert not table.warnings()


def test_a_full_table_takes_nothing_more(path: Path, seed: int) -> None:
    choose = random.Random(seed)
    ids = [choose.randbytes(16) for _ in range(FLOWS_MAX)]
    table = changed(path, lambda t: t.add(ids))
    assert (len(table.flows), table.room_count) == (FLOWS_MAX, 0)
    with pytest.raises(StoreError, match="room for 0 more removed flows, and 1 were asked for"):
        changed(path, lambda t: t.add([ONE, ids[0]]))
    assert changed(path, lambda t: t.drop(ids[:1])).room_count == 1
    assert ONE in changed(path, lambda t: t.add([ONE])).flows


@pytest.mark.parametrize("at", [5, 9, 20, 40, 500])
def test_a_damaged_sector_is_told_and_left_alone(path: Path, at: int) -> None:
    ids = [bytes([number]) * 16 for number in range(SECTOR_FLOWS_MAX + 1)]
    changed(path, lambda t: t.add(ids))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[TABLE_OFFSET + at] ^= 1
    path.write_bytes(damaged)
    table = changed(path, lambda t: t.add([ONE, TWO, THREE]))
    assert table.damaged == (0,)
    assert table.flows == {ids[-1], ONE, TWO, THREE}
    assert table.room_count == FLOWS_MAX - SECTOR_FLOWS_MAX - 4
    assert path.read_bytes()[TABLE_OFFSET:][:SECTOR_BYTES] == damaged[TABLE_OFFSET:][:SECTOR_BYTES]
    (finding,) = verify_store(str(path)).findings
    assert finding.severity == "damage"
    assert "sector 0 of the table of removed flows" in finding.what


def test_another_store_s_sector_is_not_there(path: Path) -> None:
    changed(path, lambda t: t.add([ONE]))
    image = bytearray(path.read_bytes())
    sector = bytearray(image[TABLE_OFFSET : TABLE_OFFSET + SECTOR_BYTES])
    sector[16:32] = b"\x77" * 16
    image[TABLE_OFFSET : TABLE_OFFSET + SECTOR_BYTES] = sealed(bytes(sector))
    path.write_bytes(image)
    assert changed(path, lambda _: None).flows == set()
    assert verify_store(str(path)).findings == []


def test_any_bytes_make_a_table(path: Path, seed: int) -> None:
    """A sector counts with a right checksum only; one that claims too much does not either."""
    choose = random.Random(seed)
    image = bytearray(path.read_bytes())
    store_uuid = image[16:32]
    for number in range(TABLE_BYTES // SECTOR_BYTES):
        sector = bytearray(choose.randbytes(SECTOR_BYTES))
        if number % 2:
            sector[:8], sector[12:32] = b"INGESTRM", b"\1\0\0\0" + store_uuid
        if number % 4 == 3:
            sector[32:36] = choose.choice((29, 30, 2**32 - 1)).to_bytes(4, "little")
            sector = bytearray(sealed(bytes(sector)))
        at = TABLE_OFFSET + number * SECTOR_BYTES
        image[at : at + SECTOR_BYTES] = sector
    path.write_bytes(image)
    table = changed(path, lambda _: None)
    assert len(table.flows) % SECTOR_FLOWS_MAX == 0
    assert set(table.damaged) >= set(range(1, 512, 4))
    assert not set(table.damaged) & set(range(0, 512, 2))
    assert shown(path) == {ONE, TWO, THREE}


# --- Without a daemon -------------------------------------------------------------------


def test_a_flow_alone_in_its_segment_gives_it_back(path: Path) -> None:
    report = remove_flows(str(path), ["11111111"])
    ((flow, size, error),) = report.outcomes
    assert (flow.replace("-", ""), size, error) == (ONE.hex(), 5000, None)
    assert report.segments_freed_count == 1
    assert states(path) == ["free", "closed", "closed", "free"]
    assert shown(path) == {TWO, THREE}
    assert changed(path, lambda _: None).flows == set(), "nothing of it is left"
    with read_image(str(path)) as image:
        freed = read_freed(image.device, image.superblock)
        assert (freed.segments_count, freed.payload_bytes) == (1, 5000)
        assert freed.sequence == 0, "no flow that is shown may begin later by it"
    assert verify_store(str(path)).findings == []


def test_what_lies_beside_a_kept_flow_waits_for_it(path: Path) -> None:
    assert remove_flows(str(path), ["22222222"]).segments_freed_count == 1
    assert states(path) == ["closed", "free", "closed", "free"]
    assert shown(path) == {ONE, THREE}
    with read_image(str(path)) as image:
        assert [flow.flow_id for flow in image.removed] == [TWO]
        with pytest.raises(FlowNotFoundError):
            image.find("22")
    assert verify_store(str(path)).findings == [], "that a part of it is gone is no finding"
    with open_for_serving(str(path)) as store:
        assert {flow.flow_id for flow in store.take_recovered_flows()} == {ONE, THREE}
        assert store.sweeper.removed == {TWO}
    assert remove_flows(str(path), ["33333333"]).segments_freed_count == 1
    assert states(path) == ["closed", "free", "free", "free"]
    assert changed(path, lambda _: None).flows == set()


@pytest.mark.parametrize("room_count", [0, 1])
def test_more_flows_than_there_is_room_for_go_with_their_segments(
    path: Path, monkeypatch: pytest.MonkeyPatch, room_count: int
) -> None:
    _leave_room(monkeypatch, room_count)
    report = remove_flows(str(path), ["11111111", "22222222", "33333333"])
    assert [outcome.error for outcome in report.outcomes] == 3 * [None]
    assert report.segments_freed_count == 3
    assert shown(path) == set()
    assert changed(path, lambda _: None).flows == set()


def test_what_finds_room_is_removed_and_the_rest_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of TWO lies beside THREE, which is kept: it needs a place in the table."""
    _leave_room(monkeypatch, 0)
    report = remove_flows(str(path), ["11111111", "22222222"])
    errors = {outcome.flow[:2]: outcome.error for outcome in report.outcomes}
    assert errors["11"] is None
    assert isinstance(errors["22"], StoreError)
    assert "was not removed" in str(errors["22"])
    assert report.segments_freed_count == 1
    assert shown(path) == {TWO, THREE}


def _leave_room(monkeypatch: pytest.MonkeyPatch, room_count: int) -> None:
    room = Tombstones.room_count.fget
    assert room is not None
    monkeypatch.setattr(
        Tombstones, "room_count", property(lambda table: room(table) - FLOWS_MAX + room_count)
    )


def test_unknown_flows_do_not_keep_others(path: Path) -> None:
    report = remove_flows(str(path), ["ffffffff", "11111111", "1111-11111"])
    kinds = [type(outcome.error) for outcome in report.outcomes]
    # The last two name the same.
    assert kinds == [FlowNotFoundError, type(None)]
    assert shown(path) == {TWO, THREE}


@pytest.mark.parametrize("name", ["", " ", "-", "1", "1111111", "0x111111", "x" * 8, "1" * 33])
def test_what_is_no_name_removes_nothing(path: Path, name: str) -> None:
    """Such as a script's variable that was never set: nor are those beside it removed."""
    with pytest.raises(UsageError, match="id"):
        remove_flows(str(path), ["22222222", name])
    assert shown(path) == {ONE, TWO, THREE}


def test_a_store_that_somebody_holds(path: Path) -> None:
    with open_device(str(path)) as holder:
        fcntl.flock(holder.fd, fcntl.LOCK_EX)
        with pytest.raises(StoreBusyError):
            remove_flows(str(path), ["11111111"])
    assert shown(path) == {ONE, TWO, THREE}


def test_flows_are_removed_by_a_filter(path: Path) -> None:
    wanted = FlowFilter(since_ns=1, states=frozenset({"sealed"}))
    report = remove_flows(str(path), ["11111111"], wanted)
    assert {outcome.flow[:2] for outcome in report.outcomes} == {"11", "22", "33"}
    assert shown(path) == set()
    assert remove_flows(str(path), selected=wanted).outcomes == []

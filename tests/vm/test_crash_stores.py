# SPDX-License-Identifier: Apache-2.0
"""The log of writes and the judge of what crashes leave, without a machine: they must see a fault.

Logs are made here, by the description at the head of write_log.py and by none of its code.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from random import Random

import pytest

from support.store_builder import Close, Extent, Open, StoreBuilder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from crash_stores import (  # noqa: E402
    Journal,
    Replica,
    Verdict,
    fast_directory,
    judge_all,
    replay,
)
from engine_stores import content, make_ring  # noqa: E402
from write_log import Entry, Flag, State, Write, crash_states, parse_log, tear  # noqa: E402

RING = make_ring()
FLOW = bytes(range(16))
ID = "00010203-0405-0607-0809-0a0b0c0d0e0f"
SEED, SIZE, PORT = 4711, 9001, 4000  # the port of the builder's peer
HEAD_BYTES = 1 << 20  # superblocks
FLUSH, FUA, DISCARD, MARK, META = 1, 2, 4, 8, 16


class Log:
    """A log as the kernel writes it, with sectors of 512 or 4096 bytes."""

    def __init__(self, sector_bytes: int = 512) -> None:
        self.sector_bytes = sector_bytes
        self.body = b""
        self.count = 0

    def add(self, flags: int, offset: int = 0, data: bytes = b"", text: bytes = b"") -> Log:
        assert offset % self.sector_bytes == len(data) % self.sector_bytes == 0
        sizes = (offset // self.sector_bytes, len(data) // self.sector_bytes)
        head = struct.pack("<4Q", *sizes, flags, len(text)) + text
        self.body += head.ljust(self.sector_bytes, b"\0") + data
        self.count += 1
        return self

    def bytes(self) -> bytes:
        head = struct.pack("<3QI", 0x6A736677736872, 1, self.count, self.sector_bytes)
        return head.ljust(self.sector_bytes, b"\0") + self.body + bytes(4096)


def block(letter: bytes, size: int = 512) -> bytes:
    return letter * size


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_log_is_read(sector_bytes: int) -> None:
    data = block(b"a", 2 * sector_bytes)
    log = Log(sector_bytes).add(META, 3 * sector_bytes, data)
    log.add(FLUSH).add(MARK, text=b"here").add(FLUSH | FUA, 0, data)
    assert parse_log(log.bytes()) == [
        Entry(Flag.META, Write(3 * sector_bytes, data)),
        Entry(Flag.FLUSH),
        Entry(Flag.MARK, None, "here"),
        Entry(Flag.FLUSH | Flag.FUA, Write(0, data)),
    ]


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (b"", "no superblock"),
        (bytes(4096), "no log of writes"),
        (Log().add(0, 0, block(b"a")).bytes()[:1400], "ends in the data"),
        (Log().add(FLUSH).bytes()[:1000], "ends before its entry"),
        (Log().add(DISCARD).bytes(), "discard"),
        (Log().add(32).bytes(), "unknown flags 0x20"),
        (struct.pack("<3QI", 0x6A736677736872, 2, 0, 512), "version 2"),
        (struct.pack("<3QI", 0x6A736677736872, 1, 0, 511), "sector of 511"),
        (Log().bytes()[:8] + Log().add(MARK).bytes()[8:520] + block(b"\xff", 4096), "unknown"),
    ],
)
def test_a_log_that_is_none(log: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_log(log)


def walk(log: Log, torn_count: int = 1, seed: int = 1) -> list[State]:
    return list(crash_states(parse_log(log.bytes()), Random(seed), torn_count))


def test_a_write_counts_when_the_flush_behind_it_does() -> None:
    a, b = Write(0, block(b"a")), Write(512, block(b"b"))
    log = Log().add(0, a.offset, a.data).add(FLUSH).add(0, b.offset, b.data)
    flushed, end = walk(log, torn_count=0)
    assert flushed.settled == (a,)
    assert end == State("the end", (b,))


def test_before_a_flush_there_may_be_any_part() -> None:
    writes = [Write(n * 4096, block(b"%d" % n, 4096)) for n in range(3)]
    log = Log()
    for write in writes:
        log.add(0, write.offset, write.data)
    *torn, flushed, _ = walk(log.add(FLUSH), torn_count=200)
    assert len(torn) == 200
    assert all(not state.settled for state in torn)
    assert flushed.settled == tuple(writes)
    sizes = {len(state.loose) for state in torn}
    assert {min(sizes), max(sizes)} == {0, 24}  # nothing, and all 24 sectors
    for piece in (piece for state in torn for piece in state.loose):
        assert piece.data == b"%d" % (piece.offset // 4096) * 512


def test_a_write_with_fua_counts_alone() -> None:
    a, b = Write(0, block(b"a")), Write(512, block(b"b"))
    log = Log().add(FUA, b.offset, b.data).add(MARK, text=b"m").add(0, 0, a.data).add(FLUSH)
    torn_fua, marked, torn, flushed, _ = walk(log)
    assert torn_fua.settled == ()
    assert (marked.settled, marked.marks, marked.loose) == ((b,), ("m",), ())
    assert (torn.settled, flushed.settled) == ((), (a,))


def test_marks_belong_to_what_was_durable_when_they_were_made() -> None:
    log = Log().add(MARK, text=b"1").add(MARK, text=b"2").add(0, 0, block(b"a")).add(FLUSH)
    log.add(MARK, text=b"3")
    marks = [(state.marks, bool(state.settled)) for state in walk(log, torn_count=0)]
    assert marks == [(("1", "2"), False), ((), True), (("3",), False)]


def test_the_same_seed_gives_the_same_states() -> None:
    log = Log().add(0, 0, block(b"a", 65536)).add(FLUSH)
    assert walk(log, seed=7) == walk(log, seed=7)
    assert walk(log, seed=7) != walk(log, seed=8)
    assert tear(Write(0, b""), Random(1)) == ()


def image_of_a_flow(path: Path) -> bytes:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"".join(content(RING, SEED, SIZE))), Close(FLOW))
    return builder.save(path).read_bytes()


def journal(*lines: str) -> Journal:
    return Journal("disk").read("".join(f"{line}\n" for line in lines).encode())


BEGUN = f"@begun disk {SEED} {SIZE} {PORT}"
RECEIPT = f"@receipt disk {ID} {SEED} {SIZE} {PORT}"


def judge_log(tmp_path: Path, *, is_told_early: bool, torn_count: int = 20) -> Verdict:
    """A store is formatted, a flow comes, is flushed, and acknowledged before that or after."""
    image = image_of_a_flow(tmp_path / "image")
    log = Log().add(0, 0, image[:HEAD_BYTES]).add(FLUSH).add(MARK, text=b"formatted")
    log.add(0, HEAD_BYTES, image[HEAD_BYTES:])
    if is_told_early:
        log.add(MARK, text=ID.encode()).add(FLUSH)
    else:
        log.add(FLUSH).add(MARK, text=ID.encode())
    replica = Replica(fast_directory(tmp_path) / f"replica.{tmp_path.name}", len(image))
    try:
        told = journal(BEGUN, RECEIPT)
        verdict = replay(log.bytes(), replica, told, RING, Random(3), torn_count)
    finally:
        replica.path.unlink()
    assert replica.settled == image
    return verdict


def test_a_receipt_behind_the_flush_holds_in_every_state(tmp_path: Path) -> None:
    verdict = judge_log(tmp_path, is_told_early=False)
    assert (verdict.wrong, verdict.lost_bytes, verdict.faults) == (0, 0, [])
    assert (verdict.states, verdict.promises) == (23, 1)


def test_a_receipt_before_the_flush_is_noticed(tmp_path: Path) -> None:
    verdict = judge_log(tmp_path, is_told_early=True)
    assert verdict.wrong > 0
    assert verdict.lost_bytes == SIZE * verdict.wrong
    assert any("is missing" in fault or "its receipt says" in fault for fault in verdict.faults)


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([BEGUN, RECEIPT], 0),
        ([BEGUN], 0),
        ([BEGUN, "@lies disk", RECEIPT.replace("0e0f", "0e10"), "@honest disk"], 0),
        ([], 1),
        ([BEGUN, RECEIPT.replace("0e0f", "0e10")], 1),
        ([BEGUN, RECEIPT.replace(f"{SIZE}", f"{SIZE + 1}")], 1),
        ([BEGUN.replace(f"{SEED}", "1")], 1),
        ([BEGUN.replace(f"{SIZE}", "100")], 1),
        ([RECEIPT.replace("disk", "other")], 1),
    ],
)
def test_a_store_is_judged_by_what_was_told(tmp_path: Path, lines: list[str], wrong: int) -> None:
    image_of_a_flow(tmp_path / "image")
    verdict = judge_all({tmp_path / "image": journal(*lines)}, RING)
    assert verdict.wrong == wrong, verdict.faults


def test_a_store_that_is_gone_has_lost_everything(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    verdict = judge_all({tmp_path / "image": journal(BEGUN, RECEIPT)}, RING)
    assert (verdict.wrong, verdict.lost_bytes) == (1, SIZE)


def test_a_journal_that_was_cut() -> None:
    told = Journal("disk").read(f"@other disk\n{BEGUN}\r\nother\n{RECEIPT}".encode())
    assert (len(told.begun), len(told.promised)) == (1, 0)
    told = journal(BEGUN, "@lies disk", RECEIPT, "@honest disk")
    assert (len(told.promised), len(told.worthless), told.is_lying) == (0, 1, False)

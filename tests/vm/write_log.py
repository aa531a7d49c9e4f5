# SPDX-License-Identifier: Apache-2.0
"""The log that dm-log-writes keeps of a device, and what a crash can leave of it.

Format: Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c of the
kernel. A superblock, then entries, a sector each, with their data behind them, all little-endian:

    superblock  u64 magic, u64 version, u64 entry count, u32 sector size
    entry       u64 sector, u64 sector count, u64 flags, u64 bytes of a mark's text behind them

Writes are logged in front of the first flush that was sent when they were complete, flushes, writes
with FUA and marks at once. So what lies before a flush is durable when the flush is there, and any
part of what lies between two flushes may be when the second is not.

Invariants: nothing here touches a file or knows of stores; a state never has what cannot have
been on the device at that moment.
"""

import mmap
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import TypeAlias

MAGIC = 0x6A736677736872
VERSION = 1
SUPERBLOCK = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
SECTOR_BYTES_MIN = 512
TORN_UNIT_BYTES = 512

Buffer: TypeAlias = bytes | mmap.mmap


class Flag(IntFlag):
    """Of an entry; META is a hint of file systems and changes nothing."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    META = 16


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes and the byte of the device where they go."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log; without data `write` is None."""

    flags: Flag
    write: Write | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """What may be on the device after a crash, as a step from the state before.

    `settled` is on it from here on in all states; `loose` in this one only, on top of that. `marks`
    have been made since the state before.
    """

    what: str
    settled: tuple[Write, ...] = ()
    loose: tuple[Write, ...] = ()
    marks: tuple[str, ...] = ()


def parse_log(log: Buffer) -> list[Entry]:
    """Read a whole log; ValueError with the reason if it is none."""
    if len(log) < SUPERBLOCK.size:
        raise ValueError("the log has no superblock")
    magic, version, count, sector_bytes = SUPERBLOCK.unpack_from(log)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"no log of writes: magic {magic:#x}, version {version}")
    if sector_bytes < SECTOR_BYTES_MIN or sector_bytes & (sector_bytes - 1):
        raise ValueError(f"a sector of {sector_bytes} bytes")
    entries, at = [], sector_bytes
    for _ in range(count):
        entry, at = _parse_entry(log, at, sector_bytes)
        entries.append(entry)
    return entries


def _parse_entry(log: Buffer, at: int, sector_bytes: int) -> tuple[Entry, int]:
    """Read the entry at `at`; also where the next one begins."""
    begin = at + sector_bytes
    if begin > len(log):
        raise ValueError(f"the log ends before its entry at byte {at}")
    sector, sector_count, bits, text_bytes = ENTRY.unpack_from(log, at)
    if bits & ~sum(Flag):
        raise ValueError(f"the entry at byte {at} has unknown flags {bits:#x}")
    flags = Flag(bits)
    if Flag.DISCARD in flags:
        raise ValueError(f"the entry at byte {at} is a discard, whose result nobody can know")
    if Flag.MARK in flags:
        if text_bytes > sector_bytes - ENTRY.size:
            raise ValueError(f"the mark at byte {at} does not fit into its sector")
        text = log[at + ENTRY.size : at + ENTRY.size + text_bytes]
        return Entry(flags, mark=text.rstrip(b"\0").decode()), begin
    end = begin + sector_count * sector_bytes
    if end > len(log):
        raise ValueError(f"the log ends in the data of its entry at byte {at}")
    write = Write(sector * sector_bytes, bytes(log[begin:end])) if sector_count else None
    return Entry(flags, write), end


def tear(write: Write, choose: random.Random) -> tuple[Write, ...]:
    """Return what is left of a write: all, nothing, or some of its sectors."""
    share = choose.choice((0.0, 1.0, choose.random()))
    starts = range(0, len(write.data), TORN_UNIT_BYTES)
    return tuple(
        Write(write.offset + at, write.data[at : at + TORN_UNIT_BYTES])
        for at in starts
        if choose.random() < share
    )


def crash_states(
    entries: Sequence[Entry], choose: random.Random, torn_count: int
) -> Iterator[State]:
    """Give the states in their order: at each flush, at each mark, and torn ones in between.

    In front of each flush that has something to flush there are `torn_count` states with any part
    of it, and one in front of each write with FUA with a part of that; marks that nothing separates
    share a state.
    """
    steps = _Steps(choose, torn_count)
    for number, entry in enumerate(entries):
        yield from steps.step(number, entry)
    yield steps.end()


class _Steps:
    """A walk through a log: what no flush has covered yet, and what is to be reported."""

    def __init__(self, choose: random.Random, torn_count: int) -> None:
        self._choose = choose
        self._torn_count = torn_count
        self._pending: list[Write] = []
        self._settled: list[Write] = []
        self._marks: list[str] = []

    def now(self, what: str, loose: tuple[Write, ...] = ()) -> State:
        """Return the state here; what it reports is reported."""
        state = State(what, tuple(self._settled), loose, tuple(self._marks))
        self._settled, self._marks = [], []
        return state

    def end(self) -> State:
        """Return the state in which everything has come to be."""
        self._settled += self._pending
        return self.now("the end")

    def step(self, number: int, entry: Entry) -> Iterator[State]:
        """Give the states up to and including an entry."""
        if Flag.MARK in entry.flags:
            self._marks.append(entry.mark)
            return
        if self._marks:
            yield self.now(f"the marks before entry {number}")
        if Flag.FLUSH in entry.flags:
            for count in range(self._torn_count if self._pending else 0):
                what = f"the flush at entry {number}, torn {count}"
                yield self.now(what, self._torn(self._pending))
            self._settled += self._pending
            self._pending = []
            yield self.now(f"the flush at entry {number}")
        if entry.write and Flag.FUA in entry.flags:
            yield self.now(f"FUA at entry {number}, torn", tear(entry.write, self._choose))
            self._settled.append(entry.write)
        elif entry.write:
            self._pending.append(entry.write)

    def _torn(self, writes: list[Write]) -> tuple[Write, ...]:
        return tuple(piece for write in writes for piece in tear(write, self._choose))

# SPDX-License-Identifier: Apache-2.0
"""A disk that loses power: of what was not flushed, anything may be left.

Invariants: a write is safe once a flush that was issued after its completion is
complete, or once it is complete itself if it was to be stable; any other is kept,
lost, or torn into units of 512 or 4096 bytes of which any may be left, each on
its own. Of two writes to one place that are both complete, the older never comes
back over a newer one that is safe.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

TORN_UNITS_BYTES: Final = (512, 4096)
# Of 100 unflushed writes, how many are kept whole and how many torn; the rest is lost.
FATES: Final = ((100, 0), (0, 0), (50, 0), (95, 0), (5, 0), (30, 40), (5, 90), (80, 10))


@dataclass(slots=True)
class DiskWrite:
    """A write that may be lost yet."""

    offset: int
    data: bytes
    is_stable: bool = False
    is_done: bool = False
    is_forsaken: bool = False  # a flush that covered it failed: no later one vouches for it

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + len(self.data)


@dataclass(slots=True)
class Disk:
    """`image` is on stable media; `unflushed` are the writes since, in the order of submission."""

    image: bytearray
    unflushed: dict[int, DiskWrite] = field(default_factory=dict)
    _covered: dict[int, list[int]] = field(default_factory=dict)

    def submit(self, number: int, offset: int, data: bytes, *, is_stable: bool = False) -> None:
        """A write is under way."""
        write = DiskWrite(offset, data, is_stable)
        for other in self.unflushed.values():
            overlaps = other.offset < write.end and offset < other.end
            assert other.is_done or not overlaps, f"two writes under way overlap at byte {offset}"
        assert write.end <= len(self.image), f"a write reaches behind the store: {write.end}"
        self.unflushed[number] = write

    def complete(self, number: int, size: int) -> None:
        """A write is complete, or its first `size` bytes are, and stable if all were to be."""
        write = self.unflushed[number]
        write.is_done = True
        write.data = write.data[:size]
        if write.is_stable:
            self._keep(number)

    def flush(self, number: int) -> None:
        """A flush is under way: it covers what is complete now."""
        self._covered[number] = [key for key, write in self.unflushed.items() if write.is_done]

    def flushed(self, number: int, *, failed: bool = False) -> None:
        """A flush is complete."""
        for key in self._covered.pop(number):
            if key in self.unflushed and failed:
                self.unflushed[key].is_forsaken = True
            elif key in self.unflushed and not self.unflushed[key].is_forsaken:
                self._keep(key)

    def _keep(self, number: int) -> None:
        """Make a write safe; what older ones left in its place can no longer show."""
        write = self.unflushed.pop(number)
        self.image[write.offset : write.end] = write.data
        for key, older in list(self.unflushed.items()):
            begin, end = max(write.offset, older.offset), min(write.end, older.end)
            if key > number or not older.is_done or begin >= end:
                continue
            if end - begin == len(older.data):
                del self.unflushed[key]
            else:
                before, after = older.data[: begin - older.offset], older.data[end - older.offset :]
                newer = write.data[begin - write.offset : end - write.offset]
                older.data = before + newer + after

    def after_kill(self, choose: random.Random) -> Disk:
        """The disk once the daemon alone has died: what it asked for is done, or never will be."""
        left = Disk(bytearray(self.image))
        for key, write in self.unflushed.items():
            if write.is_done or choose.randrange(2):
                left.unflushed[key] = replace(write, is_done=True)
        return left

    def show(self, into: memoryview) -> None:
        """Lay what a reader sees while there is power."""
        into[:] = self.image
        for write in self.unflushed.values():
            into[write.offset : write.end] = write.data

    def lose_power(self, choose: random.Random, into: memoryview) -> None:
        """Lay what may be left into memory of the image's size."""
        into[:] = self.image
        kept, torn = choose.choice(FATES)
        for write in self.unflushed.values():
            fate = choose.randrange(100)
            if fate < kept:
                into[write.offset : write.end] = write.data
            elif fate < kept + torn:
                _tear(choose, write, into)


def _tear(choose: random.Random, write: DiskWrite, into: memoryview) -> None:
    """Lay some of a write's units; which, is all up to chance."""
    unit = choose.choice(TORN_UNITS_BYTES)
    count = -(-len(write.data) // unit)
    kind = choose.randrange(4)
    left = choose.randint(0, count)
    if kind == 0:
        bits = (1 << left) - 1  # the first ones
    elif kind == 1:
        bits = (1 << count) - (1 << left)  # the last ones
    elif kind == 2:
        bits = (1 << count) - 1 - (1 << choose.randrange(max(count, 1)))  # all but one
    else:
        bits = choose.getrandbits(count) if count else 0
    at = 0
    while at < count:
        end = at
        while end < count and bits >> end & 1:
            end += 1
        first, behind = at * unit, min(end * unit, len(write.data))
        into[write.offset + first : write.offset + behind] = write.data[first:behind]
        at = end + 1

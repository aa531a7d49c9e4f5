# SPDX-License-Identifier: Apache-2.0
"""A set of flow ids in a bounded memory, that may take an id for one of its own by chance.

A chain of Bloom filters, each twice as large as the one before. Invariants: an id that
was added is always found; all filters together have FILTER_BYTES_MAX at most, and are
written to only as ids come, so that a small store costs little. Up to some 15 million
ids, one other in a hundred is found by chance, beyond that ever more. Senders choose
ids, and cannot choose which others these are taken for. Owned by one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final

FILTER_BYTES_MIN: Final = 128 * 1024
FILTER_BYTES_MAX: Final = 32 * 1024 * 1024
BITS_PER_ID: Final = 16
BITS_SET_PER_ID: Final = 4
_KEY_BYTES: Final = 16


class BloomFilter:
    """Ids that were added, and a few others."""

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._key = os.urandom(_KEY_BYTES)
        self._filters: list[bytearray] = []
        self._room_count = 0  # for how many more ids the newest filter was made
        for flow in ids:
            self.add(flow)

    @classmethod
    def of(cls, ids: Iterable[bytes], count: int) -> BloomFilter:
        """Return a filter of many ids, some `count` of them, in less time than add() takes."""
        made = cls()
        size = min(max(FILTER_BYTES_MIN, count * BITS_PER_ID // 8), FILTER_BYTES_MAX)
        bits = bytearray(size)
        made._filters.append(bits)
        made._room_count = max(0, size * 8 // BITS_PER_ID - count)
        for flow in ids:
            for bit in _bits(bits, *made._hashes(flow)):
                bits[bit >> 3] |= 1 << (bit & 7)
        return made

    def __contains__(self, flow: bytes) -> bool:
        if not self._filters:
            return False
        first, step = self._hashes(flow)
        return any(
            all(bits[bit >> 3] >> (bit & 7) & 1 for bit in _bits(bits, first, step))
            for bits in self._filters
        )

    def add(self, flow: bytes) -> None:
        """Keep an id; one that seems to be there already changes nothing."""
        if flow in self:
            return
        if self._room_count == 0:
            self._grow()
        self._room_count = max(0, self._room_count - 1)
        bits = self._filters[-1]
        first, step = self._hashes(flow)
        for bit in _bits(bits, first, step):
            bits[bit >> 3] |= 1 << (bit & 7)

    @property
    def size_bytes(self) -> int:
        """The memory that the filters take, in bytes, once ids lie in all of it."""
        return sum(map(len, self._filters))

    def _grow(self) -> None:
        """Begin a larger filter, as long as the bound allows it."""
        size = 2 * len(self._filters[-1]) if self._filters else FILTER_BYTES_MIN
        if self.size_bytes + size > FILTER_BYTES_MAX:
            return
        self._filters.append(bytearray(size))
        self._room_count = size * 8 // BITS_PER_ID

    def _hashes(self, flow: bytes) -> tuple[int, int]:
        digest = blake2b(flow, key=self._key, digest_size=16).digest()
        return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big") | 1


def _bits(bits: bytearray, first: int, step: int) -> Iterator[int]:
    """The places of one id: by double hashing, so that two hashes are enough."""
    count = len(bits) * 8
    return ((first + number * step) % count for number in range(BITS_SET_PER_ID))

# SPDX-License-Identifier: Apache-2.0
"""What the soak sends: a stream that follows from a seed, read from any byte on.

Invariants: the bytes do not depend on how many of them are sent, no two cells of
a stream are alike, and a cell's head says whose it is. Values; any thread may read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from crc32c import crc32c

CELL_BYTES: Final = 64 * 1024
HEAD_BYTES: Final = 16  # of a cell: the stream's seed and the cell's number


class Content:
    """An endless stream."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._body = random.Random(seed).randbytes(CELL_BYTES - HEAD_BYTES)

    def get(self, start: int, end: int) -> bytes:
        """Return the bytes [start, end)."""
        first = start // CELL_BYTES
        cells = b"".join(self._cell(number) for number in range(first, -(-end // CELL_BYTES)))
        return cells[start - first * CELL_BYTES : end - first * CELL_BYTES]

    def _cell(self, number: int) -> bytes:
        head = self._seed.to_bytes(8, "little") + number.to_bytes(8, "little")
        return head + self._body

    def checksum(self, size: int) -> str:
        """The checksum of the first `size` bytes, as receipts show it."""
        value = 0
        for at in range(0, size, CELL_BYTES):
            value = crc32c(self.get(at, min(at + CELL_BYTES, size)), value)
        return f"crc32c:{value:08x}"

    def first_difference(self, pieces: Iterable[bytes], start: int) -> int | None:
        """Where the pieces, which begin at `start`, are not this stream; None: nowhere."""
        at = start
        for piece in pieces:
            wanted = self.get(at, at + len(piece))
            if piece != wanted:
                return at + next(i for i in range(len(wanted)) if piece[i] != wanted[i])
            at += len(piece)
        return None


def seed_of(data: bytes) -> int:
    """The seed that the head of a cell has; of fewer bytes, whatever they come to."""
    return int.from_bytes(data[:8], "little")

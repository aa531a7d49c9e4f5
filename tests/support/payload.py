# SPDX-License-Identifier: Apache-2.0
"""What tests send: bytes that follow from a seed, however many, and their digests.

Invariant: the same seed and size always make the same bytes, and no two chunks
of a payload are alike, so that a swapped, repeated or lost one is seen.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

CHUNK_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 16  # of a chunk: payload's seed and number of the chunk


@dataclass(frozen=True)
class Payload:
    """`size` bytes made from `seed`; chunks() makes them anew each time."""

    seed: int
    size: int

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the bytes in order, in runs of at most chunk_bytes (which does not change them)."""
        assert CHUNK_BYTES % chunk_bytes == 0, chunk_bytes
        body = random.Random(self.seed).randbytes(min(self.size, CHUNK_BYTES))[HEAD_BYTES:]
        for number in range(-(-self.size // CHUNK_BYTES)):
            head = self.seed.to_bytes(8, "little") + number.to_bytes(8, "little")
            chunk = (head + body)[: self.size - number * CHUNK_BYTES]
            for at in range(0, len(chunk), chunk_bytes):
                yield chunk[at : at + chunk_bytes]

    def data(self) -> bytes:
        """All of it at once."""
        return b"".join(self.chunks())

    def sha256(self, size: int | None = None) -> str:
        """Hash it, or its first `size` bytes."""
        left = self.size if size is None else size
        assert 0 <= left <= self.size, (left, self.size)
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk[:left])
            left -= min(left, len(chunk))
            if left == 0:
                break
        return digest.hexdigest()

    def checksum(self) -> str:
        """The checksum of a receipt: "crc32c:" and eight digits."""
        value = 0
        for chunk in self.chunks():
            value = crc32c(chunk, value)
        return f"crc32c:{value:08x}"

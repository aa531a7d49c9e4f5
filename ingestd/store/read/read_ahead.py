# SPDX-License-Identifier: Apache-2.0
"""A window on a segment: what was read ahead of it, in memory of its own.

Invariants: nothing outside the segment is read except to fill up its blocks,
and nothing outside is ever returned; a view holds until the next get(). A
window belongs to one reader and one thread at a time.
"""

from __future__ import annotations

from typing import Final

from ingestd.store.device.device import READ_BYTES_MAX, Device, aligned_memory
from ingestd.store.format.layout import BLOCK_BYTES_MAX, round_up
from ingestd.store.format.records import Batch, Place, batch_header_bytes

# A header of any size is had by one read.
AHEAD_BYTES: Final = 64 * 1024


class Window:
    """Bytes [0, limit) of what begins at `base` of the device."""

    def __init__(self, device: Device, base: int, limit: int) -> None:
        self._device = device
        self._base = base
        self._limit = limit
        self._memory = aligned_memory(AHEAD_BYTES)
        self._start = 0
        self._end = 0

    def get(self, at: int, size: int, ahead_bytes: int = 0) -> memoryview:
        """Return `size` bytes at `at`, fewer at the end of the segment or of the device.

        If they must be read, up to `ahead_bytes` are read at once. At most
        READ_BYTES_MAX. Raises StoreDamagedError if the device cannot read.
        """
        assert 0 <= size <= READ_BYTES_MAX, size
        end = min(at + size, self._limit)
        if not self._start <= at <= end <= self._end:
            self._read(at, max(end, min(at + ahead_bytes, at + READ_BYTES_MAX, self._limit)))
        return self._memory[at - self._start : max(at, min(end, self._end)) - self._start]

    def _read(self, first: int, end: int) -> None:
        align_bytes = self._device.align_bytes
        first -= (self._base + first) % align_bytes
        wanted = round_up(max(end - first, 1), align_bytes)
        if len(self._memory) < wanted:
            self._memory = aligned_memory(min(2 * wanted, READ_BYTES_MAX + 2 * BLOCK_BYTES_MAX))
        self._start = self._end = first
        self._end += self._device.fill(self._base + first, self._memory[:wanted])


def read_batch(
    window: Window,
    place: Place,
    at: int,
    batch_index: int | None,
    ahead_bytes: int = AHEAD_BYTES,
) -> Batch | None:
    """Return the batch at byte `at` of its segment; None if there is no whole header of it."""
    head = window.get(at, place.block_bytes, ahead_bytes)
    header_bytes = batch_header_bytes(head, place.block_bytes)
    if header_bytes is None:
        return None
    if header_bytes > place.block_bytes:
        head = window.get(at, header_bytes, ahead_bytes)
    return place.decode_batch(head, at, batch_index)

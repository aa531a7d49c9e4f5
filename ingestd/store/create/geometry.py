# SPDX-License-Identifier: Apache-2.0
"""Sizes of a store to be: segments by default, and what is refused.

Invariants: a segment is a whole number of SEGMENT_UNIT_BYTES, so that an eighth
of it, which is what a footer may take, is a whole number of blocks of any size
that the format allows. No state; any thread may call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ingestd.errors import StoreError
from ingestd.sizes import exact_size, full_size
from ingestd.store.format.layout import (
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SEGMENT_COUNT_MAX,
    SEGMENTS_OFFSET,
)

# A footer takes an eighth of a segment, and headers of batches a quarter of that at most, but
# a block at least (segment_header_bytes_max() of core/format/segment.c).
SEGMENT_BLOCKS_MIN: Final = 32
SEGMENT_UNIT_BYTES: Final = 1024 * 1024
SEGMENTS_WANTED: Final = 64
SEGMENTS_MIN: Final = 4
SEGMENT_DEFAULT_BYTES_MIN: Final = 8 * 1024 * 1024
SEGMENT_DEFAULT_BYTES_MAX: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Geometry:
    """The layout of a store; sizes in bytes."""

    store_bytes: int
    segment_bytes: int
    segment_count: int
    block_bytes: int


def plan_geometry(
    name: str, store_bytes: int, segment_bytes: int | None, block_bytes: int
) -> Geometry:
    """Return the geometry of a store of `store_bytes`, a multiple of `block_bytes`.

    Raises StoreError, naming `name` and the sizes that would do.
    """
    assert store_bytes % block_bytes == 0
    room_bytes = store_bytes - SEGMENTS_OFFSET
    least = 1
    if segment_bytes is None:
        segment_bytes, least = default_segment_bytes(store_bytes), SEGMENTS_MIN
        segment_bytes = max(segment_bytes, SEGMENT_BLOCKS_MIN * block_bytes)
    _check_segment_bytes(segment_bytes, block_bytes)
    if room_bytes < segment_bytes * least:
        need_bytes = SEGMENTS_OFFSET + segment_bytes * least
        raise StoreError(
            f"{name} is too small with {full_size(store_bytes)}: a store with"
            f" {least if least > 1 else 'one'} segment{'s' if least > 1 else ''} of"
            f" {exact_size(segment_bytes)} takes {full_size(need_bytes)}"
        )
    segment_count = room_bytes // segment_bytes
    if segment_count > SEGMENT_COUNT_MAX:
        raise StoreError(
            f"{name} would have {segment_count} segments of {exact_size(segment_bytes)}: choose"
            " larger ones"
        )
    return Geometry(store_bytes, segment_bytes, segment_count, block_bytes)


def default_segment_bytes(store_bytes: int) -> int:
    """Return a power of two: about SEGMENTS_WANTED segments, in smaller stores SEGMENTS_MIN."""
    wanted = _power_of_two_below(store_bytes // SEGMENTS_WANTED)
    wanted = min(max(wanted, SEGMENT_DEFAULT_BYTES_MIN), SEGMENT_DEFAULT_BYTES_MAX)
    fitting = _power_of_two_below(max(0, store_bytes - SEGMENTS_OFFSET) // SEGMENTS_MIN)
    return max(min(wanted, fitting), SEGMENT_BYTES_MIN)


def _power_of_two_below(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value > 0 else 0


def _check_segment_bytes(segment_bytes: int, block_bytes: int) -> None:
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
        raise StoreError(
            f"a segment cannot have {full_size(segment_bytes)}: choose from"
            f" {exact_size(SEGMENT_BYTES_MIN)} to {exact_size(SEGMENT_BYTES_MAX)}"
        )
    if segment_bytes % SEGMENT_UNIT_BYTES:
        raise StoreError(
            f"a segment cannot have {full_size(segment_bytes)}: choose"
            f" {nearest_sizes(segment_bytes, SEGMENT_UNIT_BYTES)}"
        )
    least_bytes = SEGMENT_BLOCKS_MIN * block_bytes
    if segment_bytes < least_bytes:
        raise StoreError(
            f"a segment of {exact_size(segment_bytes)} has no room for headers, as blocks have"
            f" {exact_size(block_bytes)} here: choose {exact_size(least_bytes)} or more"
        )


def check_store_bytes(size_bytes: int, block_bytes: int) -> None:
    """Raise StoreError if a size that was asked for is not a whole number of blocks."""
    if size_bytes % block_bytes:
        raise StoreError(
            f"a store cannot have {size_bytes} bytes, as its blocks have {block_bytes}: choose"
            f" {nearest_sizes(size_bytes, block_bytes)}"
        )


def nearest_sizes(size_bytes: int, unit_bytes: int) -> str:
    """Return the multiples of a unit below and above a size, in words."""
    below = size_bytes // unit_bytes * unit_bytes
    if below == 0:
        return exact_size(unit_bytes)
    return f"{exact_size(below)} or {exact_size(below + unit_bytes)}"

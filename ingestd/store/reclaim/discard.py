# SPDX-License-Identifier: Apache-2.0
"""Discard (TRIM): a block device learns that the bytes of a segment are not needed any more.

Invariants: the segment's header, whose zeros say that it is free, is never
discarded, as what is read of discarded bytes is for the device to say; these
come back only under sequences that are stale. Any thread may call.
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

from ingestd.errors import StoreError
from ingestd.store.device.device import Device
from ingestd.store.metadata.superblock import Superblock

_BLKDISCARD: Final = 0x1277  # linux/fs.h: discard a range, given by two u64
# The part of docs/format.md where the daemon tries out what the device accepts.
SCRATCH_OFFSET: Final = 64 * 1024
SCRATCH_BYTES: Final = 384 * 1024


def require_discard(device: Device) -> None:
    """Raise StoreError if the device has no discard: it is tried on the scratch room."""
    if not device.is_block:
        raise StoreError(
            f"{device.path} is a file, whose space was promised to it when it was made, and"
            " discarding would break that: set discard = false"
        )
    try:
        _discard(device, SCRATCH_OFFSET, SCRATCH_BYTES)
    except OSError as error:
        raise StoreError(
            f"{device.path} cannot discard: {error.strerror}; set discard = false, or look for"
            " what is between the store and its device (lsblk --discard)"
        ) from None


def discard_segment(device: Device, superblock: Superblock, index: int) -> int:
    """Discard all of a free segment but its header, and return how many bytes these are.

    Raises StoreError if the device refuses.
    """
    first = superblock.segment_offset(index) + superblock.block_bytes
    size = superblock.segment_bytes - superblock.block_bytes
    try:
        _discard(device, first, size)
    except OSError as error:
        raise StoreError(
            f"{device.path}: segment {index} cannot be discarded: {error.strerror}; it is used"
            " again all the same, check the kernel log"
        ) from None
    return size


def _discard(device: Device, offset: int, size: int) -> None:
    fcntl.ioctl(device.fd, _BLKDISCARD, struct.pack("QQ", offset, size))

# SPDX-License-Identifier: Apache-2.0
"""The space that a store file was promised and has lost, as by a sparse copy: asked back.

Invariants: no byte of the file changes; the file system is asked for no more than it
has free, so that nobody else's room is used up by a try that fails. What a file system
cannot report or promise (no FIEMAP, no fallocate) holds no segment back: a write will show it.
Waits for the file system. One thread's own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from ingestd.store.device.device import Device
from ingestd.store.metadata.superblock import Superblock

# linux/fiemap.h: the extents of a file, those allocated and never written included.
_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP_FLAG_SYNC: Final = 1
_FIEMAP_HEAD: Final = struct.Struct("=QQLLLL")  # start, length, flags, mapped, count, reserved
_FIEMAP_EXTENT: Final = struct.Struct("=QQQQQLLLL")  # logical, physical, length, ..., flags, ...
_EXTENT_LAST: Final = 1
_EXTENTS_COUNT: Final = 64
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT}


class BackingSpace:
    """The room of a store file, segment by segment."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self._device = device
        self._superblock = superblock
        self._reserved: set[int] = set()
        self._has_rest = False
        # The superblock has its space: asking for it changes nothing.
        self._can_ask = _allocate(device.fd, 0, superblock.block_bytes) in (0, *_NO_ROOM)

    def is_reserved(self, index: int) -> bool:
        """Return whether a segment has its space, or cannot be promised any."""
        return not self._can_ask or index in self._reserved

    def reserve(self, index: int) -> bool:
        """Ask for what a segment lacks; False: there is no room for it now."""
        if self.is_reserved(index):
            return True
        offset, size = self._superblock.segment_offset(index), self._superblock.segment_bytes
        if not self._ask_for(offset, size):
            return False
        self._reserved.add(index)
        return True

    def reserve_rest(self) -> None:
        """Ask for what lies around the segments: superblocks, tables, requests, an unused end."""
        if not self._can_ask or self._has_rest:
            return
        block = self._superblock
        end = block.segments_offset + block.segment_count * block.segment_bytes
        around = ((0, block.segments_offset), (end, block.store_bytes - end))
        self._has_rest = all(self._ask_for(offset, size) for offset, size in around)

    def _ask_for(self, offset: int, size: int) -> bool:
        missing_bytes = size - allocated_bytes(self._device.fd, offset, size)
        if missing_bytes <= 0:
            return True
        if missing_bytes > self._free_bytes():
            return False
        return _allocate(self._device.fd, offset, size) not in _NO_ROOM

    def _free_bytes(self) -> int:
        vfs = os.fstatvfs(self._device.fd)
        return vfs.f_bavail * vfs.f_frsize


def allocated_bytes(fd: int, offset: int, size: int) -> int:
    """Return how many bytes of a range of a file have space; 0 where that is unknown."""
    end, at = offset + size, offset
    found_bytes = 0
    while at < end:
        request = bytearray(_FIEMAP_HEAD.size + _EXTENTS_COUNT * _FIEMAP_EXTENT.size)
        _FIEMAP_HEAD.pack_into(request, 0, at, end - at, _FIEMAP_FLAG_SYNC, 0, _EXTENTS_COUNT, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        except OSError:
            return 0
        mapped_count = _FIEMAP_HEAD.unpack_from(request)[3]
        if mapped_count == 0:
            break
        for number in range(mapped_count):
            place = _FIEMAP_HEAD.size + number * _FIEMAP_EXTENT.size
            fields = _FIEMAP_EXTENT.unpack_from(request, place)
            logical, length, flags = fields[0], fields[2], fields[5]
            found_bytes += int(max(0, min(logical + length, end) - max(logical, at)))
            at = max(at, logical + length)
            if flags & _EXTENT_LAST:
                return found_bytes
    return found_bytes


def _allocate(fd: int, offset: int, size: int) -> int:
    """Have space allocated below a range of a file; return 0 or an errno.

    The C library writes zeros where fallocate(2) is not supported, having read there
    by single bytes, which a descriptor of O_DIRECT refuses: then nothing is done.
    """
    try:
        os.posix_fallocate(fd, offset, size)
    except OSError as error:
        return error.errno or errno.EIO
    return 0

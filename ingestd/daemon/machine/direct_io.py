# SPDX-License-Identifier: Apache-2.0
"""Limits of one direct write: alignment and size, as the block layer's queue of a store has them.

Invariants: only reads sysfs; where the answer cannot be had, the stricter one
is given; what an operator states can only be stricter still. No state; any thread may call.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.errors import ConfigError
from ingestd.store.device.device import direct_align_bytes

if TYPE_CHECKING:
    from ingestd.config.settings import DirectIoSettings

SYSFS_DEVICES: Final = Path("/sys/dev/block")
# One writev takes UIO_MAXIOV of them (include/uapi/linux/uio.h); what a device
# takes less, the block layer splits.
IOVECS_MAX: Final = 1024


class DirectProfile(NamedTuple):
    """The planner's profile of a store: bytes, a mask of addresses, a number."""

    mem_align: int  # address and length of every iovec
    write_align: int  # offset and length of a write
    virt_mask: int  # inner edges of the iovec list lie on multiples of this + 1
    iovecs_max: int


def complete_profile(
    mem_align: int, write_align: int, fd: int, sysfs: Path = SYSFS_DEVICES
) -> DirectProfile:
    """Return the whole profile of an open store, of which statx gave the alignments.

    The virtual boundary only matters where pieces smaller than a logical block
    are written as they lie: all else the block layer splits at the boundary.
    """
    virt_mask = 0
    if mem_align < write_align:
        known = virt_boundary_mask(fd, sysfs)
        virt_mask = mmap.PAGESIZE - 1 if known is None else known
    return DirectProfile(mem_align, write_align, virt_mask, IOVECS_MAX)


def assumed_profile(path: str, fd: int) -> DirectProfile:
    """Return the profile of an open store of which the kernel says nothing (tmpfs, btrfs, NFS).

    Whole blocks in whole blocks of memory, of the size that it reads: what everything takes
    that takes direct I/O at all. Raises StoreError where nothing does.
    """
    is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
    align_bytes = max(direct_align_bytes(path, fd, is_block), mmap.PAGESIZE)
    return DirectProfile(align_bytes, align_bytes, 0, IOVECS_MAX)


def stricter_profile(
    found: DirectProfile, stated: DirectIoSettings, store_name: str, block_bytes: int
) -> DirectProfile:
    """Return the profile that was found with what the operator states in its place.

    A device may want more than it says, so a stricter value is taken. Raises ConfigError
    for a laxer one, which would end in failed writes, and for one that the blocks of the
    store do not keep.
    """
    problems = []
    for key, was_found in (
        ("mem_align", found.mem_align),
        ("write_align", found.write_align),
        ("virt_boundary", found.virt_mask + 1 if found.virt_mask else 0),
    ):
        value = getattr(stated, key)
        if value is not None and value < was_found:
            problems.append(
                f"store.{store_name}.direct_io.{key}: {value} is laxer than what was found,"
                f" {was_found}: state {was_found} or more, or leave it out"
            )
    if stated.write_align is not None and stated.write_align > block_bytes:
        problems.append(
            f"store.{store_name}.direct_io.write_align: {stated.write_align} is more than a block"
            f" of this store, {block_bytes}, and every write begins on a block: state"
            f" {block_bytes} at most"
        )
    if problems:
        raise ConfigError("\n".join(problems))
    return DirectProfile(
        mem_align=stated.mem_align or found.mem_align,
        write_align=stated.write_align or found.write_align,
        virt_mask=stated.virt_boundary - 1 if stated.virt_boundary else found.virt_mask,
        iovecs_max=found.iovecs_max,
    )


def virt_boundary_mask(fd: int, sysfs: Path = SYSFS_DEVICES) -> int | None:
    """Return the queue's virt_boundary_mask, or None where the file has no queue of its own.

    Documentation/ABI/stable/sysfs-block. A partition's queue is its disk's.
    """
    status = os.fstat(fd)
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    device = sysfs / f"{os.major(number)}:{os.minor(number)}"
    for directory in (device / "queue", device.resolve().parent / "queue"):
        try:
            return int((directory / "virt_boundary_mask").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None

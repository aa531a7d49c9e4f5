# SPDX-License-Identifier: Apache-2.0
"""Checks of a served store's file or device: its name, its bytes, the claim on it.

A store file can be deleted, cut off or replaced, a device can shrink, and another machine may
take the disk: writes still succeed, and nobody would ever read them. Invariants: goes by the
open descriptor; changes nothing. Any thread may call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from ingestd.errors import StoreDamagedError
from ingestd.store.device.device import Device
from ingestd.store.device.holder import read_holder
from ingestd.store.metadata.superblock import Superblock

# As journald has them. The core (core/storage/device.c) looks at the first two before each
# acknowledgement.
FILE_DELETED: Final = errno.EIDRM
FILE_CUT: Final = errno.ENODATA
CLAIM_LOST: Final = errno.ESTALE
STATUS_BLOCK_BYTES: Final = 512  # of st_blocks, stat(2)


def loss_of(device: Device, superblock: Superblock) -> int | None:
    """Return why the store is not there any more, one of the errnos above; None: it is."""
    status = os.fstat(device.fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
        return FILE_DELETED
    if os.lseek(device.fd, 0, os.SEEK_END) < superblock.store_bytes:
        return FILE_CUT
    if _is_cut_below(device, superblock):
        return FILE_CUT
    with contextlib.suppress(StoreDamagedError):  # whoever writes will see it
        holder = read_holder(device)
        if holder is None or holder.token != device.token:
            return CLAIM_LOST
    return None


def _is_cut_below(device: Device, superblock: Superblock) -> bool:
    """Return whether a file under a loop device does not reach to the store's end any more."""
    ends = {
        layer.key: layer.first + superblock.store_bytes
        for layer in device.layers
        if layer.kind == "file" and layer.how == "loop" and not layer.is_shared
    }
    for fd in device.claims:
        status = os.fstat(fd)
        if status.st_size < ends.get((status.st_dev, status.st_ino), 0):
            return True
    return False


def is_elsewhere(device: Device) -> bool:
    """Return whether the store's path leads to something else by now, or to nothing."""
    try:
        there, here = os.stat(device.path), os.fstat(device.fd)  # noqa: PTH116 - as opened
    except OSError:
        return True
    if stat.S_ISBLK(here.st_mode):
        return there.st_rdev != here.st_rdev
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def missing_bytes(device: Device, superblock: Superblock) -> int:
    """Return how many of a store file's bytes have no space promised to them: it is sparse.

    A file system that compresses counts less than it promised.
    """
    status = os.fstat(device.fd)
    if not stat.S_ISREG(status.st_mode):
        return 0
    return max(0, superblock.store_bytes - status.st_blocks * STATUS_BLOCK_BYTES)

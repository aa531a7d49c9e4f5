# SPDX-License-Identifier: Apache-2.0
"""Opening the file or block device of a store: for reading, or to hold it.

Invariants: readers never hold a lock for longer than it takes to ask; no store is opened by a
process whose output goes to it; what the kernel answers becomes a sentence about the store.
One thread opens a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from ingestd.errors import NotAStoreError, StoreBusyError, StoreError
from ingestd.store.device.block_device import BlockDevice
from ingestd.store.device.claim import take_claim
from ingestd.store.device.device import Device
from ingestd.store.device.output_guard import refuse_streams

# A reader that asks whether the store is served holds a shared lock for a moment.
READER_WAIT_S: Final = 0.5
HELD_INTERVAL_S: Final = 0.025


def open_device(path: str, *, write: bool = False, exclusive: bool = False) -> Device:
    """Open a store's file or block device for direct I/O.

    `exclusive` opens a block device with O_EXCL, which fails while it is
    mounted or otherwise claimed. Raises NotAStoreError, StoreBusyError or
    StoreError.
    """
    with _naming(path):
        mode = os.stat(path).st_mode  # noqa: PTH116 - the descriptor follows, not a Path
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise NotAStoreError(f"{path} is neither a block device nor a regular file")
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC
    if exclusive and stat.S_ISBLK(mode):
        flags |= os.O_EXCL
    with _naming(path):
        fd = os.open(path, flags)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(mode):
            raise StoreError(f"{path} was replaced while it was opened: try it again")
        device = Device(path, fd, is_block=stat.S_ISBLK(mode))
        refuse_streams(path, device.layers)
    except BaseException:
        os.close(fd)
        raise
    return device


def open_locked(
    path: str,
    *,
    wait_s: float = READER_WAIT_S,
    on_wait: Callable[[float], None] | None = None,
) -> Device:
    """Open a store for writing and lock it, so that nobody else writes to it.

    What is held is waited for, up to `wait_s`, but for a mount; `on_wait` is called once
    with that, as soon as it is more than a reader that holds it. Errors as of
    open_device(); StoreBusyError also if the lock is not released.
    """
    started_s = time.monotonic()
    while True:
        try:
            return _try_locked(path)
        except StoreBusyError as error:
            waited_s = time.monotonic() - started_s
            if error.is_lasting or waited_s >= wait_s:
                raise
        if on_wait is not None and waited_s >= READER_WAIT_S:
            on_wait(wait_s)
            on_wait = None
        time.sleep(HELD_INTERVAL_S)


def _try_locked(path: str) -> Device:
    device = open_device(path, write=True, exclusive=True)
    try:
        take_claim(device)
    except BaseException:
        device.close()
        raise
    return device


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn what the kernel answers to an opening into a sentence about the store."""
    try:
        yield
    except ValueError:
        raise NotAStoreError(f"{path!r} is not a path") from None
    except OSError as error:
        raise _opening_error(path, error) from None


def _opening_error(path: str, error: OSError) -> StoreError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
        return NotAStoreError(
            f"{path} does not exist: check the path, or make a store there with: ingestd format"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{path} cannot be opened: {error.strerror};"
            " run as a user who may, or change its owner or mode"
        )
    if error.errno == errno.EBUSY and (by := _mounts(path)):
        return StoreBusyError(
            f"{path} is mounted on {', '.join(by)}: unmount it first", is_lasting=True
        )
    if error.errno in (errno.EBUSY, errno.ETXTBSY):
        return StoreBusyError(
            f"{path} is held by another process, a mount or a device made from it: release it first"
        )
    if error.errno == errno.EINVAL:
        return StoreError(
            f"the file system of {path} refuses direct I/O (O_DIRECT): put the store"
            " on a block device or on a file system such as ext4 or XFS"
        )
    return StoreError(f"{path} cannot be opened: {error.strerror}")


def _mounts(path: str) -> list[str]:
    with contextlib.suppress(OSError, StoreError):
        status = os.stat(path)  # noqa: PTH116 - as in open_device()
        if stat.S_ISBLK(status.st_mode):
            return BlockDevice(status.st_rdev).mounts()
    return []

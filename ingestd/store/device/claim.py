# SPDX-License-Identifier: Apache-2.0
"""The claim on a store: whoever writes to it holds it, and all others see that, by any name of it.

What is locked: the open file itself (flock); the bytes of the file below it, of its own or
below a loop device (locks of the open file, far behind its end); a block device by O_EXCL,
which the kernel keeps to the device, whatever the node, and to its partitions. Besides, the
holder record says who it is. Invariants: a claim ends with its descriptors, whatever ends the
process; whoever only asks changes nothing and holds nothing. One thread claims.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from ingestd.errors import StoreBusyError, StoreDamagedError, StoreError
from ingestd.store.device.block_device import BlockDevice
from ingestd.store.device.holder import Holder, read_holder
from ingestd.store.device.stacking import OFFSET_END, Layer, loops_over

if TYPE_CHECKING:
    from ingestd.store.device.device import Device

# Byte N of a file is locked as byte LOCK_BASE + N, where nobody locks anything else.
LOCK_BASE: Final = OFFSET_END
_FLOCK: Final = "hhqqi4x"  # struct flock of fcntl(2)


def take_claim(device: Device) -> None:
    """Claim an open store, or raise StoreBusyError, naming who has it.

    What is opened for that is in `device.claims`, and closed with the device.
    """
    try:
        fcntl.flock(device.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(device, "in use by another process") from None
    except OSError as error:
        raise StoreError(
            f"{device.path} cannot be locked: {error.strerror}; put the store where flock(2) works"
        ) from None
    for layer in device.layers:
        if layer.kind == "file":
            _claim_file(device, layer)
        elif layer.how == "loop":
            _claim_device_below(device, layer)
        if layer.how == "itself":
            _refuse_loops(device, layer)
    holder = living_holder(device)
    if holder is not None:
        raise _busy(device, "in use by another process")


def is_claimed(device: Device) -> bool:
    """Return whether anybody holds a claim on an open store, by whatever name it was opened."""
    try:
        fcntl.flock(device.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(device.fd, fcntl.LOCK_UN)
    if living_holder(device) is not None:
        return True
    if any(_is_locked(device, layer) for layer in device.layers if layer.kind == "file"):
        return True
    return device.is_block and _is_held_from_afar(device)


def _is_held_from_afar(device: Device) -> bool:
    """Return whether a process in an outer container, unseen from here, has the device.

    To ask for the device keeps others from it for a moment: only where nothing else shows it.
    """
    holder = None
    with contextlib.suppress(StoreDamagedError):
        holder = read_holder(device)
    if holder is None or not holder.is_unseen():
        return False
    return holder.is_at(device.layers) and _is_held(f"/proc/self/fd/{device.fd}")


def living_holder(device: Device) -> Holder | None:
    """Return the process that holds the store by its record, if it lives and is not this opening.

    A record that cannot be read keeps nobody out: locks are there as well.
    """
    holder = None
    with contextlib.suppress(StoreDamagedError):
        holder = read_holder(device)
    if holder is None or holder.token == device.token:
        return None
    return holder if holder.is_at(device.layers) and holder.lives() else None


def _busy(device: Device, how: str) -> StoreBusyError:
    holder = living_holder(device)
    who = f" (process {holder.pid})" if holder is not None else ""
    return StoreBusyError(f"{device.path} is {how}{who}: stop the daemon that serves it")


def _claim_file(device: Device, layer: Layer) -> None:
    """Lock the store's bytes in the file, which is the store or lies below it."""
    fd = device.fd
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    is_shared = layer.is_shared or mode == os.O_RDONLY
    if layer.how != "itself":
        opened = _open_below(layer, os.O_RDWR)
        if opened is None:
            opened, is_shared = _open_below(layer, os.O_RDONLY), True
        if opened is None:
            return  # nothing to lock it by; the holder record is there
        device.claims.append(opened)
        fd = opened
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(layer, is_shared=is_shared))
    except (BlockingIOError, PermissionError):
        raise _busy(device, f"in use by another name of it ({layer.path})") from None
    except OSError as error:
        raise StoreError(f"{layer.path} cannot be locked: {error.strerror}") from None


def _is_locked(device: Device, layer: Layer) -> bool:
    if layer.how == "itself":
        return _has_lock(device.fd, layer)
    fd = _open_below(layer, os.O_RDONLY)
    if fd is None:
        return False
    try:
        return _has_lock(fd, layer)
    finally:
        os.close(fd)


def _has_lock(fd: int, layer: Layer) -> bool:
    """Return whether another open file has a lock on these bytes."""
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _range(layer, is_shared=layer.is_shared))
    except OSError:
        return False  # a file system without such locks
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _range(layer: Layer, *, is_shared: bool) -> bytes:
    kind = fcntl.F_RDLCK if is_shared else fcntl.F_WRLCK
    # To the end of all offsets, where the layer has no end of its own.
    size = 0 if layer.end >= OFFSET_END else layer.end - layer.first
    return struct.pack(_FLOCK, kind, os.SEEK_SET, LOCK_BASE + layer.first, size, 0)


def _open_below(layer: Layer, flags: int) -> int | None:
    """Open what a layer is by its path, if that still leads to it."""
    if layer.path is None:
        return None
    try:
        fd = os.open(layer.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ETXTBSY):
            raise StoreBusyError(
                f"{layer.path} is held by another process, a mount or a device made from it:"
                " release it first"
            ) from None
        return None
    status = os.fstat(fd)
    key = (status.st_rdev, 0) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)
    if key != layer.key:
        os.close(fd)
        return None
    return fd


def _claim_device_below(device: Device, layer: Layer) -> None:
    """Hold the block device under a loop device, which the kernel does not do by itself."""
    opened = _open_below(layer, os.O_RDONLY | os.O_EXCL)
    if opened is not None:
        device.claims.append(opened)


def _refuse_loops(device: Device, layer: Layer) -> None:
    """Raise StoreBusyError if somebody uses a loop device that stands on the store."""
    for name, number in loops_over(layer.key):
        used = BlockDevice(number)
        by = [*used.mounts(), *used.holders()]
        if by or _is_held(f"/dev/{name}"):
            what = f" ({', '.join(by)})" if by else ""
            raise StoreBusyError(
                f"{device.path} is used through its loop device {name}{what}: release that first",
                is_lasting=bool(by),
            )


def _is_held(node: str) -> bool:
    """Return whether a block device is somebody's alone: a process's, or a mount's."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return error.errno == errno.EBUSY
    os.close(fd)
    return False

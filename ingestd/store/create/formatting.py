# SPDX-License-Identifier: Apache-2.0
"""Making a store: on a block device, or in a file that is preallocated for it.

Invariants: nothing is written before every check has passed; what stood before
(an earlier store, the signatures that wipefs knows) is erased durably before
the new superblocks are written, so that a crash leaves no store or the new one,
never the old one with a new half; a file that could not be completed is
removed if it was created here. One thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from ingestd.errors import (
    NotAStoreError,
    StoreDamagedError,
    StoreError,
    UnsafeDeviceError,
)
from ingestd.sizes import full_size
from ingestd.store.create.geometry import Geometry, check_store_bytes, plan_geometry
from ingestd.store.device.block_device import BlockDevice, Signature, signatures
from ingestd.store.device.device import READ_BYTES_MAX, Device, aligned_memory
from ingestd.store.device.opening import open_locked
from ingestd.store.device.stacking import loops_over
from ingestd.store.format.layout import SEGMENTS_OFFSET, round_up
from ingestd.store.metadata.superblock import (
    LABEL_BYTES_MAX,
    Superblock,
    read_superblock,
    write_superblocks,
)

FILE_MODE: Final = 0o640
# Of a block device without a known signature, so much is looked at in so many places.
SAMPLE_BYTES: Final = 64 * 1024
SAMPLE_COUNT: Final = 64
_BLKRRPART: Final = 0x125F  # linux/fs.h: read the partition table again

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Wish:
    """The caller's request."""

    size_bytes: int | None
    segment_bytes: int | None
    zero: bool
    label: str
    force: bool
    progress: Progress | None


def format_store(
    path: str,
    *,
    size_bytes: int | None,
    segment_bytes: int | None,
    zero: bool,
    label: str,
    force: bool,
    progress: Progress | None = None,
) -> Superblock:
    """Make a store and return its superblock.

    `size_bytes`: of a file to be made; of a block device, or of an existing
    file, None means all of it. `zero` writes zeros everywhere, calling
    `progress` with the bytes done and those to do. `force` overrides an earlier
    store, a known signature, a partition table or the contents of a file, but
    never a mount, a holder or another process.

    Raises UnsafeDeviceError, StoreBusyError, NotAStoreError or StoreError.
    """
    if len(label.encode()) > LABEL_BYTES_MAX or "\0" in label:
        raise StoreError(
            f"the label {label!r} does not fit: it takes up to {LABEL_BYTES_MAX} bytes of UTF-8"
        )
    wish = _Wish(size_bytes, segment_bytes, zero, label, force, progress)
    status = _status(path)
    if status is None:
        return _format_new_file(path, wish)
    _refuse_used(path, status)
    with open_locked(path) as device:
        # What was opened may not be what was looked at: only this counts.
        _refuse_used(path, os.fstat(device.fd))
        return _format_existing(device, wish)


def _status(path: str) -> os.stat_result | None:
    """The status of the file at the path; None if there is nothing."""
    try:
        return os.stat(path)  # noqa: PTH116 - the descriptor follows, not a Path
    except FileNotFoundError:
        return None
    except ValueError:
        raise StoreError(f"{path!r} is not a path") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be looked at: {error.strerror}") from None


def _format_new_file(path: str, wish: _Wish) -> Superblock:
    """Create the file; remove it again if anything fails."""
    if wish.size_bytes is None:
        raise StoreError(f"{path} does not exist: give the size of the file to make, or check it")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise StoreError(f"{path} cannot be created: {error.strerror}") from None
    made = os.fstat(fd)
    try:
        with open_locked(path) as device:
            if not _is_same(os.fstat(device.fd), made):
                raise StoreError(f"{path} was replaced while it was made: format it again")
            superblock = _format_file(device, wish, wish.size_bytes)
        _sync_directory(path)
    except BaseException:
        with contextlib.suppress(OSError):
            if _is_same(os.stat(path), made):  # noqa: PTH116 - beside os.open above
                os.unlink(path)  # noqa: PTH108 - beside os.open above
        raise
    finally:
        os.close(fd)
    return superblock


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _format_existing(device: Device, wish: _Wish) -> Superblock:
    found = signatures(device.path, device.fd) if device.size_bytes else []
    if not wish.force:
        _refuse_contents(device, found)
    if not device.is_block:
        if wish.size_bytes is None and not device.size_bytes:
            raise StoreError(f"{device.path} is empty: give the size that the store is to have")
        whole_bytes = device.size_bytes // device.align_bytes * device.align_bytes
        size_bytes = whole_bytes if wish.size_bytes is None else wish.size_bytes
        superblock = _format_file(device, wish, size_bytes, found)
        _sync_directory(device.path)
        return superblock
    size_bytes = device.size_bytes // device.align_bytes * device.align_bytes
    if wish.size_bytes is not None:
        check_store_bytes(wish.size_bytes, device.align_bytes)
        if wish.size_bytes > device.size_bytes:
            raise StoreError(
                f"{device.path} has {full_size(device.size_bytes)}, and a store of"
                f" {full_size(wish.size_bytes)} was asked for: leave the size out to use all of it"
            )
        size_bytes = wish.size_bytes
    geometry = plan_geometry(device.path, size_bytes, wish.segment_bytes, device.align_bytes)
    superblock = _write(device, wish, geometry, found)
    if found:
        _forget_partitions(device)
    return superblock


def _format_file(
    device: Device, wish: _Wish, size_bytes: int, found: list[Signature] | None = None
) -> Superblock:
    check_store_bytes(size_bytes, device.align_bytes)
    geometry = plan_geometry(device.path, size_bytes, wish.segment_bytes, device.align_bytes)
    _check_space(device, size_bytes)
    before_bytes = device.size_bytes
    try:
        os.posix_fallocate(device.fd, 0, size_bytes)
        os.ftruncate(device.fd, size_bytes)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(device.fd, before_bytes)
        raise _space_error(device, size_bytes, os.strerror(error.errno or 0)) from None
    device.size_bytes = size_bytes
    return _write(device, wish, geometry, found or [])


def _check_space(device: Device, size_bytes: int) -> None:
    """Refuse what cannot fit before the attempt fills up the file system for everyone else."""
    status, vfs = os.fstat(device.fd), os.fstatvfs(device.fd)
    free_bytes = vfs.f_bavail * vfs.f_frsize
    if size_bytes > free_bytes + status.st_blocks * 512:
        raise _space_error(device, size_bytes, os.strerror(errno.ENOSPC))


def _space_error(device: Device, size_bytes: int, reason: str) -> StoreError:
    vfs = os.fstatvfs(device.fd)
    return StoreError(
        f"{device.path} cannot get {full_size(size_bytes)}: {reason}; its file system has"
        f" {full_size(vfs.f_bavail * vfs.f_frsize)} free"
    )


def _write(device: Device, wish: _Wish, geometry: Geometry, found: list[Signature]) -> Superblock:
    """Erase what was there, then write the superblocks."""
    _zero(device, 0, SEGMENTS_OFFSET, None)
    for signature in found:
        _erase(device, signature)
    device.sync()
    if wish.zero:
        _zero(device, SEGMENTS_OFFSET, geometry.store_bytes, wish.progress)
        device.sync()
    superblock = Superblock(
        store_uuid=uuid.uuid4().bytes,
        generation=1,
        store_bytes=geometry.store_bytes,
        segments_offset=SEGMENTS_OFFSET,
        segment_bytes=geometry.segment_bytes,
        segment_count=geometry.segment_count,
        block_bytes=geometry.block_bytes,
        label=wish.label,
        created_ns=time.time_ns(),
    )
    write_superblocks(device, superblock)
    return superblock


def _zero(device: Device, first: int, end: int, progress: Progress | None) -> None:
    """Write zeros over [first, end), in large direct writes."""
    memory = aligned_memory(min(READ_BYTES_MAX, end - first))
    for at in range(first, end, READ_BYTES_MAX):
        device.write_aligned(at, memory[: min(READ_BYTES_MAX, end - at)])
        if progress:
            progress(min(at + READ_BYTES_MAX, end) - first, end - first)


def _erase(device: Device, signature: Signature) -> None:
    """Erase a signature's magic bytes, which may lie behind all that we write ourselves."""
    first = signature.offset - signature.offset % device.align_bytes
    size = round_up(signature.offset + signature.length, device.align_bytes) - first
    if signature.offset + signature.length <= SEGMENTS_OFFSET or first + size > device.size_bytes:
        return
    block = bytearray(device.read(first, size))
    at = signature.offset - first
    block[at : at + signature.length] = bytes(signature.length)
    device.write(first, bytes(block))


def _refuse_used(path: str, status: os.stat_result) -> None:
    if stat.S_ISBLK(status.st_mode):
        _refuse_used_block_device(path, status.st_rdev)
    elif stat.S_ISREG(status.st_mode):
        _refuse_used_file(path, (status.st_dev, status.st_ino))


def _refuse_used_block_device(path: str, device_number: int) -> None:
    """Raise UnsafeDeviceError for what not even force overrides."""
    block_device = BlockDevice(device_number)
    if mounts := block_device.mounts():
        raise UnsafeDeviceError(f"{path} is mounted on {', '.join(mounts)}: unmount it first")
    if holders := block_device.holders():
        raise UnsafeDeviceError(
            f"{path} is part of {', '.join(holders)}: take that apart first, or format it instead"
        )


def _refuse_used_file(path: str, key: tuple[int, int]) -> None:
    if loops := loops_over(key):
        names = ", ".join(name for name, _ in loops)
        raise UnsafeDeviceError(
            f"{path} is attached to {names}: detach it first, or format that device"
        )


def _refuse_contents(device: Device, found: list[Signature]) -> None:
    """Raise UnsafeDeviceError for what force overrides."""
    path = device.path
    with contextlib.suppress(NotAStoreError, StoreDamagedError):
        store = read_superblock(device).superblock
        raise UnsafeDeviceError(
            f"{path} is the store {store.uuid}, and formatting would destroy its flows: give"
            " --force if that is meant"
        )
    if device.is_block:
        number = os.fstat(device.fd).st_rdev
        if partitions := BlockDevice(number).partitions():
            raise UnsafeDeviceError(
                f"{path} has the partitions {', '.join(partitions)}: give --force to destroy them,"
                " or format one of them"
            )
    if found:
        kinds = ", ".join(dict.fromkeys(_signature_text(signature) for signature in found))
        raise UnsafeDeviceError(f"{path} carries {kinds}: give --force to destroy it")
    if not device.is_block and device.size_bytes:
        raise UnsafeDeviceError(
            f"{path} exists and is not empty: give --force to destroy its contents"
        )
    if device.is_block and (at := _data_at(device)) is not None:
        raise UnsafeDeviceError(
            f"{path} is not blank, at byte {at} to begin with, though nothing known is on it: give"
            " --force to destroy what it holds"
        )


def _data_at(device: Device) -> int | None:
    """The offset at which a look at the beginning, the end and places between finds data.

    An erased device reads as zeros, or as ones.
    """
    step = max(SAMPLE_BYTES, device.size_bytes // SAMPLE_COUNT // SAMPLE_BYTES * SAMPLE_BYTES)
    last = max(0, device.size_bytes - SAMPLE_BYTES) // SAMPLE_BYTES * SAMPLE_BYTES
    places: list[int] = [*range(0, SEGMENTS_OFFSET, SAMPLE_BYTES), *range(step, last, step), last]
    for at in places:
        data = device.read(at, SAMPLE_BYTES)
        if data.count(0) != len(data) and data.count(0xFF) != len(data):
            return at
    return None


def _signature_text(signature: Signature) -> str:
    return f"{signature.kind} {signature.label!r}" if signature.label else signature.kind


def _forget_partitions(device: Device) -> None:
    """Have the kernel look again; a device that cannot have partitions refuses, and may."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(device.fd, _BLKRRPART)


def _sync_directory(path: str) -> None:
    """Make a new file's name durable."""
    fd = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

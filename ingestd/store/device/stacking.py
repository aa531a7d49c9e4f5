# SPDX-License-Identifier: Apache-2.0
"""The layers under a file or block device, so that two names of one thing are known to be one.

A loop device lies on its backing file, a partition on its disk, a dm or md device on its
members. Invariants: asks the kernel (sysfs, LOOP_GET_STATUS64), writes nothing, and goes
by numbers of devices and inodes, never by names; what cannot be found out ends the list.
No state; any thread may call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

SYSFS: Final = Path("/sys")
DEPTH_MAX: Final = 16  # of devices on devices; more is a circle, or nobody's store
OFFSET_END: Final = 1 << 62  # behind every byte that a file or device can have
SECTOR_BYTES: Final = 512  # the unit of sysfs, whatever the device's blocks are

_LOOP_GET_STATUS64: Final = 0x4C05  # linux/loop.h
_LOOP_INFO64: Final = struct.Struct("=5Q4I64s64s32s2Q")

How = Literal["itself", "partition", "loop", "member"]


class Layer(NamedTuple):
    """The bytes [first, end) of a file, or of a block device, that the store's bytes are among.

    `key` is (st_dev, st_ino) of a file and (st_rdev, 0) of a device; `how` says by what the
    layer above comes out of this one. Of a dm or md device it is not known which bytes of
    its members are whose: `is_shared`, and so of all that lies below.
    """

    kind: Literal["file", "device"]
    key: tuple[int, int]
    first: int
    end: int
    how: How
    is_shared: bool
    path: str | None


def layers_of(fd: int, path: str | None = None, sysfs: Path = SYSFS) -> list[Layer]:
    """Return what an open regular file or block device is, and what it lies on; else nothing."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        key = (status.st_dev, status.st_ino)
        return [Layer("file", key, 0, OFFSET_END, "itself", False, path)]
    if not stat.S_ISBLK(status.st_mode):
        return []
    top = Layer("device", (status.st_rdev, 0), 0, OFFSET_END, "itself", False, path)
    can_ask = not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    return [top, *_below(top, fd if can_ask else None, sysfs, DEPTH_MAX)]


def overlap(one: Sequence[Layer], other: Sequence[Layer]) -> bool:
    """Return whether what is written to the one may change what is read of the other."""
    return any(
        a[:2] == b[:2] and a.first < b.end and b.first < a.end and not (a.is_shared and b.is_shared)
        for a in one
        for b in other
    )


def _below(top: Layer, fd: int | None, sysfs: Path, depth: int) -> Iterator[Layer]:
    """The layers under a layer, nearest first; `fd`: open on it, if it is."""
    if top.kind != "device" or depth == 0:
        return
    for layer in _next(top, fd, sysfs):
        yield layer
        yield from _below(layer, None, sysfs, depth - 1)


def _next(top: Layer, fd: int | None, sysfs: Path) -> list[Layer]:
    number = top.key[0]
    directory = sysfs / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    if (directory / "partition").exists():
        return _disk_of(top, directory)
    backing = loop_backing(number, fd, sysfs)
    if backing is not None:
        return [_moved(backing, top)]
    members = []
    with contextlib.suppress(OSError):
        members = [_device_number(slave / "dev") for slave in (directory / "slaves").iterdir()]
    return [
        Layer("device", (start, 0), 0, OFFSET_END, "member", True, None)
        for start in members
        if start is not None
    ]


def _disk_of(top: Layer, directory: Path) -> list[Layer]:
    start, size = _number(directory / "start"), _number(directory / "size")
    number = _device_number(directory.resolve().parent / "dev")
    if start is None or size is None or number is None:
        return []
    first, end = start * SECTOR_BYTES, (start + size) * SECTOR_BYTES
    disk = Layer("device", (number, 0), first, end, "partition", False, None)
    return [_moved(disk, top)]


def _moved(below: Layer, top: Layer) -> Layer:
    """The part of `below`, of which all of the layer above is made, that `top` is about."""
    end = min(below.end, below.first + top.end)
    return below._replace(
        first=below.first + top.first, end=end, is_shared=below.is_shared or top.is_shared
    )


def loop_backing(number: int, fd: int | None = None, sysfs: Path = SYSFS) -> Layer | None:
    """Return what a loop device stands on; None if it is none, or is not known.

    The kernel is asked through `fd`, or the device's usual node; where that cannot be opened,
    the path in sysfs says, as long as it still leads to the file.
    """
    directory = sysfs / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}" / "loop"
    path = _text(directory / "backing_file")
    info = _loop_status(number, fd, sysfs)
    if info is not None:
        device, inode, rdevice, offset, limit = info
        end = offset + limit if limit else OFFSET_END
        if rdevice:
            return Layer("device", (rdevice, 0), offset, end, "loop", False, path)
        return Layer("file", (device, inode), offset, end, "loop", False, path)
    if path is None:
        return None
    try:
        status = Path(path).stat()
    except OSError:
        return None
    offset, limit = _number(directory / "offset") or 0, _number(directory / "sizelimit") or 0
    end = offset + limit if limit else OFFSET_END
    if stat.S_ISBLK(status.st_mode):
        return Layer("device", (status.st_rdev, 0), offset, end, "loop", False, path)
    return Layer("file", (status.st_dev, status.st_ino), offset, end, "loop", False, path)


def loops_over(key: tuple[int, int], sysfs: Path = SYSFS) -> list[tuple[str, int]]:
    """Return name and number of each loop device that stands on the file or device `key`."""
    found = []
    for directory in sorted((sysfs / "block").glob("loop*/loop")):
        number = _device_number(directory.parent / "dev")
        backing = None if number is None else loop_backing(number, None, sysfs)
        if number is not None and backing is not None and backing.key == key:
            found.append((directory.parent.name, number))
    return found


def _loop_status(number: int, fd: int | None, sysfs: Path) -> tuple[int, int, int, int, int] | None:
    """Device, inode, device number (of a block device), offset and limit of what is below."""
    opened = _open_loop(number, sysfs) if fd is None else None
    asked = opened if fd is None else fd
    if asked is None:
        return None
    try:
        answer = fcntl.ioctl(asked, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size))
    except OSError:
        return None  # no loop device, or one without a file
    finally:
        if opened is not None:
            os.close(opened)
    device, inode, rdevice, offset, limit, *_ = _LOOP_INFO64.unpack(answer)
    return _decoded(device), inode, _decoded(rdevice), offset, limit


def _open_loop(number: int, sysfs: Path) -> int | None:
    """Open a loop device by its usual node; None if it is none, or may not be opened."""
    directory = sysfs / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    if not (directory / "loop").exists():
        return None
    try:
        node = f"/dev/{directory.resolve().name}"
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if os.fstat(fd).st_rdev != number:
        os.close(fd)
        return None
    return fd


def _decoded(number: int) -> int:
    """A device number as stat(2) gives it, of the kernel's encoding (new_encode_dev())."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def _text(path: Path) -> str | None:
    try:
        return os.fsdecode(path.read_bytes().rstrip(b"\n"))
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _device_number(path: Path) -> int | None:
    major, _, minor = (_text(path) or "").partition(":")
    return os.makedev(int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None

# SPDX-License-Identifier: Apache-2.0
"""The device of a store, judged as a target of scattered direct writes.

Invariants: only reads: sysfs, and what direct I/O asks for. Any thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ingestd.daemon.machine.direct_io import SYSFS_DEVICES, DirectProfile
from ingestd.errors import IngestdError
from ingestd.finding import Finding

# Up to here every odd end costs next to nothing to copy: NVMe has 4, null_blk 2.
MEM_ALIGN_FINE: Final = 64
PIECE_BYTES: Final = 4096  # of the least receive buffer


def storage_findings(
    path: str, profile_of: Callable[[str], DirectProfile], sysfs: Path = SYSFS_DEVICES
) -> tuple[DirectProfile | None, list[Finding]]:
    """Return a store's profile, if it has one, and what is to be said of its device."""
    try:
        profile = profile_of(path)
    except IngestdError as error:
        return None, [Finding("direct I/O", "fail", str(error))]
    queue = _queue_directory(path, sysfs)
    return profile, [_alignment(profile), _boundary(profile), *_queue(queue, profile.iovecs_max)]


def _alignment(profile: DirectProfile) -> Finding:
    text = (
        f"pieces may begin and end at multiples of {profile.mem_align} bytes, writes at multiples"
        f" of {profile.write_align}"
    )
    if profile.mem_align <= MEM_ALIGN_FINE:
        return Finding("alignment", "ok", text)
    return Finding(
        "alignment",
        "warn",
        f"{text}: what is shorter at a fragment's end is copied",
        "use an NVMe drive (multiples of 4), or an MTU with payloads of 4096 bytes",
    )


def _boundary(profile: DirectProfile) -> Finding:
    if profile.virt_mask == 0:
        return Finding("virtual boundary", "ok", "none: pieces may meet anywhere")
    return Finding(
        "virtual boundary",
        "warn",
        f"pieces may meet only at multiples of {profile.virt_mask + 1} bytes",
        "boot Linux 6.19 or newer if this is NVMe with scatter-gather lists, or use an MTU with"
        " payloads of 4096 bytes",
    )


def _queue_directory(path: str, sysfs: Path) -> Path | None:
    """The directory of the device's queue in sysfs; a partition's is its disk's."""
    status = os.stat(path)  # noqa: PTH116 (st_rdev of what the path leads to)
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    device = (sysfs / f"{os.major(number)}:{os.minor(number)}").resolve()
    for directory in (device / "queue", device.parent / "queue"):
        if directory.is_dir():
            return directory
    return None


def _queue(queue: Path | None, iovecs_max: int) -> Iterator[Finding]:
    if queue is None:
        yield Finding(
            "device queue",
            "unknown",
            "the file system does not show a single device",
            "use a block device, or a file system on one, to have its limits shown",
        )
        return
    cache, fua = _read(queue / "write_cache"), _read(queue / "fua")
    if cache == "write through":
        yield Finding("write cache", "ok", "write through: a flush costs nothing")
    elif fua == "1":
        yield Finding("write cache", "ok", f"{cache}, with FUA: a commit mark is one write")
    else:
        yield Finding("write cache", "ok", f"{cache}, no FUA: a commit takes a flush more")
    limits = {
        name: _read(queue / name)
        for name in ("logical_block_size", "dma_alignment", "max_segments", "max_sectors_kb")
    }
    shown = ", ".join(f"{name} {value}" for name, value in limits.items() if value)
    yield Finding("device queue", "ok", f"{shown}; larger writes are split by the kernel")
    yield _segments(limits["max_segments"], iovecs_max)


def _segments(limit: str, iovecs_max: int) -> Finding:
    """Judge the pieces of one command (max_segments) by those of one write.

    Documentation/ABI/stable/sysfs-block. Pieces that meet in memory count as one.
    """
    subject = "pieces"
    if not limit.isdigit():
        return Finding(
            subject,
            "unknown",
            f"a write has up to {iovecs_max}, and how many a command takes is not reported",
            "compare write requests in iostat -x with ingestd_write_latency_seconds_count",
        )
    if int(limit) >= iovecs_max:
        return Finding(subject, "ok", f"a command takes all {iovecs_max} of a write")
    commands = -(-iovecs_max // int(limit))
    return Finding(
        subject,
        "ok",
        f"a command takes {limit}, so that a write of {iovecs_max} is up to {commands} commands",
        f"for one command each: larger receive buffers (engine.rx_buf), or write_bytes_max ="
        f" {int(limit) * PIECE_BYTES}",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""

# SPDX-License-Identifier: Apache-2.0
"""Real block devices for tests: loop devices over files, and what can be put on them.

Invariants: whatever a test does, leaving a context unmounts, thaws and detaches.
Where the machine does not let us, the test is skipped and says so; with CI=true
it fails, since there nobody would see the skip.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import pytest

from support.patience import WAIT_S

LOOP_SET_STATUS64: Final = 0x4C04
LOOP_GET_STATUS64: Final = 0x4C05
LOOP_INFO64_BYTES: Final = 232
LOOP_SIZELIMIT_OFFSET: Final = 32
SECTOR_BYTES: Final = 512  # of a partition table in the old style, whatever the device has


def cannot(reason: str) -> NoReturn:
    """Skip, visibly, what this machine does not permit; in continuous integration fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"with CI=true this must run: {reason}")
    pytest.skip(reason)


def run(*command: str | Path) -> str:
    """Run a system command that must succeed and return what it printed."""
    result = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout.strip()


def _attach(backing: Path, block_bytes: int, flags: tuple[str, ...]) -> Path:
    command = ["losetup", "--find", "--show", "--sector-size", str(block_bytes), *flags]
    try:
        found = subprocess.run(
            [*command, str(backing)], capture_output=True, text=True, timeout=WAIT_S, check=False
        )
    except FileNotFoundError:
        cannot("losetup is missing: apt-get install mount")
    if found.returncode != 0:
        cannot(f"no loop device can be had here: {found.stderr.strip()}")
    return Path(found.stdout.strip())


@contextmanager
def loop_device(
    backing: Path, size_bytes: int, block_bytes: int = 512, *flags: str
) -> Iterator[Path]:
    """Yield a loop device with logical blocks of block_bytes over a sparse file of size_bytes.

    The file is written with direct I/O, as by a real device.
    """
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    try:
        device = _attach(backing, block_bytes, ("--direct-io=on", *flags))
        with _held(device):
            yield device
    finally:
        backing.unlink()


@contextmanager
def sealable_loop_device(size_bytes: int) -> Iterator[tuple[Path, int]]:
    """Yield a loop device over memory, and the descriptor for refuse_writes()."""
    fd = os.memfd_create("disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, size_bytes)
        device = _attach(Path(f"/proc/{os.getpid()}/fd/{fd}"), 512, ())
        with _held(device):
            yield device, fd
    finally:
        os.close(fd)


def refuse_writes(backing_fd: int) -> None:
    """From now on each write to a sealable device fails, and nothing of it is written.

    F_SEAL_WRITE of fcntl(2) is looked at once for each write, under the lock that it was set
    under, before the first byte: shmem_write_begin() of mm/shmem.c, Linux 6.18.
    """
    fcntl.fcntl(backing_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@contextmanager
def _held(device: Path) -> Iterator[None]:
    """Let a device that was attached go at the end, or when we are killed."""
    hold_fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A device in use goes when the last one closes it: also if we are killed.
        run("losetup", "--detach", device)
        yield
    finally:
        os.close(hold_fd)


def limit_size(device: Path, size_bytes: int) -> None:
    """Let a loop device end at a size, whoever has it open; 0: where its backing file ends.

    LOOP_GET_STATUS64, LOOP_SET_STATUS64 and lo_sizelimit of linux/loop.h.
    """
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = bytearray(LOOP_INFO64_BYTES)
        fcntl.ioctl(fd, LOOP_GET_STATUS64, status)
        struct.pack_into("=Q", status, LOOP_SIZELIMIT_OFFSET, size_bytes)
        fcntl.ioctl(fd, LOOP_SET_STATUS64, status)
    finally:
        os.close(fd)


@contextmanager
def mounted(device: Path, directory: Path) -> Iterator[Path]:
    """Yield a directory on which the device's file system is mounted."""
    directory.mkdir(exist_ok=True)
    result = subprocess.run(
        ["mount", str(device), str(directory)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        cannot(f"mounting is not permitted here: {result.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], timeout=WAIT_S, check=False)


def make_ext4(device: Path) -> None:
    """Put an ext4 file system on the device."""
    run("mkfs.ext4", "-q", "-F", device)


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Let every write to a mounted file system wait, as on a device that hangs."""
    run("fsfreeze", "--freeze", directory)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(directory)], timeout=WAIT_S, check=False)


def write_partition_table(device: Path, first_sector: int = 2048, sectors: int = 4096) -> None:
    """Write an MBR with one Linux partition, and have the kernel read it."""
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), first_sector, sectors)
    block = bytearray(device.stat().st_blksize or 4096)
    block[446 : 446 + len(entry)] = entry
    block[510:512] = b"\x55\xaa"
    with device.open("r+b", buffering=0) as file:
        file.write(block)
        os.fsync(file.fileno())
    run("partx", "--update", device)


@contextmanager
def tmpfs(directory: Path, size: str) -> Iterator[Path]:
    """Yield a directory on a file system in memory that holds no more than size, such as "16M"."""
    directory.mkdir(exist_ok=True)
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        cannot(f"mounting is not permitted here: {result.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], timeout=WAIT_S, check=False)


@contextmanager
def throttled(
    device: Path, pid: int, bytes_per_s: int, *, direction: str = "write"
) -> Iterator[None]:
    """Let a process "write" to, or "read", a block device no faster than that: by cgroup 2 or 1."""
    number = device.stat().st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    directory, limit, lifted = _io_group(name, bytes_per_s, direction)
    home = _group_of(pid, directory)
    try:
        (directory / limit[0]).write_text(limit[1])
        (directory / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        (directory / lifted[0]).write_text(lifted[1])
        (home / "cgroup.procs").write_text(str(pid))
        directory.rmdir()


_Setting = tuple[str, str]


def _io_group(name: str, bytes_per_s: int, direction: str) -> tuple[Path, _Setting, _Setting]:
    """A fresh control group, the file and line that limit it, and those that lift the limit."""
    old, new = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")
    group = f"ingestd-test-{os.getpid()}"
    try:
        file = f"blkio.throttle.{direction}_bps_device"
        if (old / file).exists():
            (old / group).mkdir()
            return old / group, (file, f"{name} {bytes_per_s}"), (file, f"{name} 0")
        if "io" in (new / "cgroup.subtree_control").read_text().split():
            (new / group).mkdir()
            rate = f"{name} {direction[0]}bps="
            return new / group, ("io.max", f"{rate}{bytes_per_s}"), ("io.max", f"{rate}max")
    except OSError as error:
        pytest.skip(f"no control group for I/O can be made here: {error}")
    pytest.skip("this machine has no control group for I/O")


def _group_of(pid: int, sibling: Path) -> Path:
    """Where a process is now in the hierarchy that has the sibling."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == ("blkio" if sibling.parent.name == "blkio" else ""):
            return sibling.parent / path.lstrip("/")
    return sibling.parent

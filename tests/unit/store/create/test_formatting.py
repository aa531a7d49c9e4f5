# SPDX-License-Identifier: Apache-2.0
"""Making stores: sizes, safety, and what is left behind when it fails."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from ingestd.errors import NotAStoreError, StoreBusyError, StoreError, UnsafeDeviceError
from ingestd.store.create import formatting
from ingestd.store.create.geometry import default_segment_bytes, plan_geometry
from ingestd.store.device.block_device import BlockDevice, signatures
from ingestd.store.device.device import Device
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.image import read_image
from support.loop import cannot, loop_device, make_ext4, mounted, write_partition_table

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4


def make(
    path: Path,
    size: int | None = 8 * MIB,
    *,
    segment_bytes: int | None = None,
    zero: bool = False,
    label: str = "",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Superblock:
    return formatting.format_store(
        str(path),
        size_bytes=size,
        segment_bytes=segment_bytes,
        zero=zero,
        label=label,
        force=force,
        progress=progress,
    )


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    made = make(path, 8 * MIB, label="Größe")
    assert path.stat().st_size == 8 * MIB
    assert path.stat().st_blocks * 512 >= 8 * MIB, "it must be preallocated"
    assert (made.segment_count, made.segment_bytes, made.generation) == (7, MIB, 1)
    with read_image(str(path)) as image:
        assert image.superblock == made
        assert image.superblock.label == "Größe"
        assert image.flows == []


def test_two_stores_have_different_uuids(tmp_path: Path) -> None:
    assert make(tmp_path / "a").store_uuid != make(tmp_path / "b").store_uuid


@pytest.mark.parametrize(
    ("store_bytes", "segment_bytes"),
    [
        (5 * MIB, MIB),
        (8 * MIB, MIB),
        (32 * MIB, 4 * MIB),
        (33 * MIB, 8 * MIB),
        (64 * MIB, 8 * MIB),
        (2 * GIB, 32 * MIB),
        (4 * GIB, 64 * MIB),
        (10 * GIB, 128 * MIB),
        (100 * GIB, 256 * MIB),
        (30 * TIB, 256 * MIB),
    ],
)
def test_default_segments(store_bytes: int, segment_bytes: int) -> None:
    assert default_segment_bytes(store_bytes) == segment_bytes
    planned = plan_geometry("x", store_bytes, None, 4096)
    assert planned.segment_count == (store_bytes - MIB) // segment_bytes
    assert planned.segment_count >= 4


@pytest.mark.parametrize(
    ("size", "segment_bytes", "message"),
    [
        (8 * MIB + 1, None, r"8388609 bytes.*choose 8MiB or 8196KiB"),
        (100, None, "choose 4KiB"),
        (4 * MIB, None, r"too small with 4 MiB.*4 segments of 1MiB takes 5 MiB"),
        (8 * MIB, 8 * MIB, "too small"),
        (8 * MIB, 512 * KIB, "choose from 1MiB to 1GiB"),
        (8 * MIB, 2 * GIB, "choose from 1MiB to 1GiB"),
        (8 * MIB, MIB + 4096, "choose 1MiB or 2MiB"),
        (0, None, "too small"),
        (None, None, "give the size"),
    ],
)
def test_sizes_that_are_refused(
    tmp_path: Path, size: int | None, segment_bytes: int | None, message: str
) -> None:
    path = tmp_path / "a.img"
    with pytest.raises(StoreError, match=message):
        make(path, size, segment_bytes=segment_bytes)
    assert not path.exists()


@pytest.mark.parametrize("block_bytes", [4096, 8192, 16384, 32768, 65536])
def test_a_segment_holds_a_header_of_whole_blocks(block_bytes: int) -> None:
    """What the core could not write to is not made, and not chosen either."""
    least = 32 * block_bytes  # a quarter of the footer's eighth is one block
    assert plan_geometry("x", 64 * MIB, max(least, MIB), block_bytes).segment_bytes >= least
    assert plan_geometry("x", 64 * MIB, None, block_bytes).segment_bytes >= least
    assert plan_geometry("x", 9 * MIB, None, block_bytes).segment_bytes >= least
    if least > MIB:
        with pytest.raises(StoreError, match="segment of 1MiB.*blocks have 64KiB.*choose 2MiB"):
            plan_geometry("x", 64 * MIB, MIB, block_bytes)
        with pytest.raises(StoreError, match="4 segments of 2MiB takes 9 MiB"):
            plan_geometry("x", 8 * MIB, None, block_bytes)


def test_labels_that_are_refused(tmp_path: Path) -> None:
    for label in ("ä" * 33, "a\0b"):
        with pytest.raises(StoreError, match="label"):
            make(tmp_path / "a", label=label)
    make(tmp_path / "a", label="ä" * 32)


def test_existing_contents_need_force(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(b"precious" * MIB)
    with pytest.raises(UnsafeDeviceError, match=r"not empty.*--force"):
        make(path, None)
    assert path.read_bytes() == b"precious" * MIB
    made = make(path, None, force=True)
    assert made.store_bytes == 8 * MIB
    with pytest.raises(UnsafeDeviceError, match=f"the store {made.uuid}"):
        make(path, None)
    assert make(path, None, force=True).uuid != made.uuid


def test_an_existing_file_takes_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.touch()
    with pytest.raises(StoreError, match="is empty"):
        make(path, None)
    assert make(path, 6 * MIB).store_bytes == 6 * MIB
    assert make(path, 9 * MIB, force=True).store_bytes == path.stat().st_size == 9 * MIB
    assert make(path, 5 * MIB, force=True).store_bytes == path.stat().st_size == 5 * MIB


def test_a_file_system_is_named_and_erased(tmp_path: Path) -> None:
    path = tmp_path / "fs.img"
    path.write_bytes(bytes(16 * MIB))
    subprocess.run(["mke2fs", "-q", "-L", "mine", path], check=True)
    with pytest.raises(UnsafeDeviceError, match="ext2 'mine'"):
        make(path, None)
    make(path, None, force=True)
    assert signatures(str(path)) == []


def test_a_signature_at_the_end_is_erased_too(tmp_path: Path) -> None:
    """An Intel RAID member keeps its magic in the last sectors, where no superblock goes."""
    path = tmp_path / "raid.img"
    contents = bytearray(b"\xff" * (9 * MIB))
    magic = b"Intel Raid ISM Cfg Sig. 1.3.00"
    contents[-1024 : -1024 + len(magic)] = magic
    path.write_bytes(contents)
    assert [s.kind for s in signatures(str(path))] == ["isw_raid_member"]
    with pytest.raises(UnsafeDeviceError, match="isw_raid_member"):
        make(path, None)
    make(path, None, force=True)
    assert signatures(str(path)) == []
    assert path.read_bytes()[MIB:-1024] == b"\xff" * (8 * MIB - 1024)


def test_a_store_in_use_is_never_formatted(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    made = make(path)
    holder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(StoreBusyError, match="in use"):
            make(path, force=True)
    finally:
        os.close(holder)
    with read_image(str(path)) as image:
        assert image.superblock == made


def test_zero_overwrites_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(b"\xff" * (9 * MIB))
    steps: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    make(path, None, force=True, zero=True, progress=note)
    assert path.read_bytes()[MIB:] == bytes(8 * MIB)
    assert steps[-1] == (8 * MIB, 8 * MIB)
    assert steps == sorted(steps)


def test_without_zero_nothing_behind_the_superblocks_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(b"\xff" * (9 * MIB))
    make(path, None, force=True)
    assert path.read_bytes()[MIB:] == b"\xff" * (8 * MIB)


def test_no_space_is_known_before_anything_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        pytest.fail("space was asked for that is not there")

    path = tmp_path / "a.img"
    vfs = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StoreError, match=r"cannot get .*No space left.*free"):
        make(path, vfs.f_blocks * vfs.f_frsize // 4096 * 4096 + 4096)
    assert not path.exists()


def test_space_that_runs_out_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.img"
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StoreError, match=r"No space left.*free"):
        make(path)
    assert not path.exists()
    path.write_bytes(b"x" * 4096)
    with pytest.raises(StoreError, match="No space left"):
        make(path, force=True)
    assert path.stat().st_size == 4096


def test_a_failing_device_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a.img"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        with pytest.raises(StoreError, match="cannot be written at byte 0: Input/output error"):
            make(path)
    assert not path.exists()


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="neither"):
        make(tmp_path, force=True)
    with pytest.raises(NotAStoreError, match="neither"):
        make(Path("/dev/null"), force=True)
    with pytest.raises(StoreError, match="cannot be created"):
        make(tmp_path / "no" / "where")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A block device of 16 MiB with partition scanning; skips where there is none to be had."""
    with loop_device(tmp_path / "backing.img", 16 * MIB, 512, "--partscan") as device:
        yield device


@pytest.mark.needs_root
def test_a_block_device(loop: Path, tmp_path: Path) -> None:
    made = make(loop, None, force=False)
    assert (made.store_bytes, made.block_bytes) == (16 * MIB, 4096)
    with read_image(str(loop)) as image:
        assert image.superblock == made
    with pytest.raises(UnsafeDeviceError, match="is the store"):
        make(loop, None)
    with pytest.raises(StoreError, match="leave the size out"):
        make(loop, 32 * MIB, force=True)
    assert make(loop, 12 * MIB, force=True).store_bytes == 12 * MIB
    with pytest.raises(UnsafeDeviceError, match="attached to loop"):
        make(tmp_path / "backing.img", None, force=True)


@pytest.mark.needs_root
def test_a_block_device_of_large_blocks_and_odd_size(tmp_path: Path) -> None:
    with loop_device(tmp_path / "b.img", 16 * MIB + 4096, 4096) as device:
        assert make(device, None).store_bytes == 16 * MIB + 4096
    with loop_device(tmp_path / "b.img", 16 * MIB + 512, 512) as device:
        assert make(device, None).store_bytes == 16 * MIB


@pytest.mark.needs_root
def test_a_mounted_block_device(loop: Path, tmp_path: Path) -> None:
    make_ext4(loop)
    with (
        mounted(loop, tmp_path / "mount point"),
        pytest.raises(UnsafeDeviceError, match=r"mounted on .*mount point"),
    ):
        make(loop, None, force=True)
    with pytest.raises(UnsafeDeviceError, match="carries ext4"):
        make(loop, None)
    make(loop, None, force=True)


@pytest.mark.needs_root
def test_a_partitioned_block_device(loop: Path, tmp_path: Path) -> None:
    write_partition_table(loop)
    partition = Path(f"{loop}p1")
    with pytest.raises(UnsafeDeviceError, match=f"has the partitions {partition.name}"):
        make(loop, None)
    if not partition.exists():
        cannot(f"nobody makes {partition} here")
    make_ext4(partition)
    with (
        mounted(partition, tmp_path / "point"),
        pytest.raises(UnsafeDeviceError, match=r"mounted on .*point"),
    ):
        make(loop, None, force=True)
    made = make(loop, None, force=True)
    assert BlockDevice(loop.stat().st_rdev).partitions() == []
    with read_image(str(loop)) as image:
        assert image.superblock == made


@pytest.mark.needs_root
def test_a_claimed_block_device(loop: Path) -> None:
    holder = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(StoreBusyError, match="held by another process"):
            make(loop, None, force=True)
    finally:
        os.close(holder)


def _fake_sysfs(root: Path) -> BlockDevice:
    """sda (8:0) with the partitions sda1 and sda2, of which sda2 is held by dm-3."""
    real = root / "devices" / "sda"
    for name, number in (("sda1", "8:1"), ("sda2", "8:2")):
        (real / name / "holders").mkdir(parents=True)
        (real / name / "partition").write_text("1\n")
        (real / name / "dev").write_text(f"{number}\n")
    (real / "queue").mkdir()
    (real / "holders").mkdir()
    (real / "sda2" / "holders" / "dm-3").mkdir()
    links = root / "dev" / "block"
    links.mkdir(parents=True)
    (links / "8:0").symlink_to(real)
    (links / "8:1").symlink_to(real / "sda1")
    mountinfo = root / "mountinfo"
    mountinfo.write_text(
        "22 1 253:0 / / rw shared:1 - ext4 /dev/vda rw\n"
        "23 22 8:1 / /mnt/a\\040b rw shared:2 - xfs /dev/sda1 rw\n"
        "24 22 0:55 / /mnt/btrfs rw shared:3 - btrfs /dev/sda2 rw\n"
    )
    return BlockDevice(os.makedev(8, 0), root, mountinfo)


def test_uses_of_a_block_device_are_found(tmp_path: Path) -> None:
    disk = _fake_sysfs(tmp_path)
    assert disk.name() == "sda"
    assert disk.partitions() == ["sda1", "sda2"]
    assert disk.holders() == ["dm-3"]
    assert disk.mounts() == ["/mnt/a b", "/mnt/btrfs"]
    partition = BlockDevice(os.makedev(8, 1), disk.sysfs, disk.mountinfo)
    assert (partition.partitions(), partition.holders()) == ([], [])
    assert partition.mounts() == ["/mnt/a b"]
    with pytest.raises(StoreError, match="mount sysfs"):
        BlockDevice(os.makedev(9, 9), disk.sysfs, disk.mountinfo).partitions()


def test_no_wipefs_is_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(b"x" * 8192)
    monkeypatch.setattr("shutil.which", lambda *_args, **_names: None)
    with pytest.raises(StoreError, match="install util-linux"):
        make(path, force=True)
    assert path.read_bytes() == b"x" * 8192


@pytest.mark.needs_root
@pytest.mark.parametrize("at_byte", [4096, 900 * KIB, 33 * MIB, 64 * MIB - 512])
def test_unknown_data_on_a_device_wants_force(tmp_path: Path, at_byte: int) -> None:
    """No signature that wipefs knows: a volume in a format of somebody's own, or encrypted."""
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        with device.open("r+b") as file:
            file.seek(at_byte)
            file.write(b"precious" * 8)
        before = device.read_bytes()
        with pytest.raises(UnsafeDeviceError, match="not blank.*--force"):
            make(device, None)
        assert device.read_bytes() == before
        make(device, None, force=True)


@pytest.mark.needs_root
def test_an_erased_device_is_blank(tmp_path: Path) -> None:
    """Flash that was erased may read as ones."""
    with loop_device(tmp_path / "disk.img", 8 * MIB) as device:
        device.write_bytes(b"\xff" * (8 * MIB))
        make(device, None)


@pytest.mark.needs_root
def test_what_is_opened_is_what_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere by the time that it is opened: nothing there is touched."""
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        make_ext4(device)
        before = device.read_bytes()
        link = tmp_path / "link"
        (tmp_path / "empty").touch()
        link.symlink_to(tmp_path / "empty")
        opened = formatting.open_locked

        def swapped(path: str) -> Device:
            link.unlink()
            link.symlink_to(device)
            return opened(path)

        monkeypatch.setattr(formatting, "open_locked", swapped)
        with pytest.raises(UnsafeDeviceError, match="ext4"):
            make(link, 8 * MIB)
        assert device.read_bytes() == before


def test_a_new_file_that_was_replaced_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.img"
    opened = formatting.open_locked

    def replaced(name: str) -> Device:
        path.unlink()
        path.write_bytes(b"somebody else's")
        return opened(name)

    monkeypatch.setattr(formatting, "open_locked", replaced)
    with pytest.raises(StoreError, match="was replaced while it was made"):
        make(path)
    assert path.read_bytes() == b"somebody else's"

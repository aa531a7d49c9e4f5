# SPDX-License-Identifier: Apache-2.0
"""What lies below a store: loop devices, partitions and members, by a played sysfs and the real."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.store.device.stacking import OFFSET_END, Layer, layers_of, loops_over, overlap
from support.aliases import loop_over
from support.loop import loop_device, write_partition_table

MIB = 1024 * 1024


def _layers(path: Path) -> list[Layer]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return layers_of(fd, str(path))
    finally:
        os.close(fd)


def _sysfs(root: Path, devices: dict[str, dict[str, str]], parents: dict[str, str]) -> Path:
    """A tree of block devices by name; values of files, "slaves" by names."""
    (root / "dev" / "block").mkdir(parents=True)
    for name, files in devices.items():
        directory = root / "devices" / parents.get(name, "") / name
        directory.mkdir(parents=True, exist_ok=True)
        (root / "dev" / "block" / files["dev"]).symlink_to(directory)
        for file, text in files.items():
            if file == "slaves":
                for slave in text.split():
                    (directory / "slaves" / slave).mkdir(parents=True)
                    (directory / "slaves" / slave / "dev").write_text(devices[slave]["dev"])
            else:
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                (directory / file).write_text(text + "\n")
    return root


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[Layer]]:
    """What lies below a device number, of a disk with partitions, a dm and a md device on them."""
    sysfs = _sysfs(
        tmp_path,
        {
            "sda": {"dev": "8:0"},
            "sda1": {"dev": "8:1", "partition": "1", "start": "2048", "size": "4096"},
            "sda2": {"dev": "8:2", "partition": "2", "start": "6144", "size": "4096"},
            "dm-0": {"dev": "253:0", "slaves": "sda1"},
            "dm-1": {"dev": "253:1", "slaves": "sda1"},
            "md0": {"dev": "9:0", "slaves": "dm-0 sda2"},
        },
        {"sda1": "sda", "sda2": "sda"},
    )

    def look(major: int, minor: int) -> list[Layer]:
        status = os.stat_result(
            (0o060660, 0, 0, 0, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(major, minor)}
        )
        with monkeypatch.context() as patch, Path(os.devnull).open("rb") as nothing:
            patch.setattr(os, "fstat", lambda _: status)
            return layers_of(nothing.fileno(), None, sysfs)

    return look


def test_partitions_of_a_disk(below: Callable[[int, int], list[Layer]]) -> None:
    disk, one, two = below(8, 0), below(8, 1), below(8, 2)
    assert one[1][:5] == ("device", (os.makedev(8, 0), 0), 2048 * 512, 6144 * 512, "partition")
    assert overlap(disk, one)
    assert overlap(two, disk)
    assert not overlap(one, two)


def test_devices_that_are_made_of_others(below: Callable[[int, int], list[Layer]]) -> None:
    """Two of them on one member may lie side by side; the member itself is both."""
    first, second, raid = below(253, 0), below(253, 1), below(9, 0)
    assert not overlap(first, second)
    assert overlap(first, below(8, 1))
    assert overlap(first, below(8, 0))
    assert overlap(raid, below(253, 0))
    assert overlap(raid, below(8, 2))
    assert {layer.key[0] for layer in raid} >= {os.makedev(8, 0), os.makedev(8, 1)}


@pytest.mark.needs_root
def test_loop_devices_on_parts_of_a_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    size = ("--sizelimit", str(4 * MIB))
    with (
        loop_over(image, *size) as one,
        loop_over(image, "--offset", str(4 * MIB), *size) as two,
        loop_over(image) as whole,
    ):
        first, second, all_of_it, file_itself = map(_layers, (one, two, whole, image))
        key = (image.stat().st_dev, image.stat().st_ino)
        assert first[1][:4] == ("file", key, 0, 4 * MIB)
        assert second[1][:4] == ("file", key, 4 * MIB, 8 * MIB)
        assert not overlap(first, second)
        for part in (first, second):
            assert overlap(part, all_of_it)
            assert overlap(part, file_itself)
        assert {name for name, _ in loops_over(key)} == {one.name, two.name, whole.name}
        # By inode, whatever the file is called by now.
        image.rename(tmp_path / "renamed")
        assert _layers(two)[1][:4] == second[1][:4]
        assert len(loops_over(key)) == 3


@pytest.mark.needs_root
def test_partition_of_a_loop_device(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img", 64 * MIB, 512, "--partscan") as device:
        write_partition_table(device, 2048, 4096)
        _, disk, file = _layers(Path(f"{device}p1"))
        assert disk.key == (device.stat().st_rdev, 0)
        assert (file.kind, file.first, file.end) == ("file", 2048 * 512, 6144 * 512)


def test_what_is_no_file_and_no_device_lies_on_nothing(tmp_path: Path) -> None:
    assert _layers(Path(os.devnull)) == []
    (tmp_path / "file").touch()
    (layer,) = _layers(tmp_path / "file")
    assert (layer.first, layer.end, layer.how) == (0, OFFSET_END, "itself")

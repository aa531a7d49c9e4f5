# SPDX-License-Identifier: Apache-2.0
"""Formatting must not destroy: mounts, partitions, signatures, stores, contents, and --force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.errors import StoreBusyError, StoreError, UnsafeDeviceError
from support.daemon import Daemon, format_store, run_ingestd
from support.loop import loop_device, make_ext4, mounted, run, write_partition_table
from support.payload import Payload
from support.refusal import refusal, serve_refusal
from support.stores import MIB

DEVICE_BYTES = 64 * MIB


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A blank block device with logical blocks of 512 or 4096 bytes."""
    with loop_device(tmp_path / "disk.img", DEVICE_BYTES, request.param) as path:
        yield path


def _content(device: Path) -> bytes:
    return device.read_bytes()


@pytest.mark.needs_root
def test_mounted_device_is_refused_even_by_force(device: Path, tmp_path: Path) -> None:
    make_ext4(device)
    with mounted(device, tmp_path / "mnt") as directory:
        (directory / "precious").write_text("still here")
        for flags in ((), ("--force",)):
            sentence = refusal(UnsafeDeviceError, "format", device, *flags)
            assert f"mounted on {directory}" in sentence
        assert (directory / "precious").read_text() == "still here"
    with mounted(device, tmp_path / "mnt") as directory:
        assert (directory / "precious").read_text() == "still here"


@pytest.mark.needs_root
def test_store_on_a_mounted_device_is_not_served(device: Path, tmp_path: Path) -> None:
    """Serving opens a device for itself alone, whatever its bytes say."""
    run_ingestd("format", device)
    superblocks = _content(device)[:MIB]
    make_ext4(device)
    with mounted(device, tmp_path / "mnt"):
        # What a mix-up of devices would look like: it is mounted, and a store is on it.
        with device.open("r+b") as file:
            file.write(superblocks)
        serve_refusal(StoreBusyError, device)


@pytest.mark.needs_root
def test_partitioned_device(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img", DEVICE_BYTES, 512, "--partscan") as device:
        write_partition_table(device)
        partition = Path(f"{device}p1")
        assert partition.exists()
        sentence = refusal(UnsafeDeviceError, "format", device)
        assert partition.name in sentence
        run_ingestd("format", partition, "--segment-size", "1MiB")
        run_ingestd("info", partition)
        make_ext4(partition)
        with mounted(partition, tmp_path / "mnt"):
            sentence = refusal(UnsafeDeviceError, "format", device, "--force")
            assert "mounted" in sentence
        run_ingestd("format", device, "--force")
        assert not partition.exists()
        run_ingestd("info", device)


@pytest.mark.needs_root
@pytest.mark.parametrize("program", ["mkfs.ext4 -q -F", "mkswap"])
def test_foreign_signature(device: Path, program: str) -> None:
    run(*program.split(), device)
    before = _content(device)
    sentence = refusal(UnsafeDeviceError, "format", device)
    assert program.split()[0].removeprefix("mkfs.").removeprefix("mk") in sentence
    assert "--force" in sentence
    assert _content(device) == before
    run_ingestd("format", device, "--force")
    run_ingestd("info", device)
    # The old signature is gone: nothing else takes the device for its own.
    assert run("wipefs", "--no-act", "--noheadings", device) == ""


@pytest.mark.needs_root
def test_store_is_not_formatted_over(device: Path) -> None:
    run_ingestd("format", device)
    before = _content(device)
    sentence = refusal(UnsafeDeviceError, "format", device)
    assert "is the store" in sentence
    assert _content(device) == before
    run_ingestd("format", device, "--force")
    assert _content(device) != before


@pytest.mark.needs_root
def test_served_device_is_not_formatted(device: Path, tmp_path: Path, seed: int) -> None:
    run_ingestd("format", device)
    with Daemon(device, log=tmp_path / "daemon.log"):
        for flags in ((), ("--force",)):
            refusal(StoreBusyError, "format", device, *flags)
        serve_refusal(StoreBusyError, device)


@pytest.mark.needs_root
def test_file_under_a_loop_device(tmp_path: Path) -> None:
    backing = tmp_path / "disk.img"
    with loop_device(backing, DEVICE_BYTES) as device:
        sentence = refusal(UnsafeDeviceError, "format", backing, "--force")
        assert device.name in sentence


def test_file_with_contents(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(Payload(seed, 8 * MIB).data())
    before = path.read_bytes()
    sentence = refusal(UnsafeDeviceError, "format", path)
    assert "not empty" in sentence
    assert path.read_bytes() == before
    run_ingestd("format", path, "--force", "--segment-size", "1MiB")
    run_ingestd("info", path)


@pytest.mark.parametrize("size", ["64000001", "4097", "67108863"])
def test_size_that_is_no_multiple(tmp_path: Path, size: str) -> None:
    """The sentence names sizes that would do, and no file is left behind."""
    path = tmp_path / "store.img"
    sentence = refusal(StoreError, "format", path, "--size", size)
    assert "choose" in sentence
    assert not path.exists()


def test_segment_size_that_is_no_multiple(tmp_path: Path) -> None:
    path = tmp_path / "store.img"
    for size in ("1", "1048577", "1500KiB"):
        refusal(StoreError, "format", path, "--size", "64MiB", "--segment-size", size)
        assert not path.exists()


@pytest.mark.needs_root
def test_sizes_too_small_and_too_large(tmp_path: Path) -> None:
    path = tmp_path / "store.img"
    assert "too small" in refusal(StoreError, "format", path, "--size", "1MiB")
    large = ("--size", "1000TiB")
    assert "choose larger ones" in refusal(StoreError, "format", path, *large)
    large += ("--segment-size", "1GiB")
    assert "No space left" in refusal(StoreError, "format", path, *large)
    assert "give the size" in refusal(StoreError, "format", path)
    assert not path.exists()
    with loop_device(tmp_path / "disk.img", DEVICE_BYTES) as device:
        refusal(StoreError, "format", device, "--size", str(DEVICE_BYTES + 4096))


@pytest.mark.needs_root
def test_device_whose_size_is_no_multiple_of_a_block(tmp_path: Path, seed: int) -> None:
    """An odd number of sectors: the last ones are left alone."""
    with loop_device(tmp_path / "disk.img", DEVICE_BYTES + 3 * 512) as device:
        run_ingestd("format", device)
        run_ingestd("verify", device)


def test_unreadable_parent(tmp_path: Path) -> None:
    refusal(StoreError, "format", tmp_path / "none" / "store.img", "--size", "64MiB")
    path = tmp_path / "file"
    path.write_text("")
    refusal(StoreError, "format", path / "store.img", "--size", "64MiB")


def test_label_and_zero(tmp_path: Path) -> None:
    path = format_store(tmp_path / "s.img", "--zero", "--label", "beam line 7", size="16MiB")
    assert b"beam line 7" in run_ingestd("info", path).stdout
    assert path.stat().st_blocks * 512 >= 16 * MIB

# SPDX-License-Identifier: Apache-2.0
"""The lab's own parts, without a machine: what it writes, what it refuses, what it retries.

The machine itself is tested by `make vm`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vmlab import Disk, Lab, Machine, Result, VmError, VmUnavailableError
from vmlab.initramfs import CpioWriter, Plan, first_stage, modules_in_order, second_stage
from vmlab.lab import release_of
from vmlab.module import OLD_COMPILER
from vmlab.process import run

LAB = Lab(Path("/nowhere"), "7.9.1+deb13-amd64", "7.9.1-1", Path("/nowhere/root"))


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """{name: (mode, data)} of a newc archive, read by its own description."""
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = (mode, archive[at : at + size])
        at += (size + 3) // 4 * 4


def test_cpio_holds_what_was_added() -> None:
    writer = CpioWriter()
    wanted = {"bin": (0o040755, b""), "bin/a": (0o100755, b"12345"), "init": (0o120777, b"bin/a")}
    for name, (mode, data) in wanted.items():
        writer.add(name, mode, data)
    assert read_cpio(writer.finish()) == wanted


@pytest.mark.parametrize(
    ("depends", "release"),
    [
        ("linux-base, linux-image-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)", "7.3.4+deb13-amd64"),
        ("linux-image-10.0.1+deb14-amd64 (= 10.0.1-1)", "10.0.1+deb14-amd64"),
    ],
)
def test_kernel_is_the_one_the_suite_names(depends: str, release: str) -> None:
    assert release_of(depends) == release


@pytest.mark.parametrize("depends", ["", "linux-base (= 7.3)", "linux-image-6.19.8+deb13-amd64"])
def test_no_kernel_or_an_old_one_is_a_reason_to_skip(depends: str) -> None:
    with pytest.raises(VmUnavailableError):
        release_of(depends)


def test_disk_from_words() -> None:
    assert Disk.parse("data=nvme") == Disk("data", "nvme", 512, 64 << 20)
    assert Disk.parse("d1=virtio,4096,8") == Disk("d1", "virtio", 4096, 8 << 20)
    assert Disk.parse("data=nvme").variable == "VM_DISK_DATA"


@pytest.mark.parametrize(
    "words",
    ["data", "data=floppy", "data=nvme,513", "data=nvme,512,0", "a b=nvme", "x" * 21 + "=nvme"],
)
def test_wrong_disks_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Disk.parse(words)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "fs/9p/9p.ko.xz: net/9p/9pnet.ko.xz fs/netfs/netfs.ko.xz\n"
        "net/9p/9pnet.ko.xz:\nfs/netfs/netfs.ko.xz:\n"
        "net/9p/9pnet_virtio.ko.xz: net/9p/9pnet.ko.xz\n"
    )
    order = [path.name for path in modules_in_order(tmp_path, ["9pnet_virtio", "9p"])]
    assert order == ["9pnet.ko.xz", "9pnet_virtio.ko.xz", "netfs.ko.xz", "9p.ko.xz"]
    with pytest.raises(VmError, match="no module overlay"):
        modules_in_order(tmp_path, ["overlay"])


def test_both_stages_are_good_shell() -> None:
    disks = [Disk("data", "nvme"), Disk("other", "virtio")]
    plan = Plan("echo 'a b'", Path("/a dir"), {"NAME": "a 'b'"}, [Path("/shared dir")], disks)
    for script in (first_stage(plan), second_stage(LAB, plan)):
        done = subprocess.run(
            ["sh", "-n"], input=script, text=True, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "export VM_DISK_DATA=$(find_disk data)" in second_stage(LAB, plan)


def test_qemu_gets_every_disk(tmp_path: Path) -> None:
    disks = [Disk("a", "nvme", 4096, 1 << 20), Disk("b", "virtio", 512, 1 << 20)]
    command = Machine(LAB, disks=disks, hugepages=3).qemu_command(tmp_path)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "a.img": 1 << 20,
        "b.img": 1 << 20,
    }
    assert any(
        word.startswith("nvme-ns,") and "logical_block_size=4096" in word for word in command
    )
    assert any(word.startswith("virtio-blk-pci,drive=b,serial=b") for word in command)
    assert " hugepages=3" in command[command.index("-append") + 1]


def test_kernel_troubles_are_found() -> None:
    log = "[    0.9] mtrr: your CPUs had\n[    7.1] WARNING: CPU: 0 PID: 1 at mm/x.c:1\n"
    result = Result(0, b"", log, 1.0, 2.0, 1)
    assert result.kernel_troubles == ["[    7.1] WARNING: CPU: 0 PID: 1 at mm/x.c:1"]


def test_old_compiler_drops_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "gcc").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "old").write_text(OLD_COMPILER)
    for name in ("gcc", "old"):
        (tmp_path / name).chmod(0o755)
    words = ["-O2", "-fmin-function-alignment=16", "-DTEXT=a b", "-c", "x.c"]
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    seen = run([str(tmp_path / "old"), *words], timeout_s=60, environment=path)
    assert seen.splitlines() == ["-O2", "-DTEXT=a b", "-c", "x.c"]


def test_a_program_that_fails_says_so() -> None:
    with pytest.raises(VmError, match="exited with 3: why"):
        run(["sh", "-c", "echo why; exit 3"], timeout_s=60)
    with pytest.raises(VmError, match="not installed"):
        run(["a-program-that-is-not-there"], timeout_s=60)
    with pytest.raises(VmError, match="longer than"):
        run(["sleep", "30"], timeout_s=0.1)

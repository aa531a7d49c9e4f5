# SPDX-License-Identifier: Apache-2.0
"""The initramfs: busybox, the modules for 9p and overlay, and two small scripts.

What it is: the first script mounts the host's root read-only over 9p, lays a tmpfs over it and
hands over to the second one, which prepares /dev, modules and disks and runs the command.

Invariant: what the guest writes ends in its own memory, but for the shared directories.
"""

import lzma
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from vmlab.disk import Disk
from vmlab.errors import VmError
from vmlab.lab import Lab
from vmlab.tools import search_path

ROOT_MODULES = ("9pnet_virtio", "9p", "overlay")
APPLETS = ("sh", "mount", "mkdir", "cat", "insmod", "poweroff", "switch_root", "cp")
EXIT_NO_DISK = 124
MESSAGE_BYTES = 524288

FIRST_STAGE = Template(
    """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
die() { echo "vmlab: $$1"; poweroff -f; }
for name in $$(cat /modules/order); do insmod /modules/$$name || die "insmod $$name"; done
mkdir -p /lower /upper /merged
mount -t 9p -o trans=virtio,version=9p2000.L,msize=$message_bytes,cache=loose,ro root /lower ||
    die "9p root"
mount -t tmpfs -o size=75% tmpfs /upper
mkdir -p /upper/changed /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changed,workdir=/upper/work overlay /merged ||
    die "overlay"
cd /merged
mkdir -p proc sys dev run tmp mnt
mount --move /proc proc
mount --move /sys sys
mount --move /dev dev
mount -t tmpfs tmpfs run
$shares
mkdir -p run/vmlab
cp /second run/vmlab/second
exec switch_root /merged /run/vmlab/second
"""
)

SECOND_STAGE = Template(
    """#!/bin/sh
export PATH=$path HOME=/root LANG=C.UTF-8
mkdir -p /lib/modules/$release /dev/shm /dev/pts /run/netns
mount --bind $modules /lib/modules/$release
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for pair in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e /dev/$${pair%%:*} ] || ln -s /proc/self/$${pair##*:} /dev/$${pair%%:*}
done
command -v modprobe > /proc/sys/kernel/modprobe
hostname vmlab
ip link set lo up
ulimit -l unlimited
ulimit -n 65536
for port in /sys/class/virtio-ports/*; do
    case $$(cat $$port/name) in
    output) output=/dev/$${port##*/} ;;
    status) status=/dev/$${port##*/} ;;
    esac
done
echo "booted $$(cut -d' ' -f1 /proc/uptime)" > $$status
finish() {
    echo "exit $$1" > $$status
    sync
    echo o > /proc/sysrq-trigger
    # No program can be started any more (the root is going away), and this one must not end.
    while :; do :; done
}
for module in $disk_modules; do modprobe $$module; done
find_disk() {
    for try in $$(seq 100); do
        for block in /sys/block/*; do
            for serial in $$block/serial $$block/device/serial; do
                [ -e $$serial ] && [ "$$(tr -d ' \\0' < $$serial)" = "$$1" ] &&
                    echo /dev/$${block##*/} && return 0
            done
        done
        sleep 0.1
    done
    return 1
}
$disks
(
$environment
cd $directory &&
$command
) < /dev/null > $$output 2>&1
finish $$?
"""
)


@dataclass(frozen=True)
class Plan:
    """What the machine is to do once it is up."""

    command: str
    directory: Path
    environment: Mapping[str, str]
    shares: Sequence[Path]
    disks: Sequence[Disk]


def write_initramfs(lab: Lab, plan: Plan, target: Path) -> None:
    """Write the initramfs that carries out `plan` to the file `target`."""
    modules = modules_in_order(lab.modules, ROOT_MODULES)
    with target.open("wb") as file:
        archive = CpioWriter()
        for directory in ("bin", "dev", "modules", "proc", "sys"):
            archive.add(directory, 0o040755)
        archive.add("dev/console", 0o020600, device=(5, 1))
        archive.add("bin/busybox", 0o100755, lab.busybox.read_bytes())
        for applet in APPLETS:
            archive.add(f"bin/{applet}", 0o120777, b"busybox")
        for path in modules:
            archive.add(f"modules/{_module_name(path)}", 0o100644, _module_bytes(path))
        order = "".join(f"{_module_name(path)}\n" for path in modules)
        archive.add("modules/order", 0o100644, order.encode())
        archive.add("init", 0o100755, first_stage(plan).encode())
        archive.add("second", 0o100755, second_stage(lab, plan).encode())
        file.write(archive.finish())


def first_stage(plan: Plan) -> str:
    """Return the script that the kernel starts."""
    options = f"trans=virtio,version=9p2000.L,msize={MESSAGE_BYTES},cache=none,rw"
    lines = [
        f'mkdir -p ".{share}"; mount -t 9p -o {options} share{index} ".{share}" || die "{share}"'
        for index, share in enumerate(plan.shares)
    ]
    return FIRST_STAGE.substitute(message_bytes=MESSAGE_BYTES, shares="\n".join(lines))


def second_stage(lab: Lab, plan: Plan) -> str:
    """Return the script that runs on the host's root and carries out the plan."""
    find = "export {variable}=$(find_disk {name}) || finish {code}"
    variables = {"VMLAB": "1", **plan.environment}
    return SECOND_STAGE.substitute(
        path=shlex.quote(f"{lab.programs}:{search_path()}"),
        release=lab.release,
        modules=shlex.quote(str(lab.modules)),
        disk_modules=" ".join(sorted({disk.module for disk in plan.disks})),
        disks="\n".join(
            find.format(variable=disk.variable, name=disk.name, code=EXIT_NO_DISK)
            for disk in plan.disks
        ),
        environment="\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in variables.items()
        ),
        directory=shlex.quote(str(plan.directory)),
        command=plan.command,
    )


def modules_in_order(directory: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of modules and of all they depend on, in the order to load them."""
    needs: dict[str, list[str]] = {}
    for line in (directory / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {_module_name(Path(path)).removesuffix(".ko"): path for path in needs}
    order: list[str] = []
    for name in names:
        if name not in by_name:
            raise VmError(f"the kernel in {directory} has no module {name}")
        path = by_name[name]
        order += [item for item in [*reversed(needs[path]), path] if item not in order]
    return [directory / path for path in order]


def _module_name(path: Path) -> str:
    return path.name.removesuffix(".xz")


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


class CpioWriter:
    """The "newc" archive that the kernel unpacks.

    Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add one entry; `data` is a file's content or a symbolic link's target."""
        self._inode += 1
        encoded = os.fsencode(name) + b"\0"
        numbers = (
            self._inode,
            mode,
            0,  # uid
            0,  # gid
            1,  # links
            0,  # modification time
            len(data),
            0,  # major and minor number of the archive's own device
            0,
            *device,
            len(encoded),
            0,  # check sum, unused in this format
        )
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts += [_padded(header + encoded), _padded(data)]

    def finish(self) -> bytes:
        """Return the whole archive."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)

# SPDX-License-Identifier: Apache-2.0
"""Disks of the machine: sparse files on the host, NVMe or virtio-blk in the guest.

Invariants: a disk without a file of its own lives as long as its machine; the guest finds it by
the disk's name, in the environment variable VM_DISK_<NAME>, whatever order the kernel found the
devices in.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DiskKind = Literal["nvme", "virtio"]
DiskCache = Literal["unsafe", "writeback"]
BLOCK_BYTES = (512, 4096)
SERIAL_CHARS_MAX = 20  # virtio-blk's serial number has 20 bytes
DISK_BYTES_DEFAULT = 64 << 20


@dataclass(frozen=True)
class Disk:
    """One extra disk. `name` is letters, digits and underscores, 20 at most.

    `file` is made anew by each boot and stays when the machine has gone; without one the disk goes
    with the machine. `cache` is QEMU's: `unsafe` takes no notice of flushes, which is enough where
    QEMU ends in peace; `writeback` passes them on to the host.
    """

    name: str
    kind: DiskKind
    logical_block_bytes: int = 512
    size_bytes: int = DISK_BYTES_DEFAULT
    file: Path | None = None
    cache: DiskCache = "unsafe"

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or len(self.name) > SERIAL_CHARS_MAX:
            raise ValueError(f"{self.name!r} is no disk name: {SERIAL_CHARS_MAX} letters at most")
        if self.kind not in ("nvme", "virtio"):
            raise ValueError(f"disk {self.name}: kind {self.kind!r} is neither nvme nor virtio")
        if self.logical_block_bytes not in BLOCK_BYTES:
            raise ValueError(f"disk {self.name}: a block has 512 or 4096 bytes")
        if self.size_bytes <= 0 or self.size_bytes % max(BLOCK_BYTES):
            raise ValueError(f"disk {self.name}: the size must be a multiple of 4096 bytes")

    @classmethod
    def parse(cls, text: str) -> "Disk":
        """Read NAME=KIND[,BLOCK_BYTES[,MIB]], e.g. data=nvme,4096,64. ValueError if it is not."""
        name, separator, rest = text.partition("=")
        kind, *numbers = rest.split(",")
        if not separator or len(numbers) > 2 or kind not in ("nvme", "virtio"):
            raise ValueError(f"{text!r} is not NAME=nvme|virtio[,BLOCK_BYTES[,MIB]]")
        block_bytes = int(numbers[0]) if numbers else 512
        size_bytes = int(numbers[1]) << 20 if len(numbers) > 1 else DISK_BYTES_DEFAULT
        return cls(name, "nvme" if kind == "nvme" else "virtio", block_bytes, size_bytes)

    @property
    def module(self) -> str:
        """The kernel module that drives it."""
        return {"nvme": "nvme", "virtio": "virtio_blk"}[self.kind]

    @property
    def variable(self) -> str:
        """The environment variable that names the device inside the machine."""
        return f"VM_DISK_{self.name.upper()}"

    def qemu_arguments(self, directory: Path) -> list[str]:
        """Create the disk's file in `directory` and return QEMU's arguments for it."""
        path = self.file or directory / f"{self.name}.img"
        with path.open("wb") as file:
            file.truncate(self.size_bytes)
        drive = f"if=none,id={self.name},file={path},format=raw,cache={self.cache},discard=unmap"
        block = (
            f"logical_block_size={self.logical_block_bytes},"
            f"physical_block_size={self.logical_block_bytes}"
        )
        if self.kind == "virtio":
            device = [f"virtio-blk-pci,drive={self.name},serial={self.name},{block}"]
        else:
            device = [
                f"nvme,id=ctrl_{self.name},serial={self.name}",
                f"nvme-ns,bus=ctrl_{self.name},drive={self.name},{block}",
            ]
        return ["-drive", drive, *(part for item in device for part in ("-device", item))]

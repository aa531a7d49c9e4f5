# SPDX-License-Identifier: Apache-2.0
"""Uses of a block device or file that forbid formatting it, asked of the kernel and util-linux.

Invariants: nothing is written here; every fact comes from the kernel (sysfs,
mountinfo) or from wipefs, which knows more signatures than we could keep up
with; a question that cannot be answered is an error, never a "no". One thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingestd.errors import StoreError

SYSFS: Final = Path("/sys")
MOUNTINFO: Final = Path("/proc/self/mountinfo")
WIPEFS_TIMEOUT_S: Final = 60

_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces


@dataclass(frozen=True, slots=True)
class Signature:
    """A magic string that marks a file system, a RAID member or a partition table; bytes."""

    kind: str
    offset: int
    length: int
    label: str | None


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A block device as the kernel numbers it, and where its facts are."""

    device_number: int
    sysfs: Path = SYSFS
    mountinfo: Path = MOUNTINFO

    @property
    def _directory(self) -> Path:
        major, minor = os.major(self.device_number), os.minor(self.device_number)
        return self.sysfs / "dev" / "block" / f"{major}:{minor}"

    def name(self) -> str:
        """Return the kernel's name, such as sda or nvme0n1p2."""
        return self._directory.resolve().name

    def partitions(self) -> list[str]:
        """Return the names of the device's partitions."""
        return sorted(child.name for child in self._partition_directories())

    def _partition_directories(self) -> list[Path]:
        try:
            children = list(self._directory.iterdir())
        except OSError as error:
            raise StoreError(
                f"{self._directory} cannot be read: {error.strerror}; mount sysfs, so that it can"
                " be seen what uses the device"
            ) from None
        return [child for child in children if (child / "partition").exists()]

    def holders(self) -> list[str]:
        """Return what is made from the device or its partitions: dm-0, md127, ..."""
        directories = [self._directory, *self._partition_directories()]
        return sorted(
            holder.name
            for directory in directories
            if (directory / "holders").is_dir()
            for holder in (directory / "holders").iterdir()
        )

    def mounts(self) -> list[str]:
        """Return where the device or one of its partitions is mounted."""
        numbers = {self._directory.name}
        names = {f"/dev/{self.name()}"}
        for directory in self._partition_directories():
            numbers.add((directory / "dev").read_text(encoding="ascii").strip())
            names.add(f"/dev/{directory.name}")
        found = []
        for line in self.mountinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            # proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, ... - type, source
            before, _, behind = line.partition(" - ")
            fields, source = before.split(), behind.split()
            if len(fields) > 4 and (fields[2] in numbers or names.intersection(source[1:2])):
                found.append(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        return found


def signatures(path: str, fd: int | None = None) -> list[Signature]:
    """Return the signatures that wipefs of util-linux finds on a block device or file.

    It looks at what `fd` is open on, wherever the path leads by then. Raises StoreError
    if it cannot be run or does not answer.
    """
    program = shutil.which("wipefs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise StoreError(
            f"wipefs was not found, so that it cannot be seen what {path} carries: install"
            " util-linux"
        )
    command = [program, "--json", "--no-act", "--output", "OFFSET,LENGTH,TYPE,LABEL"]
    command.append(path if fd is None else f"/proc/self/fd/{fd}")
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, and no shell
            command,
            capture_output=True,
            timeout=WIPEFS_TIMEOUT_S,
            check=False,
            pass_fds=() if fd is None else (fd,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"wipefs could not look at {path}: {error}") from None
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise StoreError(f"wipefs could not look at {path}: {text}")
    rows = json.loads(done.stdout or b"{}").get("signatures", [])
    return [
        Signature(
            kind=str(row["type"]),
            offset=int(str(row["offset"]), 0),
            length=int(row["length"]),
            label=row.get("label"),
        )
        for row in rows
    ]

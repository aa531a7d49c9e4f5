# SPDX-License-Identifier: Apache-2.0
"""Programs: those the host needs, and those that come from a newer suite than the host's.

Invariants: host programs come from the host's own suite and only when missing; a foreign
program never sees the host's C library, and the host's programs never see the foreign one.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmlab.errors import VmError, VmUnavailableError
from vmlab.process import run

HOST_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "depmod": "kmod",
    "xz": "xz-utils",
    "ip": "iproute2",
    "make": "make",
    "gcc": "gcc",
}
"""Program and the package of the host's suite that has it."""

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
INSTALL_TIMEOUT_S = 900.0

LIBRARY_DIRECTORY = "usr/lib/x86_64-linux-gnu"
FOREIGN_PACKAGES = (
    "busybox-static",
    "ethtool",
    "libc6",
    "libelf1t64",
    "libmnl0",
    "libzstd1",
    "zlib1g",
)
"""A busybox for the first steps, an ethtool that can set tcp-data-split (the host's may only show
it), and the libraries of what `wrap_foreign_program` is used for."""


def search_path() -> str:
    """PATH with the directories of system programs, which a plain user's PATH may lack."""
    have = os.environ.get("PATH", "/usr/bin:/bin").split(":")
    return ":".join([*have, *(directory for directory in SBIN if directory not in have)])


def missing_host_programs(programs: Mapping[str, str] = HOST_PROGRAMS) -> dict[str, str]:
    """Return {program: package} of what is needed and the host has not."""
    path = search_path()
    return {p: k for p, k in programs.items() if not shutil.which(p, path=path)}


def install_host_programs(programs: Mapping[str, str] = HOST_PROGRAMS) -> None:
    """Install what is missing from the host's own suite; VmUnavailableError if that fails."""
    missing = missing_host_programs(programs)
    if not missing:
        return
    packages = sorted(set(missing.values()))
    advice = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0:
        raise VmUnavailableError(f"this host lacks {', '.join(missing)}: run {advice} as root")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(["apt-get", "-q", "update"], timeout_s=INSTALL_TIMEOUT_S)
        run(
            ["apt-get", "-q", "-y", "install", "--no-install-recommends", *packages],
            timeout_s=INSTALL_TIMEOUT_S,
            environment=quiet,
        )
    except VmError as error:
        raise VmUnavailableError(f"could not {advice}: {error}") from error
    missing = missing_host_programs(programs)
    if missing:
        raise VmUnavailableError(f"{', '.join(missing)} still missing after {advice}")


def wrap_foreign_program(root: Path, relative: str, script: Path) -> None:
    """Write a script that runs `root`/`relative` with the loader and libraries below `root`.

    This makes a program of a newer suite run on an older host without a chroot, hence without
    being root.
    """
    loader = root / LIBRARY_DIRECTORY / "ld-linux-x86-64.so.2"
    if not loader.exists():
        raise VmError(f"{loader} is not there: remove {root} and prepare the lab again")
    script.write_text(
        f'#!/bin/sh\nexec "{loader}" --library-path "{root / LIBRARY_DIRECTORY}" '
        f'"{root / relative}" "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)

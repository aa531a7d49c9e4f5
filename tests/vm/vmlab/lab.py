# SPDX-License-Identifier: Apache-2.0
"""The lab: everything a machine is made of, found or fetched once and kept in a cache.

What it is: `prepare()` makes sure that the host has QEMU and that the cache holds the newest
kernel of the backports suite, and returns a `Lab` that names the pieces.

Invariants: no kernel version is written down, the suite's own `linux-image-amd64` says which one
is the newest; a kernel appears in the cache whole or not at all; an older one is removed only
after the newer one is complete.
"""

import fcntl
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vmlab.archive import Archive
from vmlab.errors import VmUnavailableError
from vmlab.process import run
from vmlab.tools import FOREIGN_PACKAGES, install_host_programs, wrap_foreign_program

SUITE = "trixie-backports"
"""The suite the kernel is taken from, unless INGESTD_VM_SUITE names another."""

KERNEL_VERSION_MIN = (7, 2)
"""zcrx counts its copies and tells of a failed allocation from this version on."""

LAYOUT = "2"
"""Changes when what `_fetch` makes of the packages changes; a cache of another layout is remade."""

DEPMOD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Lab:
    """Where the pieces lie. `release` is what `uname -r` says inside the machine."""

    cache: Path
    release: str
    version: str
    root: Path
    notes: tuple[str, ...] = ()

    @property
    def modules(self) -> Path:
        """The directory of the kernel's modules; it also holds the kernel's image."""
        return self.root / "usr/lib/modules" / self.release

    @property
    def kernel_image(self) -> Path:
        return self.modules / "vmlinuz"

    @property
    def headers(self) -> Path:
        """The build directory for modules, to be given to `make -C`."""
        return self.root / "usr/src" / f"linux-headers-{self.release}"

    @property
    def user_headers(self) -> Path:
        """The kernel's headers for user space, newer than the host's own."""
        return self.root / "usr/include"

    @property
    def busybox(self) -> Path:
        """A statically linked busybox for the machine's first steps."""
        return self.root / "usr/bin/busybox"

    @property
    def programs(self) -> Path:
        """ethtool and busybox, newer than the host's or missing there, put in front of PATH."""
        return self.root / "programs"


def default_cache() -> Path:
    """INGESTD_VM_CACHE, or ingestd-vm below the user's cache directory."""
    named = os.environ.get("INGESTD_VM_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "ingestd-vm"


def prepare(cache: Path | None = None, suite: str | None = None) -> Lab:
    """Install what the host lacks, fetch the kernel when the cache lacks it, return the lab.

    Raises VmUnavailableError with the reason where the host can have no machine.
    """
    cache = cache or default_cache()
    suite = suite or os.environ.get("INGESTD_VM_SUITE") or SUITE
    _require_amd64()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        # Two that prepare at once would unpack the same kernel over each other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _prepare_locked(cache, suite)


def _prepare_locked(cache: Path, suite: str) -> Lab:
    install_host_programs()
    archive = Archive(cache / suite / "apt", suite)
    note = archive.refresh()
    notes = (note,) if note else ()
    image = archive.candidate("linux-image-amd64")
    release = release_of(image.depends)
    roots = cache / suite / "roots"
    lab = Lab(cache, release, image.version, roots / f"{release}_{image.version}", notes)
    complete = lab.root / "complete"
    if not complete.exists() or complete.read_text(encoding="utf-8") != LAYOUT:
        _fetch(archive, lab)
        _remove_others(roots, lab.root)
    return lab


def _require_amd64() -> None:
    architecture = run(["dpkg", "--print-architecture"], timeout_s=60.0).strip()
    if architecture != "amd64":
        raise VmUnavailableError(f"the machine is an amd64 one, this host is {architecture}")


def release_of(depends: str) -> str:
    """Return the kernel release that linux-image-amd64 depends on, e.g. 7.3.4+deb13-amd64."""
    found = re.search(r"\blinux-image-(\d+)\.(\d+)(\S*-amd64)\b", depends)
    if not found:
        raise VmUnavailableError(f"linux-image-amd64 depends on no kernel image: {depends}")
    major, minor, rest = found.groups()
    if (int(major), int(minor)) < KERNEL_VERSION_MIN:
        wanted = ".".join(map(str, KERNEL_VERSION_MIN))
        raise VmUnavailableError(f"the newest kernel is {major}.{minor}, {wanted} is needed")
    return f"{major}.{minor}{rest}"


def _fetch(archive: Archive, lab: Lab) -> None:
    print(f"vmlab: fetching kernel {lab.release} from {archive.suite}", file=sys.stderr)
    common = lab.release.removesuffix("-amd64")
    packages = [
        f"linux-binary-{lab.release}",
        f"linux-modules-{lab.release}",
        f"linux-headers-{lab.release}",
        f"linux-headers-{common}-common",
        f"linux-kbuild-{common}",
        "linux-libc-dev",
        *FOREIGN_PACKAGES,
    ]
    archive.unpack(packages, lab.root)
    _make_modules_loadable(lab)
    _make_headers_movable(lab)
    lab.programs.mkdir()
    wrap_foreign_program(lab.root, "usr/sbin/ethtool", lab.programs / "ethtool")
    (lab.programs / "busybox").symlink_to(lab.busybox)
    (lab.root / "complete").write_text(LAYOUT, encoding="utf-8")


def _make_modules_loadable(lab: Lab) -> None:
    # depmod looks below lib/modules and wants two lists that another package would bring.
    if not (lab.root / "lib").exists():
        (lab.root / "lib").symlink_to("usr/lib")
    for name in ("modules.order", "modules.builtin"):
        (lab.modules / name).touch()
    run(["depmod", "-b", str(lab.root), lab.release], timeout_s=DEPMOD_TIMEOUT_S)


def _make_headers_movable(lab: Lab) -> None:
    # The headers' Makefile names its own place on a host where they are installed.
    makefile = lab.headers / "Makefile"
    text = makefile.read_text(encoding="utf-8")
    makefile.write_text(text.replace("/usr/src/", f"{lab.root}/usr/src/"), encoding="utf-8")
    # The kernel's own build programs may want a newer C library than the host has.
    kbuild = lab.root / "usr/lib" / f"linux-kbuild-{lab.release.removesuffix('-amd64')}"
    for relative in ("scripts/mod/modpost.real-lsb-64", "tools/objtool/objtool.real-x86"):
        program = kbuild / relative
        original = program.with_name(f"{program.name}.original")
        program.rename(original)
        wrap_foreign_program(lab.root, str(original.relative_to(lab.root)), program)


def _remove_others(roots: Path, kept: Path) -> None:
    for root in roots.iterdir():
        if root != kept and (root / "complete").exists():
            shutil.rmtree(root)

# SPDX-License-Identifier: Apache-2.0
"""Debian's archive as the host's own apt knows it, with other suites.

What it is: an apt of our own (lists, archives, status) below the cache directory, so that a
package of another suite can be read and unpacked while the host's apt stays as it is.

Invariants: the address of the archive comes from the host's apt configuration and only the
suite differs; signatures are checked as the host's apt checks them; nothing is installed.
"""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import VmError, VmUnavailableError
from vmlab.process import run

APT_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 900.0
INDEX_AGE_MAX_S = 24 * 3600.0
ARCHIVE_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Candidate:
    """The version of a package that apt would take, and the packages it depends on."""

    name: str
    version: str
    depends: str


def host_archive_address() -> str:
    """Return the address of the Debian archive that serves the host's own suite.

    Raises VmUnavailableError on a host that is not Debian or whose apt names no archive.
    """
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise VmUnavailableError("this host is not Debian, so its apt knows no backports kernel")
    try:
        rows = run(
            ["apt-get", "indextargets", "--format", "$(RELEASE)|$(SITE)", "Created-By: Packages"],
            timeout_s=APT_TIMEOUT_S,
        )
    except VmError as error:
        raise VmUnavailableError(f"apt is of no use on this host: {error}") from error
    for row in rows.splitlines():
        suite, _, site = row.partition("|")
        if suite == codename and site:
            return site
    raise VmUnavailableError(f"apt on this host names no archive for its own suite {codename}")


class Archive:
    """The packages of `suite` and of the suite it is built on, read through a private apt."""

    def __init__(self, directory: Path, suite: str) -> None:
        self.directory = directory
        self.suite = suite
        self._lists = directory / "lists"
        self._sources = directory / "sources.list"

    def refresh(self) -> str | None:
        """Bring the package index up to date when it is missing or older than a day.

        Returns None, or a sentence when the index could not be renewed and the one in the cache
        has to do. Raises VmUnavailableError when there is none in the cache either.
        """
        stamp = self.directory / "refreshed"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < INDEX_AGE_MAX_S:
            return None
        try:
            self._write_sources()
            run(self._apt("apt-get", "update", "--error-on=any"), timeout_s=APT_TIMEOUT_S)
        except VmError as error:
            if not stamp.exists():
                raise VmUnavailableError(f"no package index of {self.suite}: {error}") from error
            return f"the package index of {self.suite} is old and could not be renewed: {error}"
        stamp.touch()
        return None

    def candidate(self, package: str) -> Candidate:
        """Return the newest version of a package in the suite; VmUnavailableError if none."""
        try:
            text = run(
                self._apt("apt-cache", "show", "--no-all-versions", package),
                timeout_s=APT_TIMEOUT_S,
            )
        except VmError as error:
            raise VmUnavailableError(f"{self.suite} has no package {package}") from error
        fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        return Candidate(package, fields["Version"], fields.get("Depends", ""))

    def unpack(self, packages: Sequence[str], target: Path) -> None:
        """Download packages and unpack them below `target`, which appears whole or not at all.

        Dependencies are not followed: the caller names everything it wants.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="unpack.") as scratch:
            debs, tree = Path(scratch) / "debs", Path(scratch) / "tree"
            debs.mkdir()
            tree.mkdir()
            run(
                self._apt("apt-get", "download", *packages),
                timeout_s=DOWNLOAD_TIMEOUT_S,
                directory=debs,
            )
            for deb in sorted(debs.iterdir()):
                run(["dpkg-deb", "-x", str(deb), str(tree)], timeout_s=DOWNLOAD_TIMEOUT_S)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(tree, target)

    def _write_sources(self) -> None:
        site = host_archive_address()
        (self._lists / "partial").mkdir(parents=True, exist_ok=True)
        (self.directory / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        signed = f"[signed-by={ARCHIVE_KEYRING}] " if ARCHIVE_KEYRING.exists() else ""
        suites = (self.suite, self.suite.removesuffix("-backports"))
        lines = [f"deb {signed}{site} {suite} main\n" for suite in suites]
        self._sources.write_text("".join(lines), encoding="utf-8")

    def _apt(self, program: str, *arguments: str) -> list[str]:
        # An empty status file: what the host has installed must not count as a candidate.
        # The default release: a backport wins over the package of the suite it is built on.
        options = {
            "Dir::Etc::SourceList": str(self._sources),
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": str(self._lists),
            "Dir::State::Status": "/dev/null",
            "Dir::Cache::Archives": str(self.directory / "archives"),
            "APT::Default-Release": self.suite,
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "true",
        }
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        return [program, "-q", *flags, *arguments]

# SPDX-License-Identifier: Apache-2.0
"""Builds a wheel of ingestd with liburing and ISA-L inside: it installs without a compiler.

`build_wheel.py DIRECTORY` leaves one wheel in DIRECTORY and prints its path. It is built by the
interpreter that runs this, for that Python and for systems whose C library is not older than
this one's; auditwheel names both in the file's name. The libraries' licences, as Debian has
them, go along.

Invariant: only a wheel that needs nothing but the C library gets to DIRECTORY.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("liburing", "libisal")
COPYRIGHTS = Path("/usr/share/doc")


def tools(directory: Path) -> Path:
    """A venv with what the extra `wheel` of pyproject.toml pins; returns its programs' place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    venv.create(directory, with_pip=True)
    programs = directory / "bin"
    wanted = project["optional-dependencies"]["wheel"]
    subprocess.run([programs / "pip", "install", "-qq", *wanted], check=True)
    return programs


def add_licenses(program: Path, wheel: Path, scratch: Path) -> None:
    """Put the licences of the libraries into a wheel."""
    subprocess.run([program, "unpack", "-d", scratch, wheel], stdout=subprocess.DEVNULL, check=True)
    (content,) = scratch.iterdir()
    (info,) = content.glob("*.dist-info")
    for name in LIBRARIES:
        found = sorted(COPYRIGHTS.glob(f"{name}*/copyright"))
        if not found:
            sys.exit(f"build_wheel: no {COPYRIGHTS}/{name}*/copyright; it has to go along")
        shutil.copy(found[0], info / "licenses" / name)
    wheel.unlink()
    subprocess.run(
        [program, "pack", "-d", wheel.parent, content], stdout=subprocess.DEVNULL, check=True
    )


def build(directory: Path) -> Path:
    """Build the wheel and put it alone into the directory; raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        bare, repaired = Path(scratch, "bare"), Path(scratch, "repaired")
        programs = tools(Path(scratch, "tools"))
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "-w", bare, ROOT], env=environment, check=True)
        (wheel,) = bare.glob("*.whl")
        subprocess.run(
            [programs / "auditwheel", "repair", "--strip", "-w", repaired, wheel],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # it tells much, of interest when it fails
            check=True,
        )
        (wheel,) = repaired.glob("*.whl")
        add_licenses(programs / "wheel", wheel, Path(scratch, "unpacked"))
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("ingestd-*.whl"):
            old.unlink()
        return Path(shutil.copy(wheel, directory))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_wheel.py DIRECTORY")
    try:
        print(build(Path(sys.argv[1])))
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace")
        sys.exit(f"{said}build_wheel: {error.cmd[0]} failed")

# SPDX-License-Identifier: Apache-2.0
"""Builds small native programs and libraries of the pure core for the tests.

Results live in a directory for temporary files, under a name made from the
contents of every source and header, the flags and the compiler's version: an
unchanged build is done once, a changed one never meets an old result.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CORE: Final = ROOT / "ingestd" / "core"
TESTS: Final = ROOT / "tests"
BENCH: Final = ROOT / "bench"

PURE_SOURCES: Final = tuple(
    CORE / name
    for name in (
        "connection/ingest/admission.c",
        "connection/ingest/lines.c",
        "memory/buddy.c",
        "storage/commit.c",
        "receive/block.c",
        "receive/connection_table.c",
        "format/flow_id.c",
        "format/frame.c",
        "connection/network.c",
        "connection/ingest/outbox.c",
        "connection/ingest/session.c",
        "connection/peers.c",
        "storage/plan.c",
        "receive/zcrx/refill.c",
        "format/segment.c",
    )
)

FLAGS: Final = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-g")
# Any report of a sanitizer ends the program with an error.
SANITIZERS: Final = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
INCLUDES: Final = (f"-I{CORE}", f"-I{TESTS / 'core'}")
LIBRARIES: Final = ("-lisal",)
COMPILE_TIMEOUT_S: Final = 300


def compiler() -> str:
    """The system's C compiler: $CC if set, else cc."""
    return os.environ.get("CC", "cc")


def cache_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"ingestd-native-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{directory} can be written by others; remove it")
    return directory


def _key(command: Sequence[str], sources: Sequence[Path]) -> str:
    """Names a build; all headers count, which ones a source includes is not asked."""
    digest = hashlib.sha256()
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True)
    digest.update(version.stdout)
    digest.update("\0".join(command).encode())
    headers = sorted([*CORE.rglob("*.h"), *TESTS.glob("*/*.h"), *BENCH.glob("*.h")])
    for path in [*sources, *headers]:
        digest.update(f"\0{path}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _build(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    command = [compiler(), *FLAGS, *flags, *INCLUDES, *map(str, sources)]
    target = cache_directory() / f"{name}-{_key(command, sources)}"
    if target.exists():
        return target
    # Compiled under a name of its own, then renamed: tests may run side by side.
    handle, unfinished = tempfile.mkstemp(prefix=f"{name}-", dir=target.parent)
    os.close(handle)
    done = subprocess.run(
        [*command, "-o", unfinished, *LIBRARIES],
        capture_output=True,
        text=True,
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        Path(unfinished).unlink()
        raise RuntimeError(f"{name} does not compile:\n{done.stderr}")
    Path(unfinished).replace(target)
    return target


def build_executable(name: str, sources: Sequence[Path], *, flags: Sequence[str] = ()) -> Path:
    """An executable of `sources`; `flags` come behind FLAGS.

    Raises RuntimeError with the compiler's words if it does not compile.
    """
    return _build(name, sources, flags)


def build_library(name: str, sources: Sequence[Path], *, flags: Sequence[str] = ()) -> Path:
    """A shared library of `sources` for ctypes; raises as build_executable does."""
    return _build(name, sources, ("-fPIC", "-shared", *flags))

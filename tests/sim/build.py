# SPDX-License-Identifier: Apache-2.0
"""Builds the simulator: every file of the core as it is, under the names that seam.txt gives.

The core is compiled by itself and linked into one object, in which the libc calls of seam.txt
get the names of the simulator's own; liburing's functions are the simulator's because liburing is
not linked. What else the core may call is listed here, so that a call that would leave the
simulation does not go unseen.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from support.native import (
    COMPILE_TIMEOUT_S,
    CORE,
    SANITIZERS,
    TESTS,
    cache_directory,
    compiler,
)

HERE: Final = TESTS / "sim"
FLAGS: Final = (
    "-std=c11", "-D_GNU_SOURCE", "-UNDEBUG", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing",
    "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", "-g",
)  # fmt: skip
OPTIMIZED: Final = ("-O1",)
SANITIZED: Final = ("-O1", *SANITIZERS)
# So few places for acknowledgements that batches wait for them, as with very many flows; one
# batch of the simulator's, which has 128 holds and 24 flows at most, always fits.
FEW_ACKS: Final = ("-DACKS_MAX=256u",)
FEW_ACKS_OF: Final = 4
# What the core may call beside liburing and the seam: nothing of it waits, or knows the time.
CALLS_ALLOWED: Final = frozenset(
    """
    abort __assert_fail calloc free malloc memcpy memmove memset memcmp strlen snprintf strcmp
    madvise inet_ntop if_indextoname pread sched_setaffinity __sched_cpualloc __errno_location
    __stack_chk_fail crc32_iscsi
    pthread_mutex_init pthread_mutex_destroy pthread_mutex_lock pthread_mutex_unlock
    _GLOBAL_OFFSET_TABLE_
    """.split()  # noqa: SIM905
)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return done.stdout


def program_of(seed: int, *, is_sanitized: bool = False) -> Path:
    """Return the simulator for a seed. Raises RuntimeError as build() does."""
    flags = SANITIZED if is_sanitized else OPTIMIZED
    return build(flags=(*flags, *FEW_ACKS) if seed % FEW_ACKS_OF == 0 else flags)


def core_sources(core: Path) -> list[Path]:
    """Return every C file of the core, in whatever room it lies."""
    return sorted(path for path in core.rglob("*.c") if not path.name.startswith("_core"))


@functools.cache
def _compiler_version() -> str:
    return _run([compiler(), "--version"])


def _digest(paths: Iterable[Path], flags: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join([*flags, _compiler_version()]).encode())
    for path in paths:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _key(core: Path, flags: Sequence[str]) -> str:
    files = sorted([*core.rglob("*.[ch]"), *HERE.glob("*.[ch]"), HERE / "seam.txt"])
    return _digest(files, flags)


def _check_calls(core_object: Path) -> None:
    """Raises RuntimeError if the core calls what nobody plays."""
    calls = {line.split()[-1] for line in _run(["nm", "-u", str(core_object)]).splitlines()}
    unknown = sorted(
        call
        for call in calls
        if call not in CALLS_ALLOWED
        and not call.startswith(("sim_", "io_uring_", "__io_uring_", "__asan_", "__ubsan_"))
    )
    if unknown:
        raise RuntimeError(
            f"the core calls {', '.join(unknown)}: play it (seam.txt), or allow it (build.py)"
        )


def _compile(sources: Iterable[Path], core: Path, flags: Sequence[str]) -> list[str]:
    """Return the sources' objects; each is made once, so that of a changed core little is."""
    options = [*FLAGS, *flags]
    headers = sorted([*core.rglob("*.h"), *HERE.glob("*.h")])
    objects = []
    running = []
    for source in sources:
        made = cache_directory() / f"sim-{_digest([*headers, source], options)}.o"
        objects.append(str(made))
        if made.exists():
            continue
        part = made.with_suffix(f".{os.getpid()}.o")
        command = [compiler(), *options, f"-I{core}", f"-I{HERE}", "-c", str(source)]
        running.append((made, part, subprocess.Popen([*command, "-o", str(part)])))
        if len(running) >= (os.cpu_count() or 1):
            _keep(*running.pop(0))
    for one in running:
        _keep(*one)
    return objects


def _keep(made: Path, part: Path, process: subprocess.Popen[bytes]) -> None:
    if process.wait(timeout=COMPILE_TIMEOUT_S) != 0:
        raise RuntimeError("the core, or the simulator, does not compile")
    part.replace(made)


def _link_core(core: Path, flags: Sequence[str], directory: Path) -> Path:
    whole = directory / "core.o"
    objects = _compile(core_sources(core), core, flags)
    _run([compiler(), "-r", "-nostdlib", "-o", str(whole), *objects])
    _run(["objcopy", f"--redefine-syms={HERE / 'seam.txt'}", str(whole)])
    _check_calls(whole)
    return whole


def build(core: Path = CORE, flags: Sequence[str] = OPTIMIZED) -> Path:
    """Return the simulator with the core that lies in `core`; an unchanged one is built once.

    Raises RuntimeError with the compiler's words.
    """
    target = cache_directory() / f"sim-{_key(core, flags)}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="sim-", dir=target.parent) as name:
        directory = Path(name)
        objects = _compile(sorted(HERE.glob("*.c")), core, flags)
        whole = _link_core(core, flags, directory)
        command = [compiler(), *FLAGS, *flags, *objects, str(whole)]
        _run([*command, "-o", str(directory / "sim"), "-lisal", "-lpthread"])
        shutil.move(directory / "sim", target)
    return target

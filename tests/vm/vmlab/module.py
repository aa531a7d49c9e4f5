# SPDX-License-Identifier: Apache-2.0
"""Building a kernel module against the lab's kernel with whatever gcc the host has.

Invariants: the sources stay untouched (they are linked into the build directory); a module is
built again when a source or the kernel is newer than it.
"""

import os
import shutil
from pathlib import Path

from vmlab.errors import VmError
from vmlab.lab import Lab
from vmlab.process import run

BUILD_TIMEOUT_S = 1800.0

COMPILER_OF_THE_KERNEL = "gcc-14"
OLD_COMPILER = """#!/bin/sh
# Stands in for the compiler the kernel was built with: drops the options an older gcc lacks.
# None of them changes the layout of data or the calling convention.
for argument; do
    shift
    case $argument in
    -fmin-function-alignment=*|-fzero-init-padding-bits=*|-fdiagnostics-show-context*) ;;
    -Wno-dangling-pointer*|-Wcalloc-transposed-args|-Wno-calloc-transposed-args) ;;
    *) set -- "$@" "$argument" ;;
    esac
done
exec gcc "$@"
"""


def build_module(lab: Lab, sources: Path, build: Path) -> Path:
    """Build the module in `sources` (which has a Kbuild file) below `build`; return the .ko file.

    Raises VmError with the compiler's words when it does not build.
    """
    build.mkdir(parents=True, exist_ok=True)
    stamp = build / "kernel"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != lab.version:
        shutil.rmtree(build)
        build.mkdir()
        stamp.write_text(lab.version, encoding="utf-8")
    for source in sources.iterdir():
        link = build / source.name
        if not link.is_symlink():
            link.symlink_to(source.resolve())
    run(
        [
            "make",
            "-s",
            "-C",
            str(lab.headers),
            f"M={build.resolve()}",
            f"CC={_compiler(build)}",
            # The modules' type information would need pahole; nothing here reads it.
            "CONFIG_DEBUG_INFO_BTF_MODULES=",
            # The kernel's own CROSS_COMPILE would name binutils by another name.
            "CROSS_COMPILE=",
            "modules",
        ],
        timeout_s=BUILD_TIMEOUT_S,
        environment={"LC_ALL": "C", "PWD": os.fspath(lab.headers)},
    )
    modules = sorted(build.glob("*.ko"))
    if len(modules) != 1:
        raise VmError(f"building {sources} left {len(modules)} modules in {build}, not one")
    return modules[0]


def _compiler(build: Path) -> Path | str:
    if shutil.which(COMPILER_OF_THE_KERNEL):
        return COMPILER_OF_THE_KERNEL
    wrapper = build / "old-gcc"
    if not wrapper.exists():
        wrapper.write_text(OLD_COMPILER, encoding="utf-8")
        wrapper.chmod(0o755)
    return wrapper.resolve()

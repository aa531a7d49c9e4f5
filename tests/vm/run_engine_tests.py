#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The second half of `make vm`: ingestd's engine zcrx between the virtual NIC and emulated disks.

Boots the machine, runs guest/run_engine.sh in it, reads afterwards on the host what the disks
hold. Ends with "N passed, N failed". Exit codes as those of run_vm_tests.py. VM_ONLY=TEXT runs
the cases with that in their names only, VM_TRIALS=PROGRAM one of the test programs only.
"""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

try:
    import ingestd  # noqa: F401
except ModuleNotFoundError:
    sys.path.append(str(ROOT))  # the store's reader needs nothing compiled

from engine_stores import check_stores  # noqa: E402
from run_vm_tests import BUILD, build_programs, run_part, tally  # noqa: E402
from vmlab import Disk, Lab, Machine  # noqa: E402
from vmlab.command import write_through  # noqa: E402
from vmlab.disk import DiskKind  # noqa: E402
from vmlab.module import build_module  # noqa: E402

TESTS_TIMEOUT_S = 7200.0
HUGEPAGES = 128
MIB = 1 << 20
RESULTS = BUILD / "engine"
PASSED_ON = ("VM_ONLY", "VM_TRIALS")
MEMORY_STORES = ("null512", "null4k", "nullvb", "loop", "ram")
"""Stores on devices in the machine's memory; guest/run_engine.sh copies them to disks."""


def disks() -> dict[str, Disk]:
    """Return the disks whose files are read afterwards, by the names of their stores."""

    def disk(store: str, kind: DiskKind, block_bytes: int, size_mib: int, name: str = "") -> Disk:
        path = RESULTS / f"{store}.img"
        return Disk(name or store, kind, block_bytes, size_mib * MIB, path)

    return {
        "nvme512": disk("nvme512", "nvme", 512, 1024),
        "nvme4k": disk("nvme4k", "nvme", 4096, 512),
        "virtio": disk("virtio", "virtio", 512, 512),
        "faults": disk("faults", "nvme", 512, 1024),
        "crowds": disk("crowds", "nvme", 512, 1024),
        "spare": disk("spare", "nvme", 512, 64),
        **{name: disk(name, "virtio", 512, 64, f"keep_{name}") for name in MEMORY_STORES},
    }


def run_tests(lab: Lab) -> tuple[int, int]:
    """Run everything in the machine and on the host; return how much has passed and failed."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    shared = RESULTS / "shared"
    shared.mkdir(parents=True)
    stores, manifest = disks(), shared / "manifest"
    environment = {
        "VM_NIC_MODULE": str(build_module(lab, HERE / "nic", BUILD / "nic")),
        "VM_PROGRAMS": str(build_programs(lab)),
        "VM_MANIFEST": str(manifest),
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    machine = Machine(lab, disks=list(stores.values()), hugepages=HUGEPAGES, shares=[shared])
    result = machine.run(
        ["sh", str(HERE / "guest" / "run_engine.sh")],
        timeout_s=TESTS_TIMEOUT_S,
        environment=environment,
        on_output=write_through,
    )
    passed, failed, _ = tally(result)
    used = {line.split()[0] for line in manifest.read_text(encoding="ascii").splitlines()}
    files = {name: disk.file for name, disk in stores.items() if disk.file}
    if any(name in os.environ for name in PASSED_ON):
        files = {name: path for name, path in files.items() if name in used}
    right, wrong = check_stores(files, manifest)
    print(f"{result.boot_s:.1f} s to the first command, {result.wall_s:.1f} s in the machine")
    if failed + wrong == 0:
        shutil.rmtree(RESULTS)  # what is wrong is kept to be looked at
    return passed + right, failed + wrong


if __name__ == "__main__":
    sys.exit(run_part(run_tests))

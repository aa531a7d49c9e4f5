#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The third part of `make vm`: `ingestd nic`, `ingestd doctor` and manage_nic on the virtual NIC.

Boots the machine and runs guest/test_prepare.sh in it with the ingestd that is installed for this
Python, or else in build/venv. Ends with "N passed, N failed". Exit codes as those of
run_vm_tests.py; 77 also when no ingestd is installed.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from run_vm_tests import BUILD, run_part, tally  # noqa: E402
from vmlab import Disk, Lab, Machine, VmUnavailableError  # noqa: E402
from vmlab.command import write_through  # noqa: E402
from vmlab.module import build_module  # noqa: E402

TESTS_TIMEOUT_S = 7200.0
STORE_BYTES = 256 << 20


def ingestd_command() -> tuple[str, dict[str, str]]:
    """Return how ingestd is run in the machine, which sees this host's files, and with which
    environment."""
    installed = ROOT / "build" / "venv" / "bin" / "ingestd"
    if installed.exists():
        return str(installed), {}
    core = importlib.util.find_spec("ingestd.core._core") if _has_ingestd() else None
    if core is None or core.origin is None:
        raise VmUnavailableError("no ingestd is installed here: run `make build`")
    return f"{sys.executable} -P -m ingestd", {"PYTHONPATH": str(Path(core.origin).parents[2])}


def _has_ingestd() -> bool:
    return importlib.util.find_spec("ingestd") is not None


def run_tests(lab: Lab) -> tuple[int, int]:
    """Run everything in the machine; return how much has passed and failed."""
    command, environment = ingestd_command()
    module = build_module(lab, HERE / "nic", BUILD / "nic")
    result = Machine(lab, disks=[Disk("store", "nvme", 512, STORE_BYTES)]).run(
        ["sh", str(HERE / "guest" / "test_prepare.sh")],
        timeout_s=TESTS_TIMEOUT_S,
        environment={"VM_NIC_MODULE": str(module), "VM_INGESTD": command, **environment},
        on_output=write_through,
    )
    passed, failed, _ = tally(result)
    return passed, failed


if __name__ == "__main__":
    sys.exit(run_part(run_tests))

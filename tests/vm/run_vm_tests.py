#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make vm`: builds what runs in the machine, boots it once, runs all tests, adds up.

Ends with "N passed, N failed". Exit codes: 0, 1 when a test failed or the kernel complained, 77
with one line that says why when this host can have no machine.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from vmlab import Disk, Lab, Machine, Result, VmError, VmUnavailableError, prepare  # noqa: E402
from vmlab.command import EXIT_UNAVAILABLE, write_through  # noqa: E402
from vmlab.module import build_module  # noqa: E402
from vmlab.process import run  # noqa: E402

BUILD = HERE.parents[1] / "build" / "vm"
BUILD_TIMEOUT_S = 1800.0
TESTS_TIMEOUT_S = 7200.0
HUGEPAGES = 40
DISKS = (
    Disk("nvme512", "nvme", 512),
    Disk("nvme4k", "nvme", 4096),
    Disk("virtio", "virtio", 512),
)
WRITTEN_IN_THE_MACHINE = HERE / "guest" / "written-in-the-machine"
SUMMARY = re.compile(rb"^[\w-]+: (\d+) passed, (\d+) failed(?:, (\d+) skipped)?\r?$", re.MULTILINE)


def build_programs(lab: Lab) -> Path:
    """Build the guest's C programs; return their directory."""
    programs = BUILD / "guest" / lab.release
    directory = HERE / "guest"
    command = ["make", "-s", "-C", str(directory), f"BUILD={programs}", f"UAPI={lab.user_headers}"]
    run(command, timeout_s=BUILD_TIMEOUT_S)
    return programs


def run_tests(lab: Lab) -> Result:
    """Boot the machine and run guest/run.sh in it."""
    module = build_module(lab, HERE / "nic", BUILD / "nic")
    programs = build_programs(lab)
    environment = {
        "VM_NIC_MODULE": str(module),
        "VM_PROGRAMS": str(programs),
        "VM_KERNEL": lab.release,
    }
    machine = Machine(lab, disks=DISKS, hugepages=HUGEPAGES)
    return machine.run(
        ["sh", str(HERE / "guest" / "run.sh")],
        timeout_s=TESTS_TIMEOUT_S,
        environment=environment,
        on_output=write_through,
    )


def tally(result: Result) -> tuple[int, int, int]:
    """Return how much has passed, failed and was skipped in the machine.

    Kernel troubles and an exit code that no failed test explains count as failed; they are printed.
    """
    summaries = SUMMARY.findall(result.output)
    passed, failed, skipped = (sum(int(row[i] or 0) for row in summaries) for i in range(3))
    for line in result.kernel_troubles:
        print(f"FAIL the kernel says: {line}")
    failed += bool(result.kernel_troubles)
    if result.exit_code != 0 and failed == 0:
        print(f"FAIL the tests ended with exit code {result.exit_code}")
        failed = 1
    return passed, failed, skipped


def run_part(run_tests: Callable[[Lab], tuple[int, int]]) -> int:
    """Run a part of `make vm` that returns what has passed and failed; return its exit code."""
    began_s = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        passed, failed = run_tests(prepare())
    except VmUnavailableError as error:
        print(f"vm: {error}")
        return EXIT_UNAVAILABLE
    except VmError as error:
        print(f"FAIL {error}")
        passed, failed = 0, 1
    print(f"{time.monotonic() - began_s:.1f} s in all")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or passed == 0 else 0


def report(lab: Lab, result: Result, began_s: float) -> int:
    """Print kernel troubles, times and the sum; return the exit code."""
    passed, failed, skipped = tally(result)
    if WRITTEN_IN_THE_MACHINE.exists():
        print(f"FAIL the machine has written to the host: {WRITTEN_IN_THE_MACHINE}")
        failed += 1
    if passed == 0 and failed == 0:
        print("FAIL no test has run")
        failed = 1
    print(
        f"kernel {lab.release}, {result.boot_s:.1f} s to the first command, "
        f"{result.wall_s:.1f} s in the machine, {time.monotonic() - began_s:.1f} s in all"
    )
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


def main() -> int:
    """Run everything; return the exit code."""
    began_s = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        lab = prepare()
        for note in lab.notes:
            print(f"vm: {note}")
        return report(lab, run_tests(lab), began_s)
    except VmUnavailableError as error:
        print(f"vm: {error}")
        return EXIT_UNAVAILABLE
    except VmError as error:
        print(f"FAIL {error}")
        print("0 passed, 1 failed")
        return 1


if __name__ == "__main__":
    sys.exit(main())

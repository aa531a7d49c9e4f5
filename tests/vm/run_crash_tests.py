#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of `make vm` about crashes: nothing that was acknowledged may be lost.

Boots a machine whose store lies on a device that logs all writes (dm-log-writes) and on one that
fails or lies (dm-flakey), replays the log on the host to every state that a crash could have left,
then cuts the power of more machines in mid-stream. README.md says what each of these shows and
what it does not. Ends with "N passed, N failed"; exit codes as those of run_vm_tests.py.

    run_crash_tests.py [--seed N] [--torn N] [--cuts N]
"""

import argparse
import mmap
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

try:
    import ingestd  # noqa: F401
except ModuleNotFoundError:
    sys.path.append(str(ROOT))  # the store's reader needs nothing compiled

from crash_stores import (  # noqa: E402
    Journal,
    Replica,
    Verdict,
    fast_directory,
    judge_all,
    replay,
)
from engine_stores import make_ring  # noqa: E402
from run_vm_tests import BUILD, SUMMARY, build_programs  # noqa: E402
from vmlab import Disk, Lab, Machine, Result, VmError, VmUnavailableError, prepare  # noqa: E402
from vmlab.command import EXIT_UNAVAILABLE, write_through  # noqa: E402
from vmlab.machine import POWER_CUT_EXIT_CODE  # noqa: E402
from vmlab.module import build_module  # noqa: E402

# What hangs is ended; what is slow is not: on a busy machine all takes ten times as long.
TESTS_TIMEOUT_S = 5400.0
CUT_TIMEOUT_S = 900.0
CUT_AFTER_S = (0.0, 3.0)
HUGEPAGES = 96
MIB = 1 << 20
TORN_PER_FLUSH = 2
CUTS = 4
SEED_BITS = 32
RESULTS = BUILD / "crash"
FIRST_RECEIPT = b"@receipt"

LOADS = (
    ("-i zc0 -q 2", "-c 1"),
    ("-e -i none", "-c 0"),
    ("-i zc0 -q 2", "-c 0"),
    ("-e -i none", "-c 1"),
)
"""Options of server and senders, and of both, of the machines whose power is cut, in turn."""


@dataclass
class Output:
    """The machine's output: the journal is kept to be read, the rest is shown."""

    data: bytearray = field(default_factory=bytearray)
    shown: int = 0

    def take(self, data: bytes) -> None:
        """Take in what has come; whole lines are shown at once."""
        self.data += data
        end = self.data.rfind(b"\n") + 1
        lines = bytes(self.data[self.shown : end]).splitlines(keepends=True)
        write_through(b"".join(line for line in lines if not line.startswith(b"@")))
        self.shown = max(end, self.shown)


@dataclass
class PowerCut:
    """Decides when: so long after the first receipt."""

    after_s: float
    output: Output
    receipt_s: float | None = None

    def is_due(self) -> bool:
        """Asked again and again while the machine runs."""
        if self.receipt_s is None and FIRST_RECEIPT in self.output.data:
            self.receipt_s = time.monotonic()
        return self.receipt_s is not None and time.monotonic() > self.receipt_s + self.after_s


@dataclass
class Tests:
    """One run: what it needs, and what has come of it."""

    lab: Lab
    choose: Random
    torn_count: int
    cuts: int
    ring: bytes = field(default_factory=make_ring)
    passed: int = 0
    failed: int = 0

    def check(self, is_right: bool, text: str) -> None:
        """Print a line and count it."""
        print(f"{'ok  ' if is_right else 'FAIL'} {text}")
        self.passed += is_right
        self.failed += not is_right

    def check_verdict(self, verdict: Verdict, text: str) -> None:
        """Print what is wrong with the stores of a verdict, and a line of figures."""
        for fault in verdict.faults:
            print(f"    {fault}")
        self.check(
            verdict.wrong == 0 and verdict.promises > 0,
            f"{text}: {verdict.states} stores, {verdict.promises} promises compared, "
            f"{verdict.wrong} stores wrong, {verdict.lost_bytes} acknowledged bytes lost",
        )

    def environment(self) -> dict[str, str]:
        """What every script in the machine wants."""
        return {
            "VM_NIC_MODULE": str(build_module(self.lab, HERE / "nic", BUILD / "nic")),
            "VM_PROGRAMS": str(build_programs(self.lab)),
        }

    def run_devices(self) -> None:
        """Boot once with a logged and a flaky device, and judge both."""
        disks = {
            "logged": Disk("logged", "nvme", 512, 40 * MIB, RESULTS / "logged.img"),
            "log": Disk("log", "nvme", 512, 256 * MIB, RESULTS / "log.img"),
            "flaky": Disk("flaky", "nvme", 512, 1024 * MIB, RESULTS / "flaky.img"),
        }
        output = Output()
        machine = Machine(self.lab, disks=list(disks.values()), hugepages=HUGEPAGES)
        result = machine.run(
            ["sh", str(HERE / "guest" / "run_crash.sh")],
            timeout_s=TESTS_TIMEOUT_S,
            environment=self.environment(),
            on_output=output.take,
        )
        (RESULTS / "output").write_bytes(result.output)
        self._count(result)
        self._judge_logged(disks["logged"], RESULTS / "log.img", result.output)
        self._judge_flaky(RESULTS / "flaky.img", result.output)

    def _count(self, result: Result) -> None:
        rows = SUMMARY.findall(result.output)
        self.passed += sum(int(row[0]) for row in rows)
        self.failed += sum(int(row[1]) for row in rows)
        self._check_machine(result, 0)

    def _check_machine(self, result: Result, exit_code: int) -> None:
        for line in result.kernel_troubles:
            self.check(False, f"the kernel says: {line}")
        if result.exit_code != exit_code and self.failed == 0:
            self.check(False, f"the machine ended with exit code {result.exit_code}")

    def _judge_logged(self, disk: Disk, log: Path, output: bytes) -> None:
        began_s = time.monotonic()
        journal = Journal(disk.name).read(output)
        assert disk.file
        with (
            tempfile.TemporaryDirectory(dir=fast_directory(RESULTS)) as scratch,
            log.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            print(f"    replaying the log in {scratch}")
            replica = Replica(Path(scratch) / "store.img", disk.size_bytes)
            verdict = replay(mapped, replica, journal, self.ring, self.choose, self.torn_count)
        self.check_verdict(verdict, "every crash that the log of writes allows")
        self.check(
            disk.file.read_bytes() == replica.settled,
            "the whole log makes the whole device, byte for byte",
        )
        print(f"    {len(journal.promised)} receipts, {time.monotonic() - began_s:.1f} s")

    def _judge_flaky(self, path: Path, output: bytes) -> None:
        journal = Journal("flaky").read(output)
        verdict = judge_all({path: journal}, self.ring)
        self.check_verdict(verdict, "the device that failed and lied is whole again")
        self.check(
            len(journal.worthless) > 0,
            f"the device lied indeed: {len(journal.worthless)} receipts while it did, not counted",
        )

    def run_cuts(self) -> None:
        """Boot machines and cut their power while receipts come."""
        environment = self.environment()
        stores: dict[Path, Journal] = {}
        for cut in range(self.cuts):
            path = RESULTS / f"cut{cut}.img"
            stores[path] = self._cut(path, environment, LOADS[cut % len(LOADS)])
        verdict = judge_all(stores, self.ring)
        self.check_verdict(verdict, "power cuts in mid-stream")

    def _cut(self, path: Path, environment: dict[str, str], load: tuple[str, str]) -> Journal:
        output = Output()
        cut = PowerCut(self.choose.uniform(*CUT_AFTER_S), output)
        engine, both = load
        disk = Disk("cut", "nvme", 512, 1024 * MIB, path, cache="writeback")
        result = Machine(self.lab, disks=[disk], hugepages=HUGEPAGES).run(
            ["sh", str(HERE / "guest" / "run_cut.sh")],
            timeout_s=CUT_TIMEOUT_S,
            environment={**environment, "VM_SERVE": f"{engine} {both}", "VM_SEND": both},
            on_output=output.take,
            cut_power=cut.is_due,
        )
        self._check_machine(result, POWER_CUT_EXIT_CODE)
        journal = Journal(disk.name).read(bytes(output.data))
        self.check(
            0 < len(journal.promised) < len(journal.begun),
            f"power cut {cut.after_s:.2f} s behind the first receipt, server {engine} {both}: "
            f"{len(journal.promised)} receipts, {len(journal.begun)} flows begun",
        )
        return journal


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Crashes of stores in virtual machines.")
    add = parser.add_argument
    add("--seed", type=int, default=int.from_bytes(os.urandom(4)), help="of all random choices")
    add("--torn", type=int, default=TORN_PER_FLUSH, help="torn states in front of each flush")
    add("--cuts", type=int, default=CUTS, help="machines whose power is cut")
    return parser.parse_args()


def main() -> int:
    """Run everything; return the exit code."""
    began_s = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    options = parse_arguments()
    print(f"seed {options.seed}: --seed {options.seed} makes the same choices again")
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    try:
        tests = Tests(prepare(), Random(options.seed), options.torn, options.cuts)
    except VmUnavailableError as error:
        print(f"vm: {error}")
        return EXIT_UNAVAILABLE
    try:
        tests.run_devices()
        if options.cuts:
            tests.run_cuts()
    except VmError as error:
        tests.check(False, str(error))
    if tests.failed == 0:
        shutil.rmtree(RESULTS)  # what is wrong is kept to be looked at
    print(f"{time.monotonic() - began_s:.1f} s in all")
    print(f"{tests.passed} passed, {tests.failed} failed")
    return 1 if tests.failed or tests.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

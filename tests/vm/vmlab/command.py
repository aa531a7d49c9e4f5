# SPDX-License-Identifier: Apache-2.0
"""The command line `vmrun`: boot a machine, run one command in it, exit with its exit code.

Exit codes besides the command's own: 77 when this host can have no machine, 125 when the
machine failed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vmlab.disk import Disk
from vmlab.errors import VmError, VmUnavailableError
from vmlab.lab import prepare
from vmlab.machine import Machine

EXIT_UNAVAILABLE = 77
EXIT_MACHINE_FAILED = 125


def write_through(data: bytes) -> None:
    """Pass the guest's output to standard output at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmrun",
        description="Boot a new kernel in a virtual machine that sees this host's files, "
        "run one command in it and exit with the command's exit code.",
    )
    add = parser.add_argument
    add("--cpus", type=int, choices=(1, 2), default=2)
    add("--memory", type=int, default=2048, metavar="MIB")
    add("--disk", type=Disk.parse, action="append", default=[],
        metavar="NAME=nvme|virtio[,BLOCK_BYTES[,MIB]]",
        help="an extra disk; the command finds its device in $VM_DISK_NAME")  # fmt: skip
    add("--hugepages", type=int, default=0, metavar="COUNT", help="2 MiB pages reserved at boot")
    add("--share", type=Path, action="append", default=[], metavar="DIRECTORY",
        help="a host directory the command may write to; all else stays in the guest")  # fmt: skip
    add("--env", action="append", default=[], metavar="NAME=VALUE")
    add("--append", default="", metavar="TEXT", help="more of the kernel's command line")
    add("--timeout", type=float, default=600.0, metavar="SECONDS")
    add("--accelerator", default="tcg,thread=multi", metavar="QEMU_ACCEL")
    add("--kernel-log", action="store_true", help="print the kernel's log on standard error")
    add("--verbose", action="store_true", help="print kernel and times on standard error")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given: vmrun [options] -- COMMAND [ARGUMENT...]")
    try:
        lab = prepare()
        for note in lab.notes:
            print(f"vmrun: {note}", file=sys.stderr)
        machine = Machine(
            lab,
            memory_mib=options.memory,
            cpus=options.cpus,
            disks=options.disk,
            hugepages=options.hugepages,
            shares=[share.resolve() for share in options.share],
            kernel_arguments=options.append,
            accelerator=options.accelerator,
        )
        result = machine.run(
            command[0] if len(command) == 1 else command,
            timeout_s=options.timeout,
            directory=Path(os.getcwd()),
            environment=dict(item.split("=", 1) for item in options.env),
            on_output=write_through,
        )
    except VmUnavailableError as error:
        print(f"vmrun: no machine on this host: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except (VmError, ValueError) as error:
        print(f"vmrun: {error}", file=sys.stderr)
        return EXIT_MACHINE_FAILED
    if options.kernel_log:
        sys.stderr.write(result.kernel_log)
    if options.verbose:
        print(
            f"vmrun: kernel {lab.release}, {result.boot_s:.1f} s to the command, "
            f"{result.wall_s:.1f} s in all, {result.boot_tries} boots",
            file=sys.stderr,
        )
    return result.exit_code

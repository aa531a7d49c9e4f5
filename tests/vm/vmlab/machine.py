# SPDX-License-Identifier: Apache-2.0
"""The machine: boots once per command, gives back the command's exit code and output.

What it is: QEMU without KVM (TCG), so that it works inside any host. The command's output and
the machine's own words ("booted", "exit N") come back over two virtio ports, the kernel's log
over the serial port.

Invariants: every boot has a time limit, every run has one; a boot that dies before the command
started is tried again, a command that has started is never run twice; QEMU never outlives
`run()`. A power cut is SIGKILL to QEMU: nothing in the machine hears of it.
"""

import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmlab.disk import Disk
from vmlab.errors import VmError
from vmlab.initramfs import Plan, write_initramfs
from vmlab.lab import Lab
from vmlab.tools import search_path

BOOT_TRIES_MAX = 4
BOOT_TIMEOUT_S = 600.0
POLL_INTERVAL_S = 0.05
JOIN_TIMEOUT_S = 5.0
KERNEL_LOG_TAIL_CHARS = 4000

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off nokaslr audit=0"
    " random.trust_cpu=on tsc=reliable"
)
KERNEL_TROUBLE = re.compile(
    r"WARNING:|BUG:|Oops|general protection|Call Trace|hung task|refcount_t"
)
"""What a kernel that found something wrong writes to its log."""

OutputSink = Callable[[bytes], None]
POWER_CUT_EXIT_CODE = -signal.SIGKILL


@dataclass(frozen=True)
class Result:
    """What became of a command. `boot_s` is wall time from QEMU's start to the command's."""

    exit_code: int
    output: bytes
    kernel_log: str
    boot_s: float
    wall_s: float
    boot_tries: int

    @property
    def kernel_troubles(self) -> list[str]:
        """Lines of the kernel's log that report a warning or worse."""
        return [line for line in self.kernel_log.splitlines() if KERNEL_TROUBLE.search(line)]


@dataclass(frozen=True)
class Machine:
    """A machine to be booted; the same one may be booted any number of times.

    `shares` are host directories that the guest may write to (same path inside). `hugepages` is
    a count of 2 MiB pages, reserved on the kernel's command line.
    """

    lab: Lab
    memory_mib: int = 2048
    cpus: int = 2
    disks: Sequence[Disk] = ()
    hugepages: int = 0
    shares: Sequence[Path] = ()
    kernel_arguments: str = ""
    accelerator: str = "tcg,thread=multi"
    boot_timeout_s: float = BOOT_TIMEOUT_S

    def run(
        self,
        command: Sequence[str] | str,
        *,
        timeout_s: float,
        directory: Path = Path("/"),
        environment: Mapping[str, str] | None = None,
        on_output: OutputSink | None = None,
        cut_power: Callable[[], bool] | None = None,
    ) -> Result:
        """Boot, run a command (a list of words, or a line for sh), power off.

        `on_output` sees the output as it comes. `timeout_s` counts from the command's start.
        `cut_power` is asked every POLL_INTERVAL_S from then on; when it says so, the machine is
        gone, and the exit code is POWER_CUT_EXIT_CODE.
        Raises VmError when the machine does not come up or the command exceeds its time.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        plan = Plan(line, directory, environment or {}, self.shares, self.disks)
        with tempfile.TemporaryDirectory(prefix="vmlab.") as scratch:
            work = Path(scratch)
            write_initramfs(self.lab, plan, work / "initramfs")
            for boot_try in range(1, BOOT_TRIES_MAX + 1):
                boot = _Boot(self, work, on_output or (lambda data: None))
                boot.wait(timeout_s, cut_power or (lambda: False))
                if boot.booted_s is not None:
                    return boot.result(boot_try)
            raise VmError(f"the machine did not boot in {BOOT_TRIES_MAX} tries: {boot.log_tail()}")

    def qemu_command(self, work: Path) -> list[str]:
        """Return QEMU's command line but for the two ports, whose pipes differ by boot."""
        model = "passthrough" if os.geteuid() == 0 else "none"
        root = f"local,id=root,path=/,security_model={model},readonly=on,multidevs=remap"
        command = ["qemu-system-x86_64", "-accel", self.accelerator, "-cpu", "max"]
        command += ["-smp", str(self.cpus), "-m", f"{self.memory_mib}M", "-machine", "q35"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-monitor", "none", "-serial", f"file:{work / 'console'}"]
        command += ["-kernel", str(self.lab.kernel_image), "-initrd", str(work / "initramfs")]
        command += ["-append", self._kernel_command_line()]
        command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        command += ["-fsdev", root, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]
        for index, share in enumerate(self.shares):
            tag = f"share{index}"
            shared = f"local,id={tag},path={share},security_model={model},multidevs=remap"
            command += ["-fsdev", shared, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        for disk in self.disks:
            command += disk.qemu_arguments(work)
        return command

    def _kernel_command_line(self) -> str:
        pages = f" hugepages={self.hugepages}" if self.hugepages else ""
        return f"{KERNEL_ARGUMENTS}{pages} {self.kernel_arguments}".rstrip()


@dataclass
class _Port:
    """A virtio port of the guest, read by a thread of its own until QEMU closes it."""

    name: str
    sink: OutputSink
    data: bytearray = field(default_factory=bytearray)

    def open(self) -> int:
        """Start reading; return the descriptor to hand to QEMU, to be closed by the caller."""
        read_fd, write_fd = os.pipe()
        self.thread = threading.Thread(target=self._read, args=(read_fd,), daemon=True)
        self.thread.start()
        return write_fd

    def arguments(self, write_fd: int) -> list[str]:
        """Return QEMU's arguments for the port."""
        chardev = f"file,id={self.name},path=/proc/self/fd/{write_fd},append=on"
        return [
            "-chardev",
            chardev,
            "-device",
            f"virtserialport,chardev={self.name},name={self.name}",
        ]

    def _read(self, read_fd: int) -> None:
        with open(read_fd, "rb", buffering=0) as pipe:
            while data := pipe.read(65536):
                self.data += data
                self.sink(data)


class _Boot:
    """One try: a running QEMU, the threads that listen to it, and what they have heard."""

    def __init__(self, machine: Machine, work: Path, on_output: OutputSink) -> None:
        self._console = work / "console"
        self._console.unlink(missing_ok=True)
        self._machine = machine
        self._output = _Port("output", on_output)
        self._status = _Port("status", lambda data: None)
        self.booted_s: float | None = None
        self._exit_code: int | None = None
        self._began = time.monotonic()
        write_fds = [port.open() for port in (self._output, self._status)]
        command = machine.qemu_command(work)
        for port, write_fd in zip((self._output, self._status), write_fds, strict=True):
            command += port.arguments(write_fd)
        self._errors = (work / "qemu.err").open("w+b")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=write_fds,
            env={**os.environ, "PATH": search_path()},
        )
        for write_fd in write_fds:
            os.close(write_fd)

    def wait(self, timeout_s: float, cut_power: Callable[[], bool]) -> None:
        """Wait until QEMU ends; end it when the boot or the command takes too long."""
        try:
            while self._process.poll() is None:
                self._listen()
                elapsed_s = time.monotonic() - self._began
                if self.booted_s is None and elapsed_s > self._machine.boot_timeout_s:
                    break
                if self.booted_s is not None and cut_power():
                    self._process.kill()
                    self._exit_code = POWER_CUT_EXIT_CODE
                    break
                if self.booted_s is not None and elapsed_s > self.booted_s + timeout_s:
                    raise VmError(
                        f"the command took longer than {timeout_s:.0f} s: {self.log_tail()}"
                    )
                time.sleep(POLL_INTERVAL_S)
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            for port in (self._output, self._status):
                port.thread.join(JOIN_TIMEOUT_S)
            self._listen()

    def result(self, boot_try: int) -> Result:
        """Return what became of the command; VmError if the machine died under it."""
        if self._exit_code is None or self.booted_s is None:
            raise VmError(f"the machine died under the command: {self.log_tail()}")
        return Result(
            exit_code=self._exit_code,
            output=bytes(self._output.data),
            kernel_log=self._log(),
            boot_s=self.booted_s,
            wall_s=time.monotonic() - self._began,
            boot_tries=boot_try,
        )

    def log_tail(self) -> str:
        """Return the end of what kernel, QEMU and command wrote, to be put into an error."""
        self._errors.seek(0)
        parts = (self._errors.read(), self._log().encode(), bytes(self._output.data))
        text = b"\n".join(part[-KERNEL_LOG_TAIL_CHARS:] for part in parts if part)
        return text.decode(errors="replace").strip() or "it wrote nothing at all"

    def _listen(self) -> None:
        words = bytes(self._status.data).decode(errors="replace").split()
        if self.booted_s is None and "booted" in words:
            self.booted_s = time.monotonic() - self._began
        if "exit" in words[:-1]:
            self._exit_code = int(words[words.index("exit") + 1])

    def _log(self) -> str:
        if not self._console.exists():
            return ""
        return self._console.read_text(encoding="utf-8", errors="replace")

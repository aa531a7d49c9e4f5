# SPDX-License-Identifier: Apache-2.0
"""What the benchmark reads of the machine: CPU times, memory, sockets, facts for the report.

Nothing here changes the machine, and nothing that is read names it: no host
name, no path.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LISTEN: Final = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_libc: Final = ctypes.CDLL(None, use_errno=True)


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process, of all its threads, ended ones too; to the nanosecond.

    clock_getcpuclockid(3). Raises ProcessLookupError if there is no such process.
    """
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        raise ProcessLookupError(f"there is no process {pid}")
    return time.clock_gettime(clock.value)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and of all its living descendants."""
    return process_cpu_s(pid) + sum(tree_cpu_s(child) for child in _children(pid))


def machine_cpu_s() -> float:
    """CPU seconds that the whole machine has worked so far: /proc/stat, proc(5).

    User, nice, system, irq and softirq; not idle, iowait or what the hypervisor
    took (steal). Guests' time is part of user time already. In ticks, and sampled.
    """
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(f) for f in fields[:7])
    return (user + nice + system + irq + softirq) / _CLOCK_TICKS


def memory_peak_bytes(pid: int) -> int:
    """The most resident memory that a process has had (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {pid} has no memory")
    return int(found[1]) * 1024


def port_is_listening(port: int) -> bool:
    """Return whether a TCP socket of any family listens on the port; asking disturbs nobody."""
    wanted = f"{port:04X}"
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].rpartition(":")[2] == wanted and fields[3] == _LISTEN:
                return True
    return False


def congestion_control(wanted: str) -> str:
    """`wanted` if the kernel has it, else what it uses by itself."""
    directory = Path("/proc/sys/net/ipv4")
    available = (directory / "tcp_available_congestion_control").read_text().split()
    current = (directory / "tcp_congestion_control").read_text().strip()
    return wanted if wanted in available else current


@dataclass(frozen=True, slots=True)
class Facts:
    """The machine as the report shows it."""

    cpu: str
    cpus_count: int
    memory_gib: float
    kernel: str
    filesystem: str
    device: str
    hugepages_reserved_count: int
    congestion_control: str
    python: str


def _filesystem_and_device(directory: Path) -> tuple[str, str]:
    """Type of the file system that holds a directory, and the block device's own words."""
    number = os.stat(directory).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    filesystem = "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == name:
            filesystem = fields[fields.index("-") + 1]
    queue = Path(f"/sys/dev/block/{name}/queue")
    if not queue.is_dir():
        queue = Path(f"/sys/dev/block/{name}/../queue")  # a partition has its disk's queue
    if not queue.is_dir():
        return filesystem, "no block device of its own"
    words = {
        key: (queue / key).read_text().strip() for key in ("logical_block_size", "write_cache")
    }
    kind = re.sub(r"\d+$", "", Path(os.path.realpath(queue.parent)).name)
    return filesystem, f"{kind}, {words['logical_block_size']}-byte blocks, {words['write_cache']}"


def facts(directory: Path, congestion: str) -> Facts:
    """What the report says of the machine; `directory` is where the data is written."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    filesystem, device = _filesystem_and_device(directory)
    assert memory is not None
    return Facts(
        cpu=model[1].strip() if model else platform.machine(),
        cpus_count=len(os.sched_getaffinity(0)),
        memory_gib=round(int(memory[1]) / 2**20, 1),
        kernel=platform.release().partition("-")[0],
        filesystem=filesystem,
        device=device,
        hugepages_reserved_count=int(Path("/proc/sys/vm/nr_hugepages").read_text()),
        congestion_control=congestion,
        python=platform.python_version(),
    )

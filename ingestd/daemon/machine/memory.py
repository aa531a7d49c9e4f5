# SPDX-License-Identifier: Apache-2.0
"""Memory that limits, control groups and the machine leave for areas.

Invariants: only reads; a bound names what sets it. Owned by the main thread, at start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from ingestd.daemon.machine.limits import CAP_IPC_LOCK, has_capability
from ingestd.daemon.machine.proc_text import meminfo_number, proc_fields

# The rest is for the process itself, for socket buffers and for everybody else.
MEMORY_PART: Final = 0.5

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
CGROUP_LIMIT_BYTES_MAX: Final = 1 << 60  # version 1 writes a huge number for "none"


class Bound(NamedTuple):
    """Bytes that something leaves for all areas together, and what that is."""

    bytes_count: int
    reason: str


def bounds_now(limit_bytes: int | None) -> list[Bound]:
    """Return what limit, control group and machine leave at this moment, for all areas."""
    bounds = [*_machine_bounds(PROC), *cgroup_bounds(PROC, CGROUPS)]
    if limit_bytes is not None:
        taken_bytes = pinned_by_others(PROC)
        taken = f", of which others of this user hold {taken_bytes}" if taken_bytes else ""
        bounds.append(
            Bound(limit_bytes - taken_bytes, f"RLIMIT_MEMLOCK is {limit_bytes} bytes{taken}")
        )
    return bounds


def pinned_by_others(proc: Path) -> int:
    """Return the bytes that other processes of this user have pinned, as /proc shows them.

    RLIMIT_MEMLOCK counts registered buffers by user (io_uring_register(2)); VmPin of
    proc_pid_status(5) is the same count by process. Who has CAP_IPC_LOCK is not counted.
    """
    own_uid, total = os.getuid(), 0
    for entry in proc.iterdir():
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        try:
            status = (entry / "status").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue  # it has ended meanwhile, or is hidden from us
        fields = proc_fields(status)
        is_own = fields.get("Uid", "").split()[:1] == [str(own_uid)]
        if is_own and "VmPin" in fields and not has_capability(status, CAP_IPC_LOCK):
            total += int(fields["VmPin"].split()[0]) * 1024
    return total


def _machine_bounds(proc: Path) -> list[Bound]:
    text = (proc / "meminfo").read_text(encoding="ascii")
    free_bytes = int(meminfo_number(text, "MemAvailable") * 1024 * MEMORY_PART)
    hugepage_kib = meminfo_number(text, "HugePages_Free") * meminfo_number(text, "Hugepagesize")
    return [Bound(max(free_bytes, hugepage_kib * 1024), "half of the memory that is available")]


def cgroup_bounds(proc: Path, cgroups: Path) -> list[Bound]:
    """Return half of what each memory control group above this process leaves.

    cgroups(7): version 2 has memory.max and memory.current, version 1
    memory.limit_in_bytes and memory.usage_in_bytes. Page cache counts as used,
    although it gives way; so it is taken for free where memory.stat shows it.
    """
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    bounds = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            root, limit, usage = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            left_bytes = _left_bytes(group, limit, usage)
            if left_bytes is not None:
                bounds.append(
                    Bound(int(left_bytes * MEMORY_PART), f"half of what {limit} leaves free")
                )
            if group == root:
                break
    return bounds


def _left_bytes(group: Path, limit: str, usage: str) -> int | None:
    """Return limit less usage of one control group; None: it has no limit, or is not shown."""
    try:
        limit_text = (group / limit).read_text(encoding="ascii").strip()
        usage_bytes = int((group / usage).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if limit_text == "max" or int(limit_text) >= CGROUP_LIMIT_BYTES_MAX:
        return None
    numbers = dict(line.split()[:2] for line in stat.splitlines() if len(line.split()) == 2)
    cache_bytes = int(numbers.get("inactive_file", "0"))
    return int(limit_text) - max(0, usage_bytes - cache_bytes)

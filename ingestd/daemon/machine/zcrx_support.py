# SPDX-License-Identifier: Apache-2.0
"""Prerequisites of zero-copy receive in kernel, privileges and memory, as findings.

Invariants: only reads; what the kernel can be asked is asked, not derived from
its version, which serves as advice only. No state; any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ingestd.core_limits import AREA_HUGEPAGE_BYTES
from ingestd.daemon.machine.limits import (
    CAP_IPC_LOCK,
    STATUS_PATH,
    LockedNeed,
    has_capability,
    memlock_advice,
)
from ingestd.daemon.machine.proc_text import meminfo_number
from ingestd.finding import Finding
from ingestd.sizes import full_size

CAP_NET_ADMIN: Final = 12  # include/uapi/linux/capability.h
PAGE_BYTES: Final = 4096
MEMINFO_PATH: Final = Path("/proc/meminfo")
# "io_uring: don't lose the DEFER_TASKRUN wake up" is in ChangeLog-7.3.2.
WAKE_UP_FIXED: Final = (7, 3, 2)


def kernel_findings(
    features: Mapping[str, bool], *, is_deviceless: bool, rx_buf_bytes: int
) -> Iterator[Finding]:
    """Findings about the features that core.kernel_features() names."""
    if not features.get("defer_taskrun", False) or not features.get("recv_zc", False):
        yield Finding(
            "kernel",
            "fail",
            "this kernel's io_uring has no zero-copy receive",
            "boot Linux 6.15 or newer, built with CONFIG_IO_URING_ZCRX",
        )
        return
    yield Finding("kernel", "ok", "io_uring has zero-copy receive")
    if is_deviceless and not features.get("zcrx_nodev", False):
        yield Finding(
            "device-less mode",
            "fail",
            "this kernel has no zero-copy receive without a device",
            "boot Linux 7.1 or newer, or name an interface",
        )
    if rx_buf_bytes > PAGE_BYTES and not features.get("zcrx_rx_buf_len", False):
        yield Finding(
            "receive buffers",
            "warn",
            f"this kernel has buffers of {PAGE_BYTES} bytes only, not {rx_buf_bytes}",
            "boot Linux 7.0 or newer, or lower engine.rx_buf",
        )
    if not features.get("zcrx_events", False):
        yield Finding(
            "events",
            "warn",
            "this kernel does not report when it runs out of buffers or copies",
            "boot Linux 7.2 or newer to have ingestd_alloc_failures_total and copied bytes counted",
        )
    if not features.get("writev_fixed", False):
        yield Finding(
            "writes",
            "warn",
            "this kernel cannot write several pieces from registered memory",
            "boot Linux 6.15 or newer",
        )


def release_finding(release: str) -> Finding:
    """Return whether a kernel of this release (uname -r) loses wake-ups of io_uring.

    A release that ends in -rc, or a distribution's own kernel, may have fixes that its number
    does not show; so this is advice, for both engines.
    """
    subject = "kernel release"
    fixed = ".".join(map(str, WAKE_UP_FIXED))
    remedy = f"boot Linux {fixed} or newer, or a kernel that has the fixes of ChangeLog-{fixed}"
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        return Finding(subject, "unknown", f"{release!r} is not a number to judge by", remedy)
    number = tuple(int(part or 0) for part in found.groups())
    if number >= WAKE_UP_FIXED:
        return Finding(subject, "ok", f"{release} has the io_uring fixes of {fixed}")
    if number[:2] == WAKE_UP_FIXED[:2]:
        text = f"io_uring of {release} may lose a wake-up, and a worker then sleeps over its work"
        return Finding(subject, "warn", text, remedy)
    text = f"whether io_uring of {release} can lose a wake-up is unknown; {fixed} has a fix for it"
    return Finding(subject, "unknown", text, remedy)


def own_status() -> str:
    """Return the text of /proc/self/status."""
    return STATUS_PATH.read_text(encoding="ascii", errors="replace")


def privilege_findings(status: str) -> Iterator[Finding]:
    """Findings about the capabilities that the text of /proc/PID/status shows."""
    if has_capability(status, CAP_NET_ADMIN):
        yield Finding("CAP_NET_ADMIN", "ok", "it is there")
    else:
        yield Finding(
            "CAP_NET_ADMIN",
            "fail",
            "it is missing, and without it no rx queue can be taken over",
            "run as root, or give the systemd unit AmbientCapabilities=CAP_NET_ADMIN (and"
            " CapabilityBoundingSet= the same): `systemctl edit ingestd`",
        )


def locked_finding(needs: list[LockedNeed], limit_bytes: int | None, status: str) -> Finding:
    """Return whether the areas may be registered; limit_bytes as locked_memory_limit() has it.

    Zero-copy receive pins an area twice, to receive into and to write from.
    """
    subject, needed_bytes = "locked memory", sum(need.bytes_count for need in needs)
    if has_capability(status, CAP_IPC_LOCK):
        return Finding(subject, "ok", "CAP_IPC_LOCK lifts the limit")
    if limit_bytes is None:
        return Finding(subject, "ok", "RLIMIT_MEMLOCK is unlimited")
    if needed_bytes <= limit_bytes:
        return Finding(subject, "ok", f"{limit_bytes} bytes are enough for {needed_bytes}")
    return Finding(
        subject,
        "fail",
        f"the areas need {full_size(needed_bytes)}, and RLIMIT_MEMLOCK allows {limit_bytes} bytes",
        memlock_advice(needed_bytes),
    )


def hugepage_finding(needed_bytes: int, rx_buf_bytes: int, meminfo: str) -> Finding:
    """Return whether areas fit the free hugepages of a text of /proc/meminfo."""
    needed = -(-needed_bytes // AREA_HUGEPAGE_BYTES)
    free = meminfo_number(meminfo, "HugePages_Free")
    if free >= needed:
        return Finding("hugepages", "ok", f"{free} are free, the areas take {needed}")
    why = "larger receive buffers need them" if rx_buf_bytes > PAGE_BYTES else "they save work"
    return Finding(
        "hugepages",
        "warn",
        f"{free} are free, and the areas take {needed}: {why}",
        f"sysctl vm.nr_hugepages={meminfo_number(meminfo, 'HugePages_Total') + needed - free}",
    )

# SPDX-License-Identifier: Apache-2.0
"""Limits of this process: locked memory and descriptors.

Invariants: what is asked of the kernel is only read, but for the soft limits of
descriptors and locked memory, which are raised up to the hard ones. Owned by the
main thread.
"""

from __future__ import annotations

import os
import pwd
import resource
from pathlib import Path
from typing import Final, NamedTuple

from ingestd.daemon.machine.proc_text import proc_fields
from ingestd.errors import ResourceError
from ingestd.sizes import full_size

# include/uapi/linux/capability.h
CAP_IPC_LOCK: Final = 14
STATUS_PATH: Final = Path("/proc/self/status")


class LockedNeed(NamedTuple):
    """Memory that one store's workers register with their rings, bytes."""

    store_name: str
    workers_count: int
    bytes_per_worker: int

    @property
    def bytes_count(self) -> int:
        """For all workers of the store."""
        return self.workers_count * self.bytes_per_worker


def has_capability(status: str, number: int) -> bool:
    """Return whether the text of /proc/PID/status shows a capability as effective.

    proc(5): CapEff is a mask in hexadecimal. Raises ValueError without that line.
    """
    mask = proc_fields(status).get("CapEff")
    if mask is None:
        raise ValueError("no CapEff line")
    return bool(int(mask, 16) >> number & 1)


def locked_memory_limit() -> int | None:
    """Return the bytes that may be locked, or None where there is no limit for us.

    io_uring counts registered buffers against RLIMIT_MEMLOCK of the user, for
    all its processes together, unless CAP_IPC_LOCK is effective. The hard limit
    is what counts, as raise_locked_limit() gets the soft one there.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        return None
    if has_capability(STATUS_PATH.read_text(encoding="ascii", errors="replace"), CAP_IPC_LOCK):
        return None
    return hard


def raise_locked_limit() -> None:
    """Raise the soft limit of locked memory to the hard one, which anybody may."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def check_locked_memory(needs: list[LockedNeed], limit_bytes: int | None) -> None:
    """Raise ResourceError, with the numbers, where the areas do not fit the limit."""
    needed_bytes = sum(need.bytes_count for need in needs)
    if limit_bytes is None or needed_bytes <= limit_bytes:
        return
    parts = ", ".join(
        f'store "{need.store_name}": {need.workers_count} x {need.bytes_per_worker}'
        for need in needs
    )
    raise ResourceError(
        f"the areas need {needed_bytes} bytes of locked memory ({parts}), and RLIMIT_MEMLOCK"
        f" allows {limit_bytes}: {memlock_advice(needed_bytes)}"
    )


def memlock_advice(needed_bytes: int | None) -> str:
    """Return how to get by with locked memory, as the end of a sentence.

    needed_bytes: what the areas lock in all, where that is known. The limit that is
    named is never below the one in force: where that would do, somebody else of the
    same user has the rest, as it counts all processes of a user together.
    """
    limit_bytes = locked_memory_limit()
    wanted_bytes = needed_bytes
    others = ""
    if needed_bytes is not None and limit_bytes is not None and needed_bytes <= limit_bytes:
        wanted_bytes = limit_bytes + needed_bytes
        others = "stop what else of this user has locked memory, or "
    kib = "unlimited" if wanted_bytes is None else str(-(-wanted_bytes // 1024))
    size = "" if wanted_bytes is None else f" for {full_size(wanted_bytes)}"
    smaller = 'make the stores\' area smaller, or leave it at "auto"'
    if os.geteuid() == 0:
        return (
            f"{others}set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l {kib}`{size}"
            f" in the shell that starts ingestd, or {smaller}"
        )
    return (
        f"{others}{smaller}; only root can raise the limit{size}: by LimitMEMLOCK=infinity in the"
        f' systemd unit, or a line "{_user_name()} hard memlock {kib}" in'
        " /etc/security/limits.conf, which counts from the next login on"
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without an entry, as containers have
        return str(os.geteuid())


def raise_descriptor_limit(needed_count: int) -> int:
    """Raise the soft limit of descriptors if need be; return the limit that then holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed_count:
        return needed_count if soft == resource.RLIM_INFINITY else soft
    wanted = needed_count if hard == resource.RLIM_INFINITY else min(needed_count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted

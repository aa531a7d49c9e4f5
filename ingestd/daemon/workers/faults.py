# SPDX-License-Identifier: Apache-2.0
"""Errors of the core's system calls, worded for users.

Invariants: this is the only place that words an errno of the core; each error
names the object and the remedy. No state; any thread may call.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.daemon.machine.limits import memlock_advice
from ingestd.errors import (
    ConfigError,
    EngineError,
    IngestdError,
    ResourceError,
    SystemCallError,
)

if TYPE_CHECKING:
    from ingestd.core._core import CoreFault

IO_URING_DISABLED_PATH: Final = Path("/proc/sys/kernel/io_uring_disabled")


class _Rule(NamedTuple):
    """The meaning of a call's errno: class of the error, and the remedy."""

    call: str  # beginning of the call's name; "": any
    errnos: tuple[int, ...]
    error: type[IngestdError]
    remedy: str


# What the kernel means when it registers an rx queue for zero-copy receive.
_REGISTER: Final = "io_uring_register_ifq"
_ZCRX_RULES: Final = (
    _Rule(
        _REGISTER,
        (errno.EPERM,),
        EngineError,
        "run as root, or give the systemd unit AmbientCapabilities=CAP_NET_ADMIN",
    ),
    _Rule(
        _REGISTER,
        (errno.EINVAL,),
        EngineError,
        "header split may be off (`ingestd nic apply {interface}` turns it on), or an XDP program"
        " in the way; `ingestd doctor` says which",
    ),
    _Rule(_REGISTER, (errno.ENODEV,), EngineError, "name an interface that `ip -br link` shows"),
    _Rule(
        _REGISTER,
        (errno.EOPNOTSUPP,),
        EngineError,
        "use a network card whose driver supports zero-copy receive (`ethtool -i {interface}`"
        ' names it), or engine.kind = "recv"',
    ),
    # Not an EngineError, as those keep the service manager from trying again.
    _Rule(
        _REGISTER,
        (errno.EEXIST, errno.EBUSY),
        ResourceError,
        "another process still holds the queue: stop it, name another in engine.queues, or raise"
        " engine.queue_retry_s",
    ),
    _Rule(
        _REGISTER,
        (errno.ERANGE,),
        EngineError,
        "name an rx queue that the interface has (`ethtool -l {interface}`), or lower"
        " engine.refill_entries",
    ),
    _Rule(_REGISTER, (errno.ENOMEM,), ResourceError, "{memlock}"),
)

# The first that fits counts.
_RULES: Final = (
    _Rule(
        "",
        (errno.EMFILE, errno.ENFILE),
        ResourceError,
        "raise LimitNOFILE in the systemd unit, or `ulimit -n`",
    ),
    *_ZCRX_RULES,
    _Rule("io_uring_register_buffers", (errno.ENOMEM, errno.EPERM), ResourceError, "{memlock}"),
    _Rule(
        "io_uring_register_buffers",
        (errno.E2BIG,),
        ConfigError,
        "make the store's area smaller, as one registered buffer holds at most 1 GiB",
    ),
    _Rule(
        "io_uring_register_buffers",
        (errno.EFAULT,),
        ResourceError,
        "the kernel found no memory for all of the area: free some, or lower the store's area; "
        "with hugepages, set more aside (sysctl vm.nr_hugepages) or wait until the daemon "
        "before has given its own back",
    ),
    _Rule(
        "io_uring_",
        (errno.EPERM, errno.EACCES),
        EngineError,
        "{disabled}",
    ),
    _Rule(
        "io_uring_",
        (errno.ENOSYS, errno.EINVAL),
        EngineError,
        "use Linux 6.1 or newer with CONFIG_IO_URING, as this kernel lacks what was asked for",
    ),
    _Rule("io_uring_", (errno.ENOMEM,), ResourceError, "{memlock}"),
    _Rule(
        "area",
        (errno.EINVAL,),
        ConfigError,
        "make the store's area larger, or write_bytes_max or writes_in_flight_max smaller",
    ),
    _Rule(
        "mmap",
        (errno.E2BIG,),
        ConfigError,
        "make the store's area or writes_in_flight_max smaller, as area and the worker's own"
        " part behind it must fit 1 GiB",
    ),
    _Rule(
        "",
        (errno.ENOMEM,),
        ResourceError,
        "make the store's area or flows_max smaller, or give the machine or the unit"
        " (MemoryMax) more memory",
    ),
    _Rule(
        "sched_setaffinity",
        (errno.EINVAL, errno.EPERM),
        ConfigError,
        "name a CPU in the store's cpus that this process may use (taskset -cp shows them)",
    ),
    _Rule(
        "pthread_setaffinity_np",
        (errno.EINVAL, errno.EPERM),
        ConfigError,
        "name a CPU in the store's cpus that this process may use (taskset -cp shows them)",
    ),
)


def fault_to_error(
    fault: CoreFault, subject: str, locked_bytes: int | None = None, interface: str = "IFACE"
) -> IngestdError:
    """Return the error that a failed call of the core is for its users.

    subject: whom it befell, such as "worker data-0"; locked_bytes: what the
    worker registers with its ring, for advice about RLIMIT_MEMLOCK; interface:
    the one whose rx queue it takes over, for advice about that.
    """
    code = fault.errno or 0
    what = f"{subject}: {fault.call} for {fault.object_name} failed ({os.strerror(code)})"
    for rule in _RULES:
        if fault.call.startswith(rule.call) and code in rule.errnos:
            remedy = rule.remedy.format(
                memlock=memlock_advice(locked_bytes),
                disabled=_io_uring_advice(),
                interface=interface,
            )
            return rule.error(f"{what}: {remedy}")
    return SystemCallError(f"{what}: the kernel's log (dmesg) may say why")


def _io_uring_advice() -> str:
    """The obstacle between this process and io_uring; the sysctl is of Linux 6.6."""
    try:
        value = IO_URING_DISABLED_PATH.read_text(encoding="ascii").strip()
    except OSError:
        value = "0"
    if value == "1":
        return (
            "kernel.io_uring_disabled is 1: set it to 0, or put the user into the group"
            " that the sysctl kernel.io_uring_group names"
        )
    if value == "2":
        return "kernel.io_uring_disabled is 2: set it to 0 with sysctl"
    return "let the container's seccomp profile or the security module allow io_uring"

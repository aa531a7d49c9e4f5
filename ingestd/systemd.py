# SPDX-License-Identifier: Apache-2.0
"""The service manager and the journal: the only module that knows systemd.

Invariants:
 - Without NOTIFY_SOCKET every notification is a no-op that returns False.
 - A notification never waits and never raises: a manager that does not read gets
   no more. The journal may be waited for, with the interpreter free meanwhile; so
   the thread that writes the log sends to it, and no other.

Both protocols are a few datagrams (sd_notify(3), systemd.io/JOURNAL_NATIVE_PROTOCOL)
and are spoken here, as systemd's Python bindings wait with the interpreter held:
a manager or a journal that hangs would stop every thread.

Any thread may call. The environment variables read here are systemd's
protocol, not settings: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

JOURNAL_FIELD_PREFIX: Final = "INGESTD_"
JOURNAL_PATH: Final = "/run/systemd/journal/socket"
STATUS_CHARS_MAX: Final = 500

# Priorities of syslog(3), which the journal uses.
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_PRIORITY_UNKNOWN: Final = 5  # notice


def notify(*assignments: str) -> bool:
    """Send assignments such as "READY=1" to the service manager; return whether one took them."""
    assert all("=" in item and "\n" not in item for item in assignments), assignments
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(assignments).encode(errors="replace"), address)
        return True
    # The manager or its socket is gone, or it does not read: nobody is left to notify.
    return False


def notify_ready(status: str) -> bool:
    """Notify that everything is in place, or that a reload is over."""
    return notify("READY=1", _status(status))


def notify_status(status: str) -> bool:
    """Show one line in `systemctl status`."""
    return notify(_status(status))


def notify_reloading() -> bool:
    """Notify that a reload begins; notify_ready() ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_stopping(status: str, time_needed_s: float) -> bool:
    """Notify that the process ends, and for how long the manager should wait for it."""
    return notify("STOPPING=1", _status(status), f"EXTEND_TIMEOUT_USEC={int(time_needed_s * 1e6)}")


def notify_watchdog() -> bool:
    """Notify that the process is alive."""
    return notify("WATCHDOG=1")


def watchdog_timeout_s() -> float | None:
    """Return within which time notify_watchdog() must be called again; None: no watchdog."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1e6


def notify_starting(status: str, time_needed_s: float) -> bool:
    """Notify how far the start is, and for how long the manager should wait for more."""
    return notify(_status(status), f"EXTEND_TIMEOUT_USEC={int(time_needed_s * 1e6)}")


def journal_sink(
    identifier: str = "ingestd", path: str = JOURNAL_PATH
) -> Callable[[dict[str, Any]], None]:
    """Return a function that puts one event into the journal.

    The event is a dict with "event", "level", "message" and fields of its own,
    which become INGESTD_NAME. It waits while the journal's socket is full; raises
    OSError where the journal refuses. Where there is none, it does nothing.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def sink(event: dict[str, Any]) -> None:
        data = _journal_datagram(event, identifier)
        try:
            sock.sendto(data, path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            _send_sealed(sock, path, data)

    return sink


def _send_sealed(sock: socket.socket, path: str, data: bytes) -> None:
    """Send what no datagram takes as a file that cannot change any more."""
    fd = os.memfd_create("ingestd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        sock.sendmsg([], [rights], 0, path)
    finally:
        os.close(fd)


def _journal_datagram(event: dict[str, Any], identifier: str) -> bytes:
    """One entry; a value with a newline in it has its length before it."""
    data = bytearray()
    for name, value in _journal_fields(event, identifier):
        raw = value.encode(errors="backslashreplace")
        if b"\n" in raw:
            data += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        else:
            data += name.encode() + b"=" + raw + b"\n"
    return bytes(data)


def _journal_fields(event: dict[str, Any], identifier: str) -> list[tuple[str, str]]:
    fields = [
        ("MESSAGE", str(event["message"])),
        ("PRIORITY", str(_PRIORITIES.get(str(event.get("level")), _PRIORITY_UNKNOWN))),
        ("SYSLOG_IDENTIFIER", identifier),
    ]
    own = (item for item in event.items() if item[0] not in ("message", "level"))
    return fields + [(f"{JOURNAL_FIELD_PREFIX}{key.upper()}", str(value)) for key, value in own]


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:STATUS_CHARS_MAX]

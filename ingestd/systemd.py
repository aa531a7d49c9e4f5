# SPDX-License-Identifier: Apache-2.0
"""The service manager and the journal: the only module that knows systemd.

Invariants:
 - Without NOTIFY_SOCKET every notification is a no-op that returns False.
 - Nothing here raises for what the service manager or the journal does.

Any thread may call. The environment variables read here are systemd's
protocol, not settings: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from systemd import daemon as _daemon

JOURNAL_FIELD_PREFIX: Final = "INGESTD_"
STATUS_CHARS_MAX: Final = 500

# Priorities of syslog(3), which the journal uses.
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_PRIORITY_UNKNOWN: Final = 5  # notice


def notify(*assignments: str) -> bool:
    """Send assignments such as "READY=1" to the service manager; tell whether one took them."""
    assert all("=" in item and "\n" not in item for item in assignments), assignments
    try:
        return bool(_daemon.notify("\n".join(assignments)))
    except OSError:
        # The manager is gone or its socket is: nobody is left who could be told.
        return False


def notify_ready(status: str) -> bool:
    """Tell that everything is in place, or that a reload is over."""
    return notify("READY=1", _status(status))


def notify_status(status: str) -> bool:
    """Show one line in `systemctl status`."""
    return notify(_status(status))


def notify_reloading() -> bool:
    """Tell that a reload begins; notify_ready() ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_stopping(status: str, time_needed_s: float) -> bool:
    """Tell that the process ends, and for how long the manager should wait for it."""
    return notify("STOPPING=1", _status(status), f"EXTEND_TIMEOUT_USEC={int(time_needed_s * 1e6)}")


def notify_watchdog() -> bool:
    """Tell that the process is alive."""
    return notify("WATCHDOG=1")


def watchdog_timeout_s() -> float | None:
    """Return within which time notify_watchdog() must be called again; None: no watchdog."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1e6


def journal_sink(identifier: str = "ingestd") -> Callable[[dict[str, Any]], None]:
    """Return a function that puts one event into the journal.

    The event is a dict with "event", "level", "message" and fields of its own,
    which become INGESTD_NAME. Raises OSError where the journal refuses.
    """
    # Only where it is used: the daemon stays small without it.
    from systemd import journal

    def sink(event: dict[str, Any]) -> None:
        journal.sendv(*_journal_fields(event, identifier))

    return sink


def _journal_fields(event: dict[str, Any], identifier: str) -> list[str]:
    fields = [
        f"MESSAGE={event['message']}",
        f"PRIORITY={_PRIORITIES.get(str(event.get('level')), _PRIORITY_UNKNOWN)}",
        f"SYSLOG_IDENTIFIER={identifier}",
    ]
    own = (item for item in event.items() if item[0] not in ("message", "level"))
    return fields + [f"{JOURNAL_FIELD_PREFIX}{key.upper()}={value}" for key, value in own]


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:STATUS_CHARS_MAX]

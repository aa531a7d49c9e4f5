# SPDX-License-Identifier: Apache-2.0
"""Starting and joining the daemon's threads.

Invariants: no thread of the daemon takes signals, or keeps the process from
ending; one that cannot be had is an error of the machine, not a bug. Any thread
may call.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable

from ingestd.errors import ResourceError


def block_signals() -> None:
    """Leave all signals to the main thread; every other thread calls this first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises ResourceError where none can be had."""
    assert thread.daemon, thread.name
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceError(
            f"thread {thread.name} could not be started ({error}): raise TasksMax of the unit,"
            " `ulimit -u` or the memory that the daemon may take"
        ) from None


def join_threads(threads: Iterable[threading.Thread], timeout_s: float) -> list[str]:
    """Wait for all together, those that were started; return the names of those that live on."""
    deadline_s = time.monotonic() + timeout_s
    begun = [thread for thread in threads if thread.ident is not None]
    for thread in begun:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return [thread.name for thread in begun if thread.is_alive()]

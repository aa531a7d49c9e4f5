# SPDX-License-Identifier: Apache-2.0
"""A log that goes through a pipe whose reader stops reading, as a stuck shipper does.

Invariant: the pipe stays open; whoever writes to it waits, and gets no error.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PIPE_BYTES: Final = 4096  # the least; the usual 64 KiB only fill later
POLL_INTERVAL_S: Final = 0.05


@dataclass
class StuckLog:
    """Give wrapper and log to a Daemon; until stick() the log's file has what it says."""

    log: Path
    fifo: Path
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Runs the daemon with its standard error in the pipe."""
        return ("bash", "-c", f'exec "$@" 2>{self.fifo}', "bash")

    def stick(self) -> None:
        """Read no more."""
        self._stop.set()

    def copy(self, fd: int) -> None:
        """Write what comes to the file, until it is to stop."""
        with self.log.open("ab", buffering=0) as log:
            while not self._stop.is_set():
                if select.select([fd], [], [], POLL_INTERVAL_S)[0]:
                    log.write(os.read(fd, PIPE_BYTES))


@contextmanager
def stuck_log(directory: Path) -> Iterator[StuckLog]:
    """A log in the directory, which is read so far."""
    made = StuckLog(directory / "daemon.log", directory / "log.fifo")
    os.mkfifo(made.fifo)
    fd = os.open(made.fifo, os.O_RDWR | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    thread = threading.Thread(target=made.copy, args=(fd,))
    thread.start()
    try:
        yield made
    finally:
        made.stick()
        thread.join()
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""Daemons for tests that start hundreds: forked from a process that has imported all of ingestd.

Invariant: what runs is `ingestd serve` from its first line on; only Python's
start and the imports are done once instead of every time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import patch

from ingestd.cli import main
from support.daemon import Daemon

# What serving imports when it runs; to be had before the fork.
IMPORTED_LATE: Final = ("ingestd.daemon.main", "ingestd.core._core", "ingestd.cli")


def serve(arguments: list[str], log: str) -> None:
    """Be `ingestd`, with both outputs in a file; called in a process of its own."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for output in (1, 2):
        os.dup2(fd, output)
    sys.exit(main(arguments))


@dataclass
class _Process:
    """What Daemon asks of its process."""

    forked: ForkServerProcess

    @property
    def returncode(self) -> int | None:
        return self.forked.exitcode

    def poll(self) -> int | None:
        return self.forked.exitcode

    def kill(self) -> None:
        self.forked.kill()

    def send_signal(self, number: int) -> None:
        assert self.forked.pid is not None
        os.kill(self.forked.pid, number)

    def wait(self, timeout_s: float | None = None) -> int:
        self.forked.join(timeout_s)
        assert self.forked.exitcode is not None, f"it runs on after {timeout_s} s"
        return self.forked.exitcode


@dataclass
class ForkedDaemon(Daemon):
    """A Daemon that is ready in a fraction of the time; without wrapper or environment."""

    def _launch(self, command: list[str]) -> None:
        assert not self.wrapper
        assert not self.environment
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED_LATE))
        forked = context.Process(target=serve, args=(command[1:], str(self.log_path)))
        # The working directory may hold a source tree, in which the core is not compiled.
        with patch.dict(os.environ, PYTHONSAFEPATH="1"):
            forked.start()
        self.process = cast(Any, _Process(forked))

    def start_anew(self, log: Path) -> None:
        """Start once more, with a log of its own."""
        self.log = log
        self.start()

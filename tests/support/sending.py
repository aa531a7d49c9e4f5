# SPDX-License-Identifier: Apache-2.0
"""`ingestd send` as the tests run it, and directories for it to send.

Invariant: every wait has a limit.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ingestd.cli.main import main
from support.daemon import PROGRAM
from support.payload import Payload

WAIT_S: Final = 30.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait; fail when it takes too long."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.005)


def send(address: str, *arguments: str | Path) -> int:
    """Run the command in this process; return its exit code."""
    return main(["send", *map(str, arguments), "--to", address])


def start_send(address: str, *arguments: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start the command; both its outputs are pipes."""
    command = [PROGRAM, "send", *map(str, arguments), "--to", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams)


def directory(path: Path, count: int, size: int = 1000) -> Path:
    """Make a directory of files named by number, each of other bytes."""
    path.mkdir()
    for number in range(count):
        (path / f"{number:05}").write_bytes(Payload(number, size).data())
    return path

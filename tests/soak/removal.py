# SPDX-License-Identifier: Apache-2.0
"""Removing flows by `ingestd rm`, where this ingestd has that command."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from soak.ledger import Ledger
from support.daemon import PROGRAM

REMOVAL_TIMEOUT_S: Final = 60.0


@functools.cache
def is_there() -> bool:
    """Whether `ingestd rm` exists."""
    return subprocess.run([PROGRAM, "rm", "--help"], capture_output=True).returncode == 0


def remove(ledger: Ledger, store: Path, flows: Sequence[str]) -> int:
    """Ask for flows to be removed, each by a command; return how many went.

    A flow that is being received is refused, and stays. Of one whose command
    failed otherwise nothing is known: it may go.
    """
    count = 0
    for flow in flows:
        ledger.note_removal([flow], "asked")
        done = subprocess.run(
            [PROGRAM, "rm", str(store), flow], capture_output=True, timeout=REMOVAL_TIMEOUT_S
        )
        if done.returncode == 0:
            ledger.note_removal([flow], "done")
            count += 1
    return count

# SPDX-License-Identifier: Apache-2.0
"""Removing flows by `ingestd rm`, where this ingestd has that command."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from soak.ledger import Ledger
from support.daemon import PROGRAM

RM_TIMEOUT_S: Final = 120.0
# Exit codes: the flow is being received; there is no such flow.
AS_IT_WAS: Final = {16, 10}


@functools.cache
def is_there() -> bool:
    """Return whether `ingestd rm` exists."""
    return subprocess.run([PROGRAM, "rm", "--help"], capture_output=True).returncode == 0


def remove(ledger: Ledger, store: Path, flows: Sequence[str]) -> int:
    """Ask for flows to be removed, in one command; return how many went.

    What the command calls removed is gone for good. A flow that is refused, as it is
    being received, or is not known any more, is as it was; of others nothing is known.
    """
    if not flows:
        return 0
    ledger.note_removal(flows, "asked")
    done = subprocess.run(
        [PROGRAM, "rm", str(store), *flows], capture_output=True, text=True, timeout=RM_TIMEOUT_S
    )
    removed = re.findall(r"^flow (\S+): removed", done.stdout, re.MULTILINE)
    others = sorted(set(flows) - set(removed))
    assert set(removed) <= set(flows), done
    assert bool(done.returncode) == bool(others), done
    ledger.note_removal(removed, "done")
    if len(others) == 1 and done.returncode in AS_IT_WAS:  # of several, it reports the first
        ledger.note_removal(others, "")
    return len(removed)

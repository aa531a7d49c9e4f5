# SPDX-License-Identifier: Apache-2.0
"""The identity of what a path leads to, so that two names of one thing are known to be one.

Invariant: asks the file system, changes nothing. No state; any thread may call.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """Equal for two paths exactly if they lead to the same device or file."""

    kind: str  # "device", "file", or "path" while there is neither
    text: str
    numbers: tuple[int, ...]


def identity(path: str) -> Identity:
    """Return what the path leads to; block devices are known by number, not by node."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return Identity("path", str(Path(path).absolute()), ())
    if stat.S_ISBLK(status.st_mode):
        return Identity("device", "", (status.st_rdev,))
    return Identity("file", "", (status.st_dev, status.st_ino))

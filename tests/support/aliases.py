# SPDX-License-Identifier: Apache-2.0
"""Other names of a store for tests: loop devices over its file, and second device nodes.

Invariant: leaving a context detaches and removes what it made; where the machine does not let
us, the test is skipped as support/loop.py says.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.loop import cannot, run


@contextmanager
def loop_over(backing: Path, *flags: str) -> Iterator[Path]:
    """Yield a loop device over a file that is there and stays."""
    command = ["losetup", "--find", "--show", *flags, str(backing)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if found.returncode != 0:
        cannot(f"no loop device can be had here: {found.stderr.strip()}")
    device = Path(found.stdout.strip())
    hold_fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        run("losetup", "--detach", device)  # once the last one has closed it
        yield device
    finally:
        os.close(hold_fd)


@contextmanager
def second_node(device: Path, node: Path) -> Iterator[Path]:
    """Yield another node of a block device, such as a container has."""
    try:
        os.mknod(node, stat.S_IFBLK | 0o600, device.stat().st_rdev)
    except PermissionError:
        cannot("no device node can be made here")
    try:
        yield node
    finally:
        node.unlink()

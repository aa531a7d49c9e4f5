# SPDX-License-Identifier: Apache-2.0
"""Running the host's programs: one place for time limits and for words when they fail.

Invariant: no program runs without a time limit, and none reads the caller's standard input.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmlab.errors import VmError

OUTPUT_TAIL_CHARS = 2000


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program and return what it wrote to standard output.

    Raises VmError when it cannot be started, takes longer than `timeout_s` seconds or exits
    with anything but 0; the error carries the end of what it wrote.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise VmError(f"{command[0]} is not installed on this host") from error
    except subprocess.TimeoutExpired as error:
        raise VmError(f"{command[0]} took longer than {timeout_s:.0f} s and was ended") from error
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-OUTPUT_TAIL_CHARS:].strip()
        raise VmError(f"{command[0]} exited with {done.returncode}: {tail}")
    return done.stdout

# SPDX-License-Identifier: Apache-2.0
"""How a command of ingestd must fail: its exit code and one sentence, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess

from ingestd.errors import IngestdError
from support.daemon import PROGRAM
from support.patience import WAIT_S

ERROR_PREFIX = "ingestd: error: "


def refusal(
    error: type[IngestdError], *arguments: str | os.PathLike[str], wrapper: tuple[str, ...] = ()
) -> str:
    """Run a command that must end with the error's exit code; return its one sentence.

    A daemon's log lines, which are JSON, may come before the sentence.
    """
    process = subprocess.Popen(
        [*wrapper, PROGRAM, *map(os.fspath, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise
    assert "Traceback" not in errors, errors
    assert process.returncode == error.exit_code, (process.returncode, errors)
    lines = [line for line in errors.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert lines[0].startswith(ERROR_PREFIX), lines
    return lines[0].removeprefix(ERROR_PREFIX)


def serve_refusal(error: type[IngestdError], store: os.PathLike[str], *flags: str) -> str:
    """The same for a daemon that must not start, on a port that the kernel chooses."""
    return refusal(error, "serve", "--store", store, "--listen", "127.0.0.1:0", *flags)

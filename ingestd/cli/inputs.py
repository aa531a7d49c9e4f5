# SPDX-License-Identifier: Apache-2.0
"""Input of commands: files, and standard input by the name of STANDARD_INPUT.

Invariant: nothing is read ahead. No state; any thread may call.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO, Final, cast

from ingestd.client.link import SHORTAGES
from ingestd.errors import ResourceError, UsageError

STANDARD_INPUT: Final = "-"


def open_input(path: str, *, is_file: bool = False) -> AbstractContextManager[BinaryIO]:
    """Open a file, or what STANDARD_INPUT stands for; is_file: it must be a regular one.

    A file that standard output goes to would grow by the reports of sending it.

    Raises UsageError, or ResourceError if descriptors run out.
    """
    if path == STANDARD_INPUT:
        return nullcontext(standard_input())
    try:
        # a pipe that has taken a file's place must not be waited for
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if is_file else 0)
        reader = io.FileIO(path, opener=lambda name, _: os.open(name, flags))
    except OSError as error:
        kind = ResourceError if error.errno in SHORTAGES else UsageError
        raise kind(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        _check_input(path, os.fstat(reader.fileno()), is_file=is_file)
    except BaseException:
        reader.close()
        raise
    return cast("BinaryIO", reader)


def _check_input(path: str, there: os.stat_result, *, is_file: bool) -> None:
    if not stat.S_ISREG(there.st_mode):
        if is_file:
            raise UsageError(f"{path}: is not a file any more")
        return
    try:
        here = os.fstat(sys.stdout.fileno())
    except OSError:  # it is none of the system's
        return
    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
        raise UsageError(f"{path}: standard output goes to this file: send it to another")


def standard_input() -> BinaryIO:
    """Return standard input. Raises UsageError if there is none."""
    if sys.stdin is None:
        raise UsageError("-: standard input is closed: name a file")
    return sys.stdin.buffer

# SPDX-License-Identifier: Apache-2.0
"""What commands read: files, and standard input by the name of STANDARD_INPUT.

Invariant: nothing is read ahead. No state; any thread may call.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

from ingestd.errors import UsageError

STANDARD_INPUT: Final = "-"


def open_input(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a file, or what STANDARD_INPUT stands for. Raises UsageError.

    A file that standard output goes to would grow by what is told of sending it.
    """
    if path == STANDARD_INPUT:
        return nullcontext(standard_input())
    try:
        if _is_standard_output(path):
            raise UsageError(f"{path}: standard output goes to this file: send it to another")
        return Path(path).open("rb", buffering=0)
    except OSError as error:
        hint = "; --protocol ingest sends what is in it" if Path(path).is_dir() else ""
        raise UsageError(f"{path}: cannot be opened: {error.strerror}{hint}") from None


def _is_standard_output(path: str) -> bool:
    there = Path(path).stat()
    if sys.stdout is None or not stat.S_ISREG(there.st_mode):
        return False
    try:
        here = os.fstat(sys.stdout.fileno())
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def standard_input() -> BinaryIO:
    """Return standard input. Raises UsageError if there is none."""
    if sys.stdin is None:
        raise UsageError("-: standard input is closed: name a file")
    return sys.stdin.buffer


def bytes_ahead(reader: BinaryIO) -> int | None:
    """Return how much there is to send; None where only the end will tell."""
    try:
        here = reader.tell()
        size = reader.seek(0, 2)
        reader.seek(here)
    except OSError:
        return None
    return size - here if size > here else None

# SPDX-License-Identifier: Apache-2.0
"""The files that a command is to send, one after the other.

Invariants: memory does not grow with the number of files; what cannot be sent is
reported by an item of its own and does not stop the others. A directory's entries come
in the order of their names, SORTED_COUNT at a time.

Owned by whoever iterates; one thread at a time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from ingestd.cli.inputs import STANDARD_INPUT
from ingestd.cli.output import note
from ingestd.errors import IngestdError, UsageError

SORTED_COUNT: Final = 4096  # entries of a directory that are held, and sorted, at once


class Input(NamedTuple):
    """A file to send, or what could not be looked into."""

    path: str  # as open_input() takes it
    name: str | None  # of its flow
    is_found: bool  # in a directory, so that it has to be a file
    error: IngestdError | None = None


def inputs(files: Sequence[str]) -> Iterator[Input]:
    """Yield what the arguments of a command stand for; a directory for what is in it."""
    for file in files:
        if file == STANDARD_INPUT:
            yield Input(file, None, is_found=False)
        elif Path(file).is_dir():
            yield from _walk(file)
        else:
            yield Input(file, Path(file).name, is_found=False)


def check_inputs(files: Sequence[str]) -> None:
    """Raise UsageError for an argument that is not there, before anything is sent."""
    for file in files:
        if file == STANDARD_INPUT:
            continue
        try:
            mode = Path(file).stat().st_mode
            if not stat.S_ISFIFO(mode) and not os.access(file, os.R_OK):
                raise PermissionError(0, "Permission denied")
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or error
            raise UsageError(f"{file}: cannot be opened: {text}") from None


def _walk(top: str) -> Iterator[Input]:
    """Yield the files below a directory; their names begin with its own."""
    stack = [(top, Path(top).resolve().name, _entries(top))]
    while stack:
        directory, name, entries = stack[-1]
        try:
            entry = next(entries, None)
        except OSError as error:
            entry = None
            yield _failed(directory, error)
        if entry is None:
            stack.pop()
            continue
        name = f"{name}/{entry.name}" if name else entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                stack.append((entry.path, name, _entries(entry.path)))
            elif stat.S_ISREG(entry.stat().st_mode):
                yield Input(entry.path, name, is_found=True)
            else:
                note(f"{entry.path}: is not a file: left out")
        except OSError as error:
            yield _failed(entry.path, error)


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as listing:
        while len(some := list(islice(listing, SORTED_COUNT))) == SORTED_COUNT:
            yield from sorted(some, key=lambda entry: entry.name)
    yield from sorted(some, key=lambda entry: entry.name)  # the descriptor is closed by now


def _failed(path: str, error: OSError) -> Input:
    problem = UsageError(f"{path}: cannot be read: {error.strerror or error}")
    return Input(path, None, is_found=True, error=problem)

# SPDX-License-Identifier: Apache-2.0
"""`ingestd cat`: the bytes of one flow, to standard output or a file.

Invariants: nothing but the flow's bytes goes to the output, and the store is
never the output. Owned by the main thread.
"""

from __future__ import annotations

import os
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.cli.output import note, progress_bar, write_all
from ingestd.errors import UsageError
from ingestd.identity import identity
from ingestd.sizes import full_size

if TYPE_CHECKING:
    from ingestd.store.flows import Flow

PROGRESS_BYTES_MIN: Final = 64 * 1024 * 1024


class _Output(NamedTuple):
    fd: int
    name: str


def run_cat(arguments: Namespace) -> int:
    """Write the bytes [offset, offset + length) of a flow, as far as they are there."""
    from ingestd.store.image import read_image
    from ingestd.store.reader import read_flow

    with read_image(arguments.store) as image:
        flow = image.find(arguments.flow)
        offset = flow.first_offset if arguments.offset is None else arguments.offset
        pieces = read_flow(image, flow, offset, arguments.length)
        length = _length(flow, offset, arguments.length)
        with (
            _open_output(arguments) as output,
            progress_bar(flow.flow, length, wanted=_is_bar_wanted(output, length)) as advance,
        ):
            for piece in pieces:
                write_all(output.fd, piece, output.name)
                advance(len(piece))
    if flow.first_offset:
        note(f"flow {flow.flow} begins at byte {flow.first_offset}: what was before is overwritten")
    if flow.state != "sealed":
        note(f"flow {flow.flow} is {flow.state}: {full_size(flow.bytes)} of it are there")
    return 0


def _length(flow: Flow, offset: int, length_max: int | None) -> int:
    """How many bytes there will be."""
    ahead = flow.bytes - offset
    return ahead if length_max is None else min(ahead, length_max)


@contextmanager
def _open_output(arguments: Namespace) -> Iterator[_Output]:
    path: str | None = arguments.output
    if path is None:
        if sys.stdout is None:
            raise UsageError("standard output is closed: name a file with -o")
        yield _Output(sys.stdout.fileno(), "standard output")
        return
    if identity(path) == identity(arguments.store):
        raise UsageError(f"-o {path}: is the store itself: name another file")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UsageError(f"-o {path}: cannot be opened: {error.strerror}") from None
    try:
        yield _Output(fd, path)
    finally:
        os.close(fd)


def _is_bar_wanted(output: _Output, length: int) -> bool:
    """Into a file only: on a terminal, and through a pipe to one, bar and bytes would mix."""
    return length >= PROGRESS_BYTES_MIN and stat.S_ISREG(os.fstat(output.fd).st_mode)

# SPDX-License-Identifier: Apache-2.0
"""Keeping what a command writes out of the store that it reads.

Invariants: an output is compared with the store by what both lie on, before the first byte is
written to it and before it is cut; standard streams are looked at whenever a store is opened,
whatever for. No state; any thread may call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from typing import Final

from ingestd.errors import UsageError
from ingestd.store.device.stacking import Layer, layers_of, overlap

_STREAMS: Final = {1: "standard output", 2: "standard error"}


def refuse_streams(path: str, layers: Sequence[Layer]) -> None:
    """Raise UsageError if this process's standard output or error goes to the store.

    Such a stream leads to nowhere from then on, so that not even the error reaches the store.
    """
    into = [fd for fd in _STREAMS if _goes_to(fd, layers)]
    if not into:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for fd in into:
        os.dup2(nowhere, fd)
    os.close(nowhere)
    raise UsageError(f"{_STREAMS[into[0]]} goes to the store {path} itself: name another file")


def refuse_streams_to(path: str) -> None:
    """Do as refuse_streams() for a store that is still to be opened, if it is there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return  # whoever opens it reports why it cannot be
    try:
        layers = layers_of(fd, path)
    finally:
        os.close(fd)
    refuse_streams(path, layers)


def is_output_of(fd: int, layers: Sequence[Layer]) -> bool:
    """Return whether what is written to an open file could end up in the store."""
    return overlap(layers_of(fd), layers)


def _goes_to(fd: int, layers: Sequence[Layer]) -> bool:
    with contextlib.suppress(OSError):  # it is closed
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return is_output_of(fd, layers)
    return False

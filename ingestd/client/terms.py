# SPDX-License-Identifier: Apache-2.0
"""Terms that a flow is sent under, and the texts and bytes that callers and daemons hand in.

Invariant: nothing here waits or owns anything. No state; any thread may call.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ingestd.address import Address
from ingestd.client.key import Key
from ingestd.errors import ResourceError, SystemCallError, UsageError
from ingestd.protocol.blocks import Resume

NotifyFn = Callable[[str], None]


class Terms(NamedTuple):
    """The caller's request; connect() documents it."""

    address: Address
    flow: str
    resume: Resume
    name: str | None
    labels: Mapping[str, str]
    key: Key | None
    bytes_total: int | None
    has_trailer: bool
    is_from_start: bool
    retry_s: float
    connect_retry_s: float
    stall_timeout_s: float
    notify: NotifyFn


def bytes_of(data: Any) -> memoryview:
    """Return the bytes of any object with a buffer, in the order of its elements.

    Nothing is copied where they lie in that order without gaps. Raises UsageError for
    an object that has no buffer.
    """
    try:
        view = memoryview(data)
    except (TypeError, ValueError, BufferError) as error:
        raise UsageError(f"write() takes bytes, or an object with a buffer: {error}") from None
    if view.nbytes == 0:
        return memoryview(b"")
    if view.c_contiguous:
        return pickle.PickleBuffer(data).raw()  # cast() refuses many formats, such as ">u4"
    return memoryview(view.tobytes())


def plain(text: str) -> str:
    """The daemon's words, made safe for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def in_the_tree(error: BaseException) -> BaseException:
    """The error that callers get instead of one that no IngestdError describes."""
    if isinstance(error, MemoryError):
        return ResourceError("memory ran out: free some, or ask for smaller buffers")
    if isinstance(error, OSError):
        return SystemCallError(f"sending failed: {error.strerror or error}")
    return error

# SPDX-License-Identifier: Apache-2.0
"""Asking the daemon that serves a store to remove flows: one block that both write.

A request hides nothing: only the daemon knows which flows are being received,
and only it writes the table of removed flows. Invariants: the block is read and
written under a lock of its byte range; of each entry, the asking side adds and
takes away, the daemon changes the state. Nothing here outlives a daemon: the next one begins
with an empty block, as what it was asked may not be wanted any more.
"""

from __future__ import annotations

import enum
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from ingestd.errors import StoreError
from ingestd.store.device.device import Device
from ingestd.store.format.layout import FORMAT_VERSION, Layout, sealed
from ingestd.store.format.records import decode_block
from ingestd.store.metadata.superblock import Superblock

REQUEST_MAGIC: Final = b"INGESTRQ"
REQUEST_OFFSET: Final = 704 * 1024
REQUESTS_MAX: Final = 2728  # as many as fit in 64 KiB, in front of the table of removed flows
_ENTRY: Final = struct.Struct("<16sII")
_FLOCK: Final = "hhqqi4x"  # struct flock of fcntl(2)


class RequestState(enum.IntEnum):
    """The state of a request; the daemon changes it, at first to SEEN, then to an answer.

    What is not there, or not any more, counts as removed.
    """

    ASKED = 1
    REMOVED = 2
    IN_USE = 3
    NO_ROOM = 4
    SEEN = 5


UNANSWERED: Final = frozenset({RequestState.ASKED, RequestState.SEEN})


class Request(NamedTuple):
    """One flow to be removed; `token` identifies who asked."""

    flow: bytes
    token: int
    state: RequestState = RequestState.ASKED


class RequestRow(NamedTuple):
    """The struct `request_block` of docs/format.md."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    request_count: int
    requests: bytes


REQUEST_BLOCK: Final = Layout(
    "request_block",
    RequestRow,
    (
        ("magic", "8s"),
        ("crc32c", "I"),
        ("version", "I"),
        ("store_uuid", "16s"),
        ("request_count", "I"),
        ("reserved", "28x"),
        ("requests", f"{REQUESTS_MAX * _ENTRY.size}s"),
    ),
)


class RequestBlock:
    """The block of one store; `device` is open for writing."""

    def __init__(self, device: Device, superblock: Superblock) -> None:
        self._device = device
        self._store_uuid = superblock.store_uuid

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the block's lock, if nobody else does; yields whether it is held."""
        if not self._lock(fcntl.F_WRLCK):
            yield False
            return
        try:
            yield True
        finally:
            self._lock(fcntl.F_UNLCK)

    def _lock(self, kind: int) -> bool:
        """Of the open file, not of the process, so that threads and commands are alike."""
        wish = struct.pack(_FLOCK, kind, os.SEEK_SET, REQUEST_OFFSET, REQUEST_BLOCK.size_bytes, 0)
        try:
            fcntl.fcntl(self._device.fd, fcntl.F_OFD_SETLK, wish)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StoreError(
                f"{self._device.path} cannot be locked: {error.strerror}; stop the daemon that"
                " serves it, and ask again"
            ) from None
        return True

    def read(self) -> list[Request]:
        """Return what the block holds; nothing if it is not whole. Raises StoreDamagedError."""
        data = self._device.read(REQUEST_OFFSET, REQUEST_BLOCK.size_bytes)
        row = decode_block(REQUEST_BLOCK, REQUEST_MAGIC, data, self._store_uuid)
        if row is None or row.request_count > REQUESTS_MAX:
            return []
        entries = _ENTRY.iter_unpack(row.requests[: row.request_count * _ENTRY.size])
        states = {int(state) for state in RequestState}
        return [
            Request(flow, token, RequestState(state))
            for flow, token, state in entries
            if state in states
        ]

    def clear(self) -> None:
        """Forget what an earlier daemon was asked. Raises StoreError if the device refuses."""
        if self.read():
            self.write([])

    def write(self, requests: Sequence[Request]) -> None:
        """Replace what the block holds, unflushed. Raises StoreError if the device refuses."""
        assert len(requests) <= REQUESTS_MAX
        row = RequestRow(
            magic=REQUEST_MAGIC,
            crc32c=0,
            version=FORMAT_VERSION,
            store_uuid=self._store_uuid,
            request_count=len(requests),
            requests=b"".join(_ENTRY.pack(*request) for request in requests),
        )
        block = sealed(REQUEST_BLOCK.pack(row))
        self._device.write(REQUEST_OFFSET, block.ljust(self._device.align_bytes, b"\0"))

# SPDX-License-Identifier: Apache-2.0
"""Sending flows to ingestd from Python.

    from ingestd.client import connect

    with connect("storage:7071", name="run 12") as flow:
        for block in detector:
            flow.write(block)
    print(flow.receipt)

connect() speaks protocol `ingest`: the flow resumes by itself after a lost
connection. send_stream() speaks `raw`: one connection, and one line back.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Mapping
from typing import BinaryIO, Final

from ingestd.address import Address, parse_address
from ingestd.client.backlog import Backlog, BufferBacklog, FileBacklog
from ingestd.client.flow import FlowWriter
from ingestd.client.key import Key, load_key
from ingestd.client.raw import send_stream
from ingestd.client.terms import NotifyFn, Terms
from ingestd.errors import UsageError
from ingestd.protocol.blocks import Hello, Resume, format_hello
from ingestd.protocol.fields import BYTES_COUNT_MAX
from ingestd.protocol.receipt import Receipt, ReceiptState

__all__ = [
    "FlowWriter",
    "Key",
    "Receipt",
    "ReceiptState",
    "connect",
    "load_key",
    "send_stream",
]

BUFFER_BYTES_MAX: Final = 64 * 1024 * 1024
RETRY_S: Final = 300.0
CONNECT_RETRY_S: Final = 10.0  # reports a mistyped address soon, awaits a daemon that restarts
STALL_TIMEOUT_S: Final = 120.0


def connect(
    address: str | Address,
    *,
    flow: str | None = None,
    resume: Resume = "auto",
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    key: Key | None = None,
    bytes_total: int | None = None,
    source: BinaryIO | None = None,
    from_start: bool = False,
    checksum: bool = True,
    buffer_bytes_max: int = BUFFER_BYTES_MAX,
    retry_s: float | None = None,
    stall_timeout_s: float = STALL_TIMEOUT_S,
    notify: NotifyFn | None = None,
    wait: bool = True,
) -> FlowWriter:
    """Begin a flow, or resume one, at a listener of protocol `ingest`.

    address: "HOST:PORT". flow: its UUID; None makes one, which FlowWriter.flow has.
    resume: True: the flow must exist; False: it must not; "auto": either. Where it
    resumes, FlowWriter.start_offset has: the next byte written is that byte of the
    flow. With from_start the flow is written from its byte 0 all the same, and what
    is durable already only counts into the checksum.

    name, labels: kept with the flow, for people (limits: docs/protocol.md).
    key: the pre-shared key, if the listener asks for one; see load_key().
    bytes_total: bytes of the whole flow, if known; close() then checks them.

    source: an open regular file, sent from its byte 0 as the whole flow instead of
    what write() would be given. It is read again where bytes must be sent again, so
    nothing of it is kept; it stays the caller's, and open until the flow is closed.

    checksum: compute a CRC32C of the flow (one pass over the bytes), compare it with
    the receipt, and where bytes_total or a source is given also state it in a trailer,
    so that the daemon does not seal a flow that differs.

    buffer_bytes_max: memory for what is written and not durable yet; full, write()
    waits: no more than this is sent from one commit of the store to the next.

    retry_s: how long a connection is tried again, be it lost or the first, without
    progress. None: 300 s, but 10 s for the first.
    stall_timeout_s: a connection over which nothing moves for so long counts as lost.
    notify: given a sentence, on the flow's own thread, when a connection is lost or back.
    wait: False: return before a listener has accepted the flow; see await_start().

    Raises SenderError if no listener accepts the flow, UsageError for an argument that
    cannot be meant, ResourceError if a thread, descriptors or memory are short.
    """
    backlog = _backlog(source, bytes_total, buffer_bytes_max, has_checksum=checksum)
    bytes_total = backlog.end if backlog.is_whole else bytes_total
    terms = Terms(
        address=_parsed(address),
        flow=_flow_id(flow),
        resume=resume,
        name=name,
        labels=dict(labels or {}),
        key=key,
        bytes_total=bytes_total,
        has_trailer=checksum and bytes_total is not None,
        is_from_start=from_start,
        retry_s=RETRY_S if retry_s is None else retry_s,
        connect_retry_s=CONNECT_RETRY_S if retry_s is None else retry_s,
        stall_timeout_s=stall_timeout_s,
        notify=notify or (lambda _: None),
    )
    _check_texts(terms)
    writer = FlowWriter(terms, backlog)
    return _started(writer) if wait else writer


def _started(writer: FlowWriter) -> FlowWriter:
    try:
        writer.await_start()
    except BaseException:
        writer.abort()
        raise
    return writer


def _parsed(address: str | Address) -> Address:
    try:
        return parse_address(address) if isinstance(address, str) else address
    except ValueError as error:
        raise UsageError(f"address: {error}") from None


def _flow_id(flow: str | None) -> str:
    """The sender chooses it, so that it can be resumed even if no answer ever came."""
    try:
        return str(uuid.uuid4() if flow is None else uuid.UUID(flow))
    except ValueError:
        raise UsageError(f"flow: {flow!r} is not a UUID") from None


def _check_texts(terms: Terms) -> None:
    key_name = None if terms.key is None else terms.key.name
    try:
        format_hello(Hello(name=terms.name, labels=terms.labels, key=key_name))
    except ValueError as error:
        raise UsageError(f"the flow cannot be described so: {error}") from None


def _backlog(
    source: BinaryIO | None, bytes_total: int | None, buffer_bytes_max: int, *, has_checksum: bool
) -> Backlog:
    if bytes_total is not None and not 0 <= bytes_total <= BYTES_COUNT_MAX:
        raise UsageError(f"bytes_total: {bytes_total} is not from 0 to {BYTES_COUNT_MAX}")
    if buffer_bytes_max < 1:
        raise UsageError(f"buffer_bytes_max: {buffer_bytes_max} is not 1 or more")
    if source is None:
        return BufferBacklog(buffer_bytes_max, has_checksum=has_checksum)
    backlog = _file_backlog(source, has_checksum=has_checksum)
    if bytes_total not in (None, backlog.end):
        raise UsageError(f"bytes_total: {bytes_total}, but the source has {backlog.end}")
    return backlog


def _file_backlog(source: BinaryIO, *, has_checksum: bool) -> FileBacklog:
    name = str(getattr(source, "name", "source"))
    try:
        fd = source.fileno()
    except (OSError, AttributeError):
        raise UsageError(f"{name}: is not an open file: write() takes its bytes instead") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{name}: is not a regular file: write() takes its bytes instead")
    return FileBacklog(fd, name, status.st_size, has_checksum=has_checksum)

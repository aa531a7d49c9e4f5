# SPDX-License-Identifier: Apache-2.0
"""The sending side of the raw protocol: stream, half-close, read the receipt.

Invariants:
 - Only an end that was meant seals a flow: until the half-close is sent, every
   way to lose the socket (an error, Ctrl-C, a killed process) resets the
   connection, so that the daemon keeps the flow as interrupted.
 - send_stream() returns only if the daemon acknowledged every byte sent.
 - The daemon is listened to while sending: an early answer ends the sending
   and is told, rather than the broken pipe that follows it.

One call owns its socket; calls on several threads do not meet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol

from ingestd.address import Address
from ingestd.errors import SenderError, SystemCallError
from ingestd.protocol.fields import LINE_BYTES_MAX
from ingestd.protocol.lines import Greeting, parse_line
from ingestd.protocol.receipt import Receipt, ReceiptState, parse_receipt
from ingestd.sizes import full_size

CONNECT_TIMEOUT_S: Final = 10.0
RECEIPT_TIMEOUT_S: Final = 600.0
SENDFILE_BYTES_MAX: Final = 4 * 1024 * 1024  # per call: between two looks for an answer
READ_BYTES_MAX: Final = 1024 * 1024

_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # close() sends RST
_LINGER_OFF: Final = struct.pack("ii", 0, 0)
_SENDFILE_UNFIT: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

ProgressFn = Callable[[int], None]


def send_stream(
    reader: BinaryIO,
    host: str,
    port: int,
    progress: ProgressFn | None = None,
    *,
    receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
) -> Receipt:
    """Send what is left of reader as one flow; return the receipt of the sealed flow.

    A reader with a file descriptor is read through that, so nothing of a pipe may
    have been read ahead. progress is called with the bytes of each step.

    Raises SenderError when not everything was acknowledged, SystemCallError when
    the reader cannot be read.
    """
    address = Address(host, port)
    source = _source_of(reader)
    with _connect(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        sent_bytes, is_complete = _send(source, sock, progress or (lambda _: None))
        line = _read_line(sock, receipt_timeout_s, address, sent_bytes)
        receipt = _judge(line, address, sent_bytes, is_complete)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        return receipt


def _connect(address: Address) -> socket.socket:
    try:
        sock = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
    except TimeoutError:
        raise SenderError(f"{address}: no answer within {CONNECT_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise SenderError(f"{address}: cannot connect: {error.strerror or error}") from None
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


class _Source(Protocol):
    """Where the bytes come from."""

    input_fd: int | None  # to wait for before the next push(), None: push at once

    def push(self, sock: socket.socket) -> int:
        """Hand bytes to the socket; return how many, 0 at the end of the source."""


class _FileSource:
    """A regular file: the kernel moves the bytes, from the page cache to the socket."""

    def __init__(self, fd: int, offset: int) -> None:
        self.input_fd: int | None = None
        self._fd = fd
        self._offset = offset

    def push(self, sock: socket.socket) -> int:
        count = os.sendfile(sock.fileno(), self._fd, self._offset, SENDFILE_BYTES_MAX)
        self._offset += count
        return count


class _StreamSource:
    """Anything else: pipes, terminals, devices, objects in memory."""

    def __init__(self, reader: BinaryIO, fd: int | None) -> None:
        self._reader = reader
        self._fd = fd
        self._buffer = bytearray(READ_BYTES_MAX)
        self._left = memoryview(b"")
        self.input_fd = fd

    def push(self, sock: socket.socket) -> int:
        if not self._left:
            self._left = self._read()
        if not self._left:
            return 0
        self.input_fd = None  # as long as bytes are left
        count = sock.send(self._left)
        self._left = self._left[count:]
        if not self._left:
            self.input_fd = self._fd
        return count

    def _read(self) -> memoryview:
        try:
            if self._fd is None:
                return memoryview(self._reader.read(READ_BYTES_MAX))
            return memoryview(self._buffer)[: os.readv(self._fd, [self._buffer])]
        except OSError as error:
            name = getattr(self._reader, "name", "input")
            raise SystemCallError(f"{name}: cannot be read: {error.strerror or error}") from None


def _source_of(reader: BinaryIO) -> _Source:
    try:
        fd = reader.fileno()
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return _StreamSource(reader, None)
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        _widen(fd)
    if not stat.S_ISREG(mode):
        return _StreamSource(reader, fd)
    offset = reader.tell()
    if not _takes_sendfile(fd, offset):
        os.lseek(fd, offset, os.SEEK_SET)
        return _StreamSource(reader, fd)
    return _FileSource(fd, offset)


def _widen(pipe_fd: int) -> None:
    """Let one read take more; a pipe that may not grow works all the same."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, READ_BYTES_MAX)


def _takes_sendfile(fd: int, offset: int) -> bool:
    """Ask the file system; those that make their files up, such as procfs, refuse."""
    one, other = socket.socketpair()
    with one, other:
        try:
            os.sendfile(one.fileno(), fd, offset, 1)
        except OSError as error:
            return error.errno not in _SENDFILE_UNFIT  # others show again, and are told then
    return True


def _send(source: _Source, sock: socket.socket, progress: ProgressFn) -> tuple[int, bool]:
    """Send until the source ends (then half-close) or the daemon speaks or goes.

    Returns the bytes sent, and whether they are all there are.
    """
    sent_bytes = 0
    while not _is_answered(sock, source.input_fd):
        try:
            count = source.push(sock)
            if count == 0:
                sock.shutdown(socket.SHUT_WR)
                return sent_bytes, True
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT):
                raise SystemCallError(f"sending failed: {error.strerror or error}") from None
            break
        sent_bytes += count
        progress(count)
    return sent_bytes, False


def _is_answered(sock: socket.socket, input_fd: int | None) -> bool:
    """Wait until bytes can be pushed, or until the daemon has spoken or gone: True."""
    poll = select.poll()
    if input_fd is None:
        poll.register(sock, select.POLLIN | select.POLLOUT)
    else:
        poll.register(sock, select.POLLIN)
        poll.register(input_fd, select.POLLIN)
    events = dict(poll.poll()).get(sock.fileno(), 0)
    return bool(events & (select.POLLIN | select.POLLHUP | select.POLLERR))


def _read_line(sock: socket.socket, timeout_s: float, address: Address, sent_bytes: int) -> bytes:
    """Return the daemon's line without its end, or all that came before the connection went."""
    line = bytearray()
    deadline_s = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while b"\n" not in line and len(line) <= LINE_BYTES_MAX:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise SenderError(
                f"{address}: no receipt within {timeout_s:g} s for {full_size(sent_bytes)}:"
                " they may or may not be durable"
            )
        try:
            piece = sock.recv(LINE_BYTES_MAX)
        except BlockingIOError:
            continue
        except OSError:
            break
        if not piece:
            break
        line += piece
    return bytes(line).partition(b"\n")[0]


def _judge(line: bytes, address: Address, sent_bytes: int, is_complete: bool) -> Receipt:
    """Return the receipt if it acknowledges everything; else raise SenderError."""
    if not line:
        raise SenderError(
            f"{address}: the connection was lost after {full_size(sent_bytes)}"
            " without a receipt: how much of it is durable, ingestd ls tells on the receiving side"
        )
    if _is_greeting(line):
        raise SenderError(f"{address}: listens with protocol ingest: send with --protocol ingest")
    try:
        receipt = parse_receipt(line)
    except ValueError as error:
        raise SenderError(
            f"{address}: no receipt came back ({error}): is that a raw listener of ingestd?"
        ) from None
    if receipt.state is ReceiptState.REFUSED:
        raise SenderError(f"{address}: refused the flow: {_reason(receipt)}")
    if not receipt.is_sealed:
        raise SenderError(
            f"{address}: interrupted flow {receipt.flow}, of which {full_size(receipt.bytes)}"
            f" are durable: {_reason(receipt)}"
        )
    if not is_complete:
        raise SenderError(f"{address}: sealed flow {receipt.flow} before all of it was sent")
    if receipt.bytes != sent_bytes:
        raise SenderError(
            f"{address}: sealed flow {receipt.flow} with {receipt.bytes} bytes,"
            f" but {sent_bytes} were sent: do not trust it"
        )
    return receipt


def _is_greeting(line: bytes) -> bool:
    try:
        return isinstance(parse_line(line), Greeting)
    except ValueError:
        return False


def _reason(receipt: Receipt) -> str:
    """The daemon's own code and words, made safe for a terminal."""
    words = ": ".join(part for part in (receipt.error, receipt.text) if part)
    return "".join(c if c.isprintable() else "?" for c in words) or "no reason was given"

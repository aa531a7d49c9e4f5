# SPDX-License-Identifier: Apache-2.0
"""The sending side of the raw protocol: stream, half-close, read the receipt.

Invariants:
 - Only an end that was meant seals a flow: until the half-close is sent, every
   way to lose the socket (an error, Ctrl-C, a killed process) resets the
   connection, so that the daemon keeps the flow as interrupted.
 - send_stream() returns only if the daemon acknowledged every byte sent.
 - The daemon is listened to while sending: an early answer ends the sending
   and is reported, rather than the broken pipe that follows it.

One call owns its socket; calls on several threads do not meet, but in a Stop.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import BinaryIO, Final

from ingestd.address import Address
from ingestd.client.link import SHORTAGES
from ingestd.client.raw_source import Source, source_of
from ingestd.client.terms import NotifyFn
from ingestd.errors import ResourceError, SenderError, SystemCallError
from ingestd.protocol.fields import LINE_BYTES_MAX
from ingestd.protocol.lines import ErrorLine, Greeting, parse_line
from ingestd.protocol.receipt import Receipt, ReceiptState, parse_receipt
from ingestd.sizes import full_size

CONNECT_TIMEOUT_S: Final = 10.0
RECEIPT_TIMEOUT_S: Final = 600.0
CONNECT_RETRY_S: Final = 10.0  # reports a mistyped address soon, awaits a daemon that restarts
RETRY_DELAY_S: Final = 0.1  # before the second attempt; doubled for each further one
RETRY_DELAY_S_MAX: Final = 2.0

_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # close() sends RST
_LINGER_OFF: Final = struct.pack("ii", 0, 0)

ProgressFn = Callable[[int], None]


class Greeted(Exception):
    """The listener turned out to speak protocol `ingest`; never leaves this package's callers.

    head: what was read of a source that cannot be read again; None: not kept.
    """

    def __init__(self, head: bytes | None) -> None:
        super().__init__("the listener greets")
        self.head = head


class Stop:
    """Ends the waits of other threads; once set, it stays so."""

    def __init__(self) -> None:
        self.is_set = False
        try:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise ResourceError(f"cannot begin: {error.strerror}") from None

    def set(self) -> None:
        """Let every wait raise SenderError, now and later."""
        self.is_set = True
        os.eventfd_write(self.fd, 1)  # never read, so all see it

    def check(self) -> None:
        """Raise SenderError if it is set."""
        if self.is_set:
            raise SenderError("was aborted")


def send_stream(
    reader: BinaryIO,
    host: str,
    port: int,
    progress: ProgressFn | None = None,
    *,
    receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
    retry_s: float = CONNECT_RETRY_S,
) -> Receipt:
    """Send what is left of reader as one flow; return the receipt of the sealed flow.

    A reader with a file descriptor is read through that, so nothing of a pipe may
    have been read ahead. progress is called with the bytes of each step. Connecting is
    tried again for retry_s; what broke later is not, as `raw` cannot resume.

    Raises SenderError when not everything was acknowledged, SystemCallError when
    the reader cannot be read or became shorter, ResourceError if descriptors run out.
    """
    address = Address(host, port)
    try:
        sock = open_connection(address, retry_s)
        return send_over(sock, reader, address, progress, receipt_timeout_s=receipt_timeout_s)
    except Greeted:
        raise SenderError(
            f"{address}: listens with protocol ingest: send with --protocol ingest"
        ) from None


def send_over(
    sock: socket.socket,
    reader: BinaryIO,
    address: Address,
    progress: ProgressFn | None = None,
    *,
    receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
    stop: Stop | None = None,
    head_bytes_max: int = 0,
) -> Receipt:
    """The same over a connection of open_connection(), which it closes.

    Raises Greeted, too. Of a reader that cannot be read again the first head_bytes_max
    are kept for that; when there were more, a listener that greets is a SenderError.
    """
    with sock:
        source = source_of(reader, head_bytes_max)
        sent_bytes, is_complete = _send(source, sock, progress or (lambda _: None), stop)
        line = _read_line(sock, receipt_timeout_s, address, sent_bytes, stop)
        if is_greeting(line):
            raise Greeted(source.head())
        receipt = _judge(line, address, sent_bytes, is_complete)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        return receipt


def open_connection(
    address: Address, retry_s: float, stop: Stop | None = None, notify: NotifyFn | None = None
) -> socket.socket:
    """Connect, trying again for retry_s. Closing what comes back resets the connection.

    notify is called once, with the fact that it is tried again. Raises SenderError, ResourceError.
    """
    deadline_s, delay_s = time.monotonic() + retry_s, RETRY_DELAY_S
    while True:
        if stop is not None:
            stop.check()
        try:
            return _connect(address)
        except SenderError as error:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                after = f": gave up after {retry_s:g} s" if retry_s else ""
                raise SenderError(f"{error}{after}") from None
            if notify is not None:
                notify(f"{error}: trying again for {retry_s:g} s")
                notify = None
            _pause(min(delay_s, left_s), stop)
            delay_s = min(delay_s * 2, RETRY_DELAY_S_MAX)


def hears_greeting(sock: socket.socket, wait_s: float, stop: Stop | None = None) -> bool:
    """Wait for a listener of protocol `ingest` to greet; what comes is left to be read."""
    deadline_s = time.monotonic() + wait_s
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not _is_readable(sock, left_s, stop):
            return False
        try:
            head = sock.recv(LINE_BYTES_MAX, socket.MSG_PEEK)
        except BlockingIOError:
            continue
        except OSError:
            return False
        line, newline, _ = head.partition(b"\n")
        if newline or not head:
            return is_greeting(line)
        _pause(0.01, stop)  # half a line


def is_greeting(line: bytes) -> bool:
    """Return whether a line is one that a listener of protocol `ingest` begins with."""
    try:
        return isinstance(parse_line(line), Greeting | ErrorLine)
    except ValueError:
        return False


def _pause(seconds: float, stop: Stop | None) -> None:
    if stop is None:
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(stop.fd, select.POLLIN)
    poll.poll(max(0.0, seconds) * 1000)
    stop.check()


def _is_readable(sock: socket.socket, timeout_s: float, stop: Stop | None) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if stop is not None:
        poll.register(stop.fd, select.POLLIN)
    ready = dict(poll.poll(timeout_s * 1000))
    if stop is not None:
        stop.check()
    return bool(ready)


def _connect(address: Address) -> socket.socket:
    try:
        sock = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
    except TimeoutError:
        raise SenderError(f"{address}: no answer within {CONNECT_TIMEOUT_S:g} s") from None
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or error
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            raise ResourceError(f"{address}: cannot connect: {text}") from None
        raise SenderError(f"{address}: cannot connect: {text}") from None
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _send(
    source: Source, sock: socket.socket, progress: ProgressFn, stop: Stop | None
) -> tuple[int, bool]:
    """Send until the source ends (then half-close) or the daemon speaks or goes.

    Returns the bytes sent, and whether they are all there are.
    """
    sent_bytes = 0
    while not _is_answered(sock, source.input_fd, stop):
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


def _is_answered(sock: socket.socket, input_fd: int | None, stop: Stop | None) -> bool:
    """Wait until bytes can be pushed, or until the daemon has spoken or gone: True."""
    poll = select.poll()
    if input_fd is None:
        poll.register(sock, select.POLLIN | select.POLLOUT)
    else:
        poll.register(sock, select.POLLIN)
        poll.register(input_fd, select.POLLIN)
    if stop is not None:
        poll.register(stop.fd, select.POLLIN)
    events = dict(poll.poll()).get(sock.fileno(), 0)
    if stop is not None:
        stop.check()
    return bool(events & (select.POLLIN | select.POLLHUP | select.POLLERR))


def _read_line(
    sock: socket.socket, timeout_s: float, address: Address, sent_bytes: int, stop: Stop | None
) -> bytes:
    """Return the daemon's line without its end, or all that came before the connection went."""
    line = bytearray()
    deadline_s = time.monotonic() + timeout_s
    while b"\n" not in line and len(line) <= LINE_BYTES_MAX:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not _is_readable(sock, left_s, stop):
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
            " without a receipt; ingestd ls on the receiving side shows how much of it is durable"
        )
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


def _reason(receipt: Receipt) -> str:
    """The daemon's own code and words, made safe for a terminal."""
    words = ": ".join(part for part in (receipt.error, receipt.text) if part)
    return "".join(c if c.isprintable() else "?" for c in words) or "no reason was given"

# SPDX-License-Identifier: Apache-2.0
"""A sender of protocol `ingest` on a plain socket, step by step.

It shares no code with the client that users have, so that each can find the
other's misreadings of the protocol. Every wait has a limit.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

from crc32c import crc32c

from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from support.daemon import Daemon
from support.observe import wait_until
from support.patience import WAIT_S
from support.payload import Payload

BLOCK_BYTES: Final = 4096
ZEROS: Final = "0" * 64
Line = dict[str, Any]


def block(head: str, text: str) -> bytes:
    """Return a block of the protocol: a line, a line of JSON, zeros."""
    return f"{head}\n{text}\n".encode().ljust(BLOCK_BYTES, b"\0")


def hello_block(challenge: str = ZEROS, *, secret: bytes | None = None, **fields: object) -> bytes:
    """Return a hello; with a secret it has a MAC, for the key that `key` names."""
    if secret is None:
        return block("ingest/1", json.dumps(fields))
    text = json.dumps({**fields, "mac": ZEROS})
    digest = hashlib.sha256(text.encode()).digest()
    mac = hmac.new(secret, bytes.fromhex(challenge) + digest, hashlib.sha256).hexdigest()
    return block("ingest/1", text.replace(ZEROS, mac))


def trailer_block(data: bytes = b"", **fields: object) -> bytes:
    """Return the trailer of these bytes, or one with other fields."""
    said = fields or {"bytes": len(data), "crc32c": f"{crc32c(data):08x}"}
    return block("ingest-trailer/1", json.dumps(said))


class Ingest:
    """One connection; use it as a context manager."""

    def __init__(self, address: tuple[str, int], *, receive_buffer_bytes: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family)
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(address)
        self.lines: list[Line] = []  # all that came
        self._rest = b""
        self.flow = ""
        self.offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def line(self) -> Line | None:
        """Return the next line, None at the end of the connection."""
        while b"\n" not in self._rest:
            piece = self.sock.recv(65536)
            if not piece:
                assert not self._rest, f"half a line: {self._rest!r}"
                return None
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\n")
        assert len(text) < BLOCK_BYTES
        found: Line = json.loads(text)
        self.lines.append(found)
        return found

    def expect(self, kind: str) -> Line:
        """Return the next line, which is of a type; lines of durable offsets may come before."""
        while True:
            found = self.line()
            assert found is not None, f"the connection ended before {kind}: {self.lines}"
            if found["type"] == kind:
                return found
            assert found["type"] == "durable", f"{kind} was expected: {self.lines}"

    def greet(self, *, secret: bytes | None = None, **fields: object) -> Line:
        """Read the greeting and send a hello; return the greeting."""
        greeting = self.expect("hello")
        self.answer(greeting, secret=secret, **fields)
        return greeting

    def answer(self, greeting: Line, *, secret: bytes | None = None, **fields: object) -> None:
        """Send a hello to a greeting that was read before."""
        self.sock.sendall(hello_block(greeting["challenge"], secret=secret, **fields))

    def begin(self, *, secret: bytes | None = None, **fields: object) -> int:
        """Get accepted; return the offset from which on to send."""
        self.greet(secret=secret, **fields)
        accepted = self.expect("accepted")
        self.flow, self.offset = accepted["flow"], accepted["offset"]
        return self.offset

    def refused(self, *, secret: bytes | None = None, **fields: object) -> Line:
        """Be refused, and return the error."""
        self.greet(secret=secret, **fields)
        return self.error()

    def error(self) -> Line:
        """Return the error, with which the connection ends."""
        found = self.expect("error")
        assert set(found) >= {"code", "text", "flow", "durable"}, found
        assert self.line() is None
        return found

    def send(self, data: bytes | Iterable[bytes]) -> None:
        """Send bytes of payload."""
        for piece in [data] if isinstance(data, bytes) else data:
            self.sock.sendall(piece)

    def half_close(self) -> None:
        """Say that all was sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def sealed(self) -> Line:
        """Half-close; return the line that says that all is durable, the last one."""
        self.half_close()
        found = self.expect("sealed")
        assert self.line() is None
        return found

    def durable(self, offset: int) -> None:
        """Wait until the server says that the bytes before an offset are durable."""
        while self.expect("durable")["offset"] < offset:
            pass

    def reset(self) -> None:
        """Close in the middle of everything: the server gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def data_of(seed: int, size: int) -> bytes:
    """Return bytes that only this seed has."""
    return b"".join(Payload(seed, size).chunks())


def checksum(data: bytes) -> str:
    """Return a CRC32C as the server shows it."""
    return f"crc32c:{crc32c(data):08x}"


def stored(daemon: Daemon, flow: str) -> tuple[dict[str, Any], bytes]:
    """What the store shows of a flow: its line of the list, and its bytes."""
    with read_image(str(daemon.store)) as image:
        found = image.find(flow)
        return found.as_dict(), b"".join(read_flow(image, found))


def wait_for_event(daemon: Daemon, name: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until the log has an event so many times, and return its lines."""
    wait_until(lambda: len(daemon.events(name)) >= count, f"{count} x {name}")
    return daemon.events(name)

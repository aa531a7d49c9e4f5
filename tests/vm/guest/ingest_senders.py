#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Protocol ingest against a daemon on the virtual NIC, by a sender of plain sockets.

What packets make of it is meant to be awkward: blocks byte by byte, blocks and payload in one send,
ends that are not announced. The standard library alone, as Python is slow in the machine. Run in
the sender's namespace: ingest_senders.py HOST PORT KEY_NAME SECRET_HEX DIRECTORY. What was sent of
the flows `held` and `taken_over` is left in DIRECTORY, their ids beside it as *.id.
"""

import hashlib
import hmac
import json
import random
import socket
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import Any

BLOCK_BYTES = 4096
TIMEOUT_S = 600.0
ZEROS = "0" * 64
SEED = 20261122
Line = dict[str, Any]


def block(head: str, text: str) -> bytes:
    """Return a block: a line, a line of JSON, zeros."""
    return f"{head}\n{text}\n".encode().ljust(BLOCK_BYTES, b"\0")


def trailer(count: int) -> bytes:
    """Return the trailer of a flow of so many bytes."""
    return block("ingest-trailer/1", json.dumps({"bytes": count, "crc32c": None}))


class Sender:
    """One connection."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = self.sock.makefile("rb")
        self.challenge = bytes.fromhex(self.line()["challenge"])

    def line(self) -> Line:
        """Return the next line that is no durable one; {} at the end."""
        while True:
            line: Line = json.loads(self.lines.readline() or "{}")
            if line.get("type") != "durable":
                return line

    def hello(self, **fields: object) -> bytes:
        """Return a hello with a MAC."""
        text = json.dumps({**fields, "key": sys.argv[3], "mac": ZEROS})
        digest = hashlib.sha256(text.encode()).digest()
        mac = hmac.new(self.secret, self.challenge + digest, hashlib.sha256).hexdigest()
        return block("ingest/1", text.replace(ZEROS, mac))

    def begin(self, **fields: object) -> Line:
        """Send a hello; return the answer."""
        self.sock.sendall(self.hello(**fields))
        return self.line()

    def end(self, data: bytes = b"") -> Line:
        """Send what is left, half-close, and return the last line."""
        self.sock.sendall(data)
        self.sock.shutdown(socket.SHUT_WR)
        return self.line()

    def reset(self) -> None:
        """Break the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.lines.close()
        self.sock.close()


class Tests:
    """The cases; each is passed if its last line is the one wanted."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.random = random.Random(SEED)
        self.secret = bytes.fromhex(sys.argv[4])

    def check(self, name: str, line: Line, **wanted: object) -> None:
        """Count a case."""
        is_right = all(line.get(field) == value for field, value in wanted.items())
        print(f"ok   {name}" if is_right else f"FAIL {name}: {line}, wanted {wanted}", flush=True)
        self.passed += is_right
        self.failed += not is_right

    def sender(self) -> Sender:
        """Connect."""
        return Sender(self.secret)

    def keep(self, name: str, flow: str, data: bytes) -> None:
        """Leave a flow to be compared with the store."""
        Path(sys.argv[5], name).write_bytes(data)
        Path(sys.argv[5], f"{name}.id").write_text(flow, encoding="ascii")

    def run(self) -> None:
        """Run all."""
        self.begins()
        self.held()
        self.ends()
        self.taken_over()
        self.silent()

    def begins(self) -> None:
        """Hellos in any packets."""
        sender = self.sender()
        for byte in sender.hello(bytes=5):
            sender.sock.send(bytes([byte]))
        self.check("a hello byte by byte", sender.line(), type="accepted", offset=0)
        self.check("... and its payload", sender.end(b"12345"), type="sealed", bytes=5)
        sender, data = self.sender(), self.random.randbytes(100_001)
        sender.sock.sendall(sender.hello(bytes=len(data), trailer=True) + data)
        self.check("a hello and payload in one packet", sender.line(), type="accepted")
        self.check(
            "... are told apart", sender.end(trailer(len(data))), type="sealed", bytes=100_001
        )
        self.check(
            "a hello by another key", Sender(bytes(16)).begin(), type="error", code="unauthorised"
        )
        sender = self.sender()
        sender.sock.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(BLOCK_BYTES))
        self.check("a hello that is none", sender.line(), type="error", code="bad_hello")

    def held(self) -> None:
        """A trailer behind a length that nobody stated, also where it looks like payload."""
        data = self.random.randbytes(300_003) + trailer(7)
        sender = self.sender()
        flow = sender.begin(trailer=True)["flow"]
        both, at = data + trailer(len(data)), 0
        while at < len(both):
            count = self.random.choice((1, 100, 1448, 4096, 30_000))
            sender.sock.sendall(both[at : at + count])
            at += count
            if self.random.randrange(8) == 0:
                time.sleep(0.1)  # longer than flush_interval_s: what is held back is copied out
        self.check("a trailer without a length", sender.end(), type="sealed", bytes=len(data))
        self.keep("held", flow, data)

    def ends(self) -> None:
        """Ends other than announced."""
        sender = self.sender()
        sender.begin(bytes=10_000)
        self.check("fewer bytes", sender.end(bytes(9_999)), type="error", code="too_short")
        sender = self.sender()
        sender.begin(bytes=10_000)
        self.check("more bytes", sender.end(bytes(10_001)), type="error", code="too_long")
        sender = self.sender()
        sender.begin(bytes=10_000, trailer=True)
        self.check("no trailer", sender.end(bytes(10_000)), type="error", code="trailer")
        sender = self.sender()
        sender.begin(trailer=True)
        end = sender.end(trailer(1))
        self.check("a trailer that tells another length", end, type="error", code="trailer")
        sender = self.sender()
        sender.begin(bytes=0, trailer=True)
        self.check("an empty flow", sender.end(trailer(0)), type="sealed", bytes=0)

    def taken_over(self) -> None:
        """A flow in three connections: one that breaks, one that is replaced, the last."""
        flow, data = str(uuid.uuid4()), self.random.randbytes(500_007)
        fields = {"flow": flow, "resume": "auto", "bytes": len(data), "trailer": True}
        first = self.sender()
        first.begin(**fields)
        first.sock.sendall(data[:100_001])
        json.loads(first.lines.readline())  # a durable line: something of it will stay
        first.reset()
        second = self.sender()
        offset = second.begin(**fields)["offset"]
        second.sock.sendall(data[offset:250_003])
        third = self.sender()
        accepted = third.begin(**fields)
        self.check("the older connection", second.line(), type="error", code="replaced")
        is_further = 0 < offset <= accepted.get("offset", -1)
        self.check("each goes on behind the one before", {"is": is_further}, **{"is": True})
        line = third.end(data[accepted["offset"] :] + trailer(len(data)))
        self.check("the newest ends the flow", line, type="sealed", bytes=len(data))
        self.keep("taken_over", flow, data)

    def silent(self) -> None:
        """A hello whose last byte never comes; the daemon waits for a few seconds."""
        sender = self.sender()
        sender.sock.sendall(sender.hello()[:-1])
        self.check("a hello that never ends", sender.line(), type="error", code="hello_timeout")


def main() -> int:
    """Run everything; return the exit code."""
    tests = Tests()
    tests.run()
    print(f"ingest: {tests.passed} passed, {tests.failed} failed")
    return 1 if tests.failed or not tests.passed else 0


if __name__ == "__main__":
    sys.exit(main())

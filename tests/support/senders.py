# SPDX-License-Identifier: Apache-2.0
"""Senders: a socket of this process, `nc -N`, `socat`. All speak the raw protocol.

Invariants: each sends exactly the bytes that it is given, half-closes, and
returns the daemon's line as it came; none waits for ever.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pytest

from support.patience import WAIT_S
from support.payload import Payload

LINE_BYTES_MAX: Final = 65536
Address = tuple[str, int]
Receipt = dict[str, Any]


class Sender(Protocol):
    """One connection to a raw listener."""

    def write(self, data: bytes) -> None:
        """Send bytes, waiting as long as the daemon makes us."""

    def finish(self) -> Receipt:
        """Half-close and return the daemon's line."""


@dataclass(frozen=True)
class Sent:
    """A flow that was sent to its end, and what the daemon answered."""

    payload: Payload
    receipt: Receipt

    @property
    def flow(self) -> str:
        """The flow's id."""
        return str(self.receipt["flow"])


class SocketSender:
    """A TCP socket of this process."""

    def __init__(self, address: Address, source: Address | None = None) -> None:
        self.sock = socket.create_connection(address, WAIT_S, source_address=source)

    @property
    def peer(self) -> str:
        """Our end, as the daemon shows it."""
        host, port = self.sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def finish(self) -> Receipt:
        self.sock.shutdown(socket.SHUT_WR)
        return self.answer()

    def answer(self) -> Receipt:
        """Read the daemon's line up to the end of the connection, and close."""
        line = b""
        with self.sock:
            while piece := self.sock.recv(LINE_BYTES_MAX):
                line += piece
        return parse_line(line)

    def reset(self) -> None:
        """Close in the middle of everything: the daemon gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close without waiting for an answer."""
        self.sock.close()


class ProgramSender:
    """A program that sends its standard input and prints what comes back."""

    def __init__(self, *command: str) -> None:
        if shutil.which(command[0]) is None:
            pytest.fail(f"{command[0]} is missing: apt-get install netcat-openbsd socat")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def finish(self) -> Receipt:
        try:
            line, errors = self.process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert self.process.returncode == 0, errors.decode(errors="replace")
        return parse_line(line)


def nc_sender(address: Address) -> Sender:
    """OpenBSD's netcat: -N half-closes at the end of its input."""
    return ProgramSender("nc", "-N", address[0], str(address[1]))


def socat_sender(address: Address) -> Sender:
    """-t: after its input's end, how long socat waits for the other side's."""
    host, port = address
    target = f"TCP6:[{host}]:{port}" if ":" in host else f"TCP4:{host}:{port}"
    return ProgramSender("socat", "-t", str(int(WAIT_S)), "-", target)


SENDERS: Final[dict[str, Callable[[Address], Sender]]] = {
    "socket": SocketSender,
    "nc": nc_sender,
    "socat": socat_sender,
}


def parse_line(line: bytes) -> Receipt:
    """The daemon's answer: exactly one line of JSON."""
    assert line.endswith(b"\n"), f"no whole line came back: {line!r}"
    assert line.count(b"\n") == 1, f"more than one line came back: {line!r}"
    receipt: Receipt = json.loads(line)
    return receipt


def send(address: Address, payload: Payload, kind: str = "socket") -> Sent:
    """Send one flow to its end."""
    sender = SENDERS[kind](address)
    for chunk in payload.chunks():
        sender.write(chunk)
    return Sent(payload, sender.finish())


def send_all(address: Address, payloads: Sequence[Payload], kinds: Sequence[str]) -> list[Sent]:
    """Send all at once, a thread each; kinds[i] sends payloads[i]."""
    with ThreadPoolExecutor(len(payloads)) as pool:
        return list(pool.map(lambda job: send(address, *job), zip(payloads, kinds, strict=True)))


def assert_sealed(sent: Sent, *, has_checksum: bool = True) -> None:
    """The receipt acknowledges every byte, with the checksum of what was sent."""
    receipt, payload = sent.receipt, sent.payload
    assert receipt.get("state") == "sealed", receipt
    assert receipt["durable"] is True, receipt
    assert receipt["bytes"] == payload.size, receipt
    assert receipt["checksum"] == (payload.checksum() if has_checksum else None), receipt

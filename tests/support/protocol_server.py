# SPDX-License-Identifier: Apache-2.0
"""A small, strict listener of protocol `ingest`, written from docs/protocol.md alone.

It keeps flows in memory, and fails on demand. Nothing of ingestd.protocol is
used, so that it is a second opinion on both the document and the sender.

Invariants: what a sender does against the document is in `complaints`, which
must be empty when the server is left. Random misbehaviour follows from a seed,
which is printed when a test fails. A thread takes connections, and each has a
thread of its own; `_lock` guards flows and behaviour.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import random
import re
import secrets
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from support.patience import WAIT_S

HOST = "127.0.0.1"
BLOCK_BYTES = 4096
HELLO_FIELDS = {"flow", "resume", "name", "labels", "bytes", "trailer", "key", "mac"}
RESET = struct.pack("ii", 1, 0)


@dataclass
class StoredFlow:
    """A flow as the server has it; data[:durable] is acknowledged, so no crash loses it."""

    data: bytearray = field(default_factory=bytearray)
    durable: int = 0
    is_sealed: bool = False
    hello: dict[str, Any] = field(default_factory=dict)
    sender_checksum: str | None = None
    connection: socket.socket | None = None

    def checksum(self) -> str:
        return f"crc32c:{crc32c(bytes(self.data)):08x}"


@dataclass
class Behaviour:
    """How the server fails; each list is used up from its front, one item a connection."""

    refusals: list[dict[str, Any]] = field(default_factory=list)  # an error line for the hello
    drops_after: list[int | None] = field(default_factory=list)  # bytes; None: not at all
    drop_chance: float = 0.0  # for each piece that is received
    says_durable: bool = True
    ack_interval_s: float = 0.005
    receipts_lost: int = 0  # so many flows are sealed without a word
    receipt: dict[str, Any] = field(default_factory=dict)  # put over the true receipt
    accepted: dict[str, Any] = field(default_factory=dict)  # put over the true answer
    greeting: dict[str, Any] = field(default_factory=dict)
    is_mute: bool = False  # never greets
    greets_after_s: float = 0.0  # as a daemon does that has as many connections as it may
    piece_bytes_max: int = 1 << 16
    meeting: threading.Barrier | None = None  # connections that must be there at once
    pause_s: float = 0.0  # before each piece: back-pressure


class _Refused(Exception):
    def __init__(self, code: str, text: str, **fields: object) -> None:
        super().__init__(text)
        self.line = {"type": "error", "code": code, "text": text, "flow": None, "durable": 0}
        self.line.update(fields)


class _Dropped(Exception):
    """The connection is to be reset now."""


class ProtocolServer:
    """Use running()."""

    def __init__(self, keys: dict[str, bytes] | None, seed: int, **behaviour: Any) -> None:
        self.keys = keys or {}
        self.behaviour = Behaviour(**behaviour)
        self.flows: dict[str, StoredFlow] = {}
        self.complaints: list[str] = []
        self.counts: Counter[str] = Counter()  # of what happened, by name
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self.is_over = False
        self.drops_count = 0  # of calls of drop_all()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def only_flow(self) -> StoredFlow:
        """The one flow that there is."""
        (flow,) = self.flows.values()
        return flow

    def drop_all(self) -> None:
        """Reset every connection at once."""
        with self._lock:
            self.drops_count += 1

    def close(self) -> None:
        """Take no more; end what there is."""
        self.is_over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def accept_connections(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.counts["connections"] += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(WAIT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                _Connection(self, connection, self._lock, self._random).serve()
            except _Refused as refused:
                self.counts[refused.line["code"]] += 1
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(refused.line).encode() + b"\n")
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):  # so that the line is not lost to a reset
                        pass
            except (_Dropped, OSError):
                self.counts["drops"] += 1
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except Exception as error:  # a mistake of this server must fail the test
                self.complaints.append(repr(error))


class _Connection:
    """One connection, from greeting to end."""

    def __init__(
        self,
        server: ProtocolServer,
        connection: socket.socket,
        lock: threading.RLock,
        chance: random.Random,
    ) -> None:
        self._server = server
        self._behaviour = server.behaviour
        self._socket = connection
        self._lock = lock
        self._random = chance
        self._challenge = secrets.token_bytes(32)
        self._flow_id = ""
        self._flow = StoredFlow()
        self._drops_count = server.drops_count
        self._said_at_s = time.monotonic()

    def serve(self) -> None:
        if self._behaviour.is_mute:
            self._socket.recv(1)
            raise _Dropped
        greeting = {
            "type": "hello",
            "protocol": "ingest",
            "versions": [1],
            "auth": "hmac-sha256" if self._server.keys else "none",
            "challenge": self._challenge.hex(),
        }
        time.sleep(self._behaviour.greets_after_s)
        self._say(**{**greeting, **self._behaviour.greeting})
        hello = self._hello()
        if self._behaviour.meeting is not None:
            self._behaviour.meeting.wait(WAIT_S)
        with self._lock:
            if self._behaviour.refusals:
                fields = dict(self._behaviour.refusals.pop(0))
                raise _Refused(fields.pop("code"), fields.pop("text", "made up"), **fields)
            self._choose_flow(hello)
        drop_after = self._behaviour.drops_after.pop(0) if self._behaviour.drops_after else None
        accepted = {"flow": self._flow_id, "offset": len(self._flow.data), "ack_interval_s": 0.2}
        self._say(type="accepted", later_field=1, **{**accepted, **self._behaviour.accepted})
        try:
            self._seal(self._payload(hello, drop_after), hello)
        except (_Refused, _Dropped, OSError):
            self._crash()
            raise

    def _say(self, **fields: Any) -> None:
        self._socket.sendall(json.dumps(fields).encode() + b"\n")

    def _complain(self, text: str) -> None:
        self._server.complaints.append(text)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise _Dropped
            data += piece
        return data

    def _hello(self) -> dict[str, Any]:
        block = self._exactly(BLOCK_BYTES)
        head, text, rest = block.split(b"\n", 2)
        if head != b"ingest/1" or rest.strip(b"\0"):
            raise _Refused("bad_hello", "not a hello block")
        fields: dict[str, Any] = json.loads(text)
        if unknown := fields.keys() - HELLO_FIELDS:
            self._complain(f"hello fields that are not in the document: {unknown}")
        if "mac" in fields and text.count(fields["mac"].encode()) != 1:
            self._complain("the MAC's digits are more than once in the hello")
        if len(fields.get("name", "").encode()) > 255 or len(fields.get("labels", {})) > 16:
            self._complain("the hello breaks a limit")
        self._authenticate(text, fields)
        return fields

    def _authenticate(self, text: bytes, fields: dict[str, Any]) -> None:
        if not self._server.keys:
            return
        secret = self._server.keys.get(fields.get("key", ""))
        mac = fields.get("mac", "")
        if secret is None or not re.fullmatch("[0-9a-f]{64}", mac):
            raise _Refused("unauthorised", "no such key")
        unsigned = hashlib.sha256(text.replace(mac.encode(), b"0" * 64)).digest()
        if hmac.new(secret, self._challenge + unsigned, hashlib.sha256).hexdigest() != mac:
            raise _Refused("unauthorised", "the MAC is wrong")

    def _choose_flow(self, hello: dict[str, Any]) -> None:
        """New, or at the durable offset of one that is there; the newer connection wins."""
        flows, resume = self._server.flows, hello.get("resume", False)
        self._flow_id = str(uuid.UUID(hello["flow"])) if "flow" in hello else str(uuid.uuid4())
        known = flows.get(self._flow_id)
        about = {"flow": self._flow_id, "durable": known.durable if known else 0}
        if known is None and resume is True:
            raise _Refused("unknown_flow", "no such flow", **about)
        if known is not None and known.is_sealed:
            raise _Refused(
                "sealed", "complete", bytes=len(known.data), checksum=known.checksum(), **about
            )
        if known is not None and resume is False:
            raise _Refused("exists", "exists already", **about)
        self._flow = known or flows.setdefault(self._flow_id, StoredFlow(hello=hello))
        if known is not None:
            self._server.counts["resumes"] += 1
            for name in ("name", "labels", "bytes"):
                if known.hello.get(name) != hello.get(name):
                    self._complain(f"{name} changed when the flow was resumed")
            known.durable = len(known.data)  # as the older connection is ended
        self._flow.connection = self._socket

    def _crash(self) -> None:
        """Lose some of what is not acknowledged; some of it may be there all the same."""
        with self._lock:
            flow = self._flow
            if flow.connection is self._socket and not flow.is_sealed:
                flow.durable = self._random.randint(flow.durable, len(flow.data))
                del flow.data[flow.durable :]
                flow.connection = None

    def _payload(self, hello: dict[str, Any], drop_after: int | None) -> bytes | None:
        """Receive up to the half-close; return the trailer block, if one was announced."""
        flow, taken, held = self._flow, 0, b""
        while piece := self._piece():
            taken += len(piece)
            held += piece
            with self._lock:
                if flow.connection is not self._socket:
                    raise _Refused("replaced", "a newer one", flow=self._flow_id)
                count = self._payload_count(held, hello.get("bytes"), bool(hello.get("trailer")))
                flow.data += held[:count]
                held = held[count:]
            self._acknowledge()
            if drop_after is not None and taken >= drop_after:
                raise _Dropped
            if self._random.random() < self._behaviour.drop_chance:
                raise _Dropped
        if hello.get("trailer"):
            return held
        if held:
            raise _Refused("too_long", "more than stated", flow=self._flow_id)
        return None

    def _piece(self) -> bytes:
        """Return what comes next; acknowledge, and obey drop_all(), while nothing does."""
        time.sleep(self._behaviour.pause_s)
        self._socket.settimeout(0.01)
        while True:
            if self._server.is_over or self._server.drops_count > self._drops_count:
                raise _Dropped
            with contextlib.suppress(TimeoutError):
                return self._socket.recv(self._behaviour.piece_bytes_max)
            self._acknowledge()

    def _payload_count(self, held: bytes, total: int | None, has_trailer: bool) -> int:
        if total is not None:
            return min(len(held), total - len(self._flow.data))
        return max(0, len(held) - BLOCK_BYTES) if has_trailer else len(held)

    def _acknowledge(self) -> None:
        now_s, flow = time.monotonic(), self._flow
        if not self._behaviour.says_durable or flow.durable >= len(flow.data):
            return
        if now_s - self._said_at_s >= self._behaviour.ack_interval_s:
            flow.durable, self._said_at_s = len(flow.data), now_s
            self._say(type="durable", offset=flow.durable)
            self._say(type="news", of="a later version")

    def _seal(self, trailer: bytes | None, hello: dict[str, Any]) -> None:
        flow = self._flow
        count, about = len(flow.data), {"flow": self._flow_id, "durable": flow.durable}
        if hello.get("bytes", count) != count:
            raise _Refused("too_short", "fewer bytes than stated", **about)
        if trailer is not None:
            self._check_trailer(trailer, count, about)
        with self._lock:
            flow.is_sealed, flow.durable = True, count
            if self._behaviour.receipts_lost > 0:
                self._behaviour.receipts_lost -= 1
                raise _Dropped
        receipt = {
            "flow": self._flow_id,
            "bytes": count,
            "durable": True,
            "checksum": flow.checksum(),
            "sender_checksum": flow.sender_checksum,
        }
        self._say(type="sealed", **{**receipt, **self._behaviour.receipt})

    def _check_trailer(self, block: bytes, count: int, about: dict[str, Any]) -> None:
        if len(block) != BLOCK_BYTES:
            raise _Refused("trailer", f"{len(block)} bytes", **about)
        head, text, rest = block.split(b"\n", 2)
        stated = json.loads(text)
        if head != b"ingest-trailer/1" or rest.strip(b"\0") or stated["bytes"] != count:
            raise _Refused("trailer", "not a trailer of this flow", **about)
        if stated["crc32c"] is not None:
            self._flow.sender_checksum = f"crc32c:{stated['crc32c']}"
            if self._flow.sender_checksum != self._flow.checksum():
                raise _Refused("checksum", "another checksum", **about)


@contextmanager
def running(
    keys: dict[str, bytes] | None = None, *, seed: int = 1, **behaviour: Any
) -> Iterator[ProtocolServer]:
    """Serve; behaviour: fields of Behaviour. Leaving asserts that no sender broke a rule."""
    server = ProtocolServer(keys, seed, **behaviour)
    thread = threading.Thread(target=server.accept_connections)
    thread.start()
    try:
        yield server
    except BaseException:
        print(f"protocol server: seed {seed}, {dict(server.counts)}, {server.complaints}")
        raise
    finally:
        server.close()
        thread.join(WAIT_S)
    server.join()
    assert server.complaints == []

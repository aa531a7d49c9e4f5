# SPDX-License-Identifier: Apache-2.0
"""A process of senders, each a thread that does at random what senders do.

It reports to the driver each thing that the ledger has to know, in the order in
which it happened: what is about to be sent before a byte of it is, and what was
acknowledged after. It can be stopped, continued and killed at any moment.
"""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from soak.content import Content
from support.ingest import Ingest, block, trailer_block
from support.senders import SocketSender

MIB: Final = 1024 * 1024
RETRY_S_MAX: Final = 0.3
FULL_S: Final = 1.0  # how long a sender waits after an answer that the store is full
STALL_S_MAX: Final = 1.5
IDLE_S_MAX: Final = 8.0
PIECE_BYTES: Final = (1, 700, 4096, 30_000, 200_000)
PACES: Final = (96 * 1024, MIB, 8 * MIB, 8 * MIB)  # bytes per second
# After these a sender comes again.
PASSING: Final = {"shutdown", "idle_timeout", "hello_timeout", "replaced", "too_short", "busy"}
# After these it cannot continue; the ledger knows whether that may be.
LOST: Final = {"unknown_flow", "removed"}

Addresses = Mapping[tuple[str, str], tuple[str, int]]  # of (store, protocol)
Tell = Callable[..., None]


class Begun(NamedTuple):
    """A flow of protocol ingest, as whoever resumes it must know it."""

    store: str
    flow: str
    size: int
    is_stated: bool
    has_trailer: bool
    name: str
    labels: dict[str, str]
    told: int = 0

    @property
    def seed(self) -> int:
        """Of its content: in the id."""
        return uuid.UUID(self.flow).int & (2**62 - 1)


class ConnectionOver(Exception):
    """A connection has ended before its flow."""


@dataclass
class IngestSender:
    """One flow, in as many connections as it takes."""

    begun: Begun
    address: tuple[str, int]
    tell: Tell
    random: random.Random

    def __post_init__(self) -> None:
        self.content = Content(self.begun.seed)
        self.told = self.begun.told
        self.is_over = False

    def run(self) -> None:
        """Come again until the flow is sealed, abandoned, or beyond help."""
        while not self.is_over:
            try:
                with Ingest(self.address) as link:
                    if not self.begun.is_stated:
                        _reset_when_dead(link.sock)
                    self._feed(link)
            except (OSError, ConnectionOver):
                pass  # reset, or nobody is there
            except AssertionError as error:
                if "the connection ended" not in str(error) and "half a line" not in str(error):
                    raise
            if not self.is_over:
                time.sleep(self.random.uniform(0.01, RETRY_S_MAX))

    def _feed(self, link: Ingest) -> None:
        """One connection: to the end, or until something happens."""
        begun = self.begun
        more: dict[str, Any] = {"bytes": begun.size} if begun.is_stated else {}
        resume: Any = True if self.told else "auto"
        link.greet(
            flow=begun.flow,
            resume=resume,
            trailer=begun.has_trailer,
            name=begun.name,
            labels=begun.labels,
            **more,
        )
        offset = self._heed(link, "accepted")["offset"]
        self.tell("accepted", begun.flow, offset)
        if offset < self.told:
            self.is_over = True
            return
        self.told = offset
        trouble = self.random.choice((None, None, None, "reset", "leave", "early", "stall"))
        trouble_at = self.random.randint(offset, begun.size)
        pace = self.random.choice(PACES)
        while offset < begun.size:
            end = min(offset + self.random.choice(PIECE_BYTES), begun.size)
            link.send(self.content.get(offset, end))
            time.sleep((end - offset) / pace)
            offset = end
            self._read_ahead(link)
            if trouble is not None and offset >= trouble_at:
                if self._make(trouble, link, offset):
                    return
                trouble = None
        if begun.has_trailer:
            link.send(self._trailer())
        link.half_close()
        self._note_sealed(self._heed(link, "sealed"))

    def _make(self, trouble: str, link: Ingest, offset: int) -> bool:
        """Do what some senders do; whether this connection is over."""
        if trouble == "reset":
            link.reset()
            return True
        if trouble == "leave":
            self.is_over = self.random.random() < 0.7  # and nobody comes again
            return True
        if trouble == "early" and self.begun.is_stated and offset < self.begun.size:
            link.half_close()
            self._heed(link, "sealed")
            return True
        time.sleep(self.random.uniform(0, STALL_S_MAX))
        return False

    def _trailer(self) -> bytes:
        crc = self.content.checksum(self.begun.size).rpartition(":")[2]
        return trailer_block(bytes=self.begun.size, crc32c=crc)

    def _read_ahead(self, link: Ingest) -> None:
        """Heed the lines that are there."""
        while select.select([link.sock], [], [], 0)[0]:
            self._heed(link, "durable")

    def _heed(self, link: Ingest, kind: str) -> dict[str, Any]:
        """Read up to a line of this type; raises ConnectionOver when another end comes first."""
        while (line := link.line()) is not None:
            if line["type"] == "durable":
                assert self.told <= line["offset"] <= self.begun.size, (self.begun, line)
                self.told = line["offset"]
                self.tell("told", self.begun.flow, self.told)
            if line["type"] == "error":
                self._heed_error(line)
            if line["type"] == kind:
                return line
            assert line["type"] in ("hello", "durable"), (self.begun, line)
        raise ConnectionOver

    def _heed_error(self, line: dict[str, Any]) -> None:
        code = line["code"]
        if code == "sealed":  # its receipt was lost
            self._note_sealed(line)
        elif code == "store_full":
            time.sleep(self.random.uniform(0, FULL_S))
            self.is_over = self.random.random() < 0.5
        elif code in LOST:
            self.tell("lost", self.begun.flow, code)
            self.is_over = True
        else:
            assert code in PASSING, (self.begun, line)
        raise ConnectionOver

    def _note_sealed(self, line: dict[str, Any]) -> None:
        """A receipt says exactly what was sent."""
        wanted = (self.begun.size, self.content.checksum(self.begun.size))
        assert (line["bytes"], line["checksum"]) == wanted, (self.begun, wanted, line)
        self.tell("sealed", self.begun.flow, *wanted)
        self.is_over = True


def send_raw(store: str, address: tuple[str, int], tell: Tell, choose: random.Random) -> None:
    """A flow of protocol raw: one connection, whatever becomes of it."""
    seed, size = choose.getrandbits(62), _size(choose)
    content, trouble = Content(seed), choose.choice((None, None, None, "reset", "stall"))
    trouble_at, pace = choose.randint(0, size), choose.choice(PACES)
    sender = SocketSender(address)
    _reset_when_dead(sender.sock)
    try:
        tell("raw", store, sender.peer, seed, size)
        offset = 0
        while offset < size:
            end = min(offset + choose.choice(PIECE_BYTES), size)
            sender.write(content.get(offset, end))
            time.sleep((end - offset) / pace)
            offset = end
            if trouble == "reset" and offset >= trouble_at:
                return
            if trouble == "stall" and offset >= trouble_at:
                time.sleep(choose.uniform(0, STALL_S_MAX))
                trouble = None
        answer = sender.finish()
    finally:
        sender.reset()
    if answer["flow"] is None:
        return
    assert answer["bytes"] <= size, answer
    if answer["state"] == "sealed":
        wanted = (size, content.checksum(size))
        assert (answer["bytes"], answer["checksum"]) == wanted, answer
    tell("raw_answer", store, seed, answer)


def be_idle(address: tuple[str, int], tell: Tell, store: str, choose: random.Random) -> None:
    """Connect, perhaps say hello, and then nothing."""
    with Ingest(address) as link:
        if choose.random() < 0.5:
            begun = _begin(store, choose)
            tell("begun", begun)
            link.greet(flow=begun.flow, name=begun.name, labels=begun.labels)
        elif choose.random() < 0.3:
            link.send(block("ingest/1", "{}")[: choose.randrange(4096)])
        time.sleep(choose.uniform(0, IDLE_S_MAX))


def _reset_when_dead(sock: socket.socket) -> None:
    """Where nothing else distinguishes a flow's end from its sender's, only shutdown() ends it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _size(choose: random.Random) -> int:
    """Mostly small, some larger than several segments; each power of two as often."""
    return choose.choice((0, choose.randrange(64), int(2 ** choose.uniform(6, 22.5))))


def _begin(store: str, choose: random.Random) -> Begun:
    number = choose.getrandbits(128)
    return Begun(
        store=store,
        flow=str(uuid.UUID(int=number, version=4)),
        size=int(2 ** choose.uniform(0, 22.5)),
        is_stated=choose.random() < 0.5,
        has_trailer=choose.random() < 0.3,
        name=f"flow {number % 1000}",
        labels={"of": "soak", "part": str(number % 7)} if number % 3 else {},
    )


class SenderProcess:
    """What run() needs to know; it is passed to a process of its own."""

    def __init__(
        self, seed: str, addresses: Addresses, threads_count: int, orphans: Sequence[Begun]
    ) -> None:
        self.seed = seed
        self.addresses = dict(addresses)
        self.threads_count = threads_count
        self.orphans = list(orphans)

    def run(self, driver: Connection) -> None:
        """Send until the process is killed; a sender's complaint ends it."""
        mutex = threading.Lock()

        def tell(*what: object) -> None:
            with mutex:
                driver.send(what)

        def guarded(number: int) -> None:
            try:
                self._send_for_ever(number, tell)
            except BaseException as error:
                tell("complaint", f"{type(error).__name__}: {error}")

        threads = [
            threading.Thread(target=guarded, args=(number,)) for number in range(self.threads_count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send_for_ever(self, number: int, tell: Tell) -> None:
        choose = random.Random(f"{self.seed} {number}")
        for begun in self.orphans[number :: self.threads_count]:
            address = self.addresses[begun.store, "ingest"]
            IngestSender(begun, address, tell, choose).run()
        stores = sorted({store for store, _ in self.addresses})
        while True:
            store, chance = choose.choice(stores), choose.random()
            try:
                if chance < 0.6:
                    begun = _begin(store, choose)
                    tell("begun", begun)
                    IngestSender(begun, self.addresses[store, "ingest"], tell, choose).run()
                elif chance < 0.9:
                    send_raw(store, self.addresses[store, "raw"], tell, choose)
                else:
                    be_idle(self.addresses[store, "ingest"], tell, store, choose)
            except (OSError, json.JSONDecodeError):
                time.sleep(choose.uniform(0.01, RETRY_S_MAX))
            except AssertionError as error:
                if not _is_lost_connection(str(error)):
                    raise


def _is_lost_connection(text: str) -> bool:
    """Return whether a complaint is only that the daemon went away."""
    return any(part in text for part in ("the connection ended", "half a line", "no whole line"))


def serve_as_sender(process: SenderProcess, driver: Connection) -> None:
    """Be a process of senders; called in one of its own."""
    # A connect to a port where nobody listens may meet itself; such a one is closed by its reset.
    socket.setdefaulttimeout(60)
    process.run(driver)

# SPDX-License-Identifier: Apache-2.0
"""An admission with made-up workers, whose requests are those of the test."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Set
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from ingestd.core.border import RequestKind
from ingestd.daemon.admission.admission import Admission
from ingestd.daemon.admission.flow_index import FlowIndex
from ingestd.daemon.admission.flow_lock import FlowLock
from ingestd.daemon.admission.listener_policy import ListenerPolicy
from ingestd.daemon.placement.handover import Handover
from ingestd.daemon.placement.placement import PlacedListener, Placement
from ingestd.daemon.placement.store_states import Reason
from ingestd.daemon.telemetry.event_stream import EventStream
from ingestd.daemon.telemetry.flow_events import FlowEvents
from ingestd.log import Log
from ingestd.store.device.opening import open_device
from ingestd.store.metadata.superblock import read_superblock
from ingestd.store.read.point_query import Found, find_flows
from support.fake_core import FakeCore
from support.fake_log import Recorder
from support.ingest import hello_block

FLOW = uuid.UUID("0192f0c1-2345-7890-abcd-ef0123456789")
# Made by a worker of that store: tests/core/test_flow_id.c.
RAW_FLOW = uuid.UUID("019368f4-2c00-7000-8000-000052f73650")
STORE_UUID = bytes(range(16))
SECRET = bytes(range(16))
CHALLENGE = bytes(range(32))
CORE = FakeCore
DOORS = [
    ListenerPolicy("open", None, 0, True, ("data",)),
    ListenerPolicy("small", None, 1000, True, ("data",)),
    ListenerPolicy("closed", {"ours": SECRET, "other": bytes(16)}, 0, True, ("data",)),
    ListenerPolicy("raw", None, 0, False, ("data",)),
]


class FakeStore:
    """Whose flows lie in a file; `before_lookup` runs on the thread that is about to read it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.superblock = SimpleNamespace(
            store_uuid=STORE_UUID, uuid=str(uuid.UUID(bytes=STORE_UUID))
        )
        self.lookups: list[frozenset[bytes]] = []
        self.before_lookup: Callable[[], None] = lambda: None

    def find_flows(self, wanted: Set[bytes], is_stopped: Callable[[], bool]) -> Found:
        self.lookups.append(frozenset(wanted))
        self.before_lookup()
        with open_device(self.path) as device:
            return find_flows(device, read_superblock(device).superblock, wanted, is_stopped)


class FakeWorker:
    """Sends the test's requests, and keeps the responses by connection."""

    def __init__(self, index: int = 0, path: str = "", store_name: str = "data") -> None:
        self.store_name = store_name
        self.index = index
        self.name = f"{store_name}-{index}"
        self.lives = True
        self.adopted: list[tuple[int, int, int]] = []  # descriptor, listener, move id
        self.passing: dict[int, bool] = {}  # listeners that pass on
        self.store = FakeStore(path)
        self.asked: list[Any] = []
        self.answers: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}
        self.ended: list[tuple[int, int]] = []  # commanded to end
        self.is_box_full = False
        self.park_count = 64  # how many more it lets wait
        self.parked: list[tuple[int, int]] = []
        self._serial = itertools.count(1)

    def admission_requests(self) -> list[Any]:
        asked, self.asked = self.asked, []
        return asked

    def _answer(self, connection: tuple[int, int], kind: str, terms: dict[str, Any]) -> None:
        assert connection not in self.answers, "a request is answered once"
        self.answers[connection] = kind, terms

    def admit(self, connection: tuple[int, int], flow: bytes, **terms: Any) -> None:
        self._answer(connection, "admit", {"flow": flow, **terms})

    def refuse(self, connection: tuple[int, int], line: bytes) -> None:
        assert line.endswith(b"\n")
        assert len(line) <= 1024
        self._answer(connection, "refuse", json.loads(line))

    def park(self, connection: tuple[int, int]) -> bool:
        assert connection not in self.answers
        assert connection not in self.parked, "once is enough"
        if not self.park_count:
            return False
        self.park_count -= 1
        self.parked.append(connection)
        return True

    def move(self, connection: tuple[int, int]) -> None:
        self._answer(connection, "move", {})

    def adopt(self, fd: int, listener_index: int, move_id: int = 0) -> bool:
        self.adopted.append((fd, listener_index, move_id))
        return True

    def pass_on(self, listener_index: int, wanted: bool) -> bool:
        self.passing[listener_index] = wanted
        return True

    def listener_connections(self) -> dict[int, int]:
        return {}

    def alive(self) -> bool:
        return self.lives

    def seal(self, connection: tuple[int, int], crc: int | None) -> None:
        self._answer(connection, "seal", {"crc": crc})

    def end_flow(self, connection: tuple[int, int]) -> bool:
        if not self.is_box_full:
            self.ended.append(connection)
        return not self.is_box_full

    def connect(self) -> tuple[int, int]:
        return 0, next(self._serial)


def request(kind: RequestKind, connection: tuple[int, int], **fields: Any) -> Any:
    return SimpleNamespace(
        **{
            "kind": kind,
            "connection": connection,
            "listener_index": 0,
            "bytes_count": 0,
            "crc": 0,
            "reason": 0,
            "is_crc_known": True,
            "is_whole": True,
            "is_stored": True,
            "is_sealed": False,
            "moved_fd": None,
            "move_id": 0,
            "flow": FLOW.bytes,
            "peer": "192.0.2.1:4000",
            "challenge": CHALLENGE,
            "block": bytes(4096),
            **fields,
        }
    )


class FakeStates:
    """What is wrong with stores is what the test says; free bytes too."""

    def __init__(self) -> None:
        self.out: dict[str, dict[Reason, float]] = {}
        self.free: dict[str, int] = {}

    def reasons(self, name: str) -> dict[Reason, float]:
        return self.out.get(name, {})

    def is_well(self, name: str) -> bool:
        return not self.reasons(name)

    def free_bytes(self, name: str) -> int:
        return self.free.get(name, 0)

    def is_drained(self, name: str) -> bool:
        return Reason.DRAINED in self.reasons(name)


class Gate:
    """An admission, its indexes and its workers: two of the first store, one of each other."""

    def __init__(
        self,
        path: str = "",
        stores: tuple[str, ...] = ("data",),
        *,
        is_most_free: bool = False,
        is_tied: bool = False,
    ) -> None:
        self.indexes = {name: FlowIndex(STORE_UUID) for name in stores}
        self.index = self.indexes[stores[0]]
        self.gates = {name: FlowLock() for name in stores}
        self.gate = self.gates[stores[0]]
        self.log = Recorder()
        self.woken = 0
        self.stream = EventStream()
        self.states = FakeStates()
        self.workers = [FakeWorker(0, path, stores[0]), FakeWorker(1, path, stores[0])]
        self.workers += [FakeWorker(0, path, name) for name in stores[1:]]
        doors = [replace(door, stores=stores) for door in DOORS]
        log = Log(self.log, "debug")
        self.placement = Placement(
            [PlacedListener(d.name, stores, is_most_free, d.is_ingest) for d in doors],
            cast(Any, self.workers),
            cast(Any, self.states),
            is_tied=is_tied,
        )
        listeners = [(d.name, "ingest" if d.is_ingest else "raw") for d in doors]
        self.admission = Admission(
            log,
            doors,
            self.indexes,
            self.gates,
            self.placement,
            Handover(listeners, log, self.placement),
            self.wake,
            FlowEvents(self.stream, [(door.name, "ingest") for door in DOORS]),
        )

    def wake(self) -> None:
        self.woken += 1

    def ask(
        self, kind: RequestKind, connection: tuple[int, int], worker: int = 0, **fields: Any
    ) -> Any:
        asker: Any = self.workers[worker]
        asker.asked.append(request(kind, connection, **fields))
        self.admission.serve(asker)
        return asker.answers.get(connection)

    def hello(
        self, worker: int = 0, listener: int = 0, secret: bytes | None = None, **fields: Any
    ) -> tuple[tuple[int, int], Any]:
        made = hello_block(CHALLENGE.hex(), secret=secret, **fields)
        connection = self.workers[worker].connect()
        answer = self.ask(
            RequestKind.HELLO, connection, worker, block=made, listener_index=listener
        )
        return connection, answer

    def code(self, **fields: Any) -> str:
        """How a hello is refused; its kind of answer if it is not."""
        _, answer = self.hello(**fields)
        kind, terms = answer
        return str(terms["code"]) if kind == "refuse" else str(kind)

    def end(self, connection: tuple[int, int], worker: int = 0, **fields: Any) -> None:
        self.ask(RequestKind.NOTE_ENDED, connection, worker, **fields)

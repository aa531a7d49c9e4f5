# SPDX-License-Identifier: Apache-2.0
"""A control server with a made-up daemon behind it, and clients that obey no rule."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingestd.daemon.control.main_calls import MainCalls
from ingestd.daemon.control.parts import ControlParts, ServedFlows
from ingestd.daemon.control.server import ControlServer
from ingestd.daemon.control.socket_file import SocketFile
from ingestd.daemon.maintenance.removals import RemovalResult, RemovalState
from ingestd.daemon.telemetry.event_stream import EventStream
from ingestd.log import Log
from ingestd.store.read.flow_source import EVERY_FLOW, OLDEST_FIRST, FlowFilter, FlowOrder, selected
from ingestd.store.read.flows import Flow
from support.fake_log import Recorder
from support.patience import WAIT_S

STORE_UUID = str(uuid.UUID(int=7))


def made_flow(number: int, *, name: str | None = None) -> Flow:
    """Return a sealed flow that began `number` seconds after 1970."""
    flow_id = number.to_bytes(16, "big")
    return Flow(
        flow=str(uuid.UUID(bytes=flow_id)),
        name=name,
        peer="192.0.2.1:4000",
        listener="data",
        state="sealed",
        bytes=number,
        durable_bytes=number,
        started=None,
        ended=None,
        checksum=None,
        flow_id=flow_id,
        started_ns=number * 10**9,
    )


class MadeUpSource:
    """Flows 1 to `count`; `before` is called before each is given."""

    def __init__(self, count: int, before: Callable[[], None] = lambda: None) -> None:
        self.count = count
        self.before = before

    def flows(
        self,
        wanted: FlowFilter = EVERY_FLOW,
        order: FlowOrder = OLDEST_FIRST,
        limit: int | None = None,
    ) -> Iterator[Flow]:
        for flow in selected(map(made_flow, range(1, self.count + 1)), wanted, order, limit):
            self.before()
            yield flow

    def flow(self, flow_id: bytes) -> Flow | None:
        number = int.from_bytes(flow_id, "big")
        return made_flow(number) if 1 <= number <= self.count else None


class Desk:
    """The server, and what a daemon does for it, on a main thread that a test is."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.source = MadeUpSource(3)
        self.removed: list[bytes] = []
        self.events = EventStream()
        self.stopping = threading.Event()
        self.reload: Callable[[], dict[str, Any]] = lambda: {"changed": ["log.level"]}
        self.levels: list[str] = []
        self.drained: list[tuple[str, bool]] = []
        self.recorder = Recorder()
        self.calls = MainCalls(lambda: None)
        self.file = SocketFile(self.path, None)
        served = ServedFlows(
            uuid=STORE_UUID,
            listings={may: threading.Semaphore(2) for may in (False, True)},
            source=self.source,
            misdated=lambda flow: False,
            remove=self.remove,
        )
        self.parts = ControlParts(
            status=lambda: {
                "version": "made up",
                "stores": [{"name": "a", "token": "00", "catalogue": True}],
            },
            stores={"a": served},
            events=self.events,
            call_main=self.calls.call,
            stopping=self.stopping,
            reload=lambda: self.reload(),
            set_log_level=self.levels.append,
            drain_store=lambda name, *, wanted: self.drained.append((name, wanted)),
        )
        self.server = ControlServer(self.file, self.parts, Log(self.recorder, "debug"))
        self.is_over = threading.Event()
        self.main = threading.Thread(target=self._make_calls, daemon=True)

    def remove(self, flows: Sequence[bytes], is_stopped: Callable[[], bool]) -> list[RemovalResult]:
        self.removed += flows
        return [RemovalResult(RemovalState.REMOVED, 5) for _ in flows]

    def _make_calls(self) -> None:
        while not self.is_over.wait(0.005):
            self.calls.settle()

    def start(self) -> None:
        self.server.start()
        self.main.start()

    def close(self) -> list[str]:
        stuck = self.server.close(WAIT_S)
        self.is_over.set()
        self.main.join(WAIT_S)
        self.file.close()
        return stuck


@contextmanager
def served(path: Path) -> Iterator[Desk]:
    """A server at a path, which ends without a thread that hangs."""
    desk = Desk(path)
    desk.start()
    try:
        yield desk
    finally:
        assert desk.close() == []


class RawClient:
    """Sends what it likes."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb")

    def line(self) -> dict[str, Any]:
        """Return the next line; {} at the end of the stream."""
        line = self.file.readline()
        return dict(json.loads(line)) if line else {}

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, **fields: Any) -> dict[str, Any]:
        """Send a request, and return its first line."""
        self.send(json.dumps({"version": 1, **fields}).encode() + b"\n")
        return self.line()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

# SPDX-License-Identifier: Apache-2.0
"""Connections between two workers: each arrives, waits for room, or gets the reason why it ends."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from ingestd.core.border import Event, FlowElsewhere
from ingestd.daemon.placement import handover
from ingestd.daemon.placement.handover import Handover
from ingestd.daemon.placement.placement import Refused
from ingestd.protocol.lines import Code, ErrorLine, parse_line
from ingestd.protocol.receipt import ErrorCode, ReceiptState, parse_receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 10
LISTENERS = [("plain", "raw"), ("spoken", "ingest")]


@dataclass(eq=False)
class FakeWorker:
    """Takes connections as long as its mailbox has room."""

    index: int
    room: int
    lives: bool = True
    store: str = "a"
    store_name: str = "a"
    adopted: list[tuple[int, int]] = field(default_factory=list)

    def alive(self) -> bool:
        return self.lives

    def adopt(self, fd: int, listener_index: int, move_id: int) -> bool:
        assert move_id == 0
        if not self.lives or self.room == 0:
            return False
        self.room -= 1
        self.adopted.append((fd, listener_index))
        return True


class Scene:
    """A handover between two workers, and the senders' ends of what was given to it."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        log = SimpleNamespace(emit=lambda _event, **fields: self.logged.append(fields))
        self.workers = [FakeWorker(0, room=100), FakeWorker(1, room=0)]
        self.chosen: FakeWorker | None = None  # of those that any may have
        placement = SimpleNamespace(
            is_tied=False,
            choose=lambda _: self.chosen,
            refused=lambda _: Refused(Code.STORE_FULL, "no store takes new flows"),
        )
        self.handover = Handover(LISTENERS, cast(Any, log), cast(Any, placement))
        self.refused = self.handover.refused_counts
        self.senders: list[socket.socket] = []

    def give(self, to: int | None, listener_index: int = 0) -> int:
        """Return the descriptor that was given."""
        sender, accepted = socket.socketpair()
        sender.settimeout(WAIT_S)
        self.senders.append(sender)
        fd = accepted.detach()
        elsewhere = FlowElsewhere(to, fd)
        event = Event(elsewhere, listener_index=listener_index, peer="p:1")
        workers = cast(Any, self.workers)
        self.handover.give(workers, workers[0], event, elsewhere)
        return fd

    def said(self) -> bytes:
        """Return all that the last sender receives before its connection ends."""
        parts = []
        while part := self.senders[-1].recv(4096):
            parts.append(part)
        return b"".join(parts)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    for sender in scene.senders:
        sender.close()
    for worker in scene.workers:
        for fd, _ in worker.adopted:
            os.close(fd)


def test_a_full_mailbox_keeps_nobody_out(scene: Scene) -> None:
    given = [scene.give(to=1, listener_index=i % 2) for i in range(300)]
    assert scene.workers[1].adopted == []
    other = scene.give(to=0)
    assert scene.workers[0].adopted == [(other, 0)]  # who is full keeps no one else waiting
    assert scene.handover.retry_s() <= 1
    for _ in range(3):
        scene.workers[1].room = 100
        scene.handover.settle()
    assert scene.workers[1].adopted == [(fd, i % 2) for i, fd in enumerate(given)]
    assert scene.handover.retry_s() == float("inf")
    assert not scene.refused
    assert not scene.logged


def test_who_finds_no_place_to_wait_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "WAITING_COUNT_MAX", 2)
    given = [scene.give(to=1) for _ in range(2)]
    scene.give(to=1)
    receipt = parse_receipt(scene.said())
    assert (receipt.state, receipt.error) == (ReceiptState.REFUSED, ErrorCode.LIMIT)
    scene.give(to=1, listener_index=1)
    line = parse_line(scene.said())
    assert isinstance(line, ErrorLine)
    assert line.code == Code.BUSY
    assert scene.refused == {("a", "plain", "busy"): 1, ("a", "spoken", "busy"): 1}
    assert [entry["reason"] for entry in scene.logged] == ["busy", "busy"]
    scene.workers[1].room = 100
    scene.handover.settle()
    assert [fd for fd, _ in scene.workers[1].adopted] == given


@pytest.mark.parametrize("to", [1, 7], ids=["dead", "unknown"])
def test_a_worker_that_is_gone_takes_nobody(scene: Scene, to: int) -> None:
    scene.workers[1].lives = False
    scene.give(to=to)
    assert json.loads(scene.said())["error"] == "shutdown"
    assert scene.refused == {("a", "plain", "shutdown"): 1}


def test_a_worker_that_dies_meanwhile(scene: Scene) -> None:
    scene.give(to=1, listener_index=1)
    scene.workers[1].lives = False
    scene.handover.settle()
    line = parse_line(scene.said())
    assert isinstance(line, ErrorLine)
    assert line.code == Code.SHUTDOWN


def test_who_is_passed_on_goes_to_whom_placement_chooses(scene: Scene) -> None:
    scene.chosen = scene.workers[0]
    given = scene.give(to=None, listener_index=1)
    assert scene.workers[0].adopted == [(given, 1)]


def test_who_is_passed_on_and_finds_no_store_is_told(scene: Scene) -> None:
    scene.give(to=None)
    receipt = parse_receipt(scene.said())
    assert (receipt.state, receipt.error) == (ReceiptState.REFUSED, ErrorCode.STORE_FULL)
    assert receipt.text == "no store takes new flows"
    assert scene.refused == {("a", "plain", "store_full"): 1}

# SPDX-License-Identifier: Apache-2.0
"""Connections about which the store must be asked: few wait, one reading answers all of them."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.core.border import RequestKind
from ingestd.daemon.admission.admission import PEER_LOOKUPS_MAX
from ingestd.daemon.admission.flow_index import Known
from support.admission import CHALLENGE, FLOW, Gate
from support.ingest import hello_block
from support.scene import wait_for
from support.store_builder import Close, Extent, Open, StoreBuilder

DATA = b"data"
OTHERS = [uuid.UUID(int=number) for number in range(1, 100)]


class AskedGate(Gate):
    """Its index has only the ids of what is in its store, whose reading waits for `may_read`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.index.note_other(FLOW.bytes)
        for other in OTHERS:
            self.index.note_other(other.bytes)
        self.may_read = threading.Event()
        self.is_read = threading.Event()  # the reading has begun
        for worker in self.workers:
            worker.store = self.workers[0].store
        self.workers[0].store.before_lookup = self._before_lookup
        self._ports = itertools.count(1)

    def _before_lookup(self) -> None:
        self.is_read.set()
        assert self.may_read.wait(60)

    def come(self, flow: uuid.UUID, host: int = 1, resume: Any = True) -> tuple[int, int]:
        """One more connection asks; it must wait."""
        connection, answer = self.try_to_come(flow, host, resume)
        assert answer is None
        return connection

    def try_to_come(
        self, flow: uuid.UUID, host: int = 1, resume: Any = True
    ) -> tuple[tuple[int, int], Any]:
        """One more connection asks."""
        connection = self.workers[0].connect()
        block = hello_block(CHALLENGE.hex(), flow=str(flow), resume=resume)
        peer = f"192.0.2.{host}:{next(self._ports)}"
        return connection, self.ask(RequestKind.HELLO, connection, block=block, peer=peer)

    def settled(self) -> dict[tuple[int, int], tuple[str, dict[str, Any]]]:
        """All answers, once the readings are done."""
        self.may_read.set()

        def is_done() -> bool:
            self.admission.settle()
            return not self.admission._looked_for

        wait_for(is_done, "answers of the store")
        return self.workers[0].answers

    @property
    def readings(self) -> list[frozenset[bytes]]:
        return self.workers[0].store.lookups


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[AskedGate]:
    builder = StoreBuilder(segment_count=3)
    segment = builder.segment(0)
    segment.batch(Open(FLOW.bytes, protocol=2), Extent(FLOW.bytes, DATA), Close(FLOW.bytes, 2))
    segment.close()
    segment = builder.segment(1)  # open: without a footer
    segment.batch(Open(OTHERS[0].bytes), Extent(OTHERS[0].bytes, DATA), Close(OTHERS[0].bytes))
    segment.mark(1)
    builder.write_superblocks()
    made = AskedGate(str(builder.save(tmp_path / "store.img")))
    yield made
    made.may_read.set()
    made.admission.close()


def test_a_flow_known_by_its_id_goes_on_where_the_store_says(gate: AskedGate) -> None:
    connection = gate.come(FLOW)
    kind, terms = gate.settled()[connection]
    assert (kind, terms["base_bytes"]) == ("admit", len(DATA))
    gate.end(connection, is_stored=False)
    _, (kind, _) = gate.try_to_come(FLOW)
    assert kind == "admit"
    assert len(gate.readings) == 1, "it is not asked again"


@pytest.mark.parametrize(("resume", "code"), [(True, "unknown_flow"), (False, "exists")])
def test_a_flow_of_the_other_protocol(gate: AskedGate, resume: bool, code: str) -> None:
    connection = gate.come(OTHERS[0], resume=resume)
    assert gate.settled()[connection][1]["code"] == code


def test_a_flow_that_only_seemed_to_be_there(gate: AskedGate) -> None:
    begun, unknown = gate.come(OTHERS[5], resume="auto"), gate.come(OTHERS[6])
    answers = gate.settled()
    assert answers[begun][0] == "admit"
    assert answers[unknown][1]["code"] == "unknown_flow"


def test_where_a_part_of_the_store_cannot_be_read_nothing_begins_anew(gate: AskedGate) -> None:
    store = gate.workers[0].store
    with open(store.path, "r+b") as file:
        file.seek(2 * 1024 * 1024 - 4096 + 8)  # the footer block of segment 0
        file.write(b"damage")
    damaged = gate.come(FLOW, resume="auto")
    answers = gate.settled()
    assert answers[damaged][0] == "admit", "what is open can be walked"
    with open(store.path, "r+b") as file:
        file.truncate(2 * 1024 * 1024)
    lost = gate.come(OTHERS[7], resume="auto")
    assert gate.settled()[lost][1]["code"] == "busy"


def test_a_store_that_cannot_be_asked(gate: AskedGate) -> None:
    gate.workers[0].store.path = "/nowhere"
    connection = gate.come(FLOW)
    assert gate.settled()[connection][1]["code"] == "busy"


def test_one_reading_answers_all_who_wait(gate: AskedGate) -> None:
    first = gate.come(OTHERS[10])
    wait_for(gate.is_read.is_set, "the first reading")
    others = [gate.come(flow, host) for host, flow in enumerate(OTHERS[11:51])]
    others.append(gate.come(OTHERS[11], 200))
    answers = gate.settled()
    assert set(answers) == {first, *others}
    assert [len(wanted) for wanted in gate.readings] == [1, 40]


@pytest.mark.fault("look_ups")
def test_who_waits_for_the_store_keeps_nobody_else_waiting(gate: AskedGate) -> None:
    parked = [gate.come(flow, host) for host, flow in enumerate(OTHERS[:64])]
    assert gate.workers[0].parked == parked
    _, (kind, terms) = gate.try_to_come(OTHERS[70], 99)
    assert (kind, terms["code"]) == ("refuse", "busy")
    assert gate.try_to_come(uuid.uuid4(), 99, False)[1][0] == "admit", "a new flow needs no store"


@pytest.mark.fault("look_ups")
def test_one_address_has_a_few_places_only(gate: AskedGate) -> None:
    mine = [gate.come(flow) for flow in OTHERS[:PEER_LOOKUPS_MAX]]
    assert gate.try_to_come(OTHERS[50])[1][1]["code"] == "busy"
    other = gate.come(OTHERS[51], host=2)
    answers = gate.settled()
    assert set(answers) >= {*mine, other}
    assert not gate.admission._lookups_of, "and has them again afterwards"


def test_nobody_looks_for_those_who_have_gone(gate: AskedGate) -> None:
    gate.come(OTHERS[20])
    wait_for(gate.is_read.is_set, "the first reading")
    gone = [gate.come(flow, 2) for flow in OTHERS[21:31]]
    stays = gate.come(OTHERS[31], 3)
    for connection in gone:
        gate.end(connection, is_stored=False)
        assert gate.workers[0].answers[connection] == ("refuse", {}), "its place is free at once"
    answers = gate.settled()
    assert answers[stays][1]["code"] == "unknown_flow"
    assert gate.readings[1:] == [frozenset([OTHERS[31].bytes])]


def test_of_two_who_wait_for_one_flow_the_newer_goes_on(gate: AskedGate) -> None:
    older, newer = gate.come(FLOW), gate.come(FLOW, 2)
    answers = gate.settled()
    assert answers[older][0] == "admit"
    assert newer not in answers
    gate.end(older, bytes_count=9)
    assert answers[newer][1]["base_bytes"] == 9
    assert gate.workers[0].parked == [older, newer]


def test_a_flow_that_became_known_meanwhile_needs_no_answer_of_the_store(gate: AskedGate) -> None:
    connection = gate.come(FLOW)
    wait_for(gate.is_read.is_set, "the reading")
    gate.index.note(FLOW.bytes, Known(True, 77, 0, True))
    assert gate.settled()[connection][1]["code"] == "sealed"


def test_who_takes_over_and_finds_no_place_waits_all_the_same(gate: AskedGate) -> None:
    gate.workers[1].park_count = 0
    flow = uuid.uuid4()
    older, _ = gate.hello(flow=str(flow))
    newer, answer = gate.hello(worker=1, flow=str(flow), resume=True)
    assert answer is None
    gate.end(older, bytes_count=5)
    assert gate.workers[1].answers[newer][0] == "admit"


@pytest.mark.fault("look_ups")
def test_the_end_waits_for_no_reading(gate: AskedGate) -> None:
    """It is to end, and nobody is woken afterwards, whenever the device answers."""
    gate.come(FLOW)
    wait_for(gate.is_read.is_set, "the reading")
    reader = gate.admission._readers["data"]
    gate.admission.close()
    assert reader._thread.daemon
    gate.may_read.set()
    reader._thread.join(60)
    assert not reader._thread.is_alive()
    assert gate.woken == 0


def test_without_a_thread_the_sender_is_told(
    gate: AskedGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as few:
        few.setattr(threading.Thread, "start", refuse)
        assert gate.try_to_come(FLOW)[1][1]["code"] == "busy"
    connection = gate.come(FLOW)
    assert gate.settled()[connection][0] == "admit"

# SPDX-License-Identifier: Apache-2.0
"""Where new flows are placed, what is passed on, and how a hello finds the store of its flow."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from ingestd.core.border import RequestKind
from ingestd.daemon.admission.flow_index import Known
from ingestd.daemon.placement.placement import PlacedListener, Placement
from ingestd.daemon.placement.store_states import Reason
from ingestd.protocol.lines import Code
from support.admission import FLOW, FakeStates, FakeWorker, Gate

STORES = ("a", "b", "c")
RAW, INGEST = 0, 1


class Places:
    """Three stores with a worker each, behind a listener of each protocol."""

    def __init__(self, *, is_most_free: bool = False, is_tied: bool = False) -> None:
        self.states = FakeStates()
        self.workers = {name: FakeWorker(0, "", name) for name in STORES}
        self.placement = Placement(
            [
                PlacedListener("raw", STORES, is_most_free, False),
                PlacedListener("ingest", STORES, is_most_free, True),
                PlacedListener("single", ("a",), False, False),
            ],
            cast(Any, list(self.workers.values())),
            cast(Any, self.states),
            is_tied=is_tied,
        )

    def chosen(self, count: int) -> Counter[str]:
        workers = [self.placement.choose(RAW) for _ in range(count)]
        return Counter(worker.store_name for worker in workers if worker is not None)

    def passing(self, listener_index: int) -> list[str]:
        self.placement.update()
        return [n for n, worker in self.workers.items() if worker.passing.get(listener_index)]


def test_spread_takes_turns_among_those_that_are_well() -> None:
    places = Places()
    assert places.chosen(9) == {"a": 3, "b": 3, "c": 3}
    places.states.out = {"b": {Reason.STALLED: 1.0}}
    assert places.chosen(8) == {"a": 4, "c": 4}
    places.workers["c"].lives = False
    assert places.chosen(3) == {"a": 3}


def test_most_free_takes_those_near_the_most() -> None:
    places = Places(is_most_free=True)
    places.states.free = {"a": 100, "b": 88, "c": 87}
    assert places.chosen(10) == {"a": 5, "b": 5}
    assert places.passing(RAW) == ["c"]
    assert places.passing(INGEST) == ["c"]
    places.states.out = {"a": {Reason.FULL: 1.0}}
    assert places.chosen(10) == {"b": 5, "c": 5}
    assert places.passing(RAW) == ["a"]


def test_who_is_out_passes_on_until_it_is_back() -> None:
    places = Places()
    assert places.passing(RAW) == []
    places.states.out = {"a": {Reason.FAILED: 1.0}}
    assert places.passing(RAW) == ["a"]
    assert places.passing(INGEST) == ["a"]
    assert places.passing(2) == []  # its own listener has no other store, and says what is wrong
    places.states.out = {}
    assert places.passing(RAW) == []


def test_where_all_are_out_a_hello_is_still_heard() -> None:
    """A flow may lie in one of them: only who brings a new one is refused."""
    places = Places()
    places.states.out = {name: {Reason.FULL: 1.0} for name in STORES}
    assert places.passing(RAW) == list(STORES)
    assert places.passing(INGEST) == []
    assert places.placement.choose(RAW) is None
    assert places.placement.refused(RAW).code is Code.STORE_FULL
    places.states.out["b"] = {Reason.FAILED: 1.0, Reason.FULL: 1.0}
    refused = places.placement.refused(RAW)
    assert refused.code is Code.BUSY
    assert "a is full, b failed, c is full" in refused.text


def test_a_drained_store_of_its_own_passes_on_to_be_refused() -> None:
    places = Places()
    places.states.out = {"a": {Reason.DRAINED: 1.0}}
    assert places.passing(2) == ["a"]
    assert places.placement.choose(2) is None


def test_a_command_that_finds_no_room_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places()
    places.states.out = {"a": {Reason.FULL: 1.0}}
    monkeypatch.setattr(places.workers["a"], "pass_on", lambda *_: False)
    assert places.passing(RAW) == []
    monkeypatch.undo()
    assert places.passing(RAW) == ["a"]


def test_where_the_card_decides_nothing_is_placed_elsewhere() -> None:
    places = Places(is_tied=True)
    own = cast(Any, places.workers["a"])
    assert places.placement.place(INGEST, own, is_placed=False) is own
    places.states.out = {"a": {Reason.FULL: 1.0}}
    assert places.placement.place(INGEST, own, is_placed=False) is None
    assert places.passing(INGEST) == []  # its hello says whether it is new
    assert places.passing(RAW) == ["a"]


# --- Hellos ---------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Gate:
    return Gate(stores=STORES)


A, B, C = 0, 2, 3  # workers of the first three stores
KNOWN = Known(False, 5000, 7, True)


def _moved(gate: Gate, connection: tuple[int, int], worker: int = A) -> tuple[int, int]:
    """Let the worker give a connection up; return what another one is to adopt: (worker, id)."""
    mine, theirs = socket.socketpair()
    with mine:
        fd = theirs.detach()
        gate.end(connection, worker, is_stored=False, moved_fd=fd)
        ((number, (given, _, move_id)),) = [
            (number, adopted)
            for number, other in enumerate(gate.workers)
            for adopted in other.adopted
        ]
        assert given == fd
        os.close(fd)
    gate.workers[number].adopted.clear()
    return number, move_id


def _arrive(gate: Gate, worker: int, move_id: int) -> tuple[tuple[int, int], Any]:
    connection = gate.workers[worker].connect()
    answer = gate.ask(RequestKind.HELLO, connection, worker, block=bytes(4096), move_id=move_id)
    return connection, answer


def test_a_resume_moves_to_the_store_that_has_the_flow(gate: Gate) -> None:
    gate.indexes["c"].note(FLOW.bytes, KNOWN)
    connection, answer = gate.hello(flow=str(FLOW), resume=True)
    assert answer[0] == "move"
    worker, move_id = _moved(gate, connection)
    assert worker == C
    _, (kind, terms) = _arrive(gate, worker, move_id)
    assert (kind, terms["base_bytes"], terms["crc"]) == ("admit", 5000, 7)


def test_what_can_only_be_refused_does_not_move(gate: Gate) -> None:
    gate.indexes["c"].note(FLOW.bytes, Known(True, 5000, 7, True))
    assert gate.code(flow=str(FLOW), resume=True) == "sealed"
    gate.indexes["c"].note(FLOW.bytes, KNOWN)
    assert gate.code(flow=str(FLOW), resume=False) == "exists"
    gate.gates["b"].claim(b"x" * 16)
    assert gate.code(flow="78787878-7878-7878-7878-787878787878", resume=True) == "removed"


def test_a_flow_that_is_fed_in_another_store_is_taken_over(gate: Gate) -> None:
    older, (kind, _) = gate.hello(worker=B, flow=str(FLOW))
    assert kind == "admit"
    newer, answer = gate.hello(worker=A, flow=str(FLOW), resume=True)
    assert answer is None
    assert gate.workers[B].ended == [older]
    gate.end(older, B, bytes_count=100)
    assert gate.workers[A].answers[newer][0] == "move"
    worker, move_id = _moved(gate, newer)
    assert worker == B
    _, (kind, terms) = _arrive(gate, worker, move_id)
    assert (kind, terms["base_bytes"]) == ("admit", 100)


def test_a_new_flow_goes_to_a_store_that_is_well(gate: Gate) -> None:
    gate.states.out = {"a": {Reason.FULL: 1.0}, "b": {Reason.DRAINED: 1.0}}
    connection, answer = gate.hello()
    assert answer[0] == "move"
    worker, move_id = _moved(gate, connection)
    assert worker == C
    assert _arrive(gate, worker, move_id)[1][0] == "admit"
    gate.states.out["c"] = {Reason.STALLED: 1.0}
    assert gate.code() == "busy"


def test_two_beginnings_of_one_flow_meet_in_one_store(gate: Gate) -> None:
    """Each was placed in another store; the one that arrives first is the flow."""
    gate.states.out = {"a": {Reason.FULL: 1.0}}
    moves = [_moved(gate, gate.hello(flow=str(FLOW))[0]) for _ in range(2)]
    assert {worker for worker, _ in moves} == {B, C}
    assert _arrive(gate, *moves[0])[1][0] == "admit"
    assert _arrive(gate, *moves[1])[1][1]["code"] == "exists"


def test_a_connection_that_ends_before_it_moves_is_forgotten(gate: Gate) -> None:
    gate.indexes["c"].note(FLOW.bytes, KNOWN)
    connection, _ = gate.hello(flow=str(FLOW), resume=True)
    gate.end(connection, is_stored=False)
    assert not any(worker.adopted for worker in gate.workers)
    assert _arrive(gate, C, 1)[1][1]["code"] == "busy"


def test_it_does_not_move_for_ever(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it arrives, the flow is said to lie in another store."""
    at = A
    elsewhere = {A: "b", B: "a"}

    def finder(name: str) -> Callable[[bytes], Known | None]:
        return lambda _: KNOWN if elsewhere[at] == name else None

    for name, index in gate.indexes.items():
        monkeypatch.setattr(index, "find", finder(name))
    connection, answer = gate.hello(flow=str(FLOW), resume=True)
    moves_count = 0
    while answer[0] == "move":
        at, move_id = _moved(gate, connection, at)
        moves_count += 1
        connection, answer = _arrive(gate, at, move_id)
    assert answer[1]["code"] == "busy"
    assert moves_count == 4


def test_where_the_card_decides_a_resume_comes_back(gate: Gate) -> None:
    tied = Gate(stores=STORES, is_tied=True)
    tied.indexes["c"].note(FLOW.bytes, KNOWN)
    _, (kind, terms) = tied.hello(flow=str(FLOW), resume=True)
    assert (kind, terms["code"]) == ("refuse", "busy")
    assert "the flow lies in store c" in terms["text"]
    _, (kind, _) = tied.hello(worker=C, flow=str(FLOW), resume=True)
    assert kind == "admit"

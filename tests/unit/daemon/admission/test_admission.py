# SPDX-License-Identifier: Apache-2.0
"""Admission: each request has one answer, and one connection at most feeds a flow.

A made-up worker asks; the last test lets Hypothesis ask in any order.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingestd.config.settings import ListenerSettings
from ingestd.core.border import RequestKind
from ingestd.daemon.admission.admission import UNLIMITED
from ingestd.daemon.admission.flow_index import Known
from ingestd.daemon.admission.listener_policy import ListenerPolicy, policy_of
from support.admission import FLOW, RAW_FLOW, SECRET, Gate
from support.ingest import trailer_block


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.admission.close()


def test_a_new_flow(gate: Gate) -> None:
    _, (kind, terms) = gate.hello(name="n", labels={"a": "b", "c": "d"})
    assert kind == "admit"
    assert uuid.UUID(bytes=terms.pop("flow")).version == 7
    assert terms == {
        "base_bytes": 0,
        "limit_bytes": UNLIMITED,
        "crc": 0,
        "is_crc_known": True,
        "is_stated": False,
        "has_trailer": False,
        "name": b"n",
        "labels": b"a=b\nc=d",
    }
    _, (kind, terms) = gate.hello(flow=str(FLOW), bytes=0, trailer=True, resume="auto")
    assert (kind, terms["flow"]) == ("admit", FLOW.bytes)
    assert (terms["limit_bytes"], terms["is_stated"], terms["has_trailer"]) == (0, True, True)
    _, (_, terms) = gate.hello(listener=1)
    assert (terms["limit_bytes"], terms["is_stated"]) == (1000, False)
    _, (_, terms) = gate.hello(listener=1, bytes=1000)
    assert (terms["limit_bytes"], terms["is_stated"]) == (1000, True)


def test_an_interrupted_flow_goes_on(gate: Gate) -> None:
    connection, _ = gate.hello(flow=str(FLOW))
    gate.end(connection, bytes_count=500, crc=77, is_crc_known=True)
    for _ in range(2):
        connection, (kind, terms) = gate.hello(worker=1, flow=str(FLOW), resume=True)
        assert (kind, terms["base_bytes"], terms["crc"]) == ("admit", 500, 77)
        gate.end(connection, 1, is_stored=False)  # nothing came: it is as it was
    connection, (_, terms) = gate.hello(flow=str(FLOW), resume="auto", bytes=500)
    assert (terms["base_bytes"], terms["limit_bytes"]) == (500, 500)


def test_a_flow_goes_on_without_a_checksum(gate: Gate) -> None:
    gate.index.note(FLOW.bytes, Known(False, 9, 5, False))
    _, (_, terms) = gate.hello(flow=str(FLOW), resume=True)
    assert (terms["crc"], terms["is_crc_known"]) == (5, False)


@pytest.mark.parametrize(
    ("code", "known", "fields"),
    [
        ("unknown_flow", None, {"resume": True}),
        ("exists", Known(False, 5, 0, True), {}),
        ("exists", Known(True, 5, 0, True), {}),
        ("sealed", Known(True, 5, 0, True), {"resume": True}),
        ("sealed", Known(True, 5, 0, True), {"resume": "auto"}),
        ("busy", Known(False, 5, 0, True, is_settled=False), {"resume": True}),
        ("unknown_flow", Known(True, 5, 0, True, is_resumable=False), {"resume": True}),
        ("exists", Known(True, 5, 0, True, is_resumable=False), {}),
        ("too_long", Known(False, 5, 0, True), {"resume": True, "bytes": 4}),
        ("limit", Known(False, 1001, 0, True), {"resume": True, "listener": 1}),
        ("limit", None, {"bytes": 1001, "listener": 1}),
        ("bad_hello", None, {"flow": "x"}),
    ],
)
def test_refusals(gate: Gate, code: str, known: Known | None, fields: dict[str, Any]) -> None:
    if known is not None:
        gate.index.note(FLOW.bytes, known)
    assert gate.code(**{"flow": str(FLOW), **fields}) == code
    (line,) = gate.log.fields("flow_refused")
    listener = "small" if fields.get("listener") else "open"
    assert (line["reason"], line["listener"], line["peer"]) == (code, listener, "192.0.2.1:4000")
    assert gate.admission.refused_counts == {("data", listener, code): 1}


def test_what_a_sealed_flow_has_is_told(gate: Gate) -> None:
    connection, _ = gate.hello(flow=str(FLOW))
    gate.end(connection, bytes_count=9, crc=0xE3069283, is_sealed=True)
    _, (_, terms) = gate.hello(flow=str(FLOW), resume=True)
    assert (terms["bytes"], terms["checksum"]) == (9, "crc32c:e3069283")
    assert (terms["type"], terms["flow"], terms["durable"]) == ("error", str(FLOW), 9)


def test_resume_needs_an_id(gate: Gate) -> None:
    assert gate.code(resume=True) == "bad_hello"
    assert gate.code(resume="auto") == "admit"


@pytest.mark.parametrize(
    ("resume", "code"), [(False, "exists"), (True, "unknown_flow"), ("auto", "unknown_flow")]
)
def test_the_id_of_a_raw_flow_is_never_given_again(gate: Gate, resume: object, code: str) -> None:
    """Though the flow was not reported yet, and none of its bytes may be in the store."""
    assert gate.code(flow=str(RAW_FLOW), resume=resume) == code


# --- Taking over ------------------------------------------------------------------------


def test_the_newer_waits_for_the_older(gate: Gate) -> None:
    older, _ = gate.hello(flow=str(FLOW))
    newer, answer = gate.hello(worker=1, flow=str(FLOW), resume=True)
    assert answer is None
    assert gate.workers[0].ended == [older]
    gate.end(older, bytes_count=123, crc=4)
    kind, terms = gate.workers[1].answers[newer]
    assert (kind, terms["base_bytes"], terms["crc"]) == ("admit", 123, 4)


def test_the_newest_of_those_who_wait_goes_on(gate: Gate) -> None:
    older, _ = gate.hello(flow=str(FLOW))
    first, _ = gate.hello(flow=str(FLOW), resume=True)
    second, _ = gate.hello(flow=str(FLOW), resume="auto")
    assert gate.workers[0].ended == [older]  # once is enough
    assert gate.workers[0].answers[first][1]["code"] == "replaced"
    gate.end(older, is_stored=False)
    assert gate.workers[0].answers[second][0] == "admit"


def test_who_waits_is_told_when_the_flow_was_sealed(gate: Gate) -> None:
    older, _ = gate.hello(flow=str(FLOW))
    newer, _ = gate.hello(flow=str(FLOW), resume=True)
    gate.end(older, is_sealed=True, bytes_count=5)
    assert gate.workers[0].answers[newer][1]["code"] == "sealed"


def test_who_ended_while_it_waited_feeds_nothing(gate: Gate) -> None:
    older, _ = gate.hello(flow=str(FLOW))
    newer, _ = gate.hello(flow=str(FLOW), resume=True)
    gate.end(newer, is_stored=False)  # as when the daemon drains
    gate.end(older, bytes_count=5)
    assert gate.workers[0].answers[newer] == ("refuse", {})  # late, and read by nobody
    assert not gate.log.fields("flow_refused")
    _, (kind, terms) = gate.hello(flow=str(FLOW), resume=True)
    assert (kind, terms["base_bytes"]) == ("admit", 5)


def test_a_live_flow_is_not_begun_again(gate: Gate) -> None:
    gate.hello(flow=str(FLOW))
    assert gate.code(flow=str(FLOW)) == "exists"
    gate.workers[0].is_box_full = True
    assert gate.code(flow=str(FLOW), resume=True) == "busy"


def test_only_the_same_key_takes_over(gate: Gate) -> None:
    older, answer = gate.hello(listener=2, flow=str(FLOW), key="ours", secret=SECRET)
    assert answer[0] == "admit"
    stolen = {"listener": 2, "flow": str(FLOW), "resume": True}
    assert gate.code(**stolen, key="other", secret=bytes(16)) == "unauthorised"
    assert gate.code(flow=str(FLOW), resume=True) == "unauthorised"  # by a door without keys
    _, answer = gate.hello(**stolen, key="ours", secret=SECRET)
    assert answer is None
    assert gate.workers[0].ended == [older]


# --- Trailers ---------------------------------------------------------------------------

DATA = b"123456789"


@pytest.mark.parametrize(
    ("made", "answer"),
    [
        (trailer_block(DATA), 0xE3069283),
        (trailer_block(bytes=9), None),
        (trailer_block(crc32c="e3069283"), 0xE3069283),
        (trailer_block(bytes=8, crc32c="e3069283"), "trailer"),
        (trailer_block(bytes=9, crc32c="e3069284"), "checksum"),
        (bytes(4096), "trailer"),
    ],
)
def test_trailers(gate: Gate, made: bytes, answer: int | str | None) -> None:
    connection, _ = gate.hello(flow=str(FLOW))
    del gate.workers[0].answers[connection]
    kind, terms = gate.ask(
        RequestKind.TRAILER, connection, block=made, bytes_count=9, crc=0xE3069283
    )
    if isinstance(answer, str):
        assert (kind, terms["code"], terms["durable"]) == ("refuse", answer, 9)
        assert terms["flow"] == str(FLOW)
        assert not gate.admission.refused_counts  # it is no refusal: the flow is interrupted
    else:
        assert (kind, terms["crc"]) == ("seal", answer)


def test_a_checksum_that_we_do_not_know_is_not_compared(gate: Gate) -> None:
    kind, terms = gate.ask(
        RequestKind.TRAILER,
        (0, 1),
        block=trailer_block(DATA),
        bytes_count=9,
        crc=0,
        is_crc_known=False,
    )
    assert (kind, terms["crc"]) == ("seal", 0xE3069283)


# --- Doors --------------------------------------------------------------------------------


def test_a_door_has_the_keys_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.touch(0o600)
    path.write_text(f'[key]\nours = "{SECRET.hex()}"\n')
    listener = ListenerSettings(
        address="*:1", protocol="ingest", key_file=str(path), flow_bytes_max="1KiB"
    )
    assert policy_of("in", listener) == ListenerPolicy("in", {"ours": SECRET}, 1024, True, ())
    raw = policy_of("in", ListenerSettings(address="*:1"))
    assert raw == ListenerPolicy("in", None, 0, False, ())


# --- Any order ------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Connections come and end in any order; a model says the response that each must get."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.flows = [uuid.UUID(int=number) for number in range(1, 4)]
        self.feeding: dict[uuid.UUID, tuple[int, tuple[int, int]]] = {}
        self.waiting: dict[uuid.UUID, tuple[int, tuple[int, int]]] = {}
        self.stored: dict[uuid.UUID, int] = {}
        self.sealed: set[uuid.UUID] = set()
        self.hellos = 0

    @rule(
        number=st.integers(0, 2),
        worker=st.integers(0, 1),
        resume=st.sampled_from([True, "auto", False]),
    )
    def come(self, number: int, worker: int, resume: Any) -> None:
        flow = self.flows[number]
        before = self.waiting.get(flow)
        connection, answer = self.gate.hello(worker=worker, flow=str(flow), resume=resume)
        self.hellos += 1
        is_live, is_there = flow in self.feeding, flow in self.stored
        if is_live and resume is not False:
            assert answer is None
            if before is not None:
                gone = self.gate.workers[before[0]].answers[before[1]]
                assert gone[1]["code"] == "replaced"
            self.waiting[flow] = worker, connection
        elif is_live or (is_there and resume is False):
            assert answer[1]["code"] == "exists"
        elif flow in self.sealed:
            assert answer[1]["code"] == "sealed"
        elif not is_there and resume is True:
            assert answer[1]["code"] == "unknown_flow"
        else:
            assert answer[0] == "admit"
            assert answer[1]["base_bytes"] == self.stored.get(flow, 0)
            self.feeding[flow] = worker, connection

    @precondition(lambda self: self.feeding)
    @rule(data=st.data(), more=st.integers(0, 9), is_sealed=st.booleans())
    def end(self, data: st.DataObject, more: int, is_sealed: bool) -> None:
        flow = data.draw(st.sampled_from(sorted(self.feeding)))
        worker, connection = self.feeding.pop(flow)
        is_stored = is_sealed or more > 0
        if is_stored:
            self.stored[flow] = self.stored.get(flow, 0) + more
        if is_sealed:
            self.sealed.add(flow)
        heir = self.waiting.pop(flow, None)
        self.gate.end(
            connection,
            worker,
            bytes_count=self.stored.get(flow, 0),
            is_stored=is_stored,
            is_sealed=is_sealed,
        )
        if heir is None:
            return
        kind, terms = self.gate.workers[heir[0]].answers[heir[1]]
        if flow in self.sealed:
            assert terms["code"] == "sealed"
        elif kind == "admit":
            assert terms["base_bytes"] == self.stored.get(flow, 0)
            self.feeding[flow] = heir
        else:
            assert terms["code"] == "unknown_flow"
            assert flow not in self.stored

    @invariant()
    def every_question_has_its_answer(self) -> None:
        answered = sum(len(worker.answers) for worker in self.gate.workers)
        assert answered + len(self.waiting) == self.hellos


TestAnyOrder = AnyOrder.TestCase

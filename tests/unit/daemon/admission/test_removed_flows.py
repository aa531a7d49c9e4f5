# SPDX-License-Identifier: Apache-2.0
"""Admission and the removal of flows: a flow is fed, or removed, and never both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.daemon.admission.flow_index import Known
from support.admission import FLOW, Gate
from support.scene import wait_for
from support.store_builder import Close, Extent, Open, StoreBuilder


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.admission.close()


@pytest.mark.parametrize("resume", [True, False, "auto"])
def test_a_removed_flow_is_not_let_in_before_it_is_forgotten(gate: Gate, resume: object) -> None:
    gate.index.note(FLOW.bytes, Known(False, 5, 0, True))
    assert gate.gate.claim(FLOW.bytes)
    assert gate.code(flow=str(FLOW), resume=resume) == "removed"
    gate.gate.release(FLOW.bytes)
    assert gate.code(flow=str(FLOW), resume=resume) == ("admit" if resume else "exists")


def test_a_flow_that_is_fed_cannot_be_claimed(gate: Gate) -> None:
    connection, _ = gate.hello(flow=str(FLOW))
    assert not gate.gate.claim(FLOW.bytes)
    gate.end(connection, bytes_count=500)
    assert gate.gate.claim(FLOW.bytes)
    assert gate.code(flow=str(FLOW), resume=True) == "removed"


def test_who_waits_for_the_older_is_told_off_if_a_removal_was_quicker(gate: Gate) -> None:
    older, _ = gate.hello(flow=str(FLOW))
    newer, answer = gate.hello(worker=1, flow=str(FLOW), resume=True)
    assert answer is None
    gate.gate.end(FLOW.bytes)
    assert gate.gate.claim(FLOW.bytes)
    gate.end(older, bytes_count=500)
    assert gate.workers[1].answers[newer][1]["code"] == "removed"


def test_a_flow_that_is_removed_while_the_store_is_asked(tmp_path: Path) -> None:
    builder = StoreBuilder(segment_count=2)
    segment = builder.segment(0)
    segment.batch(Open(FLOW.bytes, protocol=2), Extent(FLOW.bytes, b"data"), Close(FLOW.bytes))
    segment.mark(1)
    gate = Gate(str(builder.save(tmp_path / "store.img")))
    gate.index.note_other(FLOW.bytes)
    try:
        connection, answer = gate.hello(flow=str(FLOW), resume=True)
        assert answer is None
        assert gate.gate.claim(FLOW.bytes)
        wait_for(lambda: gate.woken, "an answer of the store")
        gate.admission.settle()
        assert gate.workers[0].answers[connection][1]["code"] == "removed"
    finally:
        gate.admission.close()

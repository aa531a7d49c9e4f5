# SPDX-License-Identifier: Apache-2.0
"""Ids of flows that the daemon makes: those of raw flows are known by themselves."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.admission import marked_ids
from ingestd.daemon.admission.marked_ids import is_raw_id, new_flow_id

STORE = bytes(range(16))
# tests/core/test_flow_id.c has the same two.
MARKED = (
    bytes.fromhex("019368f42c0070008000000052f73650"),
    bytes.fromhex("019368f42c007fffbfffffff5a4e9ea1"),
)


@pytest.mark.parametrize("flow", MARKED)
def test_what_a_worker_made_is_known(flow: bytes) -> None:
    assert uuid.UUID(bytes=flow).version == 7
    assert is_raw_id(flow, STORE)
    assert not is_raw_id(flow, bytes(16)), "another store's flows may come here by their ids"


@given(number=st.integers(0, 1), bit=st.integers(0, 127))
def test_every_bit_counts(number: int, bit: int) -> None:
    changed = int.from_bytes(MARKED[number], "big") ^ 1 << bit
    assert not is_raw_id(changed.to_bytes(16, "big"), STORE)


@given(st.uuids())
def test_what_senders_choose_is_not_marked(chosen: uuid.UUID) -> None:
    assert not is_raw_id(chosen.bytes, STORE)


def test_ids_of_other_flows_are_made_without_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [new_flow_id(STORE) for _ in range(100)]
    assert len(set(made)) == 100
    assert all(uuid.UUID(bytes=one).version == 7 for one in made)
    drawn = iter([MARKED[0][6:], bytes(10)])
    monkeypatch.setattr(marked_ids.os, "urandom", lambda _: next(drawn))
    monkeypatch.setattr(marked_ids.time, "time_ns", lambda: 0x019368F42C00 * 1_000_000)
    assert new_flow_id(STORE)[6:] == bytes.fromhex("7000800000000000") + bytes(2)

# SPDX-License-Identifier: Apache-2.0
"""Which flows a store holds already: nothing is forgotten, whatever the bounds."""

from __future__ import annotations

import random

from ingestd.daemon import flow_index
from ingestd.daemon.flow_index import FlowIndex, Known, known_of
from ingestd.store.flows import Flow


def a_flow(number: int, **fields: object) -> Flow:
    values: dict[str, object] = {
        "flow": "",
        "name": None,
        "peer": None,
        "listener": None,
        "state": "interrupted",
        "bytes": 7,
        "durable_bytes": 7,
        "started": None,
        "ended": None,
        "checksum": "crc32c:0000000f",
        "protocol": "ingest",
        "flow_id": an_id(number),
    }
    return Flow(**{**values, **fields})  # type: ignore[arg-type]


def an_id(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def test_what_is_kept_of_a_recovered_flow() -> None:
    assert known_of(a_flow(1)) == Known(False, 7, 15, True)
    assert known_of(a_flow(1, state="sealed", checksum=None)) == Known(True, 7, 0, False)
    # Of no bytes the checksum is known, whatever the store says.
    assert known_of(a_flow(1, bytes=0, checksum=None)) == Known(False, 0, 0, True)
    assert not known_of(a_flow(1, protocol="raw")).is_resumable


def test_flows_are_found_by_their_details_or_their_ids() -> None:
    index = FlowIndex([a_flow(1), a_flow(2, protocol="raw")])
    assert index.find(an_id(1)) == Known(False, 7, 15, True)
    assert index.find(an_id(2)) is None
    assert index.must_ask(an_id(2))
    assert not index.must_ask(an_id(3))
    index.note(an_id(3), Known(True, 1, 2, True))
    assert index.find(an_id(3)) == Known(True, 1, 2, True)
    index.note_other(an_id(4))
    assert index.must_ask(an_id(4))


def test_the_store_is_asked_about_what_was_forgotten() -> None:
    index = FlowIndex([a_flow(1)])
    index.note(an_id(2), Known(False, 5, 0, True, is_settled=False))
    for number in (1, 2, 3):
        index.forget(an_id(number))
    assert index.find(an_id(1)) is None
    assert index.must_ask(an_id(1))
    assert index.find(an_id(2)), "the store cannot know what may become durable still"
    assert not index.must_ask(an_id(3))


def test_details_are_bounded_and_ids_are_not() -> None:
    index = FlowIndex((a_flow(number) for number in range(20)), details_max=8)
    for number in range(20, 30):
        index.note(an_id(number), Known(False, number, 0, True))
    index.find(an_id(22))  # used: it stays longest
    index.note(an_id(30), Known(False, 30, 0, True))
    kept = [number for number in range(31) if index.find(an_id(number))]
    assert kept == [22, 24, 25, 26, 27, 28, 29, 30]
    assert all(number in kept or index.must_ask(an_id(number)) for number in range(31))


def test_many_ids_are_sorted_in() -> None:
    count = 3 * flow_index.UNSORTED_MIN + 5
    index = FlowIndex(a_flow(number, protocol="raw") for number in range(10))
    for number in range(10, count):
        index.note_other(an_id(number))
    assert all(index.must_ask(an_id(number)) for number in range(count))
    assert not any(index.must_ask(an_id(number)) for number in range(count, count + 1000))

# SPDX-License-Identifier: Apache-2.0
"""Which flows a store holds already: nothing is forgotten, whatever the bounds."""

from __future__ import annotations

import random

from ingestd.daemon.admission.bloom_filter import BloomFilter
from ingestd.daemon.admission.flow_index import RAW, FlowIndex, Known, known_of
from ingestd.store.format.segment import Span
from ingestd.store.read.flows import Flow
from support.admission import RAW_FLOW, STORE_UUID


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
    index = FlowIndex(STORE_UUID, [a_flow(1), a_flow(2, protocol="raw")])
    assert index.find(an_id(1)) == Known(False, 7, 15, True)
    assert index.find(an_id(2)) is None
    assert index.must_ask(an_id(2))
    assert not index.must_ask(an_id(3))
    index.note(an_id(3), Known(True, 1, 2, True))
    assert index.find(an_id(3)) == Known(True, 1, 2, True)
    index.note_other(an_id(4))
    assert index.must_ask(an_id(4))


def test_the_store_is_asked_about_every_flow_until_it_is_known_which_there_are() -> None:
    index = FlowIndex(STORE_UUID, None)
    index.note(an_id(1), Known(True, 1, 2, True))
    index.forget(an_id(1))
    assert index.must_ask(an_id(1))
    assert index.must_ask(an_id(2))
    assert index.find(RAW_FLOW.bytes) == RAW
    ids = [an_id(number) for number in range(2, 500)]
    index.complete(BloomFilter.of(ids, 100))  # more came than were announced
    assert all(index.must_ask(flow) for flow in ids)
    assert index.must_ask(an_id(1)), "what was noted before counts on"
    others = [an_id(number) for number in range(500, 1500)]
    assert sum(index.must_ask(flow) for flow in others) < 100


def test_the_store_is_asked_about_what_was_forgotten() -> None:
    index = FlowIndex(STORE_UUID, [a_flow(1)])
    index.note(an_id(2), Known(False, 5, 0, True, is_settled=False))
    for number in (1, 2, 3):
        index.forget(an_id(number))
    assert index.find(an_id(1)) is None
    assert index.must_ask(an_id(1))
    assert index.find(an_id(2)), "the store cannot know what may become durable still"
    assert not index.must_ask(an_id(3))


def test_a_raw_flow_is_known_by_its_id_alone() -> None:
    index = FlowIndex(STORE_UUID, [a_flow(1, protocol="raw", flow_id=RAW_FLOW.bytes)])
    assert index.find(RAW_FLOW.bytes) == RAW
    assert not index.must_ask(RAW_FLOW.bytes), "there is no need to read the store"
    # One that came by the other protocol, and bears the mark by chance, is itself.
    index = FlowIndex(STORE_UUID, [a_flow(1, flow_id=RAW_FLOW.bytes)])
    assert index.find(RAW_FLOW.bytes) == Known(False, 7, 15, True)


def test_details_are_bounded_and_ids_are_not() -> None:
    index = FlowIndex(STORE_UUID, (a_flow(number) for number in range(20)), details_max=8)
    for number in range(20, 30):
        index.note(an_id(number), Known(False, number, 0, True))
    index.find(an_id(22))  # used: it stays longest
    index.note(an_id(30), Known(False, 30, 0, True))
    kept = [number for number in range(31) if index.find(an_id(number))]
    assert kept == [22, 24, 25, 26, 27, 28, 29, 30]
    assert all(number in kept or index.must_ask(an_id(number)) for number in range(31))


def a_span(sequence: int) -> Span:
    return Span(b"", 0, sequence, 0, 7, 7, 0, 0, 0, 0, True)


def test_after_a_start_the_flows_used_last_are_known_and_interrupted_ones_first() -> None:
    """The flows come in the order in which they began, the oldest first."""
    flows = [
        a_flow(number, state="sealed" if number % 2 else "interrupted", spans=(a_span(number),))
        for number in range(40)
    ]
    flows[0] = a_flow(0, spans=(a_span(1), a_span(99)))  # begun first, and resumed last
    index = FlowIndex(STORE_UUID, flows, details_max=25)
    kept = {number for number in range(40) if index.find(an_id(number))}
    assert kept == {*range(0, 40, 2), 39, 37, 35, 33, 31}
    assert all(number in kept or index.must_ask(an_id(number)) for number in range(40))


def test_sealed_flows_go_before_those_that_can_be_gone_on_with() -> None:
    index = FlowIndex(STORE_UUID, details_max=4)
    for number in range(4):
        index.note(an_id(number), Known(False, 1, 0, True))
    for number in range(4, 50):
        index.note(an_id(number), Known(True, 1, 0, True))
    assert all(index.find(an_id(number)) for number in range(4))
    index.note(an_id(0), Known(True, 2, 0, True))  # it was resumed, and is complete
    index.note(an_id(50), Known(False, 1, 0, True))
    assert index.find(an_id(0)) is None
    assert index.must_ask(an_id(0))
    assert all(index.find(an_id(number)) for number in (1, 2, 3, 50))

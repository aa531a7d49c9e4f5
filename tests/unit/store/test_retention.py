# SPDX-License-Identifier: Apache-2.0
"""Which flows need not be kept: terms, sizes, and what is never let go."""

from __future__ import annotations

from typing import Any

import pytest

from ingestd.store.flows import Flow
from ingestd.store.layout import SegmentFooterRow
from ingestd.store.retention import Retention, expired_flows
from ingestd.store.segment import SegmentImage, SegmentState, Span

NOW_NS = 1_000


def a_flow(number: int, ended_ns: int, size: int = 10, **fields: Any) -> Flow:
    values: dict[str, Any] = {
        "flow": str(number),
        "name": None,
        "peer": None,
        "listener": "in",
        "state": "sealed",
        "bytes": size,
        "durable_bytes": size,
        "started": None,
        "ended": None,
        "checksum": None,
        "flow_id": bytes([number]) * 16,
        "ended_ns": ended_ns,
        **fields,
    }
    return Flow(**values)


def a_segment(index: int, flow: int, closed_ns: int | None) -> SegmentImage:
    footer = None
    if closed_ns is not None:
        footer = SegmentFooterRow(b"", 0, 1, b"", index + 1, 1, 0, 0, 0, 0, 0, closed_ns, 0, 0)
    span = Span(bytes([flow]) * 16, index, index + 1, 0, 1, 1, 4, 4, 0, 0, True)
    state = SegmentState.OPEN if footer is None else SegmentState.CLOSED
    return SegmentImage(index=index, state=state, sequence=index + 1, spans=[span], footer=footer)


def expired(
    flows: list[Flow], retention: Retention, segments: list[SegmentImage] | None = None
) -> tuple[list[int], int | None]:
    found = expired_flows(flows, segments or [], {"in": retention}, NOW_NS)
    return sorted(flow[0] for flow in found.flows), found.next_ns


def test_by_time() -> None:
    flows = [a_flow(1, 500), a_flow(2, 900), a_flow(3, 901), a_flow(4, 950)]
    assert expired(flows, Retention(for_ns=100)) == ([1, 2], 1001)
    assert expired(flows, Retention(for_ns=501)) == ([], 1001)
    assert expired(flows[:2], Retention(for_ns=100)) == ([1, 2], None)
    assert expired([a_flow(1, NOW_NS + 5)], Retention(for_ns=1)) == ([], NOW_NS + 6)


@pytest.mark.parametrize(
    ("limit", "gone"),
    [(1, [1, 2, 3]), (10, [1, 2, 3]), (11, [1, 2]), (20, [1, 2]), (25, [1]), (100, [])],
)
def test_by_size_whole_flows_are_kept(limit: int, gone: list[int]) -> None:
    flows = [a_flow(3, 600), a_flow(1, 400), a_flow(4, 700), a_flow(2, 500)]
    assert expired(flows, Retention(bytes_count=limit)) == (gone, None)


def test_what_is_overwritten_does_not_count() -> None:
    flows = [a_flow(1, 400), a_flow(2, 500, 1000, first_offset=995)]
    assert expired(flows, Retention(bytes_count=6)) == ([], None)


def test_with_both_either_keeps() -> None:
    flows = [a_flow(1, 400), a_flow(2, 500), a_flow(3, 950)]
    assert expired(flows, Retention(for_ns=100, bytes_count=5)) == ([1, 2], None)
    assert expired(flows, Retention(for_ns=550, bytes_count=5)) == ([1], 1050)
    assert expired(flows, Retention(for_ns=1, bytes_count=1000)) == ([], None)


def test_what_is_never_let_go() -> None:
    flows = [
        a_flow(1, 0, state="open"),
        a_flow(2, 1, listener="other"),
        a_flow(3, 1, listener=None),
    ]
    assert expired(flows, Retention(for_ns=1)) == ([], None)


def test_without_a_close_record_the_last_footer_tells() -> None:
    flows = [a_flow(number, 0, state="interrupted") for number in (1, 2, 3)]
    segments = [
        a_segment(0, 1, 700),
        a_segment(1, 1, 600),
        a_segment(2, 2, 500),
        a_segment(3, 2, None),
        a_segment(4, 3, 960),
    ]
    # Flow 2 lies in a segment that is not closed.
    assert expired(flows, Retention(for_ns=300), segments) == ([1], 1260)
    assert expired(flows, Retention(for_ns=301), segments) == ([], 1001)

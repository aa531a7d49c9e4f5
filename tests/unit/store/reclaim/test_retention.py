# SPDX-License-Identifier: Apache-2.0
"""Which flows need not be kept: terms, sizes, and which are never released."""

from __future__ import annotations

from typing import Any

import pytest

from ingestd.store.format.layout import RecordCloseRow, SegmentFooterRow, sequence_of
from ingestd.store.format.records import CloseEvent
from ingestd.store.format.segment import SegmentImage, SegmentState, Span
from ingestd.store.read.flow_age import Clock
from ingestd.store.read.flows import Flow
from ingestd.store.reclaim.retention import Expired, Retention, expired_flows

FLOOR_NS = 10**15
NOW_NS = FLOOR_NS + 10**12  # long after the floor, and a second is nothing
HERE = 9  # the generation of the one who judges


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
        "ended_ns": ended_ns and FLOOR_NS + ended_ns,
        **fields,
    }
    return Flow(**values)


def a_segment(
    index: int,
    *flows: int,
    closed_ns: int | None = 0,
    opened_ns: int = 0,
    generation: int = 1,
    worker: int = 0,
) -> SegmentImage:
    """One of the sequence that its index has; `closed_ns` None: it has no footer."""
    footer = None
    if closed_ns is not None:
        closed_ns += FLOOR_NS
        footer = SegmentFooterRow(b"", 0, 1, b"", index + 1, 1, 0, 0, 0, 0, 0, closed_ns, 0, 0)
    sequence = sequence_of(generation, index + 1)
    return SegmentImage(
        index=index,
        state=SegmentState.OPEN if footer is None else SegmentState.CLOSED,
        sequence=sequence,
        worker_index=worker,
        opened_ns=opened_ns and FLOOR_NS + opened_ns,
        spans=[
            Span(bytes([flow]) * 16, index, sequence, 0, 1, 1, 4, 4, 0, 0, True) for flow in flows
        ],
        footer=footer,
    )


def judge(
    flows: list[Flow],
    retention: Retention,
    segments: list[SegmentImage],
    *,
    now_ns: int = NOW_NS,
    watched_ns: int = 0,
) -> Expired:
    clock = Clock(now_ns, FLOOR_NS, watched_ns, HERE, age_here=lambda time_ns: time_ns - FLOOR_NS)
    return expired_flows(flows, segments, {"in": retention}, clock)


def expired(
    flows: list[Flow],
    retention: Retention,
    segments: list[SegmentImage] | None = None,
    *,
    now: int = 1000,
    watched: int = 0,
) -> tuple[list[int], int | None]:
    """Flows by number, and when the next is due, counted like `now` from the floor."""
    if segments is None:
        segments = [a_segment(number, flow.flow_id[0]) for number, flow in enumerate(flows)]
    found = judge(flows, retention, segments, now_ns=FLOOR_NS + now, watched_ns=watched)
    due = None if found.wait_ns is None else now + found.wait_ns
    return sorted(flow[0] for flow in found.flows), due


def test_by_time() -> None:
    flows = [a_flow(1, 500), a_flow(2, 900), a_flow(3, 901), a_flow(4, 950)]
    assert expired(flows, Retention(for_ns=100)) == ([1, 2], 1001)
    assert expired(flows, Retention(for_ns=501)) == ([], 1001)
    assert expired(flows[:2], Retention(for_ns=100)) == ([1, 2], None)
    assert expired([a_flow(1, 1005)], Retention(for_ns=1)) == ([], 1001)


@pytest.mark.parametrize(
    ("limit", "gone"),
    [(1, [1, 2, 3]), (10, [1, 2, 3]), (11, [1, 2]), (20, [1, 2]), (25, [1]), (100, [])],
)
def test_by_size_whole_flows_are_kept(limit: int, gone: list[int]) -> None:
    """Newest is what lies last, whatever the clock said."""
    flows = [a_flow(1, 700), a_flow(2, 500), a_flow(3, 900), a_flow(4, 400)]
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
        a_segment(0, 1, closed_ns=500),
        a_segment(1, 1, closed_ns=700),
        a_segment(2, 2, closed_ns=500),
        a_segment(3, 2, closed_ns=None),
        a_segment(4, 3, closed_ns=960),
    ]
    # Flow 2 lies in a segment that is not closed.
    assert expired(flows, Retention(for_ns=300), segments) == ([1], 1260)
    assert expired(flows, Retention(for_ns=301), segments) == ([], 1001)


# --- Clocks that are wrong --------------------------------------------------------------

S = 10**9
YEAR = 365 * 86400 * S


@pytest.mark.parametrize("ended", [-FLOOR_NS + 60 * S, -YEAR, 10 * YEAR])
def test_a_date_that_cannot_be_right_is_no_age(ended: int) -> None:
    """1970, before the store was made, in the future: the flow is as old as it was seen for."""
    flows, term = [a_flow(1, ended)], Retention(for_ns=3600 * S)
    now = 10**12
    assert expired(flows, term, now=now, watched=3599 * S) == ([], now + S)
    assert expired(flows, term, now=now, watched=3600 * S) == ([1], None)
    found = judge(flows, term, [a_segment(0, 1)])
    assert [flow.flow_id[0] for flow in found.misdated] == [1]


def test_what_comes_after_tells_of_a_date_that_cannot_be_right() -> None:
    flows, term = [a_flow(1, 10 * YEAR)], Retention(for_ns=100 * S)
    after = [
        a_segment(1, opened_ns=70 * S, generation=2),
        a_segment(2, opened_ns=80 * S, generation=2, worker=1),
    ]
    segments = [a_segment(0, 1, opened_ns=10 * YEAR), *after]
    assert expired(flows, term, segments, now=169 * S) == ([], 170 * S)
    assert expired(flows, term, segments, now=170 * S) == ([1], None)
    # Of another worker's segment of that time nobody knows whether it was begun later.
    for segment in after:
        segment.sequence, segment.worker_index = sequence_of(1, segment.index + 1), 1
    assert expired(flows, term, segments, now=1000 * S) == ([], 1100 * S)


def test_a_flow_did_not_end_before_what_lies_before_it() -> None:
    """The clock was set back, to a time that it could have been."""
    flows, term = [a_flow(1, 20 * S)], Retention(for_ns=100 * S)
    segments = [a_segment(0, opened_ns=90 * S), a_segment(1, 1, opened_ns=15 * S, generation=2)]
    assert expired(flows, term, segments, now=189 * S) == ([], 190 * S)
    assert expired(flows, term, segments, now=190 * S) == ([1], None)


def test_flows_of_a_clock_that_was_ahead_push_nothing_out() -> None:
    flows = [a_flow(1, 10 * YEAR), a_flow(2, 100 * S)]
    assert expired(flows, Retention(bytes_count=10), now=200 * S) == ([1], None)


def test_what_this_daemon_dated_is_as_old_as_its_own_clock_says() -> None:
    """Whatever the wall clock says now."""
    flows = [a_flow(1, 50 * S)]
    segments = [a_segment(0, 1, generation=HERE)]
    for now in (0, 10 * YEAR):
        assert expired(flows, Retention(for_ns=51 * S), segments, now=now) == ([], now + S)
        assert expired(flows, Retention(for_ns=50 * S), segments, now=now) == ([1], None)


def test_within_a_segment_its_records_are_in_order() -> None:
    segment = a_segment(0, 1, 2, 3)
    segment.events = [
        CloseEvent(RecordCloseRow(0, 0, 0, bytes([flow]) * 16, *[0] * 6), b"") for flow in (2, 3, 1)
    ]
    flows = [a_flow(number, number) for number in (1, 2, 3)]
    assert expired(flows, Retention(bytes_count=15), [segment]) == ([2], None)


@pytest.mark.parametrize("wrong", [{}, {"for_ns": 0}, {"for_ns": None, "bytes_count": 0}])
def test_what_would_keep_nothing_is_no_setting(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        Retention(**wrong)

# SPDX-License-Identifier: Apache-2.0
"""What core events become in the log, and the status line."""

from __future__ import annotations

import errno
import uuid
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from ingestd.core.border import (
    AcceptFailed,
    Backpressure,
    BackpressureChanged,
    Denial,
    Event,
    EventDetail,
    FlowByCopy,
    FlowDenied,
    FlowElsewhere,
    FlowInterrupted,
    FlowOpened,
    FlowRefused,
    FlowSealed,
    HelloFailed,
    SegmentClosed,
    SegmentOpened,
    StoreFailed,
    StoreFailure,
    StoreFull,
    WriteRetried,
)
from ingestd.daemon.status import StatusLine
from ingestd.daemon.telemetry.worker_events import EventLog, errno_text
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.store.format import layout
from support.fake_log import Recorder

FLOW = uuid.UUID("0192f0c1-2345-7890-abcd-ef0123456789")
WORKER: Any = SimpleNamespace(store_name="data", index=2)


def _told(event: Event) -> tuple[str, str, dict[str, Any]]:
    recorder = Recorder()
    EventLog(Log(recorder, "debug"), ["in", "other"]).report(WORKER, event)
    ((level, name, fields),) = recorder.lines
    assert fields.pop("store") == "data"
    assert fields.pop("worker") == 2
    return level, name, fields


FROM = {"flow": FLOW.bytes, "peer": "192.0.2.1:4000", "listener_index": 1}
SHOWN = {"flow": str(FLOW), "peer": "192.0.2.1:4000", "listener": "other"}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Event(FlowOpened(), **FROM), (LogEvent.FLOW_OPENED, SHOWN)),
        (
            Event(FlowOpened(9), **FROM),
            (LogEvent.FLOW_RESUMED, SHOWN | {"offset": 9}),
        ),
        (
            Event(FlowDenied(Denial.NETWORK, 3), peer="192.0.2.1:4000", listener_index=1),
            (
                LogEvent.CONNECTION_DENIED,
                {
                    "peer": "192.0.2.1:4000",
                    "listener": "other",
                    "reason": "network",
                    "count": 3,
                },
            ),
        ),
        (
            Event(HelloFailed(True, layout.CLOSE_REASON_IDLE), **FROM),
            (
                LogEvent.FLOW_REFUSED,
                {"peer": "192.0.2.1:4000", "listener": "other", "reason": "hello_timeout"},
            ),
        ),
        (
            Event(HelloFailed(False, layout.CLOSE_REASON_PEER), **FROM),
            (
                LogEvent.FLOW_REFUSED,
                {"peer": "192.0.2.1:4000", "listener": "other", "reason": "connection_lost"},
            ),
        ),
        (
            Event(FlowSealed(7), **FROM),
            (LogEvent.FLOW_SEALED, SHOWN | {"bytes": 7}),
        ),
        (
            Event(
                FlowInterrupted(layout.CLOSE_REASON_PEER, errno.ECONNRESET, 5),
                **FROM,
            ),
            (
                LogEvent.FLOW_INTERRUPTED,
                SHOWN
                | {
                    "durable_bytes": 5,
                    "reason": "connection_lost",
                    "error": "ECONNRESET: Connection reset by peer",
                },
            ),
        ),
        (
            Event(
                FlowRefused(layout.CLOSE_REASON_STORE_FULL),
                peer="[::1]:9",
                listener_index=0,
            ),
            (
                LogEvent.FLOW_REFUSED,
                {"peer": "[::1]:9", "listener": "in", "reason": "store_full"},
            ),
        ),
        (Event(StoreFull()), (LogEvent.STORE_FULL, {})),
        (
            Event(WriteRetried(errno.EIO, 2, 4096)),
            (
                LogEvent.WRITE_RETRIED,
                {"error": errno_text(errno.EIO), "tries": 2, "store_offset": 4096},
            ),
        ),
        (
            Event(SegmentOpened(3, 77)),
            (LogEvent.SEGMENT_OPENED, {"segment": 3, "sequence": 77}),
        ),
        (
            Event(SegmentClosed(3, 77)),
            (LogEvent.SEGMENT_CLOSED, {"segment": 3, "sequence": 77}),
        ),
        (
            Event(BackpressureChanged(Backpressure.DEVICE)),
            (LogEvent.BACKPRESSURE_STARTED, {"cause": "device"}),
        ),
        (Event(BackpressureChanged(Backpressure.ENDED)), (LogEvent.BACKPRESSURE_ENDED, {})),
        (
            Event(FlowByCopy(8193), **FROM),
            (LogEvent.FLOW_BY_COPY, SHOWN | {"napi_id": 8193}),
        ),
        (
            Event(FlowElsewhere(1, 33), **FROM),
            (LogEvent.FLOW_HANDED_OVER, SHOWN | {"to_worker": 1}),
        ),
    ],
)
def test_events(event: Event, expected: tuple[LogEvent, dict[str, Any]]) -> None:
    log_event, fields = expected
    assert _told(event) == (log_event.level, log_event.value, fields)


def test_a_failed_store_says_what_and_where() -> None:
    _, name, fields = _told(Event(StoreFailed(errno.EIO, StoreFailure.FLUSH, 8192)))
    assert name == "store_failed"
    assert fields["failed"] == "flush"
    assert fields["store_offset"] == 8192
    assert fields["error"] == "EIO: Input/output error"
    assert "dmesg" in fields["hint"]


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.EMFILE, "LimitNOFILE"), (errno.ECONNABORTED, "by itself")]
)
def test_an_accept_that_failed(code: int, hint: str) -> None:
    _, name, fields = _told(Event(AcceptFailed(code), listener_index=1))
    assert name == "accept_failed"
    assert fields["listener"] == "other"
    assert hint in fields["hint"]


def test_every_kind_of_the_core_has_a_line() -> None:
    kinds = get_args(EventDetail)
    assert len(kinds) == 15
    for kind in kinds:
        assert _told(Event(kind()))[1] in {event.value for event in LogEvent}


def test_an_unknown_kind_is_a_bug() -> None:
    unknown: Any = 99
    with pytest.raises(AssertionError, match="unknown: 99"):
        _told(Event(unknown))


def test_unknown_numbers_are_shown_as_they_are() -> None:
    assert _told(Event(FlowRefused(99)))[2]["reason"] == "99"
    assert errno_text(4095).startswith("4095: ")


def test_every_reason_has_a_name() -> None:
    reasons = [getattr(layout, n) for n in dir(layout) if n.startswith("CLOSE_REASON_")]
    for reason in reasons:
        level, name, fields = _told(Event(FlowRefused(reason)))
        if reason == layout.CLOSE_REASON_EMPTY:
            assert (level, name) == ("debug", "flow_empty")
        else:
            assert not fields["reason"].isdecimal()


def test_status_line() -> None:
    now_s = [100.0]
    status = StatusLine(lambda: now_s[0])
    shot = {"flows_open": 2, "received_bytes": 0, "durable_bytes": 0, "store_is_full": 0}
    now_s[0] += 1
    assert status.line([shot, shot], ()) == "4 flows, 0 B/s received, 0 B/s durable"
    now_s[0] += 2
    later = {**shot, "received_bytes": 4 * 2**20, "durable_bytes": 2 * 2**20, "store_is_full": 1}
    assert status.line([later, shot], ["a failed", "b is full"]) == (
        "4 flows, 2 MiB/s received, 1 MiB/s durable, store a failed, store b is full"
    )

# SPDX-License-Identifier: Apache-2.0
"""Events of flows, from the reports of workers and from admission's knowledge."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from ingestd.core.border import Event, FlowInterrupted, FlowOpened, FlowRefused, FlowSealed
from ingestd.daemon.telemetry.event_stream import EventStream, Subscription
from ingestd.daemon.telemetry.flow_events import FlowEvents, FlowTexts

FLOW = bytes(range(16))
RAW, INGEST = 0, 1
CONNECTION_LOST = 1  # close_reason of format/format.h
WHERE: dict[str, Any] = {
    "flow": str(uuid.UUID(bytes=FLOW)),
    "store": "data",
    "store_uuid": "a uuid",
    "peer": "192.0.2.1:4000",
}
WORKER: Any = SimpleNamespace(
    store_name="data", store=SimpleNamespace(superblock=SimpleNamespace(uuid="a uuid"))
)


@pytest.fixture
def stream() -> EventStream:
    return EventStream()


@pytest.fixture
def subscription(stream: EventStream) -> Subscription:
    made = stream.subscribe(lambda: None)
    assert made is not None
    made.take()
    return made


@pytest.fixture
def events(stream: EventStream) -> FlowEvents:
    return FlowEvents(stream, [("in", "raw"), ("door", "ingest")])


def _shown(subscription: Subscription) -> list[dict[str, Any]]:
    """What was published, without what differs from run to run, and without what is everywhere."""
    items = subscription.take()
    for item in items:
        for key, value in WHERE.items():
            assert item.pop(key, value) == value
        item.pop("time", None)
    return items


def _event(detail: Any, listener: int = RAW, flow: bytes = FLOW) -> Event:
    return Event(detail, listener_index=listener, peer="192.0.2.1:4000", flow=flow)


def test_of_protocol_raw(events: FlowEvents, subscription: Subscription) -> None:
    common = {"name": None, "labels": {}, "listener": "in", "protocol": "raw"}
    for detail in (
        FlowOpened(),
        FlowSealed(7, 0x1A2B3C4D),
        FlowSealed(7),
        FlowInterrupted(CONNECTION_LOST, 0, 5),
        FlowRefused(CONNECTION_LOST),
    ):
        events.report(WORKER, _event(detail))
    lost = {"event": "flow_interrupted", "reason": "connection_lost"}
    assert _shown(subscription) == [
        {"event": "flow_opened", "number": 1, "offset": 0, **common},
        {"event": "flow_sealed", "number": 2, "bytes": 7, "checksum": "crc32c:1a2b3c4d", **common},
        {"event": "flow_sealed", "number": 3, "bytes": 7, "checksum": None, **common},
        {**lost, "number": 4, "bytes": 5, "stored": True, **common},
        {**lost, "number": 5, "bytes": 0, "stored": False, **common},
    ]


def test_a_connection_that_became_no_flow_is_no_event(
    events: FlowEvents, subscription: Subscription
) -> None:
    events.report(WORKER, _event(FlowRefused(CONNECTION_LOST), flow=bytes(16)))
    assert _shown(subscription) == []


def test_of_protocol_ingest_admission_knows(events: FlowEvents, subscription: Subscription) -> None:
    events.report(WORKER, _event(FlowOpened(3), INGEST))
    events.report(WORKER, _event(FlowSealed(7, 1), INGEST))
    assert _shown(subscription) == []
    texts = FlowTexts("a.log", {"site": "north"})
    request = SimpleNamespace(
        listener_index=INGEST,
        peer="192.0.2.1:4000",
        bytes_count=7,
        crc=0x1A2B3C4D,
        is_crc_known=True,
        is_sealed=True,
        is_stored=True,
        reason=0,
    )
    events.opened(WORKER, request, FLOW, texts, 3)  # type: ignore[arg-type]
    events.ended(WORKER, request, FLOW, texts)  # type: ignore[arg-type]
    request.is_sealed, request.reason = False, CONNECTION_LOST
    events.ended(WORKER, request, FLOW, texts)  # type: ignore[arg-type]
    common = {"name": "a.log", "labels": {"site": "north"}, "listener": "door"}
    common |= {"protocol": "ingest"}
    lost = {"event": "flow_interrupted", "reason": "connection_lost"}
    assert _shown(subscription) == [
        {"event": "flow_opened", "number": 1, "offset": 3, **common},
        {"event": "flow_sealed", "number": 2, "bytes": 7, "checksum": "crc32c:1a2b3c4d", **common},
        {**lost, "number": 3, "bytes": 7, "stored": True, **common},
    ]


def test_what_workers_dropped_is_lost_once(events: FlowEvents, subscription: Subscription) -> None:
    for counts in ((0, 0), (2, 1), (2, 1), (2, 4)):
        events.look_for_lost([{"events_dropped": count} for count in counts])
    assert _shown(subscription) == [
        {"event": "lost", "count": 3},
        {"event": "lost", "count": 3},
    ]


def test_numbers_grow_while_nobody_listens(stream: EventStream) -> None:
    for _ in range(3):
        stream.publish("flow_opened")
    subscription = stream.subscribe(lambda: None)
    assert subscription is not None
    (first,) = subscription.take()
    assert first["number"] == 3
    stream.publish("flow_sealed")
    assert [item["number"] for item in subscription.take()] == [4]

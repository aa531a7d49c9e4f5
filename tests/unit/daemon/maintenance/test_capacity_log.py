# SPDX-License-Identifier: Apache-2.0
"""What the daemon's log says of the room in a store."""

from __future__ import annotations

from typing import Any

import pytest

from ingestd.daemon.maintenance.capacity_log import CapacityLog
from ingestd.errors import StoreError
from ingestd.log_events import LogEvent
from ingestd.store.reclaim.eviction import Overwritten
from support.fake_store import FakeStore


class Told:
    """A log that keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[LogEvent, dict[str, Any]]] = []

    def emit(self, event: LogEvent, **fields: Any) -> None:
        self.lines.append((event, fields))

    def take(self) -> list[LogEvent]:
        events = [event for event, _ in self.lines]
        self.lines.clear()
        return events


FORGOTTEN: list[bytes] = []


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(segments_count=100)


def test_short_of_room_is_told_once_and_again_after_more(told: Told, store: FakeStore) -> None:
    watch = CapacityLog("s", store, 10, told, FORGOTTEN.append)
    for free, expected in (
        (100, []),
        (10, []),
        (9, [LogEvent.STORE_SPACE_LOW]),
        (5, []),
        (11, []),
        (9, []),
        (12, []),
        (9, [LogEvent.STORE_SPACE_LOW]),
        (0, []),
    ):
        store.taken_count = 100 - free
        watch.tick()
        assert told.take() == expected, free


def test_it_can_be_turned_off(told: Told, store: FakeStore) -> None:
    store.taken_count = 100
    CapacityLog("s", store, 0, told, FORGOTTEN.append).tick()
    assert told.take() == []


def test_a_store_that_overwrites_is_never_short(told: Told, store: FakeStore) -> None:
    store.taken_count = 100
    store.is_overwriting = True
    CapacityLog("s", store, 10, told, FORGOTTEN.append).tick()
    assert told.take() == []


def test_why_it_overwrites_no_more_is_told_once(told: Told, store: FakeStore) -> None:
    store.overwriting_error = StoreError("no flush")
    watch = CapacityLog("s", store, 10, told, FORGOTTEN.append)
    watch.tick()
    assert told.lines == [(LogEvent.OVERWRITING_FAILED, {"store": "s", "error": "no flush"})]
    watch.tick()
    assert told.take() == [LogEvent.OVERWRITING_FAILED]
    store.overwriting_error = StoreError("no flush")  # of the next try
    watch.tick()
    store.overwriting_error = None
    watch.tick()
    watch.tick()
    assert told.take()[-2:] == [LogEvent.OVERWRITING_FAILED, LogEvent.MAINTENANCE_RESUMED]


def test_overwritten_segments(
    told: Told, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows = tuple(bytes([n]) * 16 for n in range(12))
    monkeypatch.setattr(store, "take_overwritten", lambda: [Overwritten(3, 7, 99, flows)])
    CapacityLog("s", store, 10, told, FORGOTTEN.append).tick()
    ((event, fields),) = told.lines
    assert event is LogEvent.SEGMENT_OVERWRITTEN
    assert (fields["segment"], fields["sequence"], fields["bytes"]) == (3, 7, 99)
    assert fields["flows_count"] == 12
    assert len(fields["flows"]) == 10
    assert fields["flows"][1] == "01010101-0101-0101-0101-010101010101"
    assert tuple(FORGOTTEN) == flows

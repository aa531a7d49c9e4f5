# SPDX-License-Identifier: Apache-2.0
"""Granting segments: no store waits for another's device, and no pump for its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ingestd.daemon.base import backoff
from ingestd.daemon.segments import overwriter, reserver
from ingestd.daemon.segments.granting import Granting
from ingestd.log import Log
from support.fake_core import FakeCore, FakeWorker
from support.fake_log import Recorder
from support.fake_store import FakeStore
from support.patience import WAIT_S
from support.scene import wait_for


class Asking:
    """What the pump needs of a worker thread: wants, and what was granted."""

    def __init__(self, name: str, store: Any) -> None:
        self.store_name = name
        self.store = store
        self.wanted = 2
        self.granted: list[tuple[int, int]] = []
        self.fake = FakeWorker(FakeCore(), {})
        self.event_fd = self.fake.event_fd

    def grant_segments(self) -> int:
        count = 0
        while len(self.granted) < self.wanted:
            grant = self.store.take_segment()
            if grant is None:
                break
            self.granted.append(grant)
            count += 1
        return count

    def want(self, count: int) -> None:
        self.wanted += count
        self.fake.want(0)  # only wakes


class Overwriting(FakeStore):
    """A full store that reclaims a segment on request, and hangs when it is to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_overwriting = True
        self.free_count = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_waiting = threading.Event()

    def recycle_ahead(self, count: int) -> int:
        made = 0
        while self.free_count < count:
            self.is_waiting.set()
            assert self.may_go_on.wait(WAIT_S)
            with self.mutex:
                self.free_count += 1
            made += 1
        return made

    def take_segment(self) -> tuple[int, int] | None:
        with self.mutex:
            if self.free_count == 0:
                return None
            self.free_count -= 1
            self.taken_count += 1
            return 0, self.taken_count


@pytest.fixture
def stores() -> Iterator[dict[str, Any]]:
    made = {"a": Overwriting(), "b": FakeStore(segments_count=1000)}
    yield made
    made["a"].may_go_on.set()
    for store in made.values():
        store.close()


def _granting(stores: dict[str, Any], workers: list[Any]) -> Granting:
    log = Log(Recorder(), "info")
    return Granting(stores, workers, lambda _: False, lambda: None, log)


@pytest.mark.fault("device_of_two")
def test_a_store_whose_device_hangs_holds_up_no_other(
    stores: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overwriter, "LOOK_INTERVAL_S", 0.01)
    a, b = Asking("a", stores["a"]), Asking("b", stores["b"])
    stores["a"].may_go_on.clear()
    granting = _granting(stores, [a, b])
    granting.start()
    assert stores["a"].is_waiting.wait(WAIT_S)
    for wanted in range(2, 50):
        wait_for(lambda wanted=wanted: len(b.granted) >= wanted, "a grant")  # type: ignore[misc]
        b.want(1)
    assert a.granted == []
    # The end does not wait for it either, and says what hangs.
    assert granting.close(0.2) == ["overwriter-a"]
    stores["a"].may_go_on.set()
    assert granting.close(WAIT_S) == []


def test_what_is_free_is_granted_while_the_device_hangs(
    stores: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump of the very store does no I/O: what was reclaimed ahead is there."""
    monkeypatch.setattr(overwriter, "LOOK_INTERVAL_S", 0.01)
    a = Asking("a", stores["a"])
    granting = _granting({"a": stores["a"]}, [a])
    granting.start()
    wait_for(lambda: len(a.granted) == 2, "both grants")
    wait_for(lambda: stores["a"].free_count == 1, "one ahead")
    stores["a"].may_go_on.clear()
    a.want(1)
    wait_for(lambda: len(a.granted) == 3, "the one that was ahead")
    a.want(1)
    stores["a"].may_go_on.set()
    wait_for(lambda: len(a.granted) == 4, "the next, soon")
    assert granting.close(WAIT_S) == []
    assert granting.error() is None


class Sparse(FakeStore):
    """A store file without room; it has some once `room` is set, and may have a bug till then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_sparse = True
        self.segments_without_room = 4
        self.room = threading.Event()
        self.bug: Exception | None = None

    def reserve_room(self) -> int:
        if self.bug is not None:
            raise self.bug
        if self.room.is_set():
            self.segments_without_room = 0
        return self.segments_without_room

    def take_segment(self) -> tuple[int, int] | None:
        return None if self.segments_without_room else super().take_segment()


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sparse]:
    monkeypatch.setattr(reserver, "LOOK_INTERVAL_S", 0.01)
    store = Sparse()
    yield store
    store.close()


def test_segments_are_granted_once_their_file_has_room(sparse: Sparse) -> None:
    recorder = Recorder()
    worker = Asking("s", sparse)
    granting = Granting(
        {"s": sparse},  # type: ignore[dict-item]
        [worker],  # type: ignore[list-item]
        lambda _: False,
        lambda: None,
        Log(recorder, "info"),
    )
    granting.start()
    granting.tick()
    assert worker.granted == []
    assert not recorder.fields("store_whole")
    sparse.room.set()
    wait_for(lambda: len(worker.granted) == 2, "both grants")
    granting.tick()
    granting.tick()
    assert len(recorder.fields("store_whole")) == 1
    assert granting.close(WAIT_S) == []


def test_a_bug_of_the_reserver_is_told_once_and_ends_nothing(
    sparse: Sparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.01)
    recorder = Recorder()
    worker = Asking("s", sparse)
    granting = Granting(
        {"s": sparse},  # type: ignore[dict-item]
        [worker],  # type: ignore[list-item]
        lambda _: False,
        lambda: None,
        Log(recorder, "info"),
    )
    sparse.bug = ValueError("a bug")
    granting.start()
    wait_for(granting.failures, "it is noted")
    granting.tick()
    granting.tick()
    assert granting.failures() == {"s": "ValueError('a bug')"}
    assert len(recorder.fields("reserving_failed")) == 1
    sparse.bug = None
    sparse.room.set()
    wait_for(lambda: len(worker.granted) == 2, "both grants")
    assert granting.failures() == {}
    assert granting.close(WAIT_S) == []

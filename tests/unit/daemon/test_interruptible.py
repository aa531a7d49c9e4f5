# SPDX-License-Identifier: Apache-2.0
"""Long steps of the start: a signal ends them, the service manager hears how far they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from ingestd.daemon import interruptible as module
from ingestd.daemon.interruptible import Progress, StartStoppedError, attend
from ingestd.errors import StoreDamagedError
from ingestd.store.read.image import ScanStoppedError
from ingestd.store.serve.served_store import open_for_serving
from support.patience import WAIT_S
from support.scene import service_manager, wait_for
from support.store_builder import StoreBuilder

_T = TypeVar("_T")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(module, "NOTIFY_INTERVAL_S", 0.0)
    with service_manager(tmp_path / "notify") as told:
        yield told


def _attend(step: Callable[[Progress], _T], is_stop_wanted: Callable[[], bool]) -> _T:
    return attend(
        "a",
        step,
        is_stop_wanted=is_stop_wanted,
        stop_time_s=WAIT_S,
        undo=UNDONE.append,
    )


UNDONE: list[object] = []


def test_what_the_step_returns_or_raises() -> None:
    assert _attend(lambda _: 7, lambda: False) == 7

    def fail(_: Progress) -> None:
        raise StoreDamagedError("made up")

    with pytest.raises(StoreDamagedError, match="made up"):
        _attend(fail, lambda: False)


def test_the_manager_hears_of_progress_and_of_nothing_else(
    manager: Callable[[], list[str]],
) -> None:
    """So that a start that hangs is ended by the manager's time-out."""

    def step(progress: Progress) -> None:
        progress(10, 40)
        wait_for(lambda: manager(), "a message")
        time.sleep(10 * module.POLL_INTERVAL_S)

    _attend(step, lambda: False)
    assert manager() == [
        "STATUS=recovering store a: 10 of 40 segments EXTEND_TIMEOUT_USEC=300000000"
    ]


def test_a_signal_ends_a_step_at_its_next_segment() -> None:
    has_begun = threading.Event()

    def step(progress: Progress) -> None:
        number = 0
        while True:
            progress(number, 1000)
            has_begun.set()
            time.sleep(0.001)
            number += 1

    with pytest.raises(StartStoppedError) as caught:
        _attend(step, has_begun.is_set)
    assert caught.value.left_behind == ""


def test_a_result_that_comes_all_the_same_is_undone() -> None:
    is_wanted = threading.Event()

    def step(progress: Progress) -> str:
        is_wanted.set()
        wait_for(lambda: progress.is_stopping, "the stop")
        return "a store"

    with pytest.raises(StartStoppedError):
        _attend(step, is_wanted.is_set)
    assert UNDONE.pop() == "a store"


def test_a_step_that_hangs_is_left_behind() -> None:
    hang = threading.Event()
    with pytest.raises(StartStoppedError) as caught:
        attend(
            "a",
            lambda _: hang.wait(WAIT_S),
            is_stop_wanted=lambda: True,
            stop_time_s=0.05,
            undo=lambda _: None,
        )
    assert caught.value.left_behind == "start-a"
    hang.set()


def test_recovery_tells_how_far_it_is_and_may_be_ended_anywhere(tmp_path: Path) -> None:
    """Wherever the stop comes, the next opening finds all there was."""
    path = tmp_path / "store.img"
    StoreBuilder(segment_count=12).save(path)
    calls: list[tuple[int, int]] = []
    with open_for_serving(str(path), on_progress=lambda *call: calls.append(call)) as store:
        assert store.segments_free_count == 12
    assert {total for _, total in calls} == {12}
    assert {done for done, _ in calls} >= set(range(12))
    for stop_at in range(len(calls)):
        count = [0]

        def stop(_done: int, _total: int, stop_at: int = stop_at, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] > stop_at:
                raise ScanStoppedError

        with pytest.raises(ScanStoppedError):
            open_for_serving(str(path), on_progress=stop)
    with open_for_serving(str(path)) as store:
        assert store.segments_free_count == 12

# SPDX-License-Identifier: Apache-2.0
"""The store watch: what it does about a store that is lost, moved, or cannot be asked."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import pytest

from ingestd.daemon.base import backoff
from ingestd.daemon.maintenance.store_watch import StoreWatch
from ingestd.log import Log
from support.fake_log import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore


class _Store:
    path = "store"

    def __init__(self) -> None:
        self.code: int | Exception | None = None
        self.is_moved = False

    def loss(self) -> int | None:
        if isinstance(self.code, Exception):
            raise self.code
        return self.code

    def is_elsewhere(self) -> bool:
        return self.is_moved


class _Worker:
    def __init__(self, store_name: str) -> None:
        self.store_name = store_name
        self.is_box_full = False
        self.codes: list[int] = []

    def fail_store(self, code: int) -> bool:
        self.codes.append(code)
        return not self.is_box_full


class _Scene:
    def __init__(self) -> None:
        self.store = _Store()
        self.workers = [_Worker("a"), _Worker("b"), _Worker("a")]
        self.lines = Recorder()
        log = Log(self.lines, "debug")
        store = cast("ServedStore", self.store)
        workers = cast("Sequence[WorkerThread]", self.workers)
        self.watch = StoreWatch("a", store, workers, log)

    @property
    def codes(self) -> list[list[int]]:
        return [worker.codes for worker in self.workers]


def test_a_store_that_is_there() -> None:
    scene = _Scene()
    assert scene.watch.look()
    assert scene.codes == [[], [], []]
    assert scene.lines.names() == []


@pytest.mark.parametrize("answer", [errno.EIDRM, OSError(errno.EIDRM, "gone")])
def test_a_lost_store_is_failed_on_all_of_its_workers(answer: int | OSError) -> None:
    scene = _Scene()
    scene.store.code = answer
    assert not scene.watch.look()
    assert scene.codes == [[errno.EIDRM], [], [errno.EIDRM]]


def test_a_worker_whose_box_is_full_is_asked_again() -> None:
    scene = _Scene()
    scene.store.code = errno.ENODATA
    scene.workers[2].is_box_full = True
    assert scene.watch.look()
    scene.workers[2].is_box_full = False
    assert not scene.watch.look()
    assert scene.codes[2] == [errno.ENODATA, errno.ENODATA]


def test_a_store_that_moves_is_told_of_each_time() -> None:
    scene = _Scene()
    for is_moved in (True, True, False, True):
        scene.store.is_moved = is_moved
        assert scene.watch.look()
    assert scene.lines.names() == ["store_moved"] * 2
    assert scene.codes == [[], [], []]


def test_nothing_is_failed_once_the_watch_has_stopped() -> None:
    """The store is closed then, and its descriptor may be another's."""
    scene = _Scene()
    scene.store.code = errno.EIDRM
    scene.watch.periodic.stop()
    assert not scene.watch.look()
    assert scene.codes == [[], [], []]


def test_a_bug_is_logged_and_does_not_end_the_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.0)
    scene = _Scene()
    scene.store.code = MemoryError()
    assert scene.watch.periodic.run_once()
    assert repr(scene.watch.periodic.bug) == "MemoryError()"
    assert scene.lines.names() == ["maintenance_failed"]
    scene.store.code = None
    assert scene.watch.periodic.run_once()
    assert scene.watch.periodic.bug is None

# SPDX-License-Identifier: Apache-2.0
"""The daemon with parts that hang, on made-up core and stores: it ends in time, and names them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.core.border import SegmentOpened
from ingestd.daemon import run as daemon
from ingestd.daemon import shutdown, startup
from ingestd.daemon.maintenance import maintenance_thread
from support.fake_store import FakeOpener, FakeStore
from support.patience import WAIT_S
from support.scene import Scene, wait_for


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(daemon, "TICK_S", 0.02)
    monkeypatch.setattr(shutdown, "STEP_TIME_MAX_S", 0.1)
    monkeypatch.setattr(daemon, "STEP_TIME_MAX_S", 0.1)
    monkeypatch.setattr(maintenance_thread, "TURN_INTERVAL_S", 0.01)
    monkeypatch.setattr(startup, "raise_descriptor_limit", lambda needed: needed)
    return Scene(tmp_path)


def _left_behind(scene: Scene) -> list[str]:
    return [fields["what"] for fields in scene.log.fields("left_behind")]


def test_a_keeper_whose_device_hangs(scene: Scene, hang: threading.Event) -> None:
    is_reading = threading.Event()

    def requests() -> list[Any]:
        is_reading.set()
        assert hang.wait(WAIT_S)
        return []

    def scenario() -> None:
        (maintainer,) = scene.daemon._maintenance._maintainers.values()
        maintainer.removals.take = requests
        assert is_reading.wait(WAIT_S)

    assert scene.play(scenario) == 0
    assert _left_behind(scene) == ["maintenance: maintenance-data"]
    assert scene.log.names()[-1] == "stopped"
    # The thread may read on: its descriptor must not become another's.
    assert scene.store.closed_count == 0


def test_a_store_that_does_not_close(
    scene: Scene, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStore, "close", lambda _: hang.wait(WAIT_S))
    assert scene.play() == 0
    assert _left_behind(scene) == ["store /dev/made-up"]


def test_a_signal_while_a_recovery_hangs(scene: Scene, hang: threading.Event) -> None:
    class Opener(FakeOpener):
        def __call__(self, path: str, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            assert hang.wait(WAIT_S)
            return super().__call__(path, **options)

    scene.opener = Opener()
    assert scene.play() == 0
    assert _left_behind(scene) == ["start-data"]
    assert "ready" not in scene.log.names()


def test_a_wake_that_comes_after_the_end(scene: Scene) -> None:
    """Such as of a look-up that took longer than the daemon lived."""
    assert scene.play() == 0
    assert scene.daemon is not None
    scene.daemon.wake()


def test_granting_goes_on_while_the_log_hangs(scene: Scene, hang: threading.Event) -> None:
    """Of a main thread that is held up, whatever by, neither pumps nor workers know."""

    def scenario() -> None:
        worker = scene.core.workers[0]
        wait_for(lambda: len(worker.granted) == 4)
        held = threading.Event()

        def held_up(_line: object) -> None:
            held.set()
            assert hang.wait(WAIT_S)

        scene.daemon._event_log.report = lambda *_: held_up(None)
        worker.emit(SegmentOpened())
        assert held.wait(WAIT_S)
        worker.want(2)
        wait_for(lambda: len(worker.granted) == 6, "grants")
        hang.set()

    assert scene.play(scenario) == 0

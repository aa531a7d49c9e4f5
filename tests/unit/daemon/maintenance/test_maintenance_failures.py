# SPDX-License-Identifier: Apache-2.0
"""The maintenance thread when the device refuses, and when it is to end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.daemon.base import backoff
from ingestd.daemon.maintenance.removals import RemovalState
from ingestd.log_events import LogEvent
from ingestd.store.reclaim.sweep import Sweeper
from support.maintenance import ONE, TWO, Stage, staged


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(tmp_path / "store.img", monkeypatch) as made:
        yield made


@pytest.mark.fault("maintenance")
def test_a_flush_that_failed_is_never_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "made up")

    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        stage.ask(ONE)
        stage.maintainer.turn()
    ((event, fields),) = stage.maintainer.take_reports()
    assert event is LogEvent.MAINTENANCE_FAILED
    assert "cannot be flushed" in fields["error"]
    assert fields["retry_s"] == "at the next start"
    assert "cannot be flushed" in stage.asked[0].error
    assert stage.flow_lock.is_removed(ONE), "nobody knows what was written"
    stage.ask(TWO)
    stage.maintainer.turn()
    assert "cannot be flushed" in stage.asked[1].error
    assert stage.maintainer.failure


@pytest.mark.fault("maintenance")
def test_a_device_that_refuses_once_is_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that fails, or a write: who asked hears of it, and after a pause may ask again."""
    clock = [0.0]
    stage.maintainer._backoff = backoff.Backoff(lambda: clock[0])
    for call in ("preadv", "pwritev"):
        with monkeypatch.context() as patch:

            def refuse(*_: object) -> int:
                raise OSError(errno.EIO, "made up")

            patch.setattr(os, call, refuse)
            asked = stage.ask(ONE)
            stage.maintainer.turn()
            assert "made up" in asked.error
        ((event, fields),) = stage.maintainer.take_reports()
        assert event is LogEvent.MAINTENANCE_FAILED
        assert fields["retry_s"] in (1.0, 2.0)
        stage.maintainer.turn()
        assert stage.maintainer.take_reports() == [], "the pause is not over"
        clock[0] += 2.0
    assert stage.maintainer.failure
    asked = stage.ask(ONE)
    stage.maintainer.turn()
    assert LogEvent.MAINTENANCE_RESUMED in stage.news()
    assert stage.maintainer.failure == ""
    assert asked.results[ONE].state is RemovalState.REMOVED
    assert stage.store.sweeper.removed >= {ONE}


def test_a_scan_ends_when_the_keeper_is_to_stop(stage: Stage) -> None:
    stage.ask(ONE)
    stage.maintainer.stop()
    stage.maintainer.turn()
    assert stage.maintainer.take_reports() == []
    assert stage.asked[0].error == "the daemon is ending"


def test_a_sweep_ends_soon_when_the_daemon_does(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Sweeper.scan

    def stopped_then(sweeper: Sweeper) -> object:
        image = scan(sweeper)
        sweeper.stop()
        return image

    monkeypatch.setattr(Sweeper, "scan", stopped_then)
    stage.ask(ONE)
    stage.maintainer.turn()
    assert stage.answers() == [RemovalState.REMOVED]
    assert stage.news() == [LogEvent.FLOW_REMOVED], "its segment is given back at the next start"

# SPDX-License-Identifier: Apache-2.0
"""The keeper when the device refuses, and when it is to end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.daemon.base import backoff
from ingestd.log import LogEvent
from ingestd.store.metadata.request_block import RequestState
from ingestd.store.reclaim.sweep import Upkeep
from support.keeper import ONE, Stage, staged


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(tmp_path / "store.img", monkeypatch) as made:
        yield made


@pytest.mark.fault("upkeep")
def test_a_flush_that_failed_is_never_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "made up")

    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        stage.ask(ONE)
        stage.keeper.turn()
    ((event, fields),) = stage.keeper.take_news()
    assert event is LogEvent.UPKEEP_FAILED
    assert "cannot be flushed" in fields["error"]
    assert fields["retry_s"] == "at the next start"
    assert stage.answers() == [RequestState.SEEN]
    assert stage.gate.is_removed(ONE), "nobody knows what was written"
    stage.keeper.turn()
    assert stage.answers() == [RequestState.SEEN]
    assert stage.keeper.failure


@pytest.mark.fault("upkeep")
def test_a_device_that_refuses_once_is_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that fails, or a write: after a pause the removal is done as it was asked for."""
    clock = [0.0]
    stage.keeper._backoff = backoff.Backoff(lambda: clock[0])
    stage.ask(ONE)
    for call in ("preadv", "pwritev"):
        with monkeypatch.context() as patch:

            def refuse(*_: object) -> int:
                raise OSError(errno.EIO, "made up")

            patch.setattr(os, call, refuse)
            stage.keeper.turn()
        ((event, fields),) = stage.keeper.take_news()
        assert event is LogEvent.UPKEEP_FAILED
        assert fields["retry_s"] in (1.0, 2.0)
        stage.keeper.turn()
        assert stage.keeper.take_news() == [], "the pause is not over"
        clock[0] += 2.0
    assert stage.keeper.failure
    stage.keeper.turn()
    assert LogEvent.UPKEEP_RESUMED in stage.news()
    assert stage.keeper.failure == ""
    assert stage.answers() == [RequestState.REMOVED]
    assert stage.store.upkeep.removed >= {ONE}


def test_a_scan_ends_when_the_keeper_is_to_stop(stage: Stage) -> None:
    stage.ask(ONE)
    stage.keeper.stop()
    stage.keeper.turn()
    assert stage.keeper.take_news() == []
    assert stage.answers() == [RequestState.SEEN]


def test_a_sweep_ends_soon_when_the_daemon_does(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Upkeep.scan

    def stopped_then(upkeep: Upkeep) -> object:
        image = scan(upkeep)
        upkeep.stop()
        return image

    monkeypatch.setattr(Upkeep, "scan", stopped_then)
    stage.ask(ONE)
    stage.keeper.turn()
    assert stage.answers() == [RequestState.REMOVED]
    assert stage.news() == [LogEvent.FLOW_REMOVED], "its segment is given back at the next start"

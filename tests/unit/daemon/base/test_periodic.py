# SPDX-License-Identifier: Apache-2.0
"""Periodic threads: a bug ends none, pauses grow, they wake, stop and end by themselves."""

from __future__ import annotations

import threading

import pytest

from ingestd.daemon.base import backoff
from ingestd.daemon.base.periodic import Periodic
from support.patience import WAIT_S

NEVER_S = 1000 * WAIT_S


class _Turns:
    """Counts turns; each has what `results` says, then True for ever."""

    def __init__(self, *results: bool | Exception) -> None:
        self._results = list(results)
        self.count = 0
        self.taken = threading.Semaphore(0)

    def __call__(self) -> bool:
        self.count += 1
        self.taken.release()
        result = self._results.pop(0) if self._results else True
        if isinstance(result, Exception):
            raise result
        return result

    def wait(self) -> None:
        assert self.taken.acquire(timeout=WAIT_S)


def test_a_turn_at_once_one_when_woken_and_one_each_interval() -> None:
    turns = _Turns()
    periodic = Periodic("p", NEVER_S, turns)
    periodic.start()
    turns.wait()
    periodic.wake()
    turns.wait()
    periodic.stop()
    periodic.thread.join(WAIT_S)
    assert not periodic.thread.is_alive()
    often = Periodic("q", 0.001, turns)
    often.start()
    for _ in range(3):
        turns.wait()
    often.stop()
    often.thread.join(WAIT_S)
    assert not often.thread.is_alive()


def test_a_bug_ends_nothing_and_is_reported_with_a_longer_pause_each_time() -> None:
    bugs = [ValueError("one"), OSError("two")]
    pauses: list[tuple[Exception, float]] = []
    turns = _Turns(*bugs)
    periodic = Periodic("p", NEVER_S, turns, lambda bug, retry_s: pauses.append((bug, retry_s)))
    assert periodic.run_once()
    assert periodic.bug is bugs[0]
    assert periodic.run_once()  # it pauses
    assert turns.count == 1
    periodic._backoff._next_s = 0.0
    assert periodic.run_once()
    assert pauses == [(bugs[0], backoff.PAUSE_MIN_S), (bugs[1], 2 * backoff.PAUSE_MIN_S)]
    periodic._backoff._next_s = 0.0
    assert periodic.run_once()
    assert periodic.bug is None


def test_it_ends_when_its_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.0)
    turns = _Turns(ValueError("a bug"), True, False)
    periodic = Periodic("p", 0.001, turns)
    periodic.start()
    periodic.thread.join(WAIT_S)
    assert not periodic.thread.is_alive()
    assert turns.count == 3

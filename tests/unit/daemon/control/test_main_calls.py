# SPDX-License-Identifier: Apache-2.0
"""Calls that the main thread makes for others."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ingestd.daemon.control.main_calls import CallNotMadeError, MainCalls
from support.patience import WAIT_S


def _beside(run: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def main() -> None:
        try:
            outcome.append(run())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread, outcome


def test_a_call_is_made_on_the_thread_that_settles() -> None:
    woken = threading.Event()
    calls = MainCalls(woken.set)
    thread, outcome = _beside(lambda: calls.call(threading.current_thread))
    assert woken.wait(WAIT_S)
    calls.settle()
    thread.join(WAIT_S)
    assert outcome == [threading.current_thread()]


def test_what_it_raises_is_the_callers() -> None:
    woken = threading.Event()
    calls = MainCalls(woken.set)

    def fail() -> None:
        raise ValueError("made up")

    thread, outcome = _beside(lambda: calls.call(fail))
    assert woken.wait(WAIT_S)
    calls.settle()
    thread.join(WAIT_S)
    assert isinstance(outcome[0], ValueError)


def test_nobody_waits_for_ever_and_what_nobody_waits_for_is_not_done() -> None:
    calls = MainCalls(lambda: None)
    done: list[int] = []
    with pytest.raises(CallNotMadeError):
        calls.call(lambda: done.append(1), timeout_s=0.01)
    calls.settle()
    assert done == []


def test_the_end_releases_those_who_wait() -> None:
    woken = threading.Event()
    calls = MainCalls(woken.set)
    thread, outcome = _beside(lambda: calls.call(lambda: 1))
    assert woken.wait(WAIT_S)
    calls.close()
    thread.join(WAIT_S)
    assert isinstance(outcome[0], CallNotMadeError)
    with pytest.raises(CallNotMadeError):
        calls.call(lambda: 1)

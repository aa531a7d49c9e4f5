# SPDX-License-Identifier: Apache-2.0
"""The end is bounded: parts that hang are left behind by name, and the process goes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ingestd.daemon import shutdown
from ingestd.daemon.base.threads import join_threads, start_thread
from ingestd.daemon.base.waker import Waker
from ingestd.daemon.shutdown import Shutdown
from ingestd.errors import ResourceError
from ingestd.log import Log
from support.fake_log import Recorder
from support.patience import WAIT_S


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_step_that_hangs_is_left_behind_by_name(
    hang: threading.Event, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "STEP_TIME_MAX_S", 0.05)
    made = Shutdown(Log(recorder, "info"))
    assert made.run("quick", lambda: None)
    assert not made.has_left_behind
    assert not made.run("store /dev/sdx", hang.wait)
    assert made.has_left_behind
    assert [fields["what"] for fields in recorder.fields("left_behind")] == ["store /dev/sdx"]


def test_threads_that_hang_are_named(recorder: Recorder) -> None:
    made = Shutdown(Log(recorder, "info"))
    assert made.end("metrics", lambda _: [])
    assert not made.end("maintenance", lambda _: ["maintenance-a", "maintenance-b"])
    told = [fields["what"] for fields in recorder.fields("left_behind")]
    assert told == ["maintenance: maintenance-a", "maintenance: maintenance-b"]


def test_all_steps_together_have_a_bound(recorder: Recorder) -> None:
    now_s = [100.0]
    made = Shutdown(Log(recorder, "info"), lambda: now_s[0])
    made.begin()
    total_s = 0.0
    for _ in range(100):
        time_s = made.time_s()
        assert shutdown.STEP_TIME_MIN_S <= time_s <= shutdown.STEP_TIME_MAX_S
        now_s[0] += time_s
        total_s += time_s
    assert total_s <= shutdown.CLOSE_TIME_S + 100 * shutdown.STEP_TIME_MIN_S
    assert made.time_s() == shutdown.STEP_TIME_MIN_S


def test_what_a_step_raises_is_raised(recorder: Recorder) -> None:
    def fail() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        Shutdown(Log(recorder, "info")).run("step", fail)


def test_without_a_thread_a_step_is_done_all_the_same(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    assert Shutdown(Log(recorder, "info")).run("step", lambda: done.append(1))
    assert done == [1]


def test_a_thread_that_cannot_be_had_is_an_error_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ResourceError, match="thread pump-a could not be started.*TasksMax"):
        start_thread(threading.Thread(name="pump-a", daemon=True))


def test_joining_together_takes_one_bound(hang: threading.Event) -> None:
    stuck = [threading.Thread(target=hang.wait, name=f"s{n}", daemon=True) for n in range(20)]
    over = threading.Thread(target=lambda: None, daemon=True)
    never = threading.Thread(target=lambda: None, daemon=True)
    for thread in [*stuck, over]:
        thread.start()
    begun_s = time.monotonic()
    assert join_threads([over, never, *stuck], 0.2) == [f"s{n}" for n in range(20)]
    assert time.monotonic() - begun_s < WAIT_S


# --- The process --------------------------------------------------------------------------

LEAVING = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from ingestd.daemon.shutdown import leave
hang = threading.Event()
if {hangs}:
    # The interpreter would wait for this one.
    ThreadPoolExecutor(1).submit(hang.wait)
leave(7, "the last words\\n")
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("hangs", "code", "words"), [(True, 7, b"the last words\n"), (False, 3, b"")]
)
def test_leaving(hangs: bool, code: int, words: bytes) -> None:
    """At once where a thread is left; in the usual way, whose words are the caller's, else."""
    result = subprocess.run(
        [sys.executable, "-c", LEAVING.format(hangs=hangs)],
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (result.returncode, result.stderr) == (code, words)


def test_last_words_that_nobody_reads_do_not_keep_it() -> None:
    reader, end = os.pipe()
    os.set_blocking(end, False)
    try:
        while True:
            os.write(end, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(end, True)
    process = subprocess.Popen([sys.executable, "-c", LEAVING.format(hangs=True)], stderr=end)
    try:
        assert process.wait(WAIT_S) == 7
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(end)


def test_who_wakes_late_touches_nothing() -> None:
    waker = Waker()
    fd = waker.fileno()
    for _ in range(3):
        waker.wake()
    assert os.eventfd_read(fd) == 3
    waker.clear()
    os.eventfd_write(fd, 2**64 - 2)  # as many wakes as there can be
    waker.wake()
    waker.close()
    waker.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        waker.wake()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
    finally:
        os.close(other)

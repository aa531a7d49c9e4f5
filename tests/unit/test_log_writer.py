# SPDX-License-Identifier: Apache-2.0
"""The queue before the log: nobody waits for who reads it, and a line counts what is missing."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd import systemd
from ingestd.errors import ResourceError
from ingestd.log import open_log
from ingestd.log_events import LogEvent
from ingestd.log_writer import LogWriter, QueuedStream, descriptor_writer
from support.patience import WAIT_S

F_SETPIPE_SZ = 1031


class Target:
    """Takes records; held, it takes none."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_writing = threading.Event()

    def __call__(self, record: Any) -> None:
        self.is_writing.set()
        assert self.may_write.wait(WAIT_S)
        self.records.append(record)


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.may_write.set()


def _started(write: Any, **limits: int) -> LogWriter:
    writer = LogWriter(write, **limits)
    writer.start()
    return writer


def _held(target: Target, **limits: int) -> LogWriter:
    """A writer that is stuck with the record "first"."""
    target.may_write.clear()
    writer = _started(target, **limits)
    writer.put("first")
    assert target.is_writing.wait(WAIT_S)
    return writer


def test_everything_comes_in_order_and_before_the_end(target: Target) -> None:
    writer = _started(target)
    for number in range(1000):
        writer.put(number)
    assert writer.close(WAIT_S)
    assert target.records == list(range(1000))
    assert writer.dropped_count == 0


def test_what_finds_no_room_is_counted_and_told_where_it_is_missing(target: Target) -> None:
    writer = _held(target, records_max=3)
    writer.on_gap = lambda count: writer.put(f"{count} missing")
    for number in range(10):
        writer.put(number)
    assert writer.dropped_count == 7
    target.may_write.set()
    assert writer.close(WAIT_S)
    assert target.records == ["first", 0, 1, 2, "7 missing"]


def test_a_gap_is_told_before_what_comes_behind_it(target: Target) -> None:
    writer = _held(target, records_max=1)
    writer.on_gap = lambda count: writer.put(f"{count} missing")
    writer.put("second")
    writer.put("lost")
    target.is_writing.clear()
    target.may_write.set()
    assert target.is_writing.wait(WAIT_S)
    writer.put("later")
    assert writer.close(WAIT_S)
    assert [text for text in target.records if text != "later"] == ["first", "second", "1 missing"]


def test_the_text_that_waits_is_bounded_too(target: Target) -> None:
    writer = _held(target, bytes_max=100)
    writer.put("huge", 1000)  # alone, whatever its size
    writer.put("more", 1)
    assert writer.dropped_count == 1
    target.may_write.set()
    assert writer.close(WAIT_S)
    assert target.records == ["first", "huge"]


def test_the_end_is_bounded(target: Target) -> None:
    writer = _held(target)
    begun_s = time.monotonic()
    assert not writer.close(0.05)
    assert time.monotonic() - begun_s < WAIT_S
    writer.put("late")  # does not wait either


def test_before_the_start_and_after_the_end_records_are_written_at_once(target: Target) -> None:
    writer = LogWriter(target)
    writer.put("before")
    assert target.records == ["before"]
    writer.start()
    assert writer.close(WAIT_S)
    writer.put("after")
    assert target.records == ["before", "after"]


def test_a_forked_child_writes_itself() -> None:
    reader, end = os.pipe()
    try:
        writer = _started(descriptor_writer(end))
        child = os.fork()
        if child == 0:
            writer.put(b"child\n")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.read(reader, 100) == b"child\n"
        assert writer.close(WAIT_S)
    finally:
        os.close(reader)
        os.close(end)


def test_a_target_that_fails_is_no_error() -> None:
    def fail(_record: Any) -> None:
        raise BrokenPipeError

    writer = _started(fail)
    writer.put("x")
    assert writer.close(WAIT_S)


def test_no_thread_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ResourceError, match="TasksMax"):
        LogWriter(lambda _: None).start()


# --- Real targets that hang -----------------------------------------------------------------


def _log_to(writer: LogWriter) -> Any:
    stream: Any = QueuedStream(writer, is_terminal=False)
    log = open_log("info", "json", stream=stream)
    writer.on_gap = lambda count: log.emit(LogEvent.LOG_DROPPED, count=count)
    return log


@pytest.mark.fault("log")
def test_a_pipe_that_nobody_reads() -> None:
    reader, end = os.pipe()
    fcntl.fcntl(end, F_SETPIPE_SZ, 4096)
    writer = _started(descriptor_writer(end), records_max=100)
    log = _log_to(writer)
    for number in range(1000):
        log.emit(LogEvent.LISTENING, address=f"{number:0100}")
    assert writer.dropped_count > 500
    begun_s = time.monotonic()
    assert not writer.close(0.05)
    assert time.monotonic() - begun_s < WAIT_S
    taken = bytearray()
    while not writer.close(0.01):
        taken += os.read(reader, 65536)
    os.close(end)
    while more := os.read(reader, 65536):
        taken += more
    os.close(reader)
    lines = [json.loads(line) for line in taken.decode().splitlines()]
    gaps = [line["count"] for line in lines if line["event"] == "log_dropped"]
    assert sum(gaps) == writer.dropped_count
    assert len(lines) - len(gaps) + sum(gaps) == 1000


def test_a_pipe_that_somebody_made_non_blocking() -> None:
    reader, end = os.pipe()
    os.set_blocking(end, False)
    fcntl.fcntl(end, F_SETPIPE_SZ, 4096)
    writer = _started(descriptor_writer(end))
    data = bytes(range(256)) * 100
    writer.put(data, len(data))
    taken = b""
    while len(taken) < len(data):
        taken += os.read(reader, 65536)
    assert taken == data
    assert writer.close(WAIT_S)
    os.close(reader)
    os.close(end)


@pytest.mark.fault("log")
def test_a_journal_that_hangs(tmp_path: Path) -> None:
    """Nobody reads its socket: whoever logs continues, and so does every other thread."""
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        writer = _started(systemd.journal_sink(path=path), records_max=100)
        log = open_log("info", "journald", journal_sink=writer.put)
        writer.on_gap = lambda count: log.emit(LogEvent.LOG_DROPPED, count=count)
        # Until the socket takes no more: its queue is 10 or some hundreds of datagrams.
        for _ in range(100_000):
            log.emit(LogEvent.READY)
            if writer.dropped_count:
                break
        assert writer.dropped_count
        assert not writer.close(0.05)
        journal.settimeout(WAIT_S)
        while b"INGESTD_EVENT=log_dropped" not in journal.recv(65536):
            pass
        assert writer.close(WAIT_S)

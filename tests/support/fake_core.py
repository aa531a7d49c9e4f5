# SPDX-License-Identifier: Apache-2.0
"""A stand-in for ingestd.core._core: the same border, no kernel, no bytes.

Invariants: what ingestd/core/_core.pyi promises holds here too: setup() and
run() on one thread, commands and events from any, grants at most as many as
are wanted. Tests steer a FakeWorker through its public attributes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, NamedTuple

STATS_H: Final = Path(__file__).resolve().parents[2] / "ingestd" / "core" / "base" / "stats.h"
BEAT_INTERVAL_S: Final = 0.02
NO_FLOW: Final = bytes(16)


class Event(NamedTuple):
    kind: int
    code: int = 0
    detail: int = 0
    bytes_count: int = 0
    listener_index: int = -1
    peer: str = ""
    flow: bytes = NO_FLOW
    time_ns: int = 0


class DeviceProfile(NamedTuple):
    mem_align: int
    write_align: int


class CoreFault(OSError):
    def __init__(self, code: int, call: str, object_name: str) -> None:
        super().__init__(code, f"{call} for {object_name}")
        self.call = call
        self.object_name = object_name


def counter_names() -> list[str]:
    """Return the names of core/base/stats.h, in order."""
    return re.findall(r"\bX\((\w+), ", STATS_H.read_text(encoding="utf-8"))


class FakeCore:
    """The module. faults: raised where their key says: "Worker", "setup", "run", ..."""

    COMMAND_GRANT_SEGMENT = 1
    COMMAND_STORE_FULL = 2
    COMMAND_STOP_ACCEPTING = 3
    COMMAND_DRAIN = 4
    COMMAND_SET_FLUSH_INTERVAL = 5
    COMMAND_SET_COMMIT_INTERVAL = 6
    COMMAND_SET_IDLE_TIMEOUT = 7
    COMMAND_ADOPT = 8
    COMMAND_END_FLOW = 9
    COMMAND_FAIL_STORE = 10
    EVENT_FLOW_OPENED = 1
    EVENT_FLOW_SEALED = 2
    EVENT_FLOW_INTERRUPTED = 3
    EVENT_FLOW_REFUSED = 4
    EVENT_ACCEPT_FAILED = 5
    EVENT_STORE_FAILED = 6
    EVENT_STORE_FULL = 7
    EVENT_WRITE_RETRIED = 8
    EVENT_SEGMENT_OPENED = 9
    EVENT_SEGMENT_CLOSED = 10
    EVENT_BACKPRESSURE = 11
    EVENT_FLOW_BY_COPY = 12
    EVENT_FLOW_ELSEWHERE = 13
    EVENT_HELLO_FAILED = 14
    EVENT_FLOW_DENIED = 15
    QUESTION_HELLO = 1
    QUESTION_TRAILER = 2
    NOTE_ENDED = 3
    ENGINE_RECV = 0
    ENGINE_ZCRX = 1
    HISTOGRAM_BOUNDS_NS = (10_000, 1_000_000, 1_000_000_000)
    HISTOGRAM_BOUNDS_BYTES = (4096, 8192, 16384)
    CoreFault = CoreFault

    def __init__(self) -> None:
        self.made: list[FakeWorker] = []
        self.faults: dict[str, BaseException] = {}
        self.features = {"io_uring": True, "defer_taskrun": True, "writev_fixed": True}
        self.profile = DeviceProfile(512, 512)
        self.segments_wanted = 4
        self.is_hanging = False  # workers ignore COMMAND_DRAIN

    @property
    def workers(self) -> list[FakeWorker]:
        """All that were made, by store and index: their threads make them in any order."""
        return sorted(
            self.made, key=lambda w: (w.settings["store_uuid"], w.settings["worker_index"])
        )

    def Worker(self, **settings: Any) -> FakeWorker:  # noqa: N802 (a class at the real border)
        self.fail_if_asked("Worker")
        worker = FakeWorker(self, settings)
        self.made.append(worker)
        return worker

    def device_profile(self, fd: int) -> DeviceProfile:
        os.fstat(fd)
        self.fail_if_asked("device_profile")
        return self.profile

    def kernel_features(self) -> dict[str, bool]:
        self.fail_if_asked("kernel_features")
        return dict(self.features)

    def locked_bytes(self, *, area_bytes: int, write_bytes_max: int, **_: int) -> int:
        """The area and some more, in whole hugepages; 0 where it holds no two writes."""
        page_bytes = 2 * 1024 * 1024
        return -(-area_bytes // page_bytes) * page_bytes if area_bytes >= 2 * write_bytes_max else 0

    def fail_if_asked(self, place: str) -> None:
        if place in self.faults:
            raise self.faults[place]


class FakeWorker:
    """One worker, whose loop obeys commands and beats."""

    def __init__(self, core: FakeCore, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.listeners: list[tuple[int, int, str, int, int, int]] = []
        self.listener_terms: list[dict[str, Any]] = []
        self.asked: list[Any] = []  # questions to come
        self.answers: list[tuple[str, tuple[int, int], dict[str, Any]]] = []
        self.commands: list[tuple[int, int, int]] = []  # obeyed, in order
        self.granted: list[tuple[int, int]] = []
        self.threads: list[int] = []  # idents of the threads of setup() and run()
        self.is_running = False
        self.is_beating = True
        self.is_mailbox_full = False
        self.napi: tuple[int, list[tuple[int, int]]] | None = None
        self.values = dict.fromkeys(counter_names(), 0)
        self._core = core
        self._wanted = core.segments_wanted
        self._events: deque[Event] = deque()
        self._mailbox: deque[tuple[int, int, int]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._drain_deadline_s: float | None = None

    def __del__(self) -> None:
        os.close(self.event_fd)

    # --- The border ---------------------------------------------------------------

    def setup(self) -> None:
        self.threads.append(threading.get_ident())
        self._core.fail_if_asked("setup")

    def run(self) -> None:
        self.threads.append(threading.get_ident())
        self._core.fail_if_asked("run")
        with self._changed:
            self.is_running = True
            while not self._turn():
                self._changed.wait(BEAT_INTERVAL_S)
            self.is_running = False
        if self._error is not None:
            raise self._error

    def add_listener(
        self,
        fd: int,
        index: int,
        name: str,
        protocol: int,
        idle_timeout_ns: int,
        flows_max: int,
        **more: Any,
    ) -> None:
        assert not self.is_running
        self.listeners.append((fd, index, name, protocol, idle_timeout_ns, flows_max))
        self.listener_terms.append(more)

    def questions(self) -> list[Any]:
        asked, self.asked = self.asked, []
        return asked

    def admit(self, connection: tuple[int, int], flow: bytes, **terms: Any) -> None:
        self.answers.append(("admit", connection, {"flow": flow, **terms}))

    def refuse(self, connection: tuple[int, int], line: bytes) -> None:
        self.answers.append(("refuse", connection, json.loads(line)))

    def seal(self, connection: tuple[int, int], crc: int | None) -> None:
        self.answers.append(("seal", connection, {"crc": crc}))

    def set_napi(self, own: int, others: list[tuple[int, int]]) -> None:
        assert not self.is_running
        self.napi = (own, others)

    def command(self, kind: int, a: int = 0, b: int = 0) -> None:
        with self._changed:
            if self.is_mailbox_full:
                raise CoreFault(errno.EAGAIN, "command", "worker's mailbox")
            if kind == self._core.COMMAND_GRANT_SEGMENT:
                if self._wanted == 0:
                    raise CoreFault(errno.EINVAL, "command", "worker's mailbox")
                self._wanted -= 1
            self._mailbox.append((kind, a, b))
            self._changed.notify_all()

    def events(self) -> list[Event]:
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def segments_wanted(self) -> int:
        with self._changed:
            return self._wanted

    def counters(self) -> dict[str, int]:
        return dict(self.values)

    def histograms(self) -> dict[str, tuple[int, ...]]:
        none = (0, 0, 0, 0)
        return {
            "write_latency": (1, 2, 3, 4),
            "flush_latency": none,
            "ack_latency": none,
            "commit_bytes": none,
        }

    # --- For tests ------------------------------------------------------------------

    def emit(self, kind: int, **fields: Any) -> None:
        """Let an event happen and wake its reader."""
        self._events.append(Event(kind, **fields))
        os.eventfd_write(self.event_fd, 1)

    def want(self, count: int) -> None:
        """Want so many more segments, and wake who grants them."""
        with self._changed:
            self._wanted += count
        os.eventfd_write(self.event_fd, 1)

    def end(self, error: BaseException | None = None) -> None:
        """Let run() return, or raise."""
        with self._changed:
            self._error = error
            self._drain_deadline_s = 0.0
            self._changed.notify_all()

    def _turn(self) -> bool:
        if self.is_beating:
            self.values["loop_beat_ns"] = time.monotonic_ns()
        while self._mailbox:
            self._obey(*self._mailbox.popleft())
        if self._drain_deadline_s is None:
            return False
        return self.values["flows_open"] == 0 or time.monotonic() >= self._drain_deadline_s

    def _obey(self, kind: int, a: int, b: int) -> None:
        self.commands.append((kind, a, b))
        if kind == self._core.COMMAND_GRANT_SEGMENT:
            self.granted.append((a, b))
        elif kind == self._core.COMMAND_DRAIN and not self._core.is_hanging:
            self._drain_deadline_s = time.monotonic() + a / 1e9

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
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ingestd.core.border import (
    DeviceProfile,
    Event,
    EventDetail,
    WorkerSettings,
    WorkerShape,
)

STATS_H: Final = Path(__file__).resolve().parents[2] / "ingestd" / "core" / "base" / "stats.h"
BEAT_INTERVAL_S: Final = 0.02


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

    HISTOGRAM_BOUNDS_NS = (10_000, 1_000_000, 1_000_000_000)
    HISTOGRAM_BOUNDS_BYTES = (4096, 8192, 16384)
    CoreFault = CoreFault

    def __init__(self) -> None:
        self.made: list[FakeWorker] = []
        self.faults: dict[str, BaseException] = {}
        self.features = {"io_uring": True, "defer_taskrun": True, "writev_fixed": True}
        self.profile = DeviceProfile(512, 512)
        self.segments_wanted = 4
        self.is_hanging = False  # workers ignore drain()

    @property
    def workers(self) -> list[FakeWorker]:
        """All that were made, by store and index: their threads make them in any order."""
        return sorted(
            self.made, key=lambda w: (w.settings["store_uuid"], w.settings["worker_index"])
        )

    def Worker(self, settings: WorkerSettings) -> FakeWorker:  # noqa: N802 (a class at the border)
        self.fail_if_asked("Worker")
        worker = FakeWorker(
            self, asdict(settings) | asdict(settings.shape) | {"shape": settings.shape}
        )
        self.made.append(worker)
        return worker

    def device_profile(self, fd: int) -> DeviceProfile:
        os.fstat(fd)
        self.fail_if_asked("device_profile")
        return self.profile

    def kernel_features(self) -> dict[str, bool]:
        self.fail_if_asked("kernel_features")
        return dict(self.features)

    def locked_bytes(self, shape: WorkerShape) -> int:
        """The area and some more, in whole hugepages; 0 where it holds no two writes."""
        page_bytes = 2 * 1024 * 1024
        if shape.area_bytes < 2 * shape.write_bytes_max:
            return 0
        return -(-shape.area_bytes // page_bytes) * page_bytes

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
        self.asked: list[Any] = []  # requests to come
        self.answers: list[tuple[str, tuple[int, int], dict[str, Any]]] = []
        self.commands: list[tuple[Any, ...]] = []  # names and arguments, as handled, in order
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
        self._mailbox: deque[tuple[Any, ...]] = deque()
        self._changed = threading.Condition()  # reentrant
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

    def admission_requests(self) -> list[Any]:
        asked, self.asked = self.asked, []
        return asked

    def admit(self, connection: tuple[int, int], flow: bytes, **terms: Any) -> None:
        self.answers.append(("admit", connection, {"flow": flow, **terms}))

    def refuse(self, connection: tuple[int, int], line: bytes) -> None:
        self.answers.append(("refuse", connection, json.loads(line)))

    def move(self, connection: tuple[int, int]) -> None:
        self.answers.append(("move", connection, {}))

    def seal(self, connection: tuple[int, int], crc: int | None) -> None:
        self.answers.append(("seal", connection, {"crc": crc}))

    def set_napi(self, own: int, others: list[tuple[int, int]]) -> None:
        assert not self.is_running
        self.napi = (own, others)

    def grant_segment(self, index: int, sequence: int) -> None:
        with self._changed:
            if self._wanted == 0 and not self.is_mailbox_full:
                raise CoreFault(errno.EINVAL, "command", "worker's mailbox")
            self._post("grant_segment", index, sequence)
            self._wanted -= 1

    def note_store_full(self) -> None:
        self._post("note_store_full")

    def stop_accepting(self) -> None:
        self._post("stop_accepting")

    def drain(self, timeout_ns: int) -> None:
        self._post("drain", timeout_ns)

    def set_flush_interval(self, interval_ns: int) -> None:
        self._post("set_flush_interval", interval_ns)

    def set_commit_interval(self, interval_ns: int) -> None:
        self._post("set_commit_interval", interval_ns)

    def set_idle_timeout(self, listener_index: int, timeout_ns: int) -> None:
        self._post("set_idle_timeout", listener_index, timeout_ns)

    def adopt(self, fd: int, listener_index: int, move_id: int = 0) -> None:
        self._post("adopt", fd, listener_index, move_id)

    def pass_on(self, listener_index: int, wanted: bool) -> None:
        self._post("pass_on", listener_index, wanted)

    def listener_connections(self) -> dict[int, int]:
        return {}

    def end_flow(self, connection: tuple[int, int]) -> None:
        self._post("end_flow", connection)

    def fail_store(self, error: int) -> None:
        self._post("fail_store", error)

    def _post(self, name: str, *arguments: Any) -> None:
        with self._changed:
            if self.is_mailbox_full:
                raise CoreFault(errno.EAGAIN, "command", "worker's mailbox")
            self._mailbox.append((name, *arguments))
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

    def emit(self, detail: EventDetail, **fields: Any) -> None:
        """Let an event happen and wake its reader."""
        self._events.append(Event(detail, **fields))
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
            self._handle_command(*self._mailbox.popleft())
        if self._drain_deadline_s is None:
            return False
        return self.values["flows_open"] == 0 or time.monotonic() >= self._drain_deadline_s

    def _handle_command(self, name: str, *arguments: Any) -> None:
        self.commands.append((name, *arguments))
        if name == "grant_segment":
            self.granted.append((arguments[0], arguments[1]))
        elif name == "drain" and not self._core.is_hanging:
            self._drain_deadline_s = time.monotonic() + arguments[0] / 1e9

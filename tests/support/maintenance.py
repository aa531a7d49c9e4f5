# SPDX-License-Identifier: Apache-2.0
"""A maintenance thread on a small store, and who requests something of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingestd.daemon.admission.flow_lock import FlowLock
from ingestd.daemon.maintenance import maintenance_thread
from ingestd.daemon.maintenance.maintenance_thread import MaintenanceThread
from ingestd.daemon.maintenance.removals import Removal, RemovalState
from ingestd.log_events import LogEvent
from ingestd.store.reclaim.retention import Retention
from ingestd.store.reclaim.sweep import Sweeper
from ingestd.store.serve.served_store import ServedStore, open_for_serving
from support.store_builder import (
    Close,
    Extent,
    Open,
    SegmentWriter,
    StoreBuilder,
)

ONE, TWO, OPEN, ABSENT = (bytes([number]) * 16 for number in (0x11, 0x22, 0x33, 0x44))


class Stage:
    """A store with the flows ONE and TWO in segments of their own, its maintainer, and who asks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        builder = StoreBuilder(segment_count=6)
        for index, flow in enumerate((ONE, TWO)):
            segment = builder.segment(index)
            segment.batch(Open(flow), Extent(flow, b"x" * 5000), Close(flow))
            segment.close()
        builder.save(path)
        self.builder = builder
        self.store: ServedStore = open_for_serving(str(path))
        self.flow_lock = FlowLock(self.store.sweeper.removed)
        self.is_failed = False
        self.maintainer = self.make_maintainer({})
        self.asked: list[Removal] = []
        self.scans_count = 0

    def make_maintainer(self, retentions: dict[str, Retention]) -> MaintenanceThread:
        return MaintenanceThread(
            "s", self.store, self.flow_lock, retentions, lambda: self.is_failed
        )

    def ask(self, *flows: bytes, maintainer: MaintenanceThread | None = None) -> Removal:
        self.asked.append((maintainer or self.maintainer).removals.ask(flows))
        return self.asked[-1]

    def answers(self) -> list[RemovalState | None]:
        """Of each flow that was asked for, in order; None: not answered, or by an error."""
        return [
            asked.results[flow].state if asked.results else None
            for asked in self.asked
            for flow in asked.flows
        ]

    def begin(self) -> SegmentWriter:
        """A worker begins a segment that it was granted."""
        grant = self.store.take_segment()
        assert grant is not None
        index, sequence = grant
        self.builder.generation, self.builder.counter = sequence >> 32, (sequence & 0xFFFFFFFF) - 1
        return self.builder.segment(index)

    def put(self, segment: SegmentWriter) -> None:
        with self.path.open("r+b") as file:
            file.seek(segment.base)
            file.write(
                self.builder.image[segment.base : segment.base + segment.store.segment_bytes]
            )

    def news(self) -> list[LogEvent]:
        return [event for event, _ in self.maintainer.take_reports()]


@contextmanager
def staged(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A stage whose maintenance thread never waits; it counts how often the store is read."""
    made = Stage(path)
    scan = Sweeper.scan

    def counted(sweeper: Sweeper) -> object:
        made.scans_count += 1
        return scan(sweeper)

    monkeypatch.setattr(Sweeper, "scan", counted)
    monkeypatch.setattr(maintenance_thread, "TURN_INTERVAL_S", 0.0)
    monkeypatch.setattr(maintenance_thread, "SWEEP_PAUSE_TIMES", 0)
    monkeypatch.setattr(maintenance_thread, "REQUEST_PAUSE_TIMES", 0)
    yield made
    made.store.close()

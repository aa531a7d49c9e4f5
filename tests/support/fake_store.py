# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a store that is served: a number of segments and a descriptor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ingestd.errors import StoreError
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.flow_source import FlowSource
from ingestd.store.read.flows import Flow
from ingestd.store.reclaim.eviction import Overwritten
from ingestd.store.reclaim.sweep import SweepCounts
from ingestd.store.serve.served_store import RecoverySummary

MIB = 1024 * 1024


def recovery(warnings: tuple[str, ...] = ()) -> RecoverySummary:
    """Return what the recovery of a clean store says."""
    return RecoverySummary(8, 0, 0, 0, 0, 0, 0, 0, 0, 0.001, warnings)


class FakeSweeper:
    """Of a store from which nothing is ever removed."""

    def __init__(self) -> None:
        self.removed: frozenset[bytes] = frozenset()
        self.counts = SweepCounts()
        self.room_count = 100
        self.blocked_count = 0
        self.held_count = 0

    may_retry = True

    def stop(self) -> None: ...


@dataclass
class FakeStore:
    """Hands out segments 0, 1, ... and counts how often it was closed."""

    path: str = os.devnull
    segments_count: int = 8
    number: int = 0
    fd: int = -1
    closed_count: int = 0
    taken_count: int = 0
    recovery: RecoverySummary = field(default_factory=recovery)
    flows: list[Flow] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)
    sweeper: FakeSweeper = field(default_factory=FakeSweeper)
    feeder: None = None

    def __post_init__(self) -> None:
        self.fd = os.open(self.path, os.O_RDONLY)
        self.superblock = Superblock(
            store_uuid=bytes([self.number]) + bytes(range(1, 16)),
            generation=3,
            store_bytes=(1 + 8 * self.segments_count) * MIB,
            segments_offset=MIB,
            segment_bytes=8 * MIB,
            segment_count=self.segments_count,
            block_bytes=4096,
            label="",
            created_ns=0,
        )

    def loss(self) -> int | None:
        return None

    token = bytes(16)
    has_catalogue = False

    def flow_source(self, is_stopped: Callable[[], bool]) -> FlowSource:
        raise AssertionError("nobody lists its flows")

    def is_elsewhere(self) -> bool:
        return False

    @property
    def segments_free_count(self) -> int:
        return self.segments_count - self.taken_count

    def take_recovered_flows(self) -> list[Flow]:
        flows, self.flows = self.flows, []
        return flows

    missing_bytes: int = 0
    is_sparse: bool = False
    segments_without_room: int = 0

    def reserve_room(self) -> int:
        return self.segments_without_room

    is_overwriting: bool = False
    overwriting_error: StoreError | None = None

    @property
    def overwritten(self) -> tuple[int, int]:
        return 0, 0

    def take_overwritten(self) -> list[Overwritten]:
        return []

    @property
    def segments_granted_count(self) -> int:
        return self.taken_count

    def take_segment(self) -> tuple[int, int] | None:
        with self.mutex:
            if self.taken_count == self.segments_count:
                return None
            self.taken_count += 1
            return self.taken_count - 1, (3 << 32) + self.taken_count

    def close(self) -> None:
        self.closed_count += 1
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass
class FakeOpener:
    """Stands in for open_for_serving: a FakeStore for each path, kept in stores."""

    segments_count: int = 8
    held_paths: set[str] = field(default_factory=set)
    faults: dict[str, Exception] = field(default_factory=dict)
    stores: dict[str, FakeStore] = field(default_factory=dict)

    def __call__(
        self,
        path: str,
        *,
        expected_uuid: str | None = None,
        control: str = "",
        on_wait: Callable[[float], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        catalogues: Path | None = None,
    ) -> FakeStore:
        assert expected_uuid is None
        assert control == ""
        assert on_wait is not None
        assert on_progress is not None
        if path in self.held_paths:
            on_wait(2.5)
        if path in self.faults:
            raise self.faults[path]
        store = FakeStore(segments_count=self.segments_count, number=len(self.stores))
        store.path = str(Path(path))
        self.stores[path] = store
        return store

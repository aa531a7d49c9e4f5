# SPDX-License-Identifier: Apache-2.0
"""The stores that take no new flows: since when, and why.

Invariants:
 - A reason comes as soon as it is seen. That of a stalled device goes only when the device was
   well for as long as it may take, so that a slow one does not come and go.
 - What is seen are counters and settings: nothing here waits for a device.

look() and set_*() belong to the main thread; reasons() may be called by any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.config.settings import StoreSettings
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore

NS_PER_S: Final = 1_000_000_000


class Reason(StrEnum):
    """The reason why a store takes no new flows, worst first."""

    FAILED = "failed"  # its device failed, or the store is gone
    DRAINED = "drained"  # somebody wants it so
    FULL = "full"  # no segment is free
    STALLED = "stalled"  # a write or flush has taken longer than stall_after_s


TEXTS: Final = {
    Reason.FAILED: "failed",
    Reason.DRAINED: "is being drained",
    Reason.FULL: "is full",
    Reason.STALLED: "has a device that does not answer",
}


def device_age_s(counters: Mapping[str, int], now_ns: int) -> float:
    """Return for how long a worker's oldest write or flush has been under way; 0: none is."""
    since_ns = counters["device_since_ns"]
    return max(0, now_ns - since_ns) / NS_PER_S if since_ns else 0.0


class StoreStates:
    """The reasons of all stores; look() once a second, and when something has happened."""

    def __init__(
        self,
        settings: Mapping[str, StoreSettings],
        stores: Mapping[str, ServedStore],
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = stores
        self._log = log
        self._clock = clock
        self._stall_after_s = {name: store.stall_after_s for name, store in settings.items()}
        self._drained = {name for name, store in settings.items() if store.drain}
        self._overwrites = {n for n, s in settings.items() if s.on_full == "overwrite-oldest"}
        # By store: reason and since when, replaced as a whole, so that any thread may read.
        self._since_s: dict[str, dict[Reason, float]] = {name: {} for name in settings}
        self._stalled_at_s: dict[str, float] = {}  # when a store was seen stalled last
        self._free_bytes = dict.fromkeys(settings, 0)

    # --- What others want to know -----------------------------------------------------

    def reasons(self, name: str) -> dict[Reason, float]:
        """Return why a store takes no new flows, and for how long, in s; worst first."""
        now_s, since_s = self._clock(), self._since_s[name]
        return {reason: now_s - since_s[reason] for reason in Reason if reason in since_s}

    def is_well(self, name: str) -> bool:
        """Return whether a store takes new flows."""
        return not self._since_s[name]

    def free_bytes(self, name: str) -> int:
        """Return how much of a store was free at the last look: whole segments."""
        return self._free_bytes[name]

    def is_drained(self, name: str) -> bool:
        """Return whether somebody wants a store to take no new flows."""
        return name in self._drained

    def texts(self) -> list[str]:
        """Return a phrase for each store that takes no new flows: "b is full"."""
        return [
            f"{name} {TEXTS[next(iter(reasons))]}"
            for name in self._since_s
            if (reasons := self.reasons(name))
        ]

    # --- What changes them --------------------------------------------------------------

    def set_drained(self, name: str, *, wanted: bool) -> None:
        """Let a store take no new flows from the next look on, or take them again."""
        assert name in self._since_s, name
        if wanted:
            self._drained.add(name)
        else:
            self._drained.discard(name)

    def set_stall_after(self, name: str, stall_after_s: float) -> None:
        """Change how long a write or flush may take."""
        self._stall_after_s[name] = stall_after_s

    def look(
        self,
        workers: Sequence[WorkerThread],
        counters: Sequence[Mapping[str, int]],
        failed: Collection[str],
    ) -> bool:
        """Look at all stores; return whether any reason came or went. `counters`: by worker."""
        now_s = self._clock()
        has_changed = False
        for name, store in self._stores.items():
            own = [
                (worker, shot)
                for worker, shot in zip(workers, counters, strict=True)
                if worker.store_name == name
            ]
            shots = [shot for _, shot in own]
            ready_count = sum(shot["segments_ready"] for shot in shots)
            free_count = store.segments_free_count + ready_count
            self._free_bytes[name] = free_count * store.superblock.segment_bytes
            seen = set()
            if name in failed or any(shot["store_errno"] for shot in shots):
                seen.add(Reason.FAILED)
            if name in self._drained:
                seen.add(Reason.DRAINED)
            if self._is_full(name, store, shots):
                seen.add(Reason.FULL)
            if self._is_stalled(name, own, now_s):
                seen.add(Reason.STALLED)
            has_changed |= self._note(name, seen, now_s)
        return has_changed

    def _is_full(self, name: str, store: ServedStore, shots: Sequence[Mapping[str, int]]) -> bool:
        """A worker is in its last segment: what is left is for flows that are open."""
        if any(shot["store_is_full"] for shot in shots):
            return True
        may_come = name in self._overwrites and store.is_overwriting
        is_last = any(shot["segments_ready"] == 0 for shot in shots)
        has_begun = any(shot["segments_used"] for shot in shots)
        return has_begun and is_last and not may_come and store.segments_free_count == 0

    def _is_stalled(
        self, name: str, own: Sequence[tuple[WorkerThread, Mapping[str, int]]], now_s: float
    ) -> bool:
        limit_s = self._stall_after_s[name]
        now_ns = time.monotonic_ns()
        for worker, shot in own:
            if max(device_age_s(shot, now_ns), worker.loop_age_s(now_ns)) > limit_s:
                self._stalled_at_s[name] = now_s
        seen_s = self._stalled_at_s.get(name)
        if seen_s is not None and now_s - seen_s > limit_s:
            del self._stalled_at_s[name]
        return name in self._stalled_at_s

    def _note(self, name: str, seen: set[Reason], now_s: float) -> bool:
        before = self._since_s[name]
        if seen == before.keys():
            return False
        self._since_s[name] = {reason: before.get(reason, now_s) for reason in seen}
        for reason in Reason:
            if reason in seen and reason not in before:
                self._log.emit(LogEvent.STORE_OUT, store=name, reason=reason.value)
            elif reason in before and reason not in seen:
                lasted_s = round(now_s - before[reason], 3)
                self._log.emit(
                    LogEvent.STORE_BACK,
                    store=name,
                    reason=reason.value,
                    lasted_s=lasted_s,
                    takes_flows=not seen,
                )
        return True

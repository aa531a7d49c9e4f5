# SPDX-License-Identifier: Apache-2.0
"""New flows and the stores of the daemon: what of workers' events concerns them, and commands.

Invariant: whatever changes which stores take new flows is followed by the commands to workers.
Owned by the main thread, but for is_failed().
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ingestd.core.border import FlowElsewhere, StoreFailed, StoreFull
from ingestd.daemon.placement.handover import Handover
from ingestd.daemon.placement.placement import Placement, placed_listener
from ingestd.daemon.placement.store_states import StoreStates

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.core.border import Event
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.log import Log
    from ingestd.store.serve.served_store import ServedStore


class Placing:
    """Made with the daemon; begin() once its workers are set up."""

    def __init__(
        self,
        settings: Settings,
        stores: Mapping[str, ServedStore],
        workers: Sequence[WorkerThread],
        failed: Collection[str],
        log: Log,
    ) -> None:
        """`failed`: names of stores of which an event said that they failed."""
        self.states = StoreStates(settings.store, stores, log)
        self._settings = settings
        self._workers = workers
        self._failed = failed
        self._log = log
        self._must_look = False

    def begin(self, listener_names: Sequence[str], *, is_tied: bool) -> None:
        """Place the flows of listeners, by the number that workers know them by."""
        listeners = [(name, self._settings.listener[name]) for name in listener_names]
        placed = [placed_listener(name, listener) for name, listener in listeners]
        self.placement = Placement(placed, self._workers, self.states, is_tied=is_tied)
        protocols = [(name, listener.protocol) for name, listener in listeners]
        self.handover = Handover(protocols, self._log, self.placement)
        self.look()

    def report(self, worker: WorkerThread, event: Event) -> None:
        """Take what of a worker's event concerns placement."""
        if isinstance(event.detail, FlowElsewhere):
            self.handover.give(self._workers, worker, event, event.detail)
        self._must_look |= isinstance(event.detail, StoreFailed | StoreFull)

    def settle(self) -> None:
        """Do what is due: connections on their way, and a look at the stores."""
        self.handover.settle()
        if self._must_look:
            self.look()

    def look(self, counters: Sequence[Mapping[str, int]] | None = None) -> None:
        """Look at all stores, and command workers accordingly; `counters`: by worker."""
        self._must_look = False
        shots = [w.counters() for w in self._workers] if counters is None else counters
        self.states.look(self._workers, shots, self._failed)
        self.placement.update()

    def is_failed(self, name: str) -> bool:
        """Return whether a store's device has failed. By any thread, once workers are set up."""
        own = (worker for worker in self._workers if worker.store_name == name)
        return any(worker.counters()["store_errno"] for worker in own)

    def drain(self, name: str, *, wanted: bool) -> None:
        """Let a store take no new flows, or take them again; open flows and resumes stay."""
        self.states.set_drained(name, wanted=wanted)
        self.look()

    def change(self, before: Settings, after: Settings) -> None:
        """Apply a reload; a store that was drained by command stays so as long as its key does."""
        for name in self._settings.store.keys() & before.store.keys() & after.store.keys():
            self.states.set_stall_after(name, after.store[name].stall_after_s)
            if after.store[name].drain != before.store[name].drain:
                self.states.set_drained(name, wanted=after.store[name].drain)
        self.look()

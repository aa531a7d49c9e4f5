# SPDX-License-Identifier: Apache-2.0
"""The store that a new flow is placed in, of those that its listener has.

The kernel spreads connections over the workers of all stores of a listener. A worker whose store
is to take none passes them on, and Python gives each to another worker. Invariants:
 - A listener with one store has no choice: its worker says what is wrong with the store, as long
   as nobody drains it.
 - Of a listener with several, no new flow begins in a store that is not well.
 - Where connections are tied to a worker by an rx queue, none changes the store: a worker whose
   store is not well refuses.

Owned by the main thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.daemon.placement.store_states import TEXTS, Reason
from ingestd.protocol.lines import Code

if TYPE_CHECKING:
    from ingestd.config.settings import ListenerSettings
    from ingestd.daemon.placement.store_states import StoreStates
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore

# Stores with this part of the most that any has free take turns, so that a burst does not all
# go to one, and none comes and goes with each segment.
NEAR_PART: Final = 7 / 8


class PlacedListener(NamedTuple):
    """A listener as placement sees it."""

    name: str
    stores: tuple[str, ...]
    is_most_free: bool
    is_ingest: bool


class Refused(NamedTuple):
    """The reason why no store takes a flow: a code for programs, a sentence for people."""

    code: Code
    text: str


def placed_listener(name: str, listener: ListenerSettings) -> PlacedListener:
    """Return a listener as placement sees it."""
    return PlacedListener(
        name,
        listener.store_names,
        listener.placement == "most-free",
        listener.protocol == "ingest",
    )


class Placement:
    """All listeners, by the number that workers know them by; update() when stores changed."""

    def __init__(
        self,
        listeners: Sequence[PlacedListener],
        workers: Sequence[WorkerThread],
        states: StoreStates,
        *,
        is_tied: bool = False,
    ) -> None:
        self.is_tied = is_tied  # a connection is its worker's by the rx queue it comes by
        self._listeners = listeners
        self._workers = workers
        self._states = states
        self._turns: Counter[int] = Counter()  # by listener
        self._passing: dict[tuple[str, int], bool] = {}  # as commanded, by worker and listener

    # --- New flows ------------------------------------------------------------------------

    def choose(self, listener_index: int) -> WorkerThread | None:
        """Return the worker whose turn it is; None: no store of the listener takes new flows."""
        if not 0 <= listener_index < len(self._listeners):
            return None
        taking = self._taking(self._listeners[listener_index])
        candidates = [worker for name in taking for worker in self._alive(name)]
        if not candidates:
            return None
        self._turns[listener_index] += 1
        return candidates[self._turns[listener_index] % len(candidates)]

    def place(
        self, listener_index: int, own: WorkerThread, *, is_placed: bool
    ) -> WorkerThread | None:
        """Return the worker for a new flow whose connection `own` has; None: no store takes it.

        `is_placed`: it has come there by an earlier choice.
        """
        listener = self._listeners[listener_index]
        if len(listener.stores) == 1 and not self._states.is_drained(own.store_name):
            return own
        if self._states.is_well(own.store_name):
            is_near = own.store_name in self._taking(listener)
            if self.is_tied or is_placed or is_near:
                return own
        return None if self.is_tied else self.choose(listener_index)

    def refused(self, listener_index: int) -> Refused:
        """Return why no store of a listener takes new flows."""
        worst = {
            name: next(iter(reasons))
            for name in self._listeners[listener_index].stores
            if (reasons := self._states.reasons(name))
        }
        kinds = set(worst.values())
        if kinds == {Reason.FULL}:
            code = Code.STORE_FULL
        elif kinds == {Reason.FAILED}:
            code = Code.STORE_FAILED
        else:
            code = Code.BUSY
        phrases = ", ".join(f"{name} {TEXTS[reason]}" for name, reason in worst.items())
        return Refused(code, f"no store takes new flows now: {phrases or 'try again'}")

    def _taking(self, listener: PlacedListener) -> list[str]:
        """The stores that new flows of a listener may be placed in now."""
        well = [name for name in listener.stores if self._states.is_well(name)]
        if not listener.is_most_free or not well:
            return well
        free = {name: self._states.free_bytes(name) for name in well}
        enough = max(free.values()) * NEAR_PART
        return [name for name in well if free[name] >= enough]

    # --- Flows that lie somewhere -----------------------------------------------------------

    def worker_of(self, store_name: str, listener_index: int) -> WorkerThread | None:
        """Return a worker for a flow that lies in a store: that with the fewest connections."""
        return min(
            self._alive(store_name),
            key=lambda w: w.listener_connections().get(listener_index, 0),
            default=None,
        )

    def store(self, name: str) -> ServedStore:
        """Return a store that has workers."""
        return next(worker.store for worker in self._workers if worker.store_name == name)

    def _alive(self, store_name: str) -> Iterator[WorkerThread]:
        return (w for w in self._workers if w.store_name == store_name and w.alive())

    # --- Passing on ---------------------------------------------------------------------------

    def update(self) -> None:
        """Command each worker what to do with what it accepts, where that has changed.

        A command that finds no room is tried at the next update.
        """
        for index, listener in enumerate(self._listeners):
            taking = self._taking(listener)
            for name in listener.stores:
                wanted = self._must_pass(listener, name, taking)
                for worker in self._alive(name):
                    key = worker.name, index
                    if self._passing.get(key, False) != wanted and worker.pass_on(index, wanted):
                        self._passing[key] = wanted

    def _must_pass(self, listener: PlacedListener, name: str, taking: Sequence[str]) -> bool:
        if listener.is_ingest:
            # Its hello says whether it is new: where nobody else takes it, it is heard here.
            return name not in taking and bool(taking) and not self.is_tied
        if len(listener.stores) == 1:
            return self._states.is_drained(name)
        return name not in taking

# SPDX-License-Identifier: Apache-2.0
"""Admission of flows of protocol `ingest`: who may, where they resume, and how they end.

Workers ask about each hello and each trailer, once per flow, and report each
end; what lies between is theirs. Invariants:
 - Each request is answered exactly once.
 - At most one connection feeds a flow. A newer one waits until the older has
   ended and all it had stored is durable.
 - A flow resumes where its durable bytes end, never before and never behind.
 - A flow is fed only between begin() and end() of its store's flow lock.
 - A flow lies in one store of those that its listener has. A connection for a flow that lies in
   another store than its worker's is moved there, and decided on anew when it has arrived.

Owned by the main thread; lookup_thread.py has the threads that read.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ingestd.core.border import RequestKind
from ingestd.daemon.admission.applicant import Applicant, Connection
from ingestd.daemon.admission.flow_index import Known, known_of
from ingestd.daemon.admission.hello import (
    Refusal,
    authenticate,
    flow_id,
    labels_text,
    read_hello,
    read_trailer,
)
from ingestd.daemon.admission.listener_policy import ListenerPolicy
from ingestd.daemon.admission.lookup_thread import Lookups
from ingestd.daemon.admission.marked_ids import new_flow_id
from ingestd.daemon.admission.moves import MOVES_MAX, Moves
from ingestd.daemon.admission.rules import (
    error_line,
    refusal_of_hello,
    refusal_of_resume,
    refusal_of_trailer,
)
from ingestd.daemon.telemetry.flow_events import FlowEvents
from ingestd.daemon.telemetry.worker_events import hello_failure
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.protocol.blocks import Hello
from ingestd.store.read.flows import checksum_text

if TYPE_CHECKING:
    from ingestd.core.border import AdmissionRequest, Event, HelloFailed
    from ingestd.daemon.admission.flow_index import FlowIndex
    from ingestd.daemon.admission.flow_lock import FlowLock
    from ingestd.daemon.placement.handover import Handover
    from ingestd.daemon.placement.placement import Placement
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.read.point_query import Found

UNLIMITED: Final = 2**64 - 1
# Of the connections of one address, so many may wait until a store has been read.
PEER_LOOKUPS_MAX: Final = 16
REMOVED: Final = Refusal("removed", "the flow was removed from the store")
NOBODY_READS: Final = b"{}\n"  # the answer to a request whose connection has ended


_FlowKey: TypeAlias = tuple[str, bytes]  # name of the store, id


@dataclass
class _Live:
    """A flow that a connection feeds, and a newer one that waits for it."""

    applicant: Applicant
    successor: Applicant | None = None


class Admission:
    """Answers the requests of all workers; serve() and settle() when there is something to do."""

    def __init__(
        self,
        log: Log,
        policies: Sequence[ListenerPolicy],
        indexes: Mapping[str, FlowIndex],
        flow_locks: Mapping[str, FlowLock],
        placement: Placement,
        handover: Handover,
        wake: Callable[[], None],
        flow_events: FlowEvents,
    ) -> None:
        self.refused_counts = handover.refused_counts
        self.lookups_waiting_counts = dict.fromkeys(indexes, 0)  # by store
        self._log = log
        self._policies = list(policies)
        self._indexes = indexes
        self._flow_locks = flow_locks
        self._placement = placement
        self._moves = Moves(handover)
        self._wake = wake
        self._flow_events = flow_events
        self._live: dict[_FlowKey, _Live] = {}
        self._flow_of: dict[Connection, _FlowKey] = {}
        self._waiting: set[Connection] = set()  # without an answer yet
        self._gone: set[Connection] = set()  # of these, those that have ended meanwhile
        self._parked: set[Connection] = set()  # of those without an answer
        self._readers: dict[str, Lookups] = {}  # by store
        self._looked_for: dict[_FlowKey, dict[Connection, Applicant]] = {}
        self._lookups_of: Counter[tuple[str, str]] = Counter()  # by store and address

    def close(self) -> None:
        """End the threads that look into stores."""
        for reader in self._readers.values():
            reader.stop()

    def set_keys(self, name: str, keys: Mapping[str, bytes]) -> None:
        """Let hellos on a listener be checked by other keys from now on."""
        self._policies = [replace(p, keys=keys) if p.name == name else p for p in self._policies]

    def serve(self, worker: WorkerThread) -> None:
        """Answer what a worker asks now."""
        for request in worker.admission_requests():
            if request.kind == RequestKind.HELLO:
                self._on_hello(worker, request)
            elif request.kind == RequestKind.TRAILER:
                self._on_trailer(worker, request)
            else:
                assert request.kind == RequestKind.NOTE_ENDED, request.kind
                self._on_end(worker, request)

    def note_failed(self, worker: WorkerThread, event: Event, failure: HelloFailed) -> None:
        """Count a connection that ended before its hello was decided on."""
        name = self._policies[event.listener_index].name
        self.refused_counts[worker.store_name, name, hello_failure(failure)] += 1

    def settle(self) -> None:
        """Answer those about whom a store had to be asked, if it has answered."""
        for name, reader in self._readers.items():
            for flow, found in reader.take().items():
                for applicant in list(self._looked_for.get((name, flow), {}).values()):
                    self._end_lookup(name, applicant)
                    self._on_found(name, applicant, found)

    # --- Hello ------------------------------------------------------------------------

    def _on_hello(self, worker: WorkerThread, request: AdmissionRequest) -> None:
        if request.move_id:
            self._on_arrival(worker, request)
            return
        policy = self._policies[request.listener_index]
        hello = read_hello(request.block)
        refusal = hello if isinstance(hello, Refusal) else None
        if isinstance(hello, Hello):
            if policy.keys is not None:
                refusal = authenticate(hello, request.block, request.challenge, policy.keys)
            refusal = refusal or refusal_of_hello(hello, policy)
        if refusal is not None:
            self._refuse(worker, request, refusal)
            return
        assert isinstance(hello, Hello)
        key = hello.key if policy.keys is not None else None
        flow = flow_id(hello) or new_flow_id(worker.store.superblock.store_uuid)
        self._decide(Applicant(worker, request, hello, flow, key))

    def _decide(self, applicant: Applicant) -> None:
        """Admit a applicant, refuse it, or have it wait for what is not known yet.

        Wherever the flow may lie is looked at before it is a new one.
        """
        flow, stores = applicant.flow, self._stores_of(applicant)
        for name in stores:
            live, known = self._live.get((name, flow)), self._indexes[name].find(flow)
            if live is not None:
                self._take_over(live, applicant)
            elif self._flow_locks[name].is_removed(flow):
                self._refuse_applicant(applicant, REMOVED)
            elif known is not None:
                self._resume(name, applicant, known)
            else:
                continue
            return
        for name in stores:
            must_ask = applicant.hello.flow is not None and self._indexes[name].must_ask(flow)
            if must_ask and name not in applicant.absent:
                self._look_up(name, applicant)
                return
        if applicant.hello.resume is True:
            self._refuse_applicant(applicant, Refusal("unknown_flow", "there is no such flow"))
        else:
            self._place(applicant)

    def _stores_of(self, applicant: Applicant) -> list[str]:
        """The stores that a applicant's flow may lie in, its worker's first."""
        own = applicant.worker.store_name
        stores = self._policies[applicant.request.listener_index].stores
        return [own, *(name for name in stores if name != own)]

    def _resume(self, name: str, applicant: Applicant, known: Known) -> None:
        listener_index = applicant.request.listener_index
        refusal = refusal_of_resume(applicant.hello, known, self._policies[listener_index])
        if refusal is not None:
            self._refuse_applicant(applicant, refusal, known)
        elif name == applicant.worker.store_name:
            self._admit(applicant, known)
        else:
            self._move(applicant, self._placement.worker_of(name, listener_index))

    def _place(self, applicant: Applicant) -> None:
        """Let a new flow begin, in the store that is chosen for it."""
        listener_index, own = applicant.request.listener_index, applicant.worker
        is_placed = applicant.moves_count > 0
        worker = self._placement.place(listener_index, own, is_placed=is_placed)
        if worker is None:
            code, text = self._placement.refused(listener_index)
            self._refuse_applicant(applicant, Refusal(code, text))
        elif worker.store_name == own.store_name:
            self._admit(applicant, Known(False, 0, 0, True))
        else:
            self._move(applicant, worker)

    # --- Moves to another store -----------------------------------------------------------

    def _move(self, applicant: Applicant, worker: WorkerThread | None) -> None:
        """Give a applicant's connection to a worker of another store, where it is decided on."""
        if worker is None:
            gone = Refusal("busy", "the store that has the flow is not served now: try again")
            self._refuse_applicant(applicant, gone)
        elif self._placement.is_tied:
            text = (
                f"the flow lies in store {worker.store_name}, and the network card led here:"
                " connect again, until it leads there"
            )
            self._refuse_applicant(applicant, Refusal("busy", text))
        elif applicant.moves_count >= MOVES_MAX:
            self._refuse_applicant(applicant, Refusal("busy", "the stores change: try again"))
        elif not self._is_gone(applicant):
            self._moves.begin(applicant, worker)

    def _on_arrival(self, worker: WorkerThread, request: AdmissionRequest) -> None:
        applicant = self._moves.arrived(worker, request)
        if applicant is None:
            self._refuse(worker, request, Refusal("busy", "too many connections are moved"))
        else:
            self._decide(applicant)

    # --- A connection that feeds the flow ---------------------------------------------------

    def _take_over(self, live: _Live, applicant: Applicant) -> None:
        """Let a applicant wait for the end of the connection that feeds its flow now."""
        older = live.applicant
        if applicant.hello.resume is False:
            refusal = Refusal("exists", "a connection feeds a flow of this id now")
        elif applicant.key != older.key:
            refusal = Refusal("unauthorised", "the flow is fed by someone else")
        elif live.successor is None and not older.worker.end_flow(older.request.connection):
            refusal = Refusal("busy", "the server has too much to do: try again")
        else:
            if live.successor is not None:
                gone = Refusal("replaced", "a newer connection resumed the flow")
                self._refuse_applicant(live.successor, gone)
            live.successor = applicant
            self._waiting.add(applicant.connection)
            self._park(applicant)  # or else it keeps its place: the end will be soon
            return
        self._refuse_applicant(applicant, refusal)

    def _is_gone(self, applicant: Applicant) -> bool:
        """Return whether a applicant ended while it waited; its request is answered then."""
        self._waiting.discard(applicant.connection)
        self._parked.discard(applicant.connection)
        is_gone = applicant.connection in self._gone
        if is_gone:
            self._gone.remove(applicant.connection)
            applicant.worker.refuse(applicant.request.connection, NOBODY_READS)
        return is_gone

    def _admit(self, applicant: Applicant, known: Known) -> None:
        if self._is_gone(applicant):
            return
        if not self._flow_locks[applicant.worker.store_name].begin(applicant.flow):
            self._refuse_applicant(applicant, REMOVED)  # since it was looked for
            return
        hello, worker = applicant.hello, applicant.worker
        connection = applicant.request.connection
        flow_bytes_max = self._policies[applicant.request.listener_index].flow_bytes_max
        limit = hello.bytes if hello.bytes is not None else flow_bytes_max
        key = (worker.store_name, applicant.flow)
        self._live[key] = _Live(applicant)
        self._flow_of[applicant.connection] = key
        worker.admit(
            connection,
            applicant.flow,
            base_bytes=known.bytes_count,
            limit_bytes=UNLIMITED if hello.bytes is None and not limit else limit,
            crc=known.crc,
            is_crc_known=known.is_crc_known,
            is_stated=hello.bytes is not None,
            has_trailer=hello.trailer,
            name=(hello.name or "").encode(),
            labels=labels_text(hello).encode(),
        )
        self._flow_events.opened(
            worker, applicant.request, applicant.flow, applicant.texts, known.bytes_count
        )

    # --- A store that must be asked -----------------------------------------------------

    def _look_up(self, name: str, applicant: Applicant) -> None:
        flow = applicant.flow
        if name not in self._readers:
            store = self._placement.store(name)
            self._readers[name] = Lookups(name, store.find_flows, self._wake)
        if (
            self._lookups_of[name, applicant.address] >= PEER_LOOKUPS_MAX
            or not self._park(applicant)
            or not self._readers[name].ask(flow)
        ):
            busy = Refusal("busy", "too many flows are being looked up: try again")
            self._refuse_applicant(applicant, busy)
            return
        self._lookups_of[name, applicant.address] += 1
        self.lookups_waiting_counts[name] += 1
        self._looked_for.setdefault((name, flow), {})[applicant.connection] = applicant

    def _park(self, applicant: Applicant) -> bool:
        """Let others come before a applicant whose answer takes long; False: there are too many."""
        connection = applicant.connection
        if connection not in self._parked and applicant.worker.park(connection[1]):
            self._parked.add(connection)
        return connection in self._parked

    def _end_lookup(self, name: str, applicant: Applicant) -> None:
        """Know that a applicant does not wait for a store any more."""
        waiting = self._looked_for[name, applicant.flow]
        del waiting[applicant.connection]
        self._lookups_of[name, applicant.address] -= 1
        self.lookups_waiting_counts[name] -= 1
        if not self._lookups_of[name, applicant.address]:
            del self._lookups_of[name, applicant.address]
        if not waiting:
            del self._looked_for[name, applicant.flow]
            self._readers[name].withdraw(applicant.flow)

    def _on_found(self, name: str, applicant: Applicant, found: Found | Exception) -> None:
        key, index = (name, applicant.flow), self._indexes[name]
        is_removed = self._flow_locks[name].is_removed(applicant.flow)
        if key in self._live or index.find(applicant.flow) is not None or is_removed:
            self._decide(applicant)  # another connection, or a removal, was quicker
            return
        flow = None if isinstance(found, Exception) else found.flows.get(applicant.flow)
        if flow is not None:
            index.note(applicant.flow, known_of(flow))
        elif isinstance(found, Exception) or not found.is_whole:
            # It may be where nobody can look: then it is not to begin anew.
            busy = Refusal("busy", f"store {name}, or a part of it, cannot be read now")
            self._refuse_applicant(applicant, busy)
            return
        else:
            applicant.absent.add(name)
        self._decide(applicant)

    # --- Trailer and end ----------------------------------------------------------------

    def _on_trailer(self, worker: WorkerThread, request: AdmissionRequest) -> None:
        trailer = read_trailer(request.block)
        refusal = trailer if isinstance(trailer, Refusal) else refusal_of_trailer(trailer, request)
        if refusal is not None:
            self._refuse(worker, request, refusal, request.flow, request.bytes_count)
        else:
            assert not isinstance(trailer, Refusal)
            worker.seal(request.connection, trailer.crc32c)

    def _on_end(self, worker: WorkerThread, request: AdmissionRequest) -> None:
        connection = worker.name, request.connection
        key = self._flow_of.pop(connection, None)
        if key is None:
            if not self._moves.ended(connection, request):
                self._on_unadmitted_end(connection)
            return
        self._forget_absent(key[1])
        live = self._live.pop(key)
        self._flow_events.ended(worker, request, key[1], live.applicant.texts)
        if request.is_stored:
            self._indexes[key[0]].note(
                key[1],
                Known(
                    request.is_sealed,
                    request.bytes_count,
                    request.crc,
                    request.is_crc_known,
                    request.is_whole,
                ),
            )
        self._flow_locks[key[0]].end(key[1])
        if live.successor is not None:
            live.successor.absent.clear()
            self._decide(live.successor)

    def _forget_absent(self, flow: bytes) -> None:
        """A flow that has ended lies somewhere now: who is looked up begins anew."""
        for name in self._indexes if self._looked_for else ():
            for applicant in self._looked_for.get((name, flow), {}).values():
                applicant.absent.clear()

    def _on_unadmitted_end(self, connection: Connection) -> None:
        """Answer a request that nobody waits for, at once where a store would be read for it."""
        looked_for = [
            (name, waiting[connection])
            for (name, _), waiting in self._looked_for.items()
            if connection in waiting
        ]
        if looked_for or connection in self._waiting:
            self._gone.add(connection)
        for name, applicant in looked_for:
            self._end_lookup(name, applicant)
            self._is_gone(applicant)

    # --- Refusals -----------------------------------------------------------------------

    def _refuse_applicant(
        self, applicant: Applicant, refusal: Refusal, known: Known | None = None
    ) -> None:
        if self._is_gone(applicant):
            return
        flow = applicant.flow if applicant.hello.flow is not None else None
        more: dict[str, Any] = {}
        if known is not None and known.is_sealed and refusal.code == "sealed":
            checksum = checksum_text(known.crc) if known.is_crc_known else None
            more = {"bytes": known.bytes_count, "checksum": checksum}
        durable_bytes = known.bytes_count if known is not None else 0
        self._refuse(applicant.worker, applicant.request, refusal, flow, durable_bytes, more)

    def _refuse(
        self,
        worker: WorkerThread,
        request: AdmissionRequest,
        refusal: Refusal,
        flow: bytes | None = None,
        durable_bytes: int = 0,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        name = self._policies[request.listener_index].name
        flow_text = str(uuid.UUID(bytes=flow)) if flow is not None else None
        line = error_line(refusal, flow_text, durable_bytes, more or {})
        worker.refuse(request.connection, line)
        if request.kind != RequestKind.HELLO:
            return  # the worker reports the flow's end
        self.refused_counts[worker.store_name, name, refusal.code] += 1
        fields: dict[str, Any] = {"flow": flow_text} if flow_text else {}
        self._log.emit(
            LogEvent.FLOW_REFUSED,
            store=worker.store_name,
            worker=worker.index,
            peer=request.peer,
            listener=name,
            reason=refusal.code,
            error=refusal.text,
            **fields,
        )

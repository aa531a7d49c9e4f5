# SPDX-License-Identifier: Apache-2.0
"""Admission of flows of protocol `ingest`: who may, where they resume, and how they end.

Workers ask about each hello and each trailer, once per flow, and report each
end; what lies between is theirs. Invariants:
 - Each request is answered exactly once.
 - At most one connection feeds a flow. A newer one waits until the older has
   ended and all it had stored is durable.
 - A flow resumes where its durable bytes end, never before and never behind.
 - A flow is fed only between begin() and end() of its store's flow lock.

Owned by the main thread; lookup_thread.py has the threads that read.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ingestd.core.border import RequestKind
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
from ingestd.daemon.admission.rules import (
    error_line,
    refusal_of_hello,
    refusal_of_resume,
    refusal_of_trailer,
)
from ingestd.daemon.telemetry.flow_events import FlowEvents, FlowTexts
from ingestd.daemon.telemetry.worker_events import hello_failure
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.protocol.blocks import Hello
from ingestd.store.read.flows import checksum_text

if TYPE_CHECKING:
    from ingestd.core.border import AdmissionRequest, Event, HelloFailed
    from ingestd.daemon.admission.flow_index import FlowIndex
    from ingestd.daemon.admission.flow_lock import FlowLock
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.read.point_query import Found

UNLIMITED: Final = 2**64 - 1
# Of the connections of one address, so many may wait until a store has been read.
PEER_LOOKUPS_MAX: Final = 16
REMOVED: Final = Refusal("removed", "the flow was removed from the store")
NOBODY_READS: Final = b"{}\n"  # the answer to a request whose connection has ended


_FlowKey: TypeAlias = tuple[str, bytes]  # name of the store, id
_Connection: TypeAlias = tuple[str, tuple[int, int]]  # name of the worker, its name there


@dataclass(frozen=True)
class _Candidate:
    """A connection whose hello is right."""

    worker: WorkerThread
    request: AdmissionRequest
    hello: Hello
    flow: bytes
    key: str | None  # that authenticated it

    @property
    def connection(self) -> _Connection:
        """The key of a connection, unique over all workers."""
        return self.worker.name, self.request.connection

    @property
    def texts(self) -> FlowTexts:
        """The name and labels that the hello gives the flow."""
        return FlowTexts(self.hello.name, self.hello.labels)

    @property
    def address(self) -> str:
        """The peer's address, without the port."""
        return self.request.peer.rpartition(":")[0]


@dataclass
class _Live:
    """A flow that a connection feeds, and a newer one that waits for it."""

    candidate: _Candidate
    successor: _Candidate | None = None


class Admission:
    """Answers the requests of all workers; serve() and settle() when there is something to do."""

    def __init__(
        self,
        log: Log,
        policies: Sequence[ListenerPolicy],
        indexes: Mapping[str, FlowIndex],
        flow_locks: Mapping[str, FlowLock],
        wake: Callable[[], None],
        flow_events: FlowEvents,
    ) -> None:
        self.refused_counts: Counter[tuple[str, str, str]] = Counter()  # store, listener, code
        self.lookups_waiting_counts = dict.fromkeys(indexes, 0)  # by store
        self._log = log
        self._policies = list(policies)
        self._indexes = indexes
        self._flow_locks = flow_locks
        self._wake = wake
        self._flow_events = flow_events
        self._live: dict[_FlowKey, _Live] = {}
        self._flow_of: dict[_Connection, _FlowKey] = {}
        self._waiting: set[_Connection] = set()  # without an answer yet
        self._gone: set[_Connection] = set()  # of these, those that have ended meanwhile
        self._parked: set[_Connection] = set()  # of those without an answer
        self._readers: dict[str, Lookups] = {}  # by store
        self._looked_for: dict[_FlowKey, dict[_Connection, _Candidate]] = {}
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
                for candidate in list(self._looked_for.get((name, flow), {}).values()):
                    self._end_lookup(candidate)
                    self._on_found(candidate, found)

    # --- Hello ------------------------------------------------------------------------

    def _on_hello(self, worker: WorkerThread, request: AdmissionRequest) -> None:
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
        self._decide(_Candidate(worker, request, hello, flow, key))

    def _decide(self, candidate: _Candidate) -> None:
        """Admit a candidate, refuse it, or have it wait for what is not known yet."""
        store_name, flow = candidate.worker.store_name, candidate.flow
        index = self._indexes[store_name]
        live = self._live.get((store_name, flow))
        known = index.find(flow)
        if live is not None:
            self._take_over(live, candidate)
        elif self._flow_locks[store_name].is_removed(flow):
            self._refuse_candidate(candidate, REMOVED)
        elif known is not None:
            self._resume(candidate, known)
        elif candidate.hello.flow is not None and index.must_ask(flow):
            self._look_up(candidate)
        elif candidate.hello.resume is True:
            self._refuse_candidate(candidate, Refusal("unknown_flow", "there is no such flow"))
        else:
            self._admit(candidate, Known(False, 0, 0, True))

    def _resume(self, candidate: _Candidate, known: Known) -> None:
        policy = self._policies[candidate.request.listener_index]
        refusal = refusal_of_resume(candidate.hello, known, policy)
        if refusal is not None:
            self._refuse_candidate(candidate, refusal, known)
        else:
            self._admit(candidate, known)

    def _take_over(self, live: _Live, candidate: _Candidate) -> None:
        """Let a candidate wait for the end of the connection that feeds its flow now."""
        older = live.candidate
        if candidate.hello.resume is False:
            refusal = Refusal("exists", "a connection feeds a flow of this id now")
        elif candidate.key != older.key:
            refusal = Refusal("unauthorised", "the flow is fed by someone else")
        elif live.successor is None and not older.worker.end_flow(older.request.connection):
            refusal = Refusal("busy", "the server has too much to do: try again")
        else:
            if live.successor is not None:
                gone = Refusal("replaced", "a newer connection resumed the flow")
                self._refuse_candidate(live.successor, gone)
            live.successor = candidate
            self._waiting.add(candidate.connection)
            self._park(candidate)  # or else it keeps its place: the end will be soon
            return
        self._refuse_candidate(candidate, refusal)

    def _is_gone(self, candidate: _Candidate) -> bool:
        """Return whether a candidate ended while it waited; its request is answered then."""
        self._waiting.discard(candidate.connection)
        self._parked.discard(candidate.connection)
        is_gone = candidate.connection in self._gone
        if is_gone:
            self._gone.remove(candidate.connection)
            candidate.worker.refuse(candidate.request.connection, NOBODY_READS)
        return is_gone

    def _admit(self, candidate: _Candidate, known: Known) -> None:
        if self._is_gone(candidate):
            return
        if not self._flow_locks[candidate.worker.store_name].begin(candidate.flow):
            self._refuse_candidate(candidate, REMOVED)  # since it was looked for
            return
        hello, worker = candidate.hello, candidate.worker
        connection = candidate.request.connection
        flow_bytes_max = self._policies[candidate.request.listener_index].flow_bytes_max
        limit = hello.bytes if hello.bytes is not None else flow_bytes_max
        key = (worker.store_name, candidate.flow)
        self._live[key] = _Live(candidate)
        self._flow_of[candidate.connection] = key
        worker.admit(
            connection,
            candidate.flow,
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
            worker, candidate.request, candidate.flow, candidate.texts, known.bytes_count
        )

    # --- A store that must be asked -----------------------------------------------------

    def _look_up(self, candidate: _Candidate) -> None:
        name, flow = candidate.worker.store_name, candidate.flow
        if name not in self._readers:
            self._readers[name] = Lookups(name, candidate.worker.store.find_flows, self._wake)
        if (
            self._lookups_of[name, candidate.address] >= PEER_LOOKUPS_MAX
            or not self._park(candidate)
            or not self._readers[name].ask(flow)
        ):
            busy = Refusal("busy", "too many flows are being looked up: try again")
            self._refuse_candidate(candidate, busy)
            return
        self._lookups_of[name, candidate.address] += 1
        self.lookups_waiting_counts[name] += 1
        self._looked_for.setdefault((name, flow), {})[candidate.connection] = candidate

    def _park(self, candidate: _Candidate) -> bool:
        """Let others come before a candidate whose answer takes long; False: there are too many."""
        connection = candidate.connection
        if connection not in self._parked and candidate.worker.park(connection[1]):
            self._parked.add(connection)
        return connection in self._parked

    def _end_lookup(self, candidate: _Candidate) -> None:
        """Know that a candidate does not wait for the store any more."""
        name = candidate.worker.store_name
        waiting = self._looked_for[name, candidate.flow]
        del waiting[candidate.connection]
        self._lookups_of[name, candidate.address] -= 1
        self.lookups_waiting_counts[name] -= 1
        if not self._lookups_of[name, candidate.address]:
            del self._lookups_of[name, candidate.address]
        if not waiting:
            del self._looked_for[name, candidate.flow]
            self._readers[name].withdraw(candidate.flow)

    def _on_found(self, candidate: _Candidate, found: Found | Exception) -> None:
        key = (candidate.worker.store_name, candidate.flow)
        index = self._indexes[candidate.worker.store_name]
        is_removed = self._flow_locks[key[0]].is_removed(candidate.flow)
        if key in self._live or index.find(candidate.flow) is not None or is_removed:
            self._decide(candidate)  # another connection, or a removal, was quicker
            return
        flow = None if isinstance(found, Exception) else found.flows.get(candidate.flow)
        if flow is not None:
            index.note(candidate.flow, known_of(flow))
            self._resume(candidate, known_of(flow))
        elif isinstance(found, Exception) or not found.is_whole:
            # It may be where nobody can look: then it is not to begin anew.
            busy = Refusal("busy", "the store, or a part of it, cannot be read now")
            self._refuse_candidate(candidate, busy)
        elif candidate.hello.resume is True:
            self._refuse_candidate(candidate, Refusal("unknown_flow", "there is no such flow"))
        else:
            self._admit(candidate, Known(False, 0, 0, True))

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
            self._on_unadmitted_end(connection)
            return
        live = self._live.pop(key)
        self._flow_events.ended(worker, request, key[1], live.candidate.texts)
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
            self._decide(live.successor)

    def _on_unadmitted_end(self, connection: _Connection) -> None:
        """Answer a request that nobody waits for, at once where a store would be read for it."""
        looked_for = [w[connection] for w in self._looked_for.values() if connection in w]
        if looked_for or connection in self._waiting:
            self._gone.add(connection)
        for candidate in looked_for:
            self._end_lookup(candidate)
            self._is_gone(candidate)

    # --- Refusals -----------------------------------------------------------------------

    def _refuse_candidate(
        self, candidate: _Candidate, refusal: Refusal, known: Known | None = None
    ) -> None:
        if self._is_gone(candidate):
            return
        flow = candidate.flow if candidate.hello.flow is not None else None
        more: dict[str, Any] = {}
        if known is not None and known.is_sealed and refusal.code == "sealed":
            checksum = checksum_text(known.crc) if known.is_crc_known else None
            more = {"bytes": known.bytes_count, "checksum": checksum}
        durable_bytes = known.bytes_count if known is not None else 0
        self._refuse(candidate.worker, candidate.request, refusal, flow, durable_bytes, more)

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

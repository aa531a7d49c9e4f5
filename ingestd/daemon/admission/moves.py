# SPDX-License-Identifier: Apache-2.0
"""Connections of protocol `ingest` that are moved to another store's worker, with their hellos.

begin() at the worker that has it -> ended(), which has the descriptor -> arrived() at the other
one. Invariants: a hello is kept from the begin to the arrival, and no longer than ARRIVING_MAX
others come after it; nothing is decided here, but anew when it has arrived. Owned by the main
thread.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ingestd.core.border import AdmissionRequest
    from ingestd.daemon.admission.applicant import Applicant, Connection
    from ingestd.daemon.placement.handover import Handover
    from ingestd.daemon.workers.worker import WorkerThread

# A choice may be overtaken by another one, but not for ever.
MOVES_MAX: Final = 4
# Of connections on their way; the hello of one that never arrives, as its worker has no room for
# it, is dropped when so many others came after it.
ARRIVING_MAX: Final = 4096


class Moves:
    """All that are under way."""

    def __init__(self, handover: Handover) -> None:
        self._handover = handover
        self._leaving: dict[Connection, tuple[Applicant, WorkerThread]] = {}
        self._arriving: OrderedDict[int, Applicant] = OrderedDict()
        self._move_ids = itertools.count(1)

    def begin(self, applicant: Applicant, worker: WorkerThread) -> None:
        """Have a applicant's worker give its connection up, for another one."""
        self._leaving[applicant.connection] = applicant, worker
        applicant.worker.move(applicant.request.connection)

    def ended(self, connection: Connection, note: AdmissionRequest) -> bool:
        """Know that a connection has ended; False: it was not to be moved."""
        applicant, worker = self._leaving.pop(connection, (None, None))
        if applicant is None or worker is None:
            return False
        if note.moved_fd is not None:  # else it ended by itself
            move_id = next(self._move_ids)
            self._arriving[move_id] = applicant
            if len(self._arriving) > ARRIVING_MAX:
                self._arriving.popitem(last=False)
            self._handover.move(note.moved_fd, note.listener_index, note.peer, worker, move_id)
        return True

    def arrived(self, worker: WorkerThread, request: AdmissionRequest) -> Applicant | None:
        """Return the applicant whose connection a worker has now; None: it is not known."""
        applicant = self._arriving.pop(request.move_id, None)
        if applicant is None:
            return None
        count = applicant.moves_count + 1
        return replace(applicant, worker=worker, request=request, moves_count=count, absent=set())

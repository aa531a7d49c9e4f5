# SPDX-License-Identifier: Apache-2.0
"""Which flows a store holds already, and where those that were interrupted go on.

Invariants:
 - A flow that is in the store is never taken for a new one: of every flow at
   least 8 bytes of its id are kept, in order, to be searched.
 - Details are kept of the DETAILS_MAX flows of protocol `ingest` used last; of
   others the store itself is asked.

Owned by the main thread.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from heapq import merge
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ingestd.store.flows import Flow

DETAILS_MAX: Final = 65536
# New ids are sorted in when there are so many of them, or an eighth of all.
UNSORTED_MIN: Final = 4096
STATE_SEALED: Final = "sealed"
PROTOCOL_INGEST: Final = "ingest"


class Known(NamedTuple):
    """A flow that no connection feeds now."""

    is_sealed: bool
    bytes_count: int  # all of them durable
    crc: int  # the chain of CRC32C at its end, for a connection that goes on
    is_crc_known: bool  # ... which is that of all of its bytes
    is_settled: bool = True  # False: more of it may become durable still
    is_resumable: bool = True  # False: it came by another protocol


class _Ids:
    """A set of flow ids in 8 bytes each; an id that is not in it may seem to be, by chance."""

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._sorted = array("Q", sorted(map(_tail, ids)))
        self._fresh: set[int] = set()

    def __contains__(self, flow: bytes) -> bool:
        tail = _tail(flow)
        at = bisect_left(self._sorted, tail)
        return tail in self._fresh or (at < len(self._sorted) and self._sorted[at] == tail)

    def add(self, flow: bytes) -> None:
        self._fresh.add(_tail(flow))
        if len(self._fresh) >= max(UNSORTED_MIN, len(self._sorted) // 8):
            self._sorted = array("Q", merge(self._sorted, sorted(self._fresh)))
            self._fresh.clear()


def _tail(flow: bytes) -> int:
    return int.from_bytes(flow[8:], "big")  # of a UUID, the half that is random


class FlowIndex:
    """The flows of one store; begins with those that were recovered."""

    def __init__(self, flows: Iterable[Flow] = (), *, details_max: int = DETAILS_MAX) -> None:
        self._details: OrderedDict[bytes, Known] = OrderedDict()
        self._details_max = details_max
        others = []
        for flow in flows:
            if flow.protocol == PROTOCOL_INGEST and len(self._details) < details_max:
                self._details[flow.flow_id] = known_of(flow)
            else:
                others.append(flow.flow_id)
        self._others = _Ids(others)

    def find(self, flow: bytes) -> Known | None:
        """Return what is known of a flow; None if it is not here, or only by its id."""
        known = self._details.get(flow)
        if known is not None:
            self._details.move_to_end(flow)
        return known

    def must_ask(self, flow: bytes) -> bool:
        """Tell whether the store has to be asked about a flow that find() does not find."""
        return flow in self._others

    def note(self, flow: bytes, known: Known) -> None:
        """Keep the details of a flow; those used least may have to go."""
        self._details[flow] = known
        self._details.move_to_end(flow)
        if len(self._details) > self._details_max:
            gone, _ = self._details.popitem(last=False)
            self._others.add(gone)

    def forget(self, flow: bytes) -> None:
        """Ask the store about a flow from now on, as it has less of it, or nothing.

        Not where more of it may become durable still: the store cannot know that.
        """
        known = self._details.get(flow)
        if known is not None and known.is_settled:
            del self._details[flow]
            self._others.add(flow)

    def note_other(self, flow: bytes) -> None:
        """Keep the id of a flow that cannot be resumed."""
        self._others.add(flow)


def known_of(flow: Flow) -> Known:
    """Return what an index keeps of a flow that was read from a store."""
    crc = int(flow.checksum.rpartition(":")[2], 16) if flow.checksum else 0
    is_crc_known = flow.checksum is not None or flow.bytes == 0
    is_resumable = flow.protocol == PROTOCOL_INGEST
    return Known(
        flow.state == STATE_SEALED, flow.bytes, crc, is_crc_known, is_resumable=is_resumable
    )

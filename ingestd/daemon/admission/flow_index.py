# SPDX-License-Identifier: Apache-2.0
"""The index of the flows that a store holds, and of the offsets at which interrupted ones resume.

Invariants:
 - A flow that is in the store is never taken for a new one: one of protocol `raw` is
   known by its id alone, and every other id is in a filter, or has its details here. Until it
   is known which flows the opening left, the store is asked about every other id.
 - Details are kept of DETAILS_MAX flows of protocol `ingest`: those used last, and of
   these the interrupted ones before the sealed; of others the store itself is asked.
 - The memory is bounded, however many flows were ever seen.

Owned by the main thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from heapq import nlargest
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.daemon.admission.bloom_filter import BloomFilter
from ingestd.daemon.admission.marked_ids import is_raw_id

if TYPE_CHECKING:
    from ingestd.store.read.flows import Flow

DETAILS_MAX: Final = 65536
STATE_SEALED: Final = "sealed"
PROTOCOL_INGEST: Final = "ingest"


class Known(NamedTuple):
    """A flow that no connection feeds now."""

    is_sealed: bool
    bytes_count: int  # all of them durable
    crc: int  # the chain of CRC32C at its end, for a connection that resumes
    is_crc_known: bool  # ... which is that of all of its bytes
    is_settled: bool = True  # False: more of it may become durable still
    is_resumable: bool = True  # False: it came by another protocol


# Of a flow of protocol `raw` nothing more is needed, as nobody can resume it.
RAW: Final = Known(False, 0, 0, False, is_resumable=False)


class FlowIndex:
    """The flows of one store; begins with those that were recovered.

    None: they are not known yet; complete() follows.
    """

    def __init__(
        self,
        store_uuid: bytes,
        flows: Iterable[Flow] | None = (),
        *,
        details_max: int = DETAILS_MAX,
    ) -> None:
        self._store_uuid = store_uuid
        self._details_max = details_max
        # Each with the flow that was used last at its end.
        self._sealed: OrderedDict[bytes, Known] = OrderedDict()
        self._unsealed: OrderedDict[bytes, Known] = OrderedDict()
        self._others = BloomFilter()
        # Of flows that were there before: None, as long as nobody said which.
        self._recovered = BloomFilter() if flows is not None else None
        flows = list(flows or ())
        resumable = (flow for flow in flows if flow.protocol == PROTOCOL_INGEST)
        for flow in reversed(nlargest(details_max, resumable, key=_use_of)):
            self._put(flow.flow_id, known_of(flow))
        for flow in flows:
            if self._get(flow.flow_id) is None and not is_raw_id(flow.flow_id, store_uuid):
                self._others.add(flow.flow_id)

    def find(self, flow: bytes) -> Known | None:
        """Return what is known of a flow; None if it is not here, or only by its id."""
        known = self._get(flow)
        if known is not None:
            (self._sealed if known.is_sealed else self._unsealed).move_to_end(flow)
        elif is_raw_id(flow, self._store_uuid):
            return RAW
        return known

    def must_ask(self, flow: bytes) -> bool:
        """Return whether the store has to be asked about a flow that find() does not find."""
        return self._recovered is None or flow in self._recovered or flow in self._others

    def complete(self, recovered: BloomFilter) -> None:
        """Know of the flows that the store had when it was opened, or had got since."""
        self._recovered = recovered

    def note(self, flow: bytes, known: Known) -> None:
        """Keep the details of a flow; those used least may have to go."""
        self._sealed.pop(flow, None)
        self._unsealed.pop(flow, None)
        self._put(flow, known)
        if len(self._sealed) + len(self._unsealed) > self._details_max:
            gone, _ = (self._sealed or self._unsealed).popitem(last=False)
            self._others.add(gone)

    def forget(self, flow: bytes) -> None:
        """Ask the store about a flow from now on, as it has less of it, or nothing.

        Not where more of it may become durable still: the store cannot know that.
        """
        known = self._get(flow)
        if known is not None and known.is_settled:
            del (self._sealed if known.is_sealed else self._unsealed)[flow]
            self._others.add(flow)

    def note_other(self, flow: bytes) -> None:
        """Keep only the id of a flow: the store is asked about it."""
        self._others.add(flow)

    def _get(self, flow: bytes) -> Known | None:
        return self._unsealed.get(flow) or self._sealed.get(flow)

    def _put(self, flow: bytes, known: Known) -> None:
        (self._sealed if known.is_sealed else self._unsealed)[flow] = known


def _use_of(flow: Flow) -> tuple[bool, int]:
    """The sort key of recovered flows: those that can be resumed, then those used last."""
    last_sequence = max((span.segment_sequence for span in flow.spans), default=0)
    return flow.state != STATE_SEALED, last_sequence


def known_of(flow: Flow) -> Known:
    """Return what an index keeps of a flow that was read from a store."""
    crc = int(flow.checksum.rpartition(":")[2], 16) if flow.checksum else 0
    # Of a damaged flow, the checksum is that of all of its bytes, and not all are there.
    is_crc_known = (flow.checksum is not None and not flow.missing) or flow.resume_bytes == 0
    is_resumable = flow.protocol == PROTOCOL_INGEST
    return Known(
        flow.state == STATE_SEALED,
        flow.resume_bytes,
        crc if is_crc_known and flow.resume_bytes else 0,
        is_crc_known,
        is_resumable=is_resumable,
    )

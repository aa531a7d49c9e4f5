# SPDX-License-Identifier: Apache-2.0
"""What the log says of the room in stores.

Invariant: each segment that was overwritten has one line. Owned by the main thread.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from ingestd.log import Log, LogEvent

if TYPE_CHECKING:
    from ingestd.store.serving import ServedStore

FLOWS_SHOWN_MAX: Final = 10


def tell_overwritten(name: str, store: ServedStore, log: Log) -> None:
    """Log the segments of a store that were overwritten since the last call."""
    for segment in store.take_overwritten():
        log.emit(
            LogEvent.SEGMENT_OVERWRITTEN,
            store=name,
            segment=segment.segment_index,
            sequence=segment.sequence,
            bytes=segment.payload_bytes,
            flows_count=len(segment.flows),
            flows=[str(uuid.UUID(bytes=flow)) for flow in segment.flows[:FLOWS_SHOWN_MAX]],
        )

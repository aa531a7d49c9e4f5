# SPDX-License-Identifier: Apache-2.0
"""Log lines about the free space of stores.

Invariants: each segment that was overwritten has one line; that room is short
is logged once, and again only after there was clearly more; each try to overwrite
that fails is logged once. Owned by the main thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.errors import StoreError
    from ingestd.store.serve.served_store import ServedStore

FLOWS_SHOWN_MAX: Final = 10
# By how much, in percent of the store, more must be free before a warning is repeated.
AGAIN_PERCENT: Final = 2.0


def segment_fields(
    index: int, sequence: int, payload_bytes: int, flows: Sequence[bytes]
) -> dict[str, Any]:
    """Return what the log says of an evicted segment, some of its flows by name."""
    return {
        "segment": index,
        "sequence": sequence,
        "bytes": payload_bytes,
        "flows_count": len(flows),
        "flows": [str(uuid.UUID(bytes=flow)) for flow in flows[:FLOWS_SHOWN_MAX]],
    }


class CapacityLog:
    """Looks at one store, once a tick; `warn_free_percent` of 0: no warning.

    `forget` is called with each flow that lost bytes.
    """

    def __init__(
        self,
        name: str,
        store: ServedStore,
        warn_free_percent: float,
        log: Log,
        forget: Callable[[bytes], None],
    ) -> None:
        self._name = name
        self._store = store
        self._warn_percent = warn_free_percent
        self._log = log
        self._forget = forget
        self._is_short_logged = False
        self._failure_logged: StoreError | None = None

    def tick(self) -> None:
        """Log what happened since the last call."""
        self._log_overwritten()
        self._log_failure()
        # A store that overwrites is to have nothing free.
        if not self._store.is_overwriting:
            self._log_short()

    def _log_overwritten(self) -> None:
        for segment in self._store.take_overwritten():
            self._log.emit(
                LogEvent.SEGMENT_OVERWRITTEN,
                store=self._name,
                **segment_fields(
                    segment.segment_index, segment.sequence, segment.payload_bytes, segment.flows
                ),
            )
            for flow in segment.flows:
                self._forget(flow)

    def _log_failure(self) -> None:
        error = self._store.overwriting_error
        if error is not self._failure_logged:
            self._failure_logged = error
            if error is not None:
                self._log.emit(LogEvent.OVERWRITING_FAILED, store=self._name, error=str(error))
            else:
                self._log.emit(LogEvent.MAINTENANCE_RESUMED, store=self._name)

    def _log_short(self) -> None:
        count = self._store.superblock.segment_count
        free_count = self._store.segments_free_count
        free_percent = 100 * free_count / count
        if free_percent >= self._warn_percent + AGAIN_PERCENT:
            self._is_short_logged = False
        elif free_percent < self._warn_percent and not self._is_short_logged:
            self._is_short_logged = True
            self._log.emit(
                LogEvent.STORE_SPACE_LOW,
                store=self._name,
                segments_free=free_count,
                segments=count,
                free_percent=round(free_percent, 1),
                hint="plan where flows go once it is full, such as to a second store",
            )

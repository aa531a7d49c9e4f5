# SPDX-License-Identifier: Apache-2.0
"""The thread that feeds a store's catalogue, and what is logged about it.

It may wait for the device and for the disk of the state directory, so that it has a thread for each
store. Invariants: whatever fails is logged and tried again, ever more rarely, and stops nothing
else, as answers come from the store itself meanwhile; that all was fed is logged once.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from ingestd.daemon.admission.bloom_filter import BloomFilter
from ingestd.daemon.admission.marked_ids import is_raw_id
from ingestd.daemon.base.periodic import Periodic
from ingestd.errors import StoreError
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.store.catalogue.schema import CatalogueError

if TYPE_CHECKING:
    from ingestd.store.catalogue.feeder import CatalogueFeeder

FEED_INTERVAL_S: Final = 1.0


class CatalogueFeed:
    """Of one store; `periodic` has the thread.

    `wants_ids`: whoever admits flows is to know which there are; take_ids() returns them once.
    """

    def __init__(
        self, name: str, feeder: CatalogueFeeder, log: Log, *, wants_ids: bool = False
    ) -> None:
        self._name = name
        self._wants_ids = wants_ids
        self._ids: BloomFilter | None = None
        self._feeder = feeder
        self._log = log
        self._begun_s: float | None = None  # None: it was logged that all is fed
        self.periodic = Periodic(f"catalogue-{name}", FEED_INTERVAL_S, self._turn, self._log_bug)

    def start(self) -> None:
        """Begin to feed. Raises ResourceError."""
        self._begun_s = time.monotonic()
        self.periodic.start()
        self.periodic.wake()

    def stop(self) -> None:
        """Let the thread end soon."""
        self.periodic.stop()  # first: what a turn that is cut short has fed is not all
        self._feeder.stop()

    def take_ids(self) -> BloomFilter | None:
        """Return, and forget, the ids of all flows, once they are known. By any thread."""
        ids, self._ids = self._ids, None
        return ids

    def _turn(self) -> bool:
        self._feeder.turn()
        is_whole = self._feeder.unfed_older_count == 0 and not self.periodic.is_stopping
        if self._wants_ids and is_whole:
            with self._feeder.flow_ids() as (count, ids):
                store_uuid = self._feeder.store_uuid
                self._ids = BloomFilter.of(
                    (flow for flow in ids if not is_raw_id(flow, store_uuid)), count
                )
            self._wants_ids = False
        if self._begun_s is not None and not self.periodic.is_stopping:
            self._log.emit(
                LogEvent.CATALOGUE_FED,
                store=self._name,
                seconds=round(time.monotonic() - self._begun_s, 3),
                segments_open=self._feeder.unfed_count,
            )
            self._begun_s = None
        return True

    def _log_bug(self, error: Exception, retry_s: float) -> None:
        if self.periodic.is_stopping:  # the descriptor may be closed
            return
        more: dict[str, Any] = {}
        if not isinstance(error, CatalogueError | StoreError):
            more["trace"] = "".join(traceback.format_exception(error))
        self._log.emit(
            LogEvent.CATALOGUE_FAILED,
            store=self._name,
            error=str(error) or repr(error),
            retry_s=retry_s,
            hint="questions about flows are answered from the store itself meanwhile, which takes"
            " longer: see that the state directory can be written and has room",
            **more,
        )

# SPDX-License-Identifier: Apache-2.0
"""The flow source of a served store: its catalogue, or the store itself where there is none.

Invariant: that the catalogue cannot be used is never a reason to have no answer; only a listing
that is under way when it fails ends with an error. Any thread may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from itertools import chain

from ingestd.errors import StoreError
from ingestd.store.catalogue.answers import Answers
from ingestd.store.catalogue.feeder import CatalogueFeeder
from ingestd.store.catalogue.schema import CatalogueError
from ingestd.store.device.device import Device
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.read.flow_source import (
    EVERY_FLOW,
    OLDEST_FIRST,
    FlowFilter,
    FlowOrder,
    StoreFlowSource,
)
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import ScanStoppedError
from ingestd.store.read.point_query import Found, QueryStoppedError, find_flows


class CataloguedFlowSource:
    """As FlowSource; `feeder` None: the store has no catalogue."""

    def __init__(
        self,
        feeder: CatalogueFeeder | None,
        device: Device,
        superblock: Superblock,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._feeder = feeder
        self._device = device
        self._superblock = superblock
        self._is_stopped = is_stopped

    def flows(
        self,
        wanted: FlowFilter = EVERY_FLOW,
        order: FlowOrder = OLDEST_FIRST,
        limit: int | None = None,
    ) -> Iterator[Flow]:
        """Give the flows that match, `limit` at most. Raises StoreError, ScanStoppedError."""
        if answers := self._answers():
            with suppress(CatalogueError):
                found = answers.flows(wanted, order, limit)
                first = next(found, None)
                return chain([first], self._rest(found)) if first is not None else iter(())
        return self._of_store().flows(wanted, order, limit)

    def flow(self, flow_id: bytes) -> Flow | None:
        """Return one flow, with its spans. Raises StoreError, ScanStoppedError."""
        if answers := self._answers():
            with suppress(CatalogueError):
                return answers.flow(flow_id)
        return self._of_store().flow(flow_id)

    def find(self, wanted: Set[bytes]) -> Found:
        """Look for flows by their ids, removed ones included.

        Raises StoreError, QueryStoppedError.
        """
        if answers := self._answers():
            try:
                return answers.find(wanted)
            except ScanStoppedError:
                raise QueryStoppedError from None
            except CatalogueError:
                pass
        return find_flows(self._device, self._superblock, wanted, self._is_stopped)

    def _answers(self) -> Answers | None:
        """The catalogue as it is now: it may be made anew between two questions."""
        return self._feeder.answers(self._is_stopped) if self._feeder is not None else None

    def _rest(self, found: Iterator[Flow]) -> Iterator[Flow]:
        try:
            yield from found
        except CatalogueError as error:
            raise StoreError(f"the listing cannot be ended: {error}; try again") from None

    def _of_store(self) -> StoreFlowSource:
        return StoreFlowSource(self._device, self._superblock, self._is_stopped)

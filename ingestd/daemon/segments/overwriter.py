# SPDX-License-Identifier: Apache-2.0
"""The overwriter: evicts the oldest segments of a full store before they are asked for.

It has a thread of its own for each store that overwrites, which waits for the
device, so that the pump need not. Invariant: as many segments are free ahead as
the store has workers, where there are old ones that can be evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ingestd.daemon.base.periodic import Periodic

if TYPE_CHECKING:
    from ingestd.store.serve.served_store import ServedStore

# A segment is closed, and can go, without any notice.
LOOK_INTERVAL_S: Final = 1.0


class Overwriter:
    """Of one store, whose segments are evicted by `periodic`; woken when some were granted."""

    def __init__(
        self,
        name: str,
        store: ServedStore,
        ahead_count: int,
        is_failed: Callable[[], bool],
        on_free: Callable[[], None],
    ) -> None:
        self._store = store
        self._ahead_count = ahead_count
        self._is_failed = is_failed
        self._on_free = on_free
        self.periodic = Periodic(f"overwriter-{name}", LOOK_INTERVAL_S, self._turn)

    def _turn(self) -> bool:
        if not self._is_failed() and self._store.recycle_ahead(self._ahead_count):
            self._on_free()
        return True

# SPDX-License-Identifier: Apache-2.0
"""The reserver: gives segments of a sparse store file their space, once there is room.

It has a thread of its own for each such store, which waits for the file system, so that
the pump need not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ingestd.daemon.base.periodic import Periodic

if TYPE_CHECKING:
    from ingestd.store.serve.served_store import ServedStore

# Flows are refused meanwhile, and a look costs two system calls.
LOOK_INTERVAL_S: Final = 0.25


class Reserver:
    """Of one store, whose space is asked for by `periodic`."""

    def __init__(self, name: str, store: ServedStore, on_free: Callable[[], None]) -> None:
        self._store = store
        self._on_free = on_free
        self.without_count = store.segments_without_room  # as of the last turn
        self.periodic = Periodic(f"reserver-{name}", LOOK_INTERVAL_S, self._turn)

    def _turn(self) -> bool:
        before_count = self._store.segments_without_room
        self.without_count = self._store.reserve_room()
        if self.without_count < before_count:
            self._on_free()
        return True

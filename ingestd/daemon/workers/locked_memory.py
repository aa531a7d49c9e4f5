# SPDX-License-Identifier: Apache-2.0
"""Memory that one worker locks, as the core states it.

Invariant: the number is the core's own (locked_bytes), so that what is planned and what is
registered cannot disagree. Owned by the main thread, at start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.core.border import Engine
from ingestd.daemon.workers.shape import shape_of

if TYPE_CHECKING:
    from ingestd.config.settings import StoreSettings
    from ingestd.daemon.machine.direct_io import DirectProfile
    from ingestd.daemon.workers.area import LockedOf
    from ingestd.daemon.workers.worker import Core
    from ingestd.store.metadata.superblock import Superblock


def locked_of(
    core: Core,
    settings: StoreSettings,
    superblock: Superblock,
    profile: DirectProfile,
    *,
    is_zcrx: bool,
) -> LockedOf:
    """Return the function that gives, for one store, how much a worker locks."""

    engine = Engine.ZCRX if is_zcrx else Engine.RECV

    def ask(area_bytes: int, write_bytes_max: int, writes_in_flight_max: int) -> int:
        sizes = (area_bytes, write_bytes_max, writes_in_flight_max)
        return core.locked_bytes(shape_of(settings, superblock, profile, engine, *sizes))

    return ask

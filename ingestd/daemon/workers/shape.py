# SPDX-License-Identifier: Apache-2.0
"""The shape of a worker: what its memory depends on, from where each part is known.

Invariant: what is asked before a worker is made, and what it is made with, come from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.core.border import Engine, WorkerShape

if TYPE_CHECKING:
    from ingestd.config.settings import StoreSettings
    from ingestd.daemon.machine.direct_io import DirectProfile
    from ingestd.store.metadata.superblock import Superblock


def shape_of(
    settings: StoreSettings,
    superblock: Superblock,
    profile: DirectProfile,
    engine: Engine,
    area_bytes: int,
    write_bytes_max: int,
    writes_in_flight_max: int,
) -> WorkerShape:
    """Return what decides how much memory a worker of a store locks, with these sizes."""
    return WorkerShape(
        segment_bytes=superblock.segment_bytes,
        block_bytes=superblock.block_bytes,
        mem_align=profile.mem_align,
        write_align=profile.write_align,
        virt_mask=profile.virt_mask,
        iovecs_max=profile.iovecs_max,
        area_bytes=area_bytes,
        write_bytes_max=write_bytes_max,
        writes_in_flight_max=writes_in_flight_max,
        flows_max=settings.flows_max,
        engine=engine,
    )

# SPDX-License-Identifier: Apache-2.0
"""Removes flows of the simulated store while the worker runs, as the daemon's maintenance does.

Invariants: only flows that nobody feeds are removed, as the daemon's flow locks have it; what is
read is what the device shows at this moment, with any part of what is under way; what is written
is recorded, so that power may fail between two of the writes. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ingestd.store.device.opening import open_locked
from ingestd.store.metadata.freed_record import Reclaimer
from ingestd.store.metadata.superblock import read_superblock
from ingestd.store.read.flows import Flow
from ingestd.store.reclaim.candidates import REASON_REMOVED
from ingestd.store.reclaim.sweep import Sweeper
from support.recorded_writes import RecordedWrites


@dataclass
class Removal:
    """What went: flows, by their ids, and segments, by their indexes; and what was written."""

    flows: list[bytes] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    writes: RecordedWrites = field(default_factory=RecordedWrites)


def remove_while_served(
    path: str, choose: random.Random, may_go: Callable[[Flow], bool]
) -> Removal:
    """Remove some flows of those that may go, or none, and reclaim what nothing is kept in."""
    removal = Removal()
    with removal.writes.recorded(), open_locked(path, wait_s=0) as device:
        superblock = read_superblock(device).superblock
        sweeper = Sweeper(
            device,
            superblock,
            Reclaimer(device, superblock),
            live=True,
            forget=lambda _: None,
            hand_out=removal.freed.append,
        )
        image = sweeper.scan()
        ids = sorted(flow.flow_id for flow in image.flows if may_go(flow))
        count = choose.choice((0, 1, len(ids) // 2, len(ids)))
        removal.flows = choose.sample(ids, min(count, len(ids)))
        sweeper.remove(removal.flows, REASON_REMOVED)
        swept = sweeper.sweep(image)
        if choose.randrange(2) == 0:  # the daemon does it a minute later
            sweeper.drop(swept.gone)
    return removal

# SPDX-License-Identifier: Apache-2.0
"""The size of each worker's area: as stated, or as large as "auto" finds room for.

Invariants: a stated size is a demand, which is only checked; "auto" takes no more
than the least of what machine/memory.py finds to be left, shared equally by the
workers that ask for it, and says which of them it was. Owned by the main thread, at
start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from ingestd.config.checks import WRITES_PER_AREA_MIN
from ingestd.config.settings import AREA_BYTES_MIN, AUTO, MIB, StoreSettings
from ingestd.daemon.machine.limits import LockedNeed, check_locked_memory, memlock_advice
from ingestd.daemon.machine.memory import Bound
from ingestd.errors import ConfigError, ResourceError
from ingestd.sizes import exact_size

AREA_AUTO_BYTES_MAX: Final = 256 * MIB
WRITE_BYTES_MIN: Final = 64 * 1024  # the least of write_bytes_max
WRITE_AUTO_BYTES_MAX: Final = 4 * MIB
WRITES_AUTO_MAX: Final = 16
# Writes that an area of automatic size holds: some fill, some are written, some flushed.
WRITES_PER_AREA: Final = 8


class AreaPlan(NamedTuple):
    """The memory of each worker of one store; bytes, but for the number of writes."""

    area_bytes: int
    write_bytes_max: int
    writes_in_flight_max: int
    locked_bytes: int
    reason: str  # "" where the size was stated


# What one worker locks with an area, writes of a size, and so many of them in flight; 0:
# they do not go together; negative: area and own part are more than can be registered.
LockedOf = Callable[[int, int, int], int]


def auto_write_bytes(area_bytes: int) -> int:
    """Return the largest power of two of which an area holds eight, 64 KiB to 4 MiB."""
    write_bytes = WRITE_AUTO_BYTES_MAX
    while write_bytes > WRITE_BYTES_MIN and write_bytes * WRITES_PER_AREA > area_bytes:
        write_bytes //= 2
    return write_bytes


def plan_of(
    settings: StoreSettings, area_bytes: int, locked: LockedOf, reason: str = ""
) -> AreaPlan:
    """Return the plan for an area of this size, with what else is automatic made to fit."""
    write_bytes = settings.write_bytes_max
    if isinstance(write_bytes, str):
        write_bytes = auto_write_bytes(area_bytes)
    stated = settings.writes_in_flight_max
    held = min(max(area_bytes // write_bytes, 1), WRITES_AUTO_MAX)
    writes = held if isinstance(stated, str) else stated
    locked_bytes = locked(area_bytes, write_bytes, writes)
    return AreaPlan(area_bytes, write_bytes, writes, locked_bytes, reason)


def locked_bytes_min(settings: StoreSettings, *, is_zcrx: bool = False) -> int:
    """Return the least that one worker of a store locks, before its store is known, bytes.

    Zero-copy receive registers the area twice, to receive into and to write from, and each
    counts. The worker's own part and its ring come on top.
    """
    stated = AREA_BYTES_MIN if settings.area == AUTO else settings.area
    return 2 * stated if is_zcrx else stated


def area_bytes_at_most(settings: StoreSettings) -> int:
    """Return the size of a store's areas as stated, or the most that "auto" takes."""
    return AREA_AUTO_BYTES_MAX if settings.area == AUTO else settings.area


def plan_areas(
    stores: Mapping[str, StoreSettings],
    locked: Mapping[str, LockedOf],
    limit_bytes: int | None,
    bounds: Sequence[Bound],
) -> dict[str, AreaPlan]:
    """Return the plan of each store, by its name.

    limit_bytes: as locked_memory_limit() has it; bounds: what is left for all areas, as
    bounds_now() has it. Raises ResourceError where stated areas exceed the limit or "auto"
    finds too little room, ConfigError where area and writes do not go together on a store.
    """
    plans = {
        name: _stated_plan(name, settings, settings.area, locked[name])
        for name, settings in stores.items()
        if settings.area != AUTO
    }
    needs = [
        LockedNeed(name, stores[name].workers, plan.locked_bytes) for name, plan in plans.items()
    ]
    check_locked_memory(needs, limit_bytes)
    stated_bytes = sum(need.bytes_count for need in needs)
    automatic = {name: item for name, item in stores.items() if item.area == AUTO}
    workers_count = sum(item.workers for item in automatic.values())
    for name, settings in automatic.items():
        shares = [
            Bound((bound.bytes_count - stated_bytes) // workers_count, bound.reason)
            for bound in bounds
        ]
        plans[name] = _auto_plan(name, settings, locked[name], min(shares))
    return plans


def _stated_plan(name: str, settings: StoreSettings, area_bytes: int, locked: LockedOf) -> AreaPlan:
    plan = plan_of(settings, area_bytes, locked)
    if plan.locked_bytes == 0:
        raise ConfigError(
            f'store "{name}": an area of {exact_size(area_bytes)} is too small for writes of'
            f" {exact_size(plan.write_bytes_max)} on this store: make it larger, or the writes"
            " smaller"
        )
    if plan.locked_bytes < 0:
        fitting = exact_size(_largest_that_fits(settings, area_bytes, locked))
        raise ConfigError(
            f'store "{name}": an area of {exact_size(area_bytes)} and the worker\'s own part behind'
            f" it are more than one registered buffer holds (1GiB, io_uring_register(2)): make area"
            f" {fitting} or less, or writes_in_flight_max or write_bytes_max smaller"
        )
    return plan


def _largest_that_fits(settings: StoreSettings, area_bytes: int, locked: LockedOf) -> int:
    """Return the largest area below a size, in whole MiB, that can be registered."""
    area_bytes -= area_bytes % MIB
    while area_bytes > AREA_BYTES_MIN and plan_of(settings, area_bytes, locked).locked_bytes < 0:
        area_bytes -= MIB
    return area_bytes


def _auto_plan(name: str, settings: StoreSettings, locked: LockedOf, share: Bound) -> AreaPlan:
    """Take the largest area that fits a worker's share."""
    smallest_bytes = 0
    for area_bytes in _sizes():
        reason = share.reason if area_bytes < AREA_AUTO_BYTES_MAX else "the most of auto"
        plan = plan_of(settings, area_bytes, locked, reason)
        if area_bytes < WRITES_PER_AREA_MIN * plan.write_bytes_max:
            break
        if 0 < plan.locked_bytes <= share.bytes_count:
            return plan
        smallest_bytes = plan.locked_bytes if plan.locked_bytes > 0 else smallest_bytes
    room = exact_size(max(0, share.bytes_count) // 1024 * 1024)
    raise ResourceError(
        f'store "{name}": area = "auto" finds room for {room} for each worker ({share.reason}),'
        f" and the smallest takes {exact_size(smallest_bytes)}: have fewer workers, smaller"
        f" write_bytes_max or writes_in_flight_max, or"
        f" {memlock_advice(smallest_bytes * settings.workers)}"
    )


def _sizes() -> Iterator[int]:
    """Sizes to try, from the largest down, each a tenth smaller than the one before."""
    area_bytes = AREA_AUTO_BYTES_MAX
    while area_bytes > AREA_BYTES_MIN:
        yield area_bytes
        area_bytes = area_bytes * 9 // 10 // 4096 * 4096
    yield AREA_BYTES_MIN

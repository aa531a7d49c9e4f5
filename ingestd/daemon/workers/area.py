# SPDX-License-Identifier: Apache-2.0
"""How large each worker's area is: as stated, or as large as "auto" finds room for.

Invariants: a stated size is a demand, which is only checked; "auto" takes no more
than the least of what RLIMIT_MEMLOCK, the memory control group and the machine's
free memory leave, shared equally by the workers that ask for it, and says which of
them it was. What a worker locks is the core's own answer (locked_bytes), so that
this module and the registration cannot disagree. Owned by the main thread, at start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.config.checks import WRITES_PER_AREA_MIN
from ingestd.config.settings import AREA_BYTES_MIN, AUTO, MIB, StoreSettings
from ingestd.daemon.machine.limits import (
    CAP_IPC_LOCK,
    LockedNeed,
    check_locked_memory,
    has_capability,
    memlock_advice,
)
from ingestd.errors import ConfigError, ResourceError
from ingestd.sizes import exact_size

if TYPE_CHECKING:
    from ingestd.daemon.machine.direct_io import DirectProfile
    from ingestd.daemon.workers.worker import Core
    from ingestd.store.metadata.superblock import Superblock

HUGEPAGE_BYTES: Final = 2 * MIB  # AREA_HUGEPAGE_BYTES of core/memory/area.h
HUGE_AREA_BYTES_MIN: Final = 16 * MIB  # AREA_HUGE_BYTES_MIN of core/memory/area.h
AREA_AUTO_BYTES_MAX: Final = 256 * MIB
WRITE_BYTES_MIN: Final = 64 * 1024  # the least of write_bytes_max
WRITE_AUTO_BYTES_MAX: Final = 4 * MIB
WRITES_AUTO_MAX: Final = 16
# Writes that an area of automatic size holds: some fill, some are written, some flushed.
WRITES_PER_AREA: Final = 8
# The rest is for the process itself, for socket buffers and for everybody else.
MEMORY_PART: Final = 0.5

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
CGROUP_LIMIT_BYTES_MAX: Final = 1 << 60  # version 1 writes a huge number for "none"


class Bound(NamedTuple):
    """Bytes that something leaves for all areas together, and what that is."""

    bytes_count: int
    reason: str


class AreaPlan(NamedTuple):
    """What each worker of one store gets, and locks; bytes, but for the number of writes."""

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


def locked_of(
    core: Core,
    settings: StoreSettings,
    superblock: Superblock,
    profile: DirectProfile,
    *,
    is_zcrx: bool,
) -> LockedOf:
    """Return what tells, for one store, how much a worker locks."""

    def ask(area_bytes: int, write_bytes_max: int, writes_in_flight_max: int) -> int:
        return core.locked_bytes(
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
            engine=core.ENGINE_ZCRX if is_zcrx else core.ENGINE_RECV,
        )

    return ask


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


# --- What there is ----------------------------------------------------------------------


def bounds_now(limit_bytes: int | None) -> list[Bound]:
    """Return what limit, control group and machine leave at this moment, for all areas."""
    bounds = [*_machine_bounds(PROC), *cgroup_bounds(PROC, CGROUPS)]
    if limit_bytes is not None:
        taken_bytes = pinned_by_others(PROC)
        taken = f", of which others of this user hold {taken_bytes}" if taken_bytes else ""
        bounds.append(
            Bound(limit_bytes - taken_bytes, f"RLIMIT_MEMLOCK is {limit_bytes} bytes{taken}")
        )
    return bounds


def pinned_by_others(proc: Path) -> int:
    """Return the bytes that other processes of this user have pinned, as /proc shows them.

    RLIMIT_MEMLOCK counts registered buffers by user (io_uring_register(2)); VmPin of
    proc_pid_status(5) is the same count by process. Who has CAP_IPC_LOCK is not counted.
    """
    own_uid, total = os.getuid(), 0
    for entry in proc.iterdir():
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        try:
            status = (entry / "status").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue  # it has ended meanwhile, or is hidden from us
        fields = dict(line.partition(":")[::2] for line in status.splitlines())
        is_own = fields.get("Uid", "").split()[:1] == [str(own_uid)]
        if is_own and "VmPin" in fields and not has_capability(status, CAP_IPC_LOCK):
            total += int(fields["VmPin"].split()[0]) * 1024
    return total


def _machine_bounds(proc: Path) -> list[Bound]:
    text = (proc / "meminfo").read_text(encoding="ascii")
    numbers = {key: int(rest.split()[0]) for key, _, rest in _pairs(text)}
    free_bytes = int(numbers["MemAvailable"] * 1024 * MEMORY_PART)
    hugepage_bytes = numbers.get("HugePages_Free", 0) * numbers.get("Hugepagesize", 0) * 1024
    return [Bound(max(free_bytes, hugepage_bytes), "half of the memory that is available")]


def _pairs(text: str) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in text.splitlines() if ":" in line]


def cgroup_bounds(proc: Path, cgroups: Path) -> list[Bound]:
    """Return half of what each memory control group above this process leaves.

    cgroups(7): version 2 has memory.max and memory.current, version 1
    memory.limit_in_bytes and memory.usage_in_bytes. Page cache counts as used,
    although it gives way; so it is taken for free where memory.stat tells it.
    """
    try:
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    bounds = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            root, limit, usage = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            left_bytes = _left_bytes(group, limit, usage)
            if left_bytes is not None:
                bounds.append(
                    Bound(int(left_bytes * MEMORY_PART), f"half of what {limit} leaves free")
                )
            if group == root:
                break
    return bounds


def _left_bytes(group: Path, limit: str, usage: str) -> int | None:
    """Return limit less usage of one control group; None: it has no limit, or is not shown."""
    try:
        limit_text = (group / limit).read_text(encoding="ascii").strip()
        usage_bytes = int((group / usage).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if limit_text == "max" or int(limit_text) >= CGROUP_LIMIT_BYTES_MAX:
        return None
    numbers = dict(line.split()[:2] for line in stat.splitlines() if len(line.split()) == 2)
    cache_bytes = int(numbers.get("inactive_file", "0"))
    return int(limit_text) - max(0, usage_bytes - cache_bytes)

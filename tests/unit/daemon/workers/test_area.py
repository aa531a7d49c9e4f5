# SPDX-License-Identifier: Apache-2.0
"""How large an area "auto" makes, and what is said of a stated one that cannot be had."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ingestd.config.settings import StoreSettings
from ingestd.core import _core
from ingestd.daemon.machine.direct_io import DirectProfile
from ingestd.daemon.workers.area import (
    AREA_AUTO_BYTES_MAX,
    Bound,
    bounds_now,
    cgroup_bounds,
    locked_of,
    pinned_by_others,
    plan_areas,
    plan_of,
)
from ingestd.errors import ConfigError, ResourceError
from support.fake_store import MIB, FakeStore

PLENTY = [Bound(1 << 40, "plenty")]
PROFILES = [
    DirectProfile(mem_align, write_align, virt_mask, 1024)
    for mem_align in (4, 512, 4096)
    for write_align in (512, 4096)
    for virt_mask in (0, 4095)
]


def real(settings: StoreSettings, profile: DirectProfile = PROFILES[0], zcrx: bool = False) -> Any:
    """What the compiled core says that a worker locks."""
    return locked_of(_core, settings, FakeStore().superblock, profile, is_zcrx=zcrx)


def store(**settings: Any) -> StoreSettings:
    return StoreSettings(path="x", **settings)


def plan_one(settings: StoreSettings, bounds: list[Bound], limit: int | None = None) -> Any:
    return plan_areas({"a": settings}, {"a": real(settings)}, limit, bounds)["a"]


def test_where_there_is_room_it_is_the_most() -> None:
    plan = plan_one(store(), PLENTY)
    assert plan.area_bytes == AREA_AUTO_BYTES_MAX
    assert plan.write_bytes_max == 4 * MIB
    assert plan.reason == "the most of auto"


@pytest.mark.parametrize("profile", PROFILES, ids=str)
@pytest.mark.parametrize("room_mib", [8, 16, 64, 200])
def test_it_fits_what_is_left_and_uses_most_of_it(profile: DirectProfile, room_mib: int) -> None:
    settings, room_bytes = store(), room_mib * MIB
    locked = real(settings, profile)
    plan = plan_areas(
        {"a": settings}, {"a": locked}, None, [*PLENTY, Bound(room_bytes, "a limit")]
    )["a"]
    assert plan == plan_of(settings, plan.area_bytes, locked, "a limit")
    assert 0 < plan.locked_bytes <= room_bytes
    assert plan.area_bytes >= 4 * plan.write_bytes_max
    assert plan.reason == "a limit"
    larger = plan.area_bytes * 10 // 9 // 4096 * 4096 + 4096
    assert plan_of(settings, larger, locked).locked_bytes > room_bytes


def test_workers_and_stores_share_what_is_left() -> None:
    stores = {"a": store(workers=3), "b": store(), "c": store(area=64 * MIB)}
    locked = {name: real(settings) for name, settings in stores.items()}
    room_bytes = 400 * MIB
    plans = plan_areas(stores, locked, None, [Bound(room_bytes, "room")])
    assert plans["c"].area_bytes == 64 * MIB
    assert plans["c"].reason == ""
    assert plans["a"] == plans["b"]
    assert 0.8 * room_bytes < 4 * plans["a"].locked_bytes + plans["c"].locked_bytes <= room_bytes


def test_too_little_room_is_told_with_the_numbers() -> None:
    with pytest.raises(ResourceError) as caught:
        plan_one(store(workers=2), [Bound(4 * MIB, "RLIMIT_MEMLOCK is 4194304 bytes")])
    text = str(caught.value)
    assert 'store "a": area = "auto" finds room for 2MiB for each worker' in text
    assert "RLIMIT_MEMLOCK is 4194304 bytes" in text
    assert "have fewer workers" in text


def test_a_stated_area_is_a_demand() -> None:
    settings = store(area=64 * MIB)
    assert plan_one(settings, [Bound(MIB, "little")]).area_bytes == 64 * MIB
    with pytest.raises(ResourceError, match="RLIMIT_MEMLOCK allows 67108864"):
        plan_one(settings, PLENTY, limit=64 * MIB)  # its own part counts as well


@pytest.mark.parametrize("zcrx", [False, True])
def test_an_area_that_cannot_be_registered_is_told_with_one_that_can(zcrx: bool) -> None:
    """The worker's own part lies behind the area in the same buffer, whatever else is locked."""

    def plan(area: str) -> Any:
        settings = store(area=area)
        return plan_areas({"a": settings}, {"a": real(settings, zcrx=zcrx)}, None, PLENTY)["a"]

    with pytest.raises(ConfigError, match=r"area of 1GiB .* make area \d+MiB or less") as caught:
        plan("1GiB")
    found = re.search(r"make area (\d+)MiB", str(caught.value))
    assert found is not None
    fitting_mib = int(found[1])
    assert fitting_mib > 700
    assert plan(f"{fitting_mib}MiB").area_bytes == fitting_mib * MIB
    with pytest.raises(ConfigError, match=f"make area {fitting_mib}MiB or less"):
        plan(f"{fitting_mib + 1}MiB")


def test_a_stated_size_of_writes_stays() -> None:
    plan = plan_one(store(write_bytes_max=8 * MIB), [Bound(200 * MIB, "room")])
    assert plan.write_bytes_max == 8 * MIB
    with pytest.raises(ResourceError, match='area = "auto" finds room for'):
        plan_one(store(write_bytes_max=8 * MIB), [Bound(20 * MIB, "room")])


def test_zero_copy_receive_registers_the_area_twice() -> None:
    settings = store()
    once, twice = real(settings)(64 * MIB, MIB, 16), real(settings, zcrx=True)(64 * MIB, MIB, 16)
    assert twice >= once + 64 * MIB


# --- What there is ----------------------------------------------------------------------


def make_group(group: Path, **files: str) -> None:
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text)


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("4:cpu,memory:/a/b\n3:cpu:/\n0::/x/y\n")
    one = {"memory__usage_in_bytes": "30", "memory__stat": "inactive_file 10\n"}
    make_group(groups / "memory/a", memory__limit_in_bytes="100\n", **one)
    make_group(groups / "memory/a/b", memory__limit_in_bytes="9223372036854771712\n", **one)
    two = {"memory__current": "40", "memory__stat": "anon 1\ninactive_file 20\n"}
    make_group(groups / "x/y", memory__max="max\n", **two)
    (groups / "x/memory.max").write_text("1020\n")
    (groups / "x/memory.current").write_text("40\n")
    (groups / "x/memory.stat").write_text("inactive_file 20\n")
    assert [bound.bytes_count for bound in cgroup_bounds(proc, groups)] == [40, 500]
    (proc / "self/cgroup").unlink()
    assert cgroup_bounds(proc, groups) == []


def test_what_others_of_the_user_have_pinned(tmp_path: Path) -> None:
    own, all_capabilities = os.getuid(), "000001ffffffffff"
    others = [(own, 12, "0"), (own, 30, "0"), (4711, 99, "0"), (own, 500, all_capabilities)]
    for number, (uid, kib, capabilities) in enumerate(others):
        (tmp_path / str(999_999_000 + number)).mkdir()
        text = f"Uid:\t{uid}\t0\t0\t0\nVmPin:\t      {kib} kB\nCapEff:\t{capabilities}\n"
        (tmp_path / str(999_999_000 + number) / "status").write_text(text)
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / "999999100").mkdir()  # it has ended: no status
    (tmp_path / "uptime").write_text("1")
    assert pinned_by_others(tmp_path) == 42 * 1024


def test_bounds_of_this_machine() -> None:
    bounds = bounds_now(None)
    assert bounds
    assert all(bound.bytes_count > 0 for bound in bounds)
    assert any("RLIMIT_MEMLOCK" in bound.reason for bound in bounds_now(8 * MIB))

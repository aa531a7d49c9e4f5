# SPDX-License-Identifier: Apache-2.0
"""How large an area "auto" makes, and what is said of a stated one that cannot be had."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ingestd.config.settings import StoreSettings
from ingestd.core import _core
from ingestd.daemon.machine.direct_io import DirectProfile
from ingestd.daemon.machine.memory import Bound
from ingestd.daemon.workers.area import AREA_AUTO_BYTES_MAX, plan_areas, plan_of
from ingestd.daemon.workers.locked_memory import locked_of
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

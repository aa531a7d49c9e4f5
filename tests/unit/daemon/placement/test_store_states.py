# SPDX-License-Identifier: Apache-2.0
"""Why a store takes no new flows, since when, and when it does again."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ingestd.config.settings import StoreSettings
from ingestd.daemon.placement.store_states import Reason, StoreStates
from ingestd.log import Log
from support.fake_log import Recorder

MIB = 1024 * 1024
NS_PER_S = 1_000_000_000
IDLE = {
    "store_errno": 0,
    "store_is_full": 0,
    "segments_ready": 2,
    "segments_used": 1,
    "device_since_ns": 0,
}


class Scene:
    """Two stores with a worker each; the clock is the test's."""

    def __init__(self, **settings: Any) -> None:
        self.now_s = 100.0
        self.log = Recorder()
        self.stores = {
            name: SimpleNamespace(
                segments_free_count=5,
                is_overwriting=True,
                superblock=SimpleNamespace(segment_bytes=MIB),
            )
            for name in ("a", "b")
        }
        self.shots = {name: dict(IDLE) for name in self.stores}
        self.loop_age_s = 0.0
        self.failed: set[str] = set()
        self.states = StoreStates(
            {name: StoreSettings(path=f"/{name}", **settings) for name in self.stores},
            cast(Any, self.stores),
            Log(self.log, "debug"),
            lambda: self.now_s,
        )

    def look(self) -> list[Reason]:
        """Return the reasons of store a."""
        workers = [
            SimpleNamespace(store_name=name, loop_age_s=lambda _: self.loop_age_s)
            for name in self.stores
        ]
        self.states.look(cast(Any, workers), list(self.shots.values()), self.failed)
        return list(self.states.reasons("a"))

    def told(self) -> list[tuple[str, str]]:
        return [(name, fields["reason"]) for _, name, fields in self.log.lines]


def test_a_store_that_is_well() -> None:
    scene = Scene()
    assert scene.look() == []
    assert scene.states.is_well("a")
    assert scene.states.free_bytes("a") == 7 * MIB
    assert scene.states.texts() == []
    assert scene.log.lines == []


def test_a_failed_store_stays_failed() -> None:
    scene = Scene()
    scene.failed.add("a")
    assert scene.look() == [Reason.FAILED]
    scene.failed.clear()
    scene.shots["a"]["store_errno"] = 5
    assert scene.look() == [Reason.FAILED]
    assert scene.states.texts() == ["a failed"]
    assert scene.told() == [("store_out", "failed")]


def test_a_store_is_full_until_a_segment_comes() -> None:
    scene = Scene()
    scene.stores["a"].segments_free_count = 0
    assert scene.look() == []  # its worker has two ready
    scene.shots["a"]["segments_ready"] = 0
    assert scene.look() == [Reason.FULL]
    scene.now_s += 30
    scene.look()
    assert scene.states.reasons("a") == {Reason.FULL: 30.0}
    scene.stores["a"].segments_free_count = 1
    assert scene.look() == []
    assert scene.told() == [("store_out", "full"), ("store_back", "full")]
    assert scene.log.fields("store_back") == [
        {"store": "a", "reason": "full", "lasted_s": 30.0, "takes_flows": True}
    ]
    scene.shots["a"]["store_is_full"] = 1
    assert scene.look() == [Reason.FULL]


def test_a_store_that_overwrites_is_not_full() -> None:
    scene = Scene(on_full="overwrite-oldest")
    scene.stores["a"].segments_free_count = 0
    scene.shots["a"]["segments_ready"] = 0
    assert scene.look() == []


@pytest.mark.parametrize("what", ["device", "loop"])
def test_a_stalled_store_comes_back_when_it_was_well_for_a_while(what: str) -> None:
    scene = Scene(stall_after_s=10)

    def set_age(age_s: float) -> None:
        since_ns = time.monotonic_ns() - int(age_s * NS_PER_S)
        scene.shots["a"]["device_since_ns"] = since_ns if what == "device" and age_s else 0
        scene.loop_age_s = age_s if what == "loop" else 0.0

    set_age(9)
    assert scene.look() == []
    set_age(3600)
    assert Reason.STALLED in scene.look()
    for _ in range(5):  # a slow device answers now and then
        scene.now_s += 9
        set_age(0)
        assert Reason.STALLED in scene.look()
        set_age(3600)
        scene.look()
    set_age(0)
    scene.now_s += 10
    assert Reason.STALLED in scene.look()
    scene.now_s += 0.1
    assert scene.look() == []
    assert [name for name, _ in scene.told()][-1] == "store_back"


def test_the_limit_can_be_changed() -> None:
    scene = Scene(stall_after_s=3600)
    scene.shots["a"]["device_since_ns"] = time.monotonic_ns() - 60 * NS_PER_S
    assert scene.look() == []
    scene.states.set_stall_after("a", 30)
    assert scene.look() == [Reason.STALLED]
    assert scene.states.is_well("b")


def test_drained_is_what_somebody_wants() -> None:
    scene = Scene(drain=True)
    assert scene.look() == [Reason.DRAINED]
    scene.failed.add("a")
    assert scene.look() == [Reason.FAILED, Reason.DRAINED]  # the worst comes first
    scene.states.set_drained("a", wanted=False)
    assert scene.look() == [Reason.FAILED]
    assert scene.log.fields("store_back")[0]["takes_flows"] is False
    assert scene.states.is_drained("b")

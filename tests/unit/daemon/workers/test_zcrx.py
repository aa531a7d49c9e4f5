# SPDX-License-Identifier: Apache-2.0
"""The daemon with engine zcrx, on a made-up core and interface."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingestd.address import parse_address
from ingestd.config.settings import MIB, Settings
from ingestd.core.border import Engine, FlowByCopy, FlowElsewhere
from ingestd.daemon import run as daemon
from ingestd.daemon import startup
from ingestd.daemon.workers import zcrx
from ingestd.daemon.workers.area import AreaPlan
from ingestd.daemon.workers.zcrx import queues_of_stores, steered_families, wanted_flows
from ingestd.errors import EngineError, ResourceError
from ingestd.log import Log
from ingestd.nic.journal import journal_path, open_journal
from ingestd.nic.plan import Steered, plan_changes
from ingestd.nic.state import NicState
from ingestd.nic.work import apply, make
from support.facts import ALL_FEATURES, CAP_ALL, CAP_NONE
from support.fake_core import CoreFault
from support.fake_log import Recorder
from support.fake_nic import FakeNic
from support.scene import Scene, wait_for

PORT = 7070
STORE: dict[str, Any] = {"store": {"data": {"path": "/dev/made-up", "workers": 2}}}
LISTENER: dict[str, Any] = {"listener": {"in": {"address": "127.0.0.1:0"}}}
ENGINE: dict[str, Any] = {"kind": "zcrx", "interface": "zc0", "queues": [2, 3]}


class FakeZcrxNic(zcrx.Nic):
    """What the daemon asks of an interface, about a made-up one."""

    def __init__(self, nic: FakeNic) -> None:
        super().__init__(nic.interface)
        self.nic = nic

    def read(self) -> NicState:
        return self.nic.read()

    def napi_ids(self, queues: Sequence[int]) -> list[int | None]:
        return [self.nic.read().queues[queue].napi_id for queue in queues]

    def index(self) -> int:
        return self.nic.index

    def device(self) -> FakeNic:
        return self.nic


@pytest.mark.parametrize(
    ("driver", "area_bytes", "is_refused", "warnings"),
    [
        ("mlx5_core", 256 * MIB, False, 0),  # the most of "auto": judged before
        ("mlx5_core", 64 * MIB, False, 0),
        ("mlx5_core", 32 * MIB, False, 1),
        ("mlx5_core", 16 * MIB, True, 0),
        ("zcsim", 4 * MIB, False, 1),
    ],
)
def test_an_area_that_auto_made_small(
    driver: str, area_bytes: int, is_refused: bool, warnings: int
) -> None:
    """The ring holds 16 MiB with mlx5 and an MTU of 9000, else 4 MiB."""
    fake = FakeNic(driver=driver)
    fake.mtu, fake.now.rings["rx"] = 9000, 1024
    settings = Settings.model_validate(STORE | {"engine": ENGINE})
    area = AreaPlan(area_bytes, area_bytes // 64, 2, area_bytes, "little memory")
    workers: Any = [SimpleNamespace(store_name="data", index=i, area=area) for i in (0, 1)]
    recorder = Recorder()
    log = Log(recorder, "info")
    if is_refused:
        with pytest.raises(EngineError, match="ethtool -G zc0 rx 256"):
            zcrx.judge_areas(settings, FakeZcrxNic(fake), workers, log)
    else:
        zcrx.judge_areas(settings, FakeZcrxNic(fake), workers, log)
    assert len(recorder.fields("nic_warning")) == warnings


class ZcrxScene(Scene):
    """A scene whose configuration names the interface zc0."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.nic = FakeNic(driver="bnxt_en")
        self.nic_of = lambda _: FakeZcrxNic(self.nic)
        self.core.features = dict(ALL_FEATURES)
        self.engine()

    def engine(self, **values: Any) -> None:
        engine = ENGINE | {"nic_state_dir": str(self.directory / "state")} | values
        self.configure(STORE, LISTENER, {"engine": engine})

    def prepare(self) -> None:
        for change in plan_changes(self.nic.read(), [Steered((), (2, 3))]):
            make(self.nic, change)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZcrxScene:
    monkeypatch.setattr(daemon, "TICK_S", 0.02)
    monkeypatch.setattr(startup, "raise_descriptor_limit", lambda needed: needed)
    monkeypatch.setattr(zcrx, "own_status", lambda: CAP_ALL)
    return ZcrxScene(tmp_path)


def test_workers_get_their_queues_and_know_each_other_s(scene: ZcrxScene) -> None:
    scene.prepare()
    before = scene.nic.snapshot()
    scene.engine(rx_buf="64KiB", refill_entries=1024, queue_retry_s=2)
    assert scene.play() == 0
    told = [worker.settings for worker in scene.core.workers]
    assert [one["rx_queue"] for one in told] == [2, 3]
    for one in told:
        assert one["engine"] == Engine.ZCRX
        assert one["interface_index"] == scene.nic.index
        assert one["rx_buf_len"] == 65536
        assert one["refill_entries"] == 1024
        assert one["queue_retry_ns"] == 2_000_000_000
        assert one["checksum"] is False
    assert [worker.napi for worker in scene.core.workers] == [
        (8195, [(8196, 1)]),
        (8196, [(8195, 0)]),
    ]
    (chosen,) = scene.log.fields("engine_chosen")
    assert chosen["engine"] == "zcrx"
    started = [line["rx_queue"] for line in scene.log.fields("worker_started")]
    assert started == [2, 3]
    assert scene.nic.snapshot() == before, "without manage_nic nothing is changed"


@pytest.mark.parametrize("kind", ["zcrx", "auto"])
def test_listeners_of_protocol_ingest_are_served(scene: ZcrxScene, kind: str) -> None:
    scene.prepare()
    ingest = {"listener": {"in": {"address": "127.0.0.1:0", "protocol": "ingest"}}}
    engine = ENGINE | {"nic_state_dir": str(scene.directory / "state"), "kind": kind}
    scene.configure(STORE, ingest, {"engine": engine})
    assert scene.play() == 0
    (chosen,) = scene.log.fields("engine_chosen")
    assert chosen["engine"] == "zcrx"


def test_an_id_that_is_not_told_is_not_checked(scene: ZcrxScene) -> None:
    scene.prepare()
    scene.nic_of = lambda _: FakeWithout(scene.nic)
    assert scene.play() == 0
    assert [worker.napi for worker in scene.core.workers] == [(0, []), (0, [])]


class FakeWithout(FakeZcrxNic):
    def napi_ids(self, queues: Sequence[int]) -> list[int | None]:
        return [None for _ in queues]


def test_device_less_mode(scene: ZcrxScene) -> None:
    scene.engine(interface="none", queues=[])
    assert scene.play() == 0
    for worker in scene.core.workers:
        assert worker.settings["engine"] == Engine.ZCRX
        assert (worker.settings["interface_index"], worker.settings["rx_queue"]) == (0, 0)
        assert worker.napi is None


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({"features": {}}, "io_uring has no zero-copy receive"),
        ({"status": CAP_NONE}, "CAP_NET_ADMIN|without it no rx queue"),
        ({"prepare": False}, "tcp-data-split is not on.*ingestd nic apply zc0"),
        ({"driver_name": "veth"}, "veth has no queue operations"),
    ],
)
def test_a_demand_that_cannot_be_met_says_what_to_do(
    scene: ZcrxScene, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, Any], message: str
) -> None:
    if trouble.get("prepare", True):
        scene.prepare()
    scene.core.features = trouble.get("features", scene.core.features)
    scene.nic.driver_name = trouble.get("driver_name", scene.nic.driver_name)
    monkeypatch.setattr(zcrx, "own_status", lambda: trouble.get("status", CAP_ALL))
    with pytest.raises(EngineError, match=message):
        scene.make().run()
    assert not scene.core.made
    assert not scene.opener.stores, "no store is touched"


def test_auto_falls_back_before_it_tries(scene: ZcrxScene) -> None:
    scene.engine(kind="auto")
    assert scene.play() == 0
    (chosen,) = scene.log.fields("engine_chosen")
    assert chosen["engine"] == "recv"
    assert "tcp-data-split is not on" in chosen["reason"]
    assert all(worker.settings["engine"] is Engine.RECV for worker in scene.core.workers)


def test_auto_falls_back_when_the_kernel_refuses(scene: ZcrxScene) -> None:
    scene.engine(kind="auto", manage_nic=True)
    before = scene.nic.snapshot()
    register = CoreFault(errno.EOPNOTSUPP, "io_uring_register_ifq", "interface zc0, rx queue 2")
    setups: list[Any] = []

    def refuse_zcrx(place: str) -> None:
        if place == "setup" and scene.core.made[len(setups)].settings["engine"] is Engine.ZCRX:
            setups.append(place)
            raise register

    scene.core.fail_if_asked = refuse_zcrx  # type: ignore[method-assign]

    def scenario() -> None:
        assert scene.nic.snapshot() == before, "the interface is given back at once"

    assert scene.play(scenario) == 0
    assert [line["engine"] for line in scene.log.fields("engine_chosen")] == ["zcrx", "recv"]
    assert "supports zero-copy receive" in scene.log.fields("ready")[0]["reason"]
    running = [worker for worker in scene.core.workers if worker.threads[1:]]
    assert len(running) == 2
    assert all(worker.settings["engine"] is Engine.RECV for worker in running)


def test_a_demand_does_not_fall_back(scene: ZcrxScene) -> None:
    scene.prepare()
    scene.core.faults["setup"] = CoreFault(
        errno.EEXIST, "io_uring_register_ifq", "interface zc0, rx queue 2"
    )
    with pytest.raises(ResourceError, match=r"another process still holds the queue"):
        scene.make().run()


def test_managed_from_start_to_end(scene: ZcrxScene) -> None:
    scene.engine(manage_nic=True)
    before = scene.nic.snapshot()

    def scenario() -> None:
        assert set(scene.nic.now.spread) == {0, 1}
        assert journal_path("zc0", str(scene.directory / "state")).exists()

    assert scene.play(scenario) == 0
    assert scene.nic.snapshot() == before
    assert not journal_path("zc0", str(scene.directory / "state")).exists()
    commands = [line["command"] for line in scene.log.fields("nic_changed")]
    assert commands == [
        "ethtool -G zc0 tcp-data-split on hds-thresh 0",
        "ethtool -X zc0 equal 2",
    ]
    assert [line["fate"] for line in scene.log.fields("nic_restored")] == ["undone"] * 2


def test_queues_are_let_go_before_the_interface_is_put_back(scene: ZcrxScene) -> None:
    """As the kernel does, refuse to end header split while a queue is held."""
    scene.engine(manage_nic=True, queue_retry_s=0)
    before = scene.nic.snapshot()

    def scenario() -> None:
        held = [weakref.ref(worker) for worker in scene.core.made]
        scene.core.made.clear()
        set_rings = scene.nic.set_rings

        def refuse_while_held(values: Mapping[str, int]) -> None:
            if any(worker() is not None for worker in held):
                raise EngineError("can't disable tcp-data-split while a queue is held")
            set_rings(values)

        scene.nic.set_rings = refuse_while_held  # type: ignore[method-assign]

    assert scene.play(scenario) == 0
    assert scene.log.fields("nic_not_restored") == []
    assert scene.nic.snapshot() == before


def test_what_a_crash_left_is_undone_first(scene: ZcrxScene) -> None:
    before = scene.nic.snapshot()
    left = [Steered((("tcp4", 9999),), (3,))]
    with open_journal("zc0", scene.nic.index, str(scene.directory / "state")) as journal:
        apply(scene.nic, journal, plan_changes(scene.nic.read(), left))
    assert scene.nic.rules() == [("tcp4", 9999, "queue 3")]
    scene.engine(manage_nic=True)
    assert scene.play(lambda: _no_rules(scene)) == 0
    assert scene.nic.snapshot() == before


def _no_rules(scene: ZcrxScene) -> None:
    assert scene.nic.rules() == []


def test_an_undo_that_fails_is_told_and_can_be_done_later(scene: ZcrxScene) -> None:
    scene.engine(manage_nic=True, queue_retry_s=0)
    before = scene.nic.snapshot()
    assert scene.play(lambda: scene.nic.refuse.update({"-G": "Device or resource busy"})) == 0
    (told,) = scene.log.fields("nic_not_restored")
    assert told["hint"] == "ingestd nic undo zc0"
    scene.nic.refuse.clear()
    scene.log = Recorder()
    assert scene.play() == 0
    assert scene.nic.snapshot() == before


def test_an_interface_that_cannot_be_prepared(scene: ZcrxScene) -> None:
    scene.engine(manage_nic=True)
    scene.nic.refuse["-X"] = "Operation not supported"
    before = scene.nic.snapshot()
    with pytest.raises(EngineError, match="Operation not supported"):
        scene.make().run()
    assert scene.nic.snapshot() == before


def test_warnings_of_the_interface_are_logged(scene: ZcrxScene) -> None:
    scene.prepare()
    scene.nic.is_up = False
    assert scene.play() == 0
    told = {line["subject"]: line for line in scene.log.fields("nic_warning")}
    assert told["link"]["hint"] == "ip link set zc0 up"


def test_flows_that_come_by_copy_are_told_the_rule(scene: ZcrxScene) -> None:
    scene.prepare()

    def scenario() -> None:
        worker = scene.core.workers[0]
        fields = {"listener_index": 0}
        worker.emit(FlowByCopy(8193), peer="192.0.2.1:4000", **fields)
        worker.emit(FlowByCopy(8193), peer="[2001:db8::1]:4000", **fields)
        wait_for(lambda: len(scene.log.fields("flow_by_copy")) == 2)

    assert scene.play(scenario) == 0
    four, six = scene.log.fields("flow_by_copy")
    assert four["napi_id"] == 8193
    assert "ingestd nic apply zc0 --queues 2 --port " in four["hint"]
    assert "rule" in six["hint"]


def test_a_connection_for_another_worker_is_handed_over(scene: ZcrxScene) -> None:
    scene.prepare()

    def scenario() -> None:
        one, other = scene.core.workers
        fd = os.dup(0)
        one.emit(FlowElsewhere(1, fd), listener_index=0)
        adopted = ("adopt", fd, 0, 0)
        wait_for(lambda: adopted in other.commands)
        os.close(fd)

    assert scene.play(scenario) == 0


# --- Dealing out ------------------------------------------------------------------------


def test_queues_are_dealt_in_the_order_of_the_stores() -> None:
    settings = Settings.model_validate(
        {
            "store": {"b": {"path": "/b", "workers": 2}, "a": {"path": "/a"}},
            "listener": {
                "one": {"address": "*:1", "store": "b"},
                "two": {"address": "192.0.2.1:2", "store": "a"},
                "three": {"address": "[2001:db8::1]:3", "store": "a"},
            },
            "engine": {"interface": "eth0", "queues": [5, 7, 6]},
        }
    )
    assert queues_of_stores(settings) == {"b": (5, 7), "a": (6,)}
    assert wanted_flows(settings) == [
        Steered((("tcp4", 1), ("tcp6", 1)), (5, 7)),
        Steered((("tcp4", 2), ("tcp6", 3)), (6,)),
    ]


def _shared(placement: str = "spread") -> Settings:
    return Settings.model_validate(
        {
            "store": {"a": {"path": "/a", "workers": 2}, "b": {"path": "/b"}, "c": {"path": "/c"}},
            "listener": {
                "both": {"address": "*:1", "stores": ["b", "a"], "placement": placement},
                "own": {"address": "192.0.2.1:2", "store": "c"},
            },
            "engine": {"interface": "eth0", "queues": [4, 5, 6, 7]},
        }
    )


def test_a_listener_of_several_stores_has_the_queues_of_all() -> None:
    """And a connection is handed over to the worker of any of them, by its number."""
    settings = _shared()
    assert [steered for steered in wanted_flows(settings) if steered.flows] == [
        Steered((("tcp4", 2),), (7,)),
        Steered((("tcp4", 1), ("tcp6", 1)), (4, 5, 6)),
    ]
    told: dict[str, Any] = {}
    workers = [
        SimpleNamespace(
            store_name=name,
            index=index,
            set_napi=lambda own, others, key=f"{name}-{index}": told.update({key: (own, others)}),
        )
        for name, index in (("a", 0), ("a", 1), ("b", 0), ("c", 0))
    ]
    nic: Any = SimpleNamespace(napi_ids=lambda queues: [queue * 100 for queue in queues])
    announce: Any = workers
    zcrx.announce_napi_ids(settings, announce, nic)
    assert told == {
        "a-0": (400, [(500, 1), (600, 2)]),
        "a-1": (500, [(400, 0), (600, 2)]),
        "b-0": (600, [(400, 0), (500, 1)]),
        "c-0": (700, []),
    }


def test_most_free_takes_recv_where_it_may_choose() -> None:
    with ExitStack() as undo:
        log = Log(Recorder(), "debug")
        engine = zcrx.choose(_shared("most-free"), ALL_FEATURES, log, undo)
    assert engine.kind == "recv"
    assert "most-free" in engine.reason


@pytest.mark.parametrize(
    ("address", "families"),
    [
        ("*:7", ("tcp4", "tcp6")),
        ("0.0.0.0:7", ("tcp4",)),
        ("[::]:7", ("tcp6",)),
        ("storage.example:7", ("tcp4", "tcp6")),
        ("127.0.0.1:7", ()),
        ("[::1]:7", ()),
        ("*:0", ()),
    ],
)
def test_steered_families(address: str, families: tuple[str, ...]) -> None:
    assert steered_families(parse_address(address)) == families

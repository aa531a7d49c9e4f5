# SPDX-License-Identifier: Apache-2.0
"""The daemon with made-up core and stores: start, signals, watchdog, reload, end."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd import systemd
from ingestd.core.border import FlowElsewhere, FlowInterrupted, FlowSealed, SegmentOpened
from ingestd.daemon import run as daemon
from ingestd.daemon import startup
from ingestd.daemon.run import drain_time_s
from ingestd.daemon.signals import SIGNALS, SignalInbox
from ingestd.daemon.telemetry import worker_health
from support.patience import WAIT_S
from support.scene import ONE_STORE, Scene, service_manager, wait_for


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(daemon, "TICK_S", 0.02)
    monkeypatch.setattr(startup, "raise_descriptor_limit", lambda needed: needed)
    return Scene(tmp_path)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with service_manager(tmp_path / "notify") as told:
        yield told


# --- A life -----------------------------------------------------------------------------


def test_a_life(
    scene: Scene, manager: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An area as large as root's, of which hugepages are wanted.
    monkeypatch.setattr("ingestd.daemon.startup.locked_memory_limit", lambda: None)
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def scenario() -> None:
        worker = scene.core.workers[0]
        wait_for(lambda: worker.is_running)
        wait_for(lambda: len(worker.granted) == 4)
        ((fd, index, name, protocol, idle_ns, flows_max),) = worker.listeners
        assert (index, name, protocol, idle_ns, flows_max) == (0, "in", 1, 300 * 10**9, 10_000)
        with socket.socket(fileno=os.dup(fd)) as sock:
            shown = f"127.0.0.1:{sock.getsockname()[1]}"
        assert scene.log.fields("listening")[0]["address"] == shown
        assert scene.log.fields("ready")[0]["addresses"] == [shown]
        assert scene.log.fields("ready")[0]["engine"] == "recv"
        wait_for(lambda: manager(), "READY=1")
        assert manager()[0].startswith("READY=1 STATUS=0 flows")

    assert scene.play(scenario) == 0
    assert scene.log.names() == [
        "daemon_starting",
        "engine_chosen",
        "control_off",
        "store_opened",
        "recovered",
        "catalogue_chosen",
        "area_chosen",
        "worker_started",
        "area_without_hugepages",
        "listening",
        "ready",
        "draining",
        "stopped",
    ]
    assert scene.log.fields("engine_chosen")[0]["engine"] == "recv"
    assert scene.store.closed_count == 1
    assert not scene.core.workers[0].is_running
    wait_for(lambda: any(message.startswith("STOPPING=1") for message in manager()))
    stopping = [message for message in manager() if message.startswith("STOPPING=1")]
    assert len(stopping) == 1
    assert "EXTEND_TIMEOUT_USEC=20000000" in stopping[0]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_the_core_drains_with_a_margin(scene: Scene) -> None:
    assert scene.play() == 0
    assert scene.commands("stop_accepting")
    assert scene.commands("drain")[0] == (8_000_000_000,)


@pytest.mark.parametrize(
    ("timeout_s", "expected_s"), [(0, 0), (1, 0.75), (8, 6), (10, 8), (3600, 3598)]
)
def test_drain_time(timeout_s: float, expected_s: float) -> None:
    assert drain_time_s(timeout_s) == expected_s


def test_sigint_stops_too(scene: Scene) -> None:
    def scenario() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: "draining" in scene.log.names())

    assert scene.play(scenario) == 0
    assert scene.log.fields("draining")[0]["signal"] == "SIGINT"


def test_stores_and_workers(scene: Scene) -> None:
    scene.configure(
        {
            "store": {
                "a": {"path": "/dev/made-up-a", "workers": 2},
                "b": {"path": "/dev/made-up-b"},
            },
            "listener": {
                "one": {"address": "127.0.0.1:0", "store": "a"},
                "two": {"address": "127.0.0.1:0", "store": "b", "idle_timeout_s": 0},
            },
        }
    )
    ports: list[int] = []

    def scenario() -> None:
        wait_for(lambda: all(len(worker.granted) == 4 for worker in scene.core.workers))
        for worker in scene.core.workers:
            for fd, *_ in worker.listeners:
                with socket.socket(fileno=os.dup(fd)) as sock:
                    ports.append(sock.getsockname()[1])

    assert scene.play(scenario) == 0
    listeners = [[(row[1], row[2], row[4]) for row in w.listeners] for w in scene.core.workers]
    idle_ns = 300 * 10**9
    assert listeners == [[(0, "one", idle_ns)], [(0, "one", idle_ns)], [(1, "two", 0)]]
    assert ports[0] == ports[1] != ports[2]
    granted = [worker.granted for worker in scene.core.workers]
    assert len({sequence for row in granted[:2] for _, sequence in row}) == 8
    assert all(store.closed_count == 1 for store in scene.opener.stores.values())
    # What a killed daemon's areas took is free once all its stores are.
    names = scene.log.names()
    assert "store_opened" not in names[names.index("worker_started") :]


def test_open_flows_get_their_time_and_a_second_signal_takes_it(scene: Scene) -> None:
    def scenario() -> None:
        worker = scene.core.workers[0]
        worker.values["flows_open"] = 1
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: scene.commands("drain"))
        time.sleep(0.1)
        assert worker.is_running
        os.kill(os.getpid(), signal.SIGTERM)

    assert scene.play(scenario) == 0
    assert scene.commands("drain")[:2] == [(8_000_000_000,), (0,)]


def test_a_connection_goes_to_the_worker_it_belongs_to(scene: Scene) -> None:
    """Workers are distinguished by store and index; what nobody takes is closed."""
    scene.configure(
        {
            "store": {
                "a": {"path": "/dev/made-up-a"},
                "b": {"path": "/dev/made-up-b", "workers": 2},
            },
            "listener": {"in": {"address": "127.0.0.1:0", "store": "b"}},
        }
    )
    core = scene.core

    def scenario() -> None:
        wait_for(lambda: all(worker.is_running for worker in core.workers))
        mine, theirs = socket.socketpair()
        fd = theirs.detach()
        core.workers[1].emit(FlowElsewhere(1, fd), listener_index=0)
        wait_for(lambda: scene.commands("adopt", 1) == [(fd, 0, 0)])
        core.workers[1].emit(FlowElsewhere(7, fd), listener_index=0)
        mine.settimeout(WAIT_S)
        assert b'"error": "shutdown"' in mine.recv(1024)  # nobody is there to take it
        assert mine.recv(1) == b""
        mine.close()

    assert scene.play(scenario) == 0
    assert scene.commands("adopt", 0) == []
    assert [f["to_worker"] for f in scene.log.fields("flow_handed_over")] == []  # debug only


def test_events_are_told_until_the_end(scene: Scene) -> None:
    def scenario() -> None:
        scene.core.workers[0].emit(FlowSealed(7), listener_index=0)
        wait_for(lambda: "flow_sealed" in scene.log.names())
        # The drain's last events come when the loop has nothing to wait for any more.
        scene.core.workers[0].emit(FlowInterrupted(3))

    assert scene.play(scenario) == 0
    (sealed,) = scene.log.fields("flow_sealed")
    assert (sealed["bytes"], sealed["listener"], sealed["store"]) == (7, "in", "data")
    assert scene.log.fields("flow_interrupted")[0]["reason"] == "shutdown"


def test_metrics(scene: Scene) -> None:
    scene.configure(ONE_STORE, {"metrics": {"address": "127.0.0.1:0"}})

    def scenario() -> None:
        (metrics,) = [f for f in scene.log.fields("listening") if f["listener"] == "metrics"]
        url = f"http://{metrics['address']}/metrics"
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            text = answer.read().decode()
        assert 'ingestd_segments{state="ready",store="data"}' in text
        assert 'ingestd_engine_info{engine="recv"' in text

    assert scene.play(scenario) == 0


# --- Watchdog -------------------------------------------------------------------------------


def test_the_watchdog_is_fed_while_loops_turn(
    scene: Scene, manager: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setattr(worker_health, "LOOP_AGE_MAX_S", 2.0)
    assert systemd.watchdog_timeout_s() == 0.3

    def scenario() -> None:
        wait_for(lambda: manager().count("WATCHDOG=1") >= 3, "three pings")
        scene.core.workers[0].is_beating = False
        wait_for(lambda: "watchdog_late" in scene.log.names(), "late")
        count = manager().count("WATCHDOG=1")
        time.sleep(0.3)
        assert manager().count("WATCHDOG=1") == count
        scene.core.workers[0].is_beating = True
        wait_for(lambda: manager().count("WATCHDOG=1") > count, "pings again")

    assert scene.play(scenario) == 0
    assert len(scene.log.fields("watchdog_late")) == 1


def test_without_a_watchdog_none_is_fed(scene: Scene, manager: Callable[[], list[str]]) -> None:
    assert scene.play(lambda: time.sleep(0.1)) == 0
    assert "WATCHDOG=1" not in manager()


def test_the_tick_fits_the_watchdog(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "TICK_S", 1.0)
    assert scene.make()._tick_s == 1.0
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    assert scene.make()._tick_s == 0.5


# --- Reload ---------------------------------------------------------------------------------


def _reload(scene: Scene, event: str = "config_reloaded") -> None:
    count = len(scene.log.fields(event))
    os.kill(os.getpid(), signal.SIGHUP)
    wait_for(lambda: len(scene.log.fields(event)) > count, event)


def test_reload_applies_what_can_change(scene: Scene, manager: Callable[[], list[str]]) -> None:

    def scenario() -> None:
        scene.configure(
            {
                "store": {
                    "data": {
                        "path": "/dev/made-up",
                        "flush_interval_s": 0.5,
                        "commit_interval_s": 1.5,
                        "area": "128MiB",
                    }
                },
                "listener": {"in": {"address": "127.0.0.1:0", "idle_timeout_s": 7}},
                "daemon": {"drain_timeout_s": 4},
                "log": {"level": "debug"},
            }
        )
        _reload(scene)
        wait_for(lambda: scene.commands("set_idle_timeout"))
        assert scene.commands("set_flush_interval") == [(500_000_000,)]
        assert scene.commands("set_commit_interval") == [(1_500_000_000,)]
        assert scene.commands("set_idle_timeout") == [(0, 7_000_000_000)]
        scene.core.workers[0].emit(SegmentOpened(1))
        wait_for(lambda: "segment_opened" in scene.log.names(), "debug events")
        _reload(scene)  # nothing new: what awaits a restart is logged again

    assert scene.play(scenario) == 0
    first, second = scene.log.fields("config_reloaded")
    assert set(first["changed"]) == {
        "daemon.drain_timeout_s",
        "listener.in.idle_timeout_s",
        "log.level",
        "store.data.commit_interval_s",
        "store.data.flush_interval_s",
    }
    assert second["changed"] == []
    assert [f["keys"] for f in scene.log.fields("config_needs_restart")] == [
        ["store.data.area"],
        ["store.data.area"],
    ]
    assert scene.commands("drain")[0] == (3_000_000_000,)  # 4 s less a quarter
    wait_for(lambda: any(message.startswith("STOPPING=1") for message in manager()))
    starts = [message.split(" ")[0] for message in manager()]
    assert starts.count("RELOADING=1") == 2
    assert starts.count("READY=1") == 3


def test_a_bad_configuration_changes_nothing(
    scene: Scene, manager: Callable[[], list[str]]
) -> None:
    def scenario() -> None:
        scene.config.write_text("[store.data]\npath = 3\n")
        _reload(scene, "config_refused")

    assert scene.play(scenario) == 0
    (refused,) = scene.log.fields("config_refused")
    assert "store.data.path" in refused["error"]
    assert scene.commands("set_flush_interval") == []
    wait_for(lambda: sum(message.startswith("READY=1") for message in manager()) == 2)


def test_reload_with_a_section_gone(scene: Scene) -> None:
    """What serves continues as it was; the restart that would change it is logged."""

    def scenario() -> None:
        scene.configure(
            {
                "store": {"other": {"path": "/dev/made-up"}},
                "listener": {"new": {"address": "127.0.0.1:0"}},
            }
        )
        _reload(scene)

    assert scene.play(scenario) == 0
    (waiting,) = scene.log.fields("config_needs_restart")
    assert {"store.data", "store.other", "listener.in", "listener.new"} <= set(waiting["keys"])
    assert scene.commands("set_idle_timeout") == []


def test_reload_reads_keys_again(scene: Scene, tmp_path: Path) -> None:
    """A file that cannot be used leaves the old ones; the other listener has its new ones."""
    secret = "ab" * 16
    files = {name: tmp_path / f"{name}.toml" for name in ("bad", "good")}
    for path in files.values():
        path.touch(0o600)
        path.write_text(f'[key]\nold = "{secret}"\n')
    scene.configure(
        {
            "store": {"data": {"path": "/dev/made-up"}},
            "listener": {
                name: {"address": "127.0.0.1:0", "protocol": "ingest", "key_file": str(path)}
                for name, path in files.items()
            },
        }
    )

    def keys() -> dict[str, set[str]]:
        assert scene.daemon is not None
        return {policy.name: set(policy.keys or ()) for policy in scene.daemon._admission._policies}

    def scenario() -> None:
        files["bad"].write_text(f'[key]\nnew = "{secret}!"\n')
        files["good"].write_text(f'[key]\nnew = "{secret}"\n')
        _reload(scene, "keys_reloaded")
        assert keys() == {"bad": {"old"}, "good": {"new"}}

    assert scene.play(scenario) == 0
    (refused,) = scene.log.fields("keys_refused")
    assert refused["listener"] == "bad"
    assert "key.new: must be" in refused["error"]
    assert secret not in refused["error"]
    (reloaded,) = scene.log.fields("keys_reloaded")
    assert (reloaded["listener"], reloaded["keys_count"]) == ("good", 1)


# --- Signals --------------------------------------------------------------------------------


def test_signals_wait_until_they_are_taken() -> None:
    with SignalInbox() as inbox:
        assert inbox.take() == []
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: inbox.fileno() >= 0)
        assert sorted(inbox.take()) == [signal.SIGHUP, signal.SIGTERM]
        assert inbox.take() == []

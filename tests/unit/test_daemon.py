# SPDX-License-Identifier: Apache-2.0
"""The daemon with made-up core and stores: start, signals, watchdog, failures, end.

The daemon runs on the main thread, as Python's signals want it; a scenario runs
beside it from the moment it is ready, and a SIGTERM ends what it left running.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd import daemon, startup, systemd
from ingestd.config import Overrides, load
from ingestd.daemon import Daemon, drain_time_s
from ingestd.errors import (
    EngineError,
    IngestdError,
    ListenError,
    ResourceError,
    StoreBusyError,
    StoreFailedError,
    SystemCallError,
)
from ingestd.log import Log
from ingestd.signals import SIGNALS, SignalInbox
from support.fake_core import CoreFault, FakeCore
from support.fake_log import Recorder
from support.fake_store import FakeOpener, recovery

WAIT_S = 10.0
ONE_STORE: dict[str, Any] = {
    "store": {"data": {"path": "/dev/made-up"}},
    "listener": {"in": {"address": "127.0.0.1:0"}},
}


def wait_for(condition: Callable[[], object], what: str = "it") -> None:
    limit_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit_s, f"{what} did not come true"
        time.sleep(0.002)


def _toml(tables: dict[str, Any]) -> str:
    """Enough of TOML for these tests: tables of tables of plain values."""
    lines: list[str] = []

    def write(prefix: str, table: dict[str, Any]) -> None:
        plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
        if plain:
            lines.append(f"[{prefix}]")
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in plain.items())
        for key, value in table.items():
            if isinstance(value, dict):
                write(f"{prefix}.{key}" if prefix else key, value)

    write("", tables)
    return "\n".join(lines) + "\n"


class Scene:
    """A daemon to be, and all that it stands on."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "ingestd.toml"
        self.core = FakeCore()
        self.opener = FakeOpener()
        self.log = Recorder()
        self.error: BaseException | None = None  # of the scenario
        self.daemon: Daemon | None = None
        self.configure(ONE_STORE)

    def configure(self, *tables: dict[str, Any]) -> None:
        merged: dict[str, Any] = {}
        for table in tables:
            for key, value in table.items():
                merged[key] = {**merged.get(key, {}), **value}
        self.config.write_text(_toml(merged))

    def make(self) -> Daemon:
        settings = load(str(self.config), Overrides())
        log = Log(self.log, settings.log.level)
        self.daemon = Daemon(settings, core=self.core, open_store=self.opener, log=log)
        return self.daemon

    def play(self, scenario: Callable[[], None] = lambda: None) -> int:
        """Run the daemon, and the scenario once it is ready; return the exit code."""
        made = self.make()
        is_over = threading.Event()

        def beside() -> None:
            try:
                wait_for(lambda: is_over.is_set() or "ready" in self.log.names(), "ready")
                if not is_over.is_set():
                    scenario()
            except BaseException as error:
                self.error = error
            if not is_over.is_set() and made._deadline_s is None:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=beside)
        with SignalInbox():  # a signal that comes late must not end pytest
            thread.start()
            try:
                return made.run()
            finally:
                is_over.set()
                thread.join()
                if self.error is not None:
                    raise self.error

    def commands(self, kind: int, worker: int = 0) -> list[tuple[int, int]]:
        return [(a, b) for k, a, b in self.core.workers[worker].commands if k == kind]

    @property
    def store(self) -> Any:
        (store,) = self.opener.stores.values()
        return store


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(daemon, "TICK_S", 0.02)
    monkeypatch.setattr(startup, "raise_descriptor_limit", lambda needed: needed)
    return Scene(tmp_path)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What the service manager was told so far, one message an item, newlines as spaces."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        told: list[str] = []

        def read() -> None:
            while message := sock.recv(4096):
                told.append(message.decode().replace("\n", " "))

        # A thread of its own: the daemon blocks when nobody reads what it tells.
        reader = threading.Thread(target=read)
        reader.start()
        yield lambda: list(told)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(tmp_path / "notify"))
        reader.join()


# --- A life -----------------------------------------------------------------------------


def test_a_life(scene: Scene, manager: Callable[[], list[str]]) -> None:
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
        wait_for(lambda: manager(), "READY=1")
        assert manager()[0].startswith("READY=1 STATUS=0 flows")

    assert scene.play(scenario) == 0
    assert scene.log.names() == [
        "daemon_starting",
        "engine_chosen",
        "store_opened",
        "recovered",
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
    assert scene.commands(scene.core.COMMAND_STOP_ACCEPTING)
    assert scene.commands(scene.core.COMMAND_DRAIN)[0] == (8_000_000_000, 0)


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


def test_open_flows_get_their_time_and_a_second_signal_takes_it(scene: Scene) -> None:
    def scenario() -> None:
        worker = scene.core.workers[0]
        worker.values["flows_open"] = 1
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: scene.commands(scene.core.COMMAND_DRAIN))
        time.sleep(0.1)
        assert worker.is_running
        os.kill(os.getpid(), signal.SIGTERM)

    assert scene.play(scenario) == 0
    assert scene.commands(scene.core.COMMAND_DRAIN)[:2] == [(8_000_000_000, 0), (0, 0)]


def test_events_are_told_until_the_end(scene: Scene) -> None:
    def scenario() -> None:
        scene.core.workers[0].emit(scene.core.EVENT_FLOW_SEALED, bytes_count=7, listener_index=0)
        wait_for(lambda: "flow_sealed" in scene.log.names())
        # The drain's last words come when the loop has nothing to wait for any more.
        scene.core.workers[0].emit(scene.core.EVENT_FLOW_INTERRUPTED, code=3)

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


# --- A start that fails -------------------------------------------------------------------


def _fails(scene: Scene, error: type[IngestdError], match: str) -> None:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    descriptors = len(os.listdir("/proc/self/fd"))
    made = scene.make()
    with pytest.raises(error, match=match):
        made.run()
    assert "ready" not in scene.log.names()
    assert all(store.closed_count == 1 for store in scene.opener.stores.values())
    assert not any(worker.alive() for worker in made._workers)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    # Made-up workers close their descriptor when nothing, also no traceback, knows them.
    scene.core.workers.clear()
    scene.core.faults.clear()
    made._workers.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


TWO_STORES: dict[str, Any] = {
    "store": {"a": {"path": "/dev/made-up-a"}, "b": {"path": "/dev/made-up-b"}},
    "listener": {"in": {"address": "127.0.0.1:0", "store": "a"}},
}


def test_a_store_that_cannot_be_opened(scene: Scene) -> None:
    scene.configure(TWO_STORES)
    scene.opener.faults["/dev/made-up-b"] = StoreBusyError("it is served by process 7")
    _fails(scene, StoreBusyError, "served by process 7")
    assert len(scene.opener.stores) == 1


def test_a_worker_that_cannot_be_set_up(scene: Scene) -> None:
    scene.configure(TWO_STORES)
    scene.core.faults["setup"] = CoreFault(errno.ENOMEM, "io_uring_register_buffers", "area")
    _fails(scene, ResourceError, "LimitMEMLOCK=infinity")
    assert len(scene.opener.stores) == 2


def test_an_address_that_is_taken(scene: Scene) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        scene.configure(ONE_STORE, {"listener": {"second": {"address": address}}})
        _fails(scene, ListenError, rf'"second": {address} is in use')


def test_metrics_whose_address_is_taken(scene: Scene) -> None:
    """The last step: by then, everything else runs."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        scene.configure(ONE_STORE, {"metrics": {"address": address}})
        _fails(scene, ListenError, rf'"metrics": {address} is in use')


def test_a_demand_that_cannot_be_met_touches_no_store(scene: Scene) -> None:
    scene.configure(ONE_STORE, {"engine": {"kind": "zcrx", "interface": "eth0"}})
    _fails(scene, EngineError, "this build has no zcrx engine")
    assert scene.opener.stores == {}


def test_too_little_locked_memory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "locked_memory_limit", lambda: 8 * 2**20)
    _fails(scene, ResourceError, r"need 268435456 bytes .* RLIMIT_MEMLOCK allows 8388608")
    assert scene.opener.stores == {}


def test_too_few_descriptors_is_a_warning(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "raise_descriptor_limit", lambda _: 4096)
    assert scene.play() == 0
    (fields,) = scene.log.fields("descriptors_short")
    assert (fields["limit"], fields["needed"]) == (4096, 10_256)  # connections_max and our own


def test_a_signal_during_the_start(scene: Scene) -> None:
    class Opener(FakeOpener):
        def __call__(self, path: str, *, expected_uuid: str | None = None) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(path, expected_uuid=expected_uuid)

    scene.opener = Opener()
    assert scene.play() == 0
    assert scene.core.workers == []
    assert scene.store.closed_count == 1
    assert "ready" not in scene.log.names()


def test_what_recovery_found_is_told(scene: Scene) -> None:
    class Opener(FakeOpener):
        def __call__(self, path: str, *, expected_uuid: str | None = None) -> Any:
            store = super().__call__(path, expected_uuid=expected_uuid)
            store.recovery = recovery(("superblock B at byte 524288 is damaged", "segment 3: odd"))
            return store

    scene.opener = Opener()
    assert scene.play() == 0
    (damaged,) = scene.log.fields("superblock_damaged")
    assert damaged["warning"].startswith("superblock B")
    (recovered,) = [line for line in scene.log.lines if line[1] == "recovered"]
    assert recovered[0] == "warning"
    assert recovered[2]["warnings_count"] == 2
    assert recovered[2]["segments_free"] == 8


# --- Failures under way ---------------------------------------------------------------------


def test_a_worker_that_ends_unasked_ends_the_process(scene: Scene) -> None:
    scene.configure(TWO_STORES)

    def scenario() -> None:
        fault = CoreFault(errno.EBADF, "io_uring_enter", "worker's ring")
        wait_for(lambda: scene.core.workers[1].is_running)
        scene.core.workers[1].end(fault)
        wait_for(lambda: "stopped" in scene.log.names(), "stopped")

    assert scene.play(scenario) == SystemCallError.exit_code
    (failed,) = scene.log.fields("worker_failed")
    assert failed["worker"] == "b-0"
    assert "io_uring_enter for worker's ring failed" in failed["error"]
    assert scene.commands(scene.core.COMMAND_DRAIN) == [(0, 0)]  # the other one's
    assert all(store.closed_count == 1 for store in scene.opener.stores.values())


@pytest.mark.parametrize("error", [None, AssertionError("an invariant")])
def test_a_worker_that_ends_for_no_known_reason(scene: Scene, error: BaseException | None) -> None:
    def scenario() -> None:
        wait_for(lambda: scene.core.workers[0].is_running)
        scene.core.workers[0].end(error)
        wait_for(lambda: "stopped" in scene.log.names(), "stopped")

    assert scene.play(scenario) == daemon.EXIT_CODE_BUG
    (failed,) = scene.log.fields("worker_failed")
    assert failed["error"] == ("it ended unasked" if error is None else repr(error))
    assert ("trace" in failed) == (error is not None)


def test_a_pump_that_breaks_ends_the_process(scene: Scene) -> None:
    def scenario() -> None:
        def broken() -> None:
            raise OSError(errno.EIO, "made up")

        wait_for(lambda: len(scene.core.workers[0].granted) == 4)
        scene.store.take_segment = broken
        scene.core.workers[0].want(1)
        wait_for(lambda: "stopped" in scene.log.names(), "stopped")

    assert scene.play(scenario) == daemon.EXIT_CODE_BUG
    assert scene.log.fields("worker_failed")[0]["worker"] == "pump"


def test_a_worker_that_does_not_stop(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "STOP_TIMEOUT_MIN_S", 0.1)
    monkeypatch.setattr(startup, "ABANDON_TIMEOUT_S", 0.1)
    scene.configure(ONE_STORE, {"daemon": {"drain_timeout_s": 0}})
    scene.core.is_hanging = True
    wake_fds: list[int] = []
    try:
        code = scene.play(lambda: wake_fds.append(scene.daemon._wake_fd))
        assert code == SystemCallError.exit_code
        (failed,) = scene.log.fields("worker_failed")
        assert failed["error"] == "it did not stop within drain_timeout_s"
        # It may still write: its store, and what it would wake, stay open.
        assert scene.store.closed_count == 0
        os.fstat(wake_fds[0])
    finally:
        scene.core.workers[0].end()
        assert scene.daemon._workers[0].join(WAIT_S)
        os.close(wake_fds[0])


def test_a_failed_store_is_told_and_the_others_go_on(
    scene: Scene, manager: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "STATUS_INTERVAL_S", 0.0)
    scene.configure(TWO_STORES)

    def scenario() -> None:
        worker = scene.core.workers[0]
        worker.values["store_errno"] = errno.EIO
        worker.emit(scene.core.EVENT_STORE_FAILED, code=errno.EIO, detail=1)
        wait_for(lambda: any("FAILED: store a" in message for message in manager()), "status")
        assert all(worker.is_running for worker in scene.core.workers)

    assert scene.play(scenario) == StoreFailedError.exit_code
    (failed,) = scene.log.fields("store_failed")  # once: not again from the counter
    assert (failed["store"], failed["failed"]) == ("a", "flush")


def test_a_failed_store_whose_event_was_lost(scene: Scene) -> None:
    def scenario() -> None:
        scene.core.workers[0].values.update(store_errno=errno.EIO, events_dropped=12)
        wait_for(lambda: "store_failed" in scene.log.names())
        time.sleep(0.1)

    assert scene.play(scenario) == StoreFailedError.exit_code
    assert scene.log.fields("store_failed")[0]["error"] == "EIO: Input/output error"
    assert len(scene.log.fields("store_failed")) == 1
    assert [fields["count"] for fields in scene.log.fields("events_lost")] == [12]


# --- Watchdog -------------------------------------------------------------------------------


def test_the_watchdog_is_fed_while_loops_turn(
    scene: Scene, manager: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setattr(daemon, "LOOP_AGE_MAX_S", 0.3)
    assert systemd.watchdog_timeout_s() == 0.3

    def scenario() -> None:
        wait_for(lambda: manager().count("WATCHDOG=1") >= 3, "three pings")
        scene.core.workers[0].is_beating = False
        wait_for(lambda: "watchdog_late" in scene.log.names(), "late")
        time.sleep(0.05)  # a ping that was under way
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
    core = scene.core

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
        wait_for(lambda: scene.commands(core.COMMAND_SET_IDLE_TIMEOUT))
        assert scene.commands(core.COMMAND_SET_FLUSH_INTERVAL) == [(500_000_000, 0)]
        assert scene.commands(core.COMMAND_SET_COMMIT_INTERVAL) == [(1_500_000_000, 0)]
        assert scene.commands(core.COMMAND_SET_IDLE_TIMEOUT) == [(0, 7_000_000_000)]
        scene.core.workers[0].emit(core.EVENT_SEGMENT_OPENED, code=1)
        wait_for(lambda: "segment_opened" in scene.log.names(), "debug events")
        _reload(scene)  # nothing new: what awaits a restart is told again

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
    assert scene.commands(core.COMMAND_DRAIN)[0] == (3_000_000_000, 0)  # 4 s less a quarter
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
    assert scene.commands(scene.core.COMMAND_SET_FLUSH_INTERVAL) == []
    wait_for(lambda: sum(message.startswith("READY=1") for message in manager()) == 2)


def test_reload_with_a_section_gone(scene: Scene) -> None:
    """What serves goes on as it was; the restart that would change it is told."""

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
    assert scene.commands(scene.core.COMMAND_SET_IDLE_TIMEOUT) == []


# --- Signals --------------------------------------------------------------------------------


def test_signals_wait_until_they_are_taken() -> None:
    with SignalInbox() as inbox:
        assert inbox.take() == []
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: inbox.fileno() >= 0)
        assert sorted(inbox.take()) == [signal.SIGHUP, signal.SIGTERM]
        assert inbox.take() == []

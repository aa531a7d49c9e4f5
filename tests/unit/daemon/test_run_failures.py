# SPDX-License-Identifier: Apache-2.0
"""The daemon when something fails: at the start, under way, at the end."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.core.border import StoreFailed, StoreFailure
from ingestd.daemon import run as daemon
from ingestd.daemon import startup
from ingestd.daemon.base import backoff
from ingestd.daemon.exit_code import EXIT_CODE_BUG
from ingestd.daemon.maintenance import maintenance_thread
from ingestd.daemon.segments import overwriter
from ingestd.daemon.signals import SIGNALS
from ingestd.errors import (
    EngineError,
    IngestdError,
    ListenError,
    ResourceError,
    StoreBusyError,
    StoreFailedError,
    SystemCallError,
)
from support.fake_core import CoreFault
from support.fake_store import FakeOpener, FakeStore, recovery
from support.patience import WAIT_S
from support.scene import ONE_STORE, TWO_STORES, Scene, service_manager, wait_for


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
    scene.core.made.clear()
    scene.core.faults.clear()
    made._workers.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


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
    assert scene.opener.stores == {}


def test_metrics_whose_address_is_taken(scene: Scene) -> None:
    """Bound before any store is opened, as that may take long."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        scene.configure(ONE_STORE, {"metrics": {"address": address}})
        _fails(scene, ListenError, rf'"metrics": {address} is in use')
    assert scene.opener.stores == {}


def test_a_demand_that_cannot_be_met_touches_no_store(scene: Scene) -> None:
    scene.configure(ONE_STORE, {"engine": {"kind": "zcrx", "interface": "none"}})
    _fails(scene, EngineError, "io_uring has no zero-copy receive")
    assert scene.opener.stores == {}


def test_too_little_locked_memory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stated area is a demand; what nobody stated would be as small as it must be."""
    scene.configure(ONE_STORE, {"store": {"data": {"path": "/dev/made-up", "area": "256MiB"}}})
    monkeypatch.setattr(startup, "locked_memory_limit", lambda: 8 * 2**20)
    _fails(scene, ResourceError, r"need \d+ bytes .* RLIMIT_MEMLOCK allows 8388608")
    assert scene.opener.stores == {}


def test_too_few_descriptors_is_a_warning(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "raise_descriptor_limit", lambda _: 4096)
    assert scene.play() == 0
    (fields,) = scene.log.fields("descriptors_short")
    assert (fields["limit"], fields["needed"]) == (4096, 10_256)  # connections_max and our own


def test_a_signal_during_the_start(scene: Scene) -> None:
    class Opener(FakeOpener):
        def __call__(self, path: str, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(path, **options)

    scene.opener = Opener()
    assert scene.play() == 0
    assert scene.core.workers == []
    assert scene.store.closed_count == 1
    assert "ready" not in scene.log.names()


def test_a_store_that_is_waited_for_is_told(scene: Scene) -> None:
    scene.opener.held_paths.add("/dev/made-up")
    assert scene.play() == 0
    (held,) = scene.log.fields("store_held")
    assert held == {"store": "data", "path": "/dev/made-up", "wait_s": 2.5}


def test_what_recovery_found_is_told(scene: Scene) -> None:
    class Opener(FakeOpener):
        def __call__(self, path: str, **options: Any) -> Any:
            store = super().__call__(path, **options)
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
    assert scene.commands("drain") == [(0,)]  # the other one's
    assert all(store.closed_count == 1 for store in scene.opener.stores.values())


@pytest.mark.parametrize("error", [None, AssertionError("an invariant")])
def test_a_worker_that_ends_for_no_known_reason(scene: Scene, error: BaseException | None) -> None:
    def scenario() -> None:
        wait_for(lambda: scene.core.workers[0].is_running)
        scene.core.workers[0].end(error)
        wait_for(lambda: "stopped" in scene.log.names(), "stopped")

    assert scene.play(scenario) == EXIT_CODE_BUG
    (failed,) = scene.log.fields("worker_failed")
    assert failed["error"] == ("it ended by itself" if error is None else repr(error))
    assert ("trace" in failed) == (error is not None)


def test_a_pump_that_breaks_ends_the_process(scene: Scene) -> None:
    def scenario() -> None:
        def broken() -> None:
            raise OSError(errno.EIO, "made up")

        wait_for(lambda: len(scene.core.workers[0].granted) == 4)
        scene.store.take_segment = broken
        scene.core.workers[0].want(1)
        wait_for(lambda: "stopped" in scene.log.names(), "stopped")

    assert scene.play(scenario) == EXIT_CODE_BUG
    assert scene.log.fields("worker_failed")[0]["worker"] == "pump-data"


@pytest.mark.fault("maintenance")
@pytest.mark.parametrize("error", [AssertionError("made up"), MemoryError()])
def test_a_keeper_that_breaks_goes_on_and_the_process_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(maintenance_thread, "TURN_INTERVAL_S", 0.01)
    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.05)

    def scenario() -> None:
        def broken() -> None:
            raise error

        (maintainer,) = scene.daemon._maintenance._maintainers.values()
        works = maintainer._terms.look
        maintainer._terms.look = broken
        wait_for(lambda: len(scene.log.fields("maintenance_failed")) >= 2, "two tries")
        assert scene.daemon._maintenance_failures() == {"data": repr(error)}
        maintainer._terms.look = works
        wait_for(lambda: "maintenance_resumed" in scene.log.names(), "the end of it")
        assert scene.daemon._maintenance_failures() == {}

    assert scene.play(scenario) == 0
    first, second = scene.log.fields("maintenance_failed")[:2]
    assert repr(error) in first["trace"] or type(error).__name__ in first["trace"]
    assert (first["retry_s"], second["retry_s"]) == (0.1, 0.1)


@pytest.mark.fault("maintenance")
def test_an_overwriter_that_breaks_goes_on_and_the_process_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overwriter, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(backoff, "PAUSE_MIN_S", 0.01)

    class Opener(FakeOpener):
        def __call__(self, path: str, **options: Any) -> Any:
            store = super().__call__(path, **options)
            store.is_overwriting = True
            return store

    scene.opener = Opener()
    is_broken = True

    def recycle_ahead(_store: FakeStore, count: int) -> int:
        if is_broken and count:
            raise RuntimeError("can't start new thread")
        return 0

    monkeypatch.setattr(FakeStore, "recycle_ahead", recycle_ahead, raising=False)

    def scenario() -> None:
        nonlocal is_broken
        wait_for(lambda: "overwriting_failed" in scene.log.names(), "the failure")
        assert "data" in scene.daemon._maintenance_failures()
        is_broken = False
        wait_for(lambda: scene.daemon._maintenance_failures() == {}, "the end of it")

    assert scene.play(scenario) == 0
    assert "can't start new thread" in scene.log.fields("overwriting_failed")[0]["error"]


def test_a_worker_that_does_not_stop(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "STOP_TIMEOUT_MIN_S", 0.1)
    monkeypatch.setattr(startup, "ABANDON_TIMEOUT_S", 0.1)
    scene.configure(ONE_STORE, {"daemon": {"drain_timeout_s": 0}})
    scene.core.is_hanging = True
    try:
        assert scene.play() == SystemCallError.exit_code
        (failed,) = scene.log.fields("worker_failed")
        assert failed["error"] == "it did not stop within drain_timeout_s"
        # It may still write: its store stays open.
        assert scene.store.closed_count == 0
    finally:
        scene.core.workers[0].end()
        assert scene.daemon._workers[0].join(WAIT_S)
    scene.daemon.wake()  # comes late, and finds nothing to write to


def test_a_failed_store_is_told_and_the_others_go_on(
    scene: Scene, manager: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "STATUS_INTERVAL_S", 0.0)
    scene.configure(TWO_STORES)

    def scenario() -> None:
        worker = scene.core.workers[0]
        worker.emit(StoreFailed(errno.EIO, StoreFailure.FLUSH))
        worker.values["store_errno"] = errno.EIO
        wait_for(lambda: any("store a failed" in message for message in manager()), "status")
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

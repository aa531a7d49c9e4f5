# SPDX-License-Identifier: Apache-2.0
"""Worker threads over a core that is made up: life and death, grants, faults."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.config.settings import ListenerSettings, StoreSettings
from ingestd.core.border import Engine, SegmentOpened
from ingestd.core_limits import LISTENERS_MAX
from ingestd.daemon.machine.direct_io import DirectProfile
from ingestd.daemon.segments.pump import Pump
from ingestd.daemon.workers import faults, worker
from ingestd.daemon.workers.area import AreaPlan
from ingestd.daemon.workers.faults import fault_to_error
from ingestd.daemon.workers.worker import WorkerThread
from ingestd.errors import (
    ConfigError,
    EngineError,
    IngestdError,
    ListenError,
    ResourceError,
    SystemCallError,
)
from support.fake_core import CoreFault, FakeCore
from support.fake_store import MIB, FakeStore
from support.patience import WAIT_S

PROFILE = DirectProfile(4, 512, 4095, 1024)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is so, or fail."""
    limit_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit_s, "it did not come true"
        time.sleep(0.002)


class Bench:
    """A worker with its store and its core."""

    def __init__(self) -> None:
        self.core = FakeCore()
        self.store = FakeStore()
        self.ends: list[int] = []
        self.worker = self.make()

    def make(self, index: int = 0, **settings: Any) -> WorkerThread:
        return WorkerThread(
            self.core,
            self.store,
            StoreSettings(path=os.devnull, **settings),
            store_name="data",
            index=index,
            profile=PROFILE,
            area=AreaPlan(64 * MIB, 4 * MIB, 16, 66 * MIB, ""),
            on_end=lambda: self.ends.append(threading.get_ident()),
        )

    @property
    def fake(self) -> Any:
        return self.core.workers[0]

    def run(self) -> None:
        self.worker.start()
        self.worker.wait_ready(WAIT_S)
        self.worker.run()
        wait_for(lambda: self.fake.is_running)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    if bench.core.workers:
        bench.core.is_hanging = False
        bench.worker.abandon()
        assert bench.worker.join(WAIT_S)


def test_a_life(bench: Bench) -> None:
    assert not bench.worker.alive()
    bench.run()
    assert bench.worker.alive()
    assert bench.worker.error is None
    setup_thread, run_thread = bench.fake.threads
    assert setup_thread == run_thread != threading.get_ident()
    bench.worker.stop_accepting()
    bench.worker.drain(0)
    assert bench.worker.join(WAIT_S)
    assert not bench.worker.alive()
    assert bench.ends == [run_thread]
    assert bench.worker.error is None
    assert [command[0] for command in bench.fake.commands] == [
        "stop_accepting",
        "drain",
    ]


def test_what_the_core_is_given(bench: Bench) -> None:
    bench.worker = bench.make(
        index=1, workers=2, cpus=(4, 6), area="64MiB", flush_interval_s=0.25, checksum="none"
    )
    bench.worker.start()
    bench.worker.wait_ready(WAIT_S)
    superblock = bench.store.superblock
    given = bench.fake.settings
    assert {name: given[name] for name in given if name != "shape"} == {
        "store_fd": bench.store.fd,
        "store_uuid": superblock.store_uuid,
        "store_bytes": superblock.store_bytes,
        "segments_offset": MIB,
        "segment_bytes": 8 * MIB,
        "block_bytes": 4096,
        "mem_align": 4,
        "write_align": 512,
        "virt_mask": 4095,
        "iovecs_max": 1024,
        "worker_index": 1,
        "cpu": 6,
        "area_bytes": 64 * MIB,
        "write_bytes_max": 4 * MIB,
        "writes_in_flight_max": 16,
        "flows_max": 16384,
        "flush_interval_ns": 250_000_000,
        "commit_interval_ns": 200_000_000,
        "checksum": False,
        "engine": Engine.RECV,
        "interface_index": 0,
        "rx_queue": 0,
        "rx_buf_len": 0,
        "refill_entries": 4096,
        "queue_retry_ns": 0,
    }


@pytest.mark.parametrize(("checksum", "expected"), [("auto", True), ("crc32c", True)])
def test_recv_checks_sums_unless_told_not_to(bench: Bench, checksum: str, expected: bool) -> None:
    bench.worker = bench.make(checksum=checksum)
    bench.worker.start()
    bench.worker.wait_ready(WAIT_S)
    assert bench.fake.settings["checksum"] is expected
    assert bench.fake.settings["cpu"] == -1


@pytest.mark.parametrize("place", ["Worker", "setup"])
def test_a_setup_that_fails(bench: Bench, place: str) -> None:
    bench.core.faults[place] = CoreFault(errno.ENOMEM, "mmap", "area of 268435456 bytes")
    bench.worker.start()
    with pytest.raises(ResourceError, match="worker data-0: mmap for area of 268435456 bytes"):
        bench.worker.wait_ready(WAIT_S)
    assert bench.worker.join(WAIT_S)
    assert len(bench.ends) == 1


def test_a_setup_without_memory(bench: Bench) -> None:
    bench.core.faults["Worker"] = MemoryError("a worker could not be created")
    bench.worker.start()
    with pytest.raises(ResourceError, match="worker data-0 could not be made"):
        bench.worker.wait_ready(WAIT_S)


def test_a_setup_that_takes_for_ever(bench: Bench) -> None:
    with pytest.raises(SystemCallError, match=r"its setup took longer than 0\.01 s"):
        bench.worker.wait_ready(0.01)  # never started


def test_a_run_that_fails(bench: Bench) -> None:
    bench.run()
    bench.fake.end(CoreFault(errno.EBADF, "io_uring_enter", "worker's ring"))
    wait_for(lambda: not bench.worker.alive())
    assert isinstance(bench.worker.error, SystemCallError)
    assert "io_uring_enter for worker's ring failed (Bad file descriptor)" in str(
        bench.worker.error
    )
    assert len(bench.ends) == 1


def test_a_bug_is_kept(bench: Bench) -> None:
    bench.run()
    bug = AssertionError("an invariant")
    bench.fake.end(bug)
    wait_for(lambda: not bench.worker.alive())
    assert bench.worker.error is bug


def test_abandoned_before_run(bench: Bench) -> None:
    bench.worker.start()
    bench.worker.wait_ready(WAIT_S)
    bench.worker.abandon()
    assert bench.worker.join(WAIT_S)
    assert len(bench.fake.threads) == 1  # setup() only


def test_listeners(bench: Bench) -> None:
    bench.worker.start()
    bench.worker.wait_ready(WAIT_S)
    raw = ListenerSettings(address="*:0", idle_timeout_s=1.5, connections_max=100)
    ingest = ListenerSettings(
        address="*:0",
        protocol="ingest",
        hello_timeout_s=3,
        ack_interval_s=0.5,
        key_file="keys",
        allow=["192.0.2.0/24", "::1"],
        connections_per_peer_max=20,
    )
    bench.worker.add_listener(10, 0, "in", raw)
    for number in range(1, LISTENERS_MAX):
        bench.worker.add_listener(10 + number, number, "by-ingest", ingest)
    assert bench.fake.listeners[0] == (10, 0, "in", 1, 1_500_000_000, 100)
    assert bench.fake.listeners[1][3] == 2
    assert bench.fake.listener_terms[1] == {
        "hello_timeout_ns": 3_000_000_000,
        "ack_interval_ns": 500_000_000,
        "authenticates": True,
        "allow": [(4, bytes([192, 0, 2, 0]), 24), (6, bytes(15) + b"\1", 128)],
        "flows_per_peer_max": 20,
        "shared": False,
        "drops_empty": False,
    }
    with pytest.raises(ListenError, match=f'store "data" has {LISTENERS_MAX} addresses already'):
        bench.worker.add_listener(99, 99, "one-too-many", raw)


def test_changes_at_run_time(bench: Bench) -> None:
    bench.run()
    bench.worker.set_intervals(0.5, 2)
    bench.worker.set_idle_timeout(3, 60)
    wait_for(lambda: len(bench.fake.commands) == 3)
    assert bench.fake.commands == [
        ("set_flush_interval", 500_000_000),
        ("set_commit_interval", 2_000_000_000),
        ("set_idle_timeout", 3, 60_000_000_000),
    ]


def test_adoption(bench: Bench) -> None:
    assert not bench.worker.adopt(33, 1)  # nobody is there yet
    bench.run()
    assert bench.worker.adopt(33, 1)
    wait_for(lambda: bench.fake.commands == [("adopt", 33, 1, 0)])
    bench.fake.is_mailbox_full = True
    assert not bench.worker.adopt(34, 1)
    bench.fake.is_mailbox_full = False


def test_a_worker_that_takes_no_commands_is_no_error(bench: Bench) -> None:
    """The watchdog, or the deadline of the stop, sees to it."""
    bench.run()
    bench.fake.is_mailbox_full = True
    bench.worker.stop_accepting()
    bench.worker.drain(0)
    bench.worker.set_intervals(1, 1)
    bench.worker.set_idle_timeout(0, 1)
    assert bench.worker.alive()
    bench.fake.is_mailbox_full = False
    assert bench.fake.commands == []


# --- Grants -------------------------------------------------------------------------


def test_grants_in_order_until_the_store_is_full(bench: Bench) -> None:
    bench.store.segments_count = 6
    bench.run()
    assert bench.worker.grant_segments() == 4
    assert bench.worker.grant_segments() == 0
    bench.fake.want(4)
    assert bench.worker.grant_segments() == 2
    assert bench.worker.grant_segments() == 0
    bench.fake.want(1)
    assert bench.worker.grant_segments() == 0
    wait_for(lambda: len(bench.fake.commands) == 7)
    assert bench.fake.granted == [(n, (3 << 32) + n + 1) for n in range(6)]
    told = [c for c in bench.fake.commands if c[0] == "note_store_full"]
    assert len(told) == 1  # once, however often it was asked


def test_full_is_told_again_after_a_grant(bench: Bench) -> None:
    bench.store.segments_count = 1
    bench.run()
    bench.worker.grant_segments()
    bench.store.segments_count = 2  # one came free
    assert bench.worker.grant_segments() == 1
    wait_for(lambda: len(bench.fake.commands) == 4)
    full, grant = "note_store_full", "grant_segment"
    assert [command[0] for command in bench.fake.commands] == [grant, full, grant, full]


def test_no_segment_is_lost_when_the_mailbox_is_full(bench: Bench) -> None:
    bench.run()
    bench.fake.is_mailbox_full = True
    assert bench.worker.grant_segments() == 0
    assert bench.worker.grant_segments() == 0
    bench.fake.is_mailbox_full = False
    assert bench.worker.grant_segments() == 4
    wait_for(lambda: len(bench.fake.granted) == 4)
    assert [index for index, _ in bench.fake.granted] == [0, 1, 2, 3]
    assert bench.store.taken_count == 4


def test_the_pump_grants_and_passes_the_wake_on(bench: Bench) -> None:
    woken = threading.Event()
    bench.run()
    pump = Pump([bench.worker], woken.set)
    pump.start()
    try:
        wait_for(lambda: len(bench.fake.granted) == 4)
        assert not woken.is_set()  # nothing happened yet that the main thread should see
        bench.fake.want(2)
        assert woken.wait(WAIT_S)
        wait_for(lambda: len(bench.fake.granted) == 6)
        woken.clear()
        bench.fake.emit(SegmentOpened())
        assert woken.wait(WAIT_S)
    finally:
        pump.close()
    assert pump.error is None


def test_an_error_in_the_pump_is_told(bench: Bench) -> None:
    woken = threading.Event()
    bench.run()

    def broken() -> None:
        raise OSError(errno.EIO, "made up")

    bench.store.take_segment = broken
    pump = Pump([bench.worker], woken.set)
    pump.start()
    assert woken.wait(WAIT_S)
    assert isinstance(pump.error, OSError)
    pump.close()


# --- The loop's age -----------------------------------------------------------------


def test_loop_age(bench: Bench) -> None:
    assert bench.worker.loop_age_s() == 0
    bench.run()
    bench.fake.is_beating = False
    beat_ns = bench.fake.values["loop_beat_ns"]
    assert bench.worker.loop_age_s(beat_ns + 7_500_000_000) == pytest.approx(7.5)
    bench.fake.values["loop_beat_ns"] = 0  # never turned: counted from run()
    assert 0 <= bench.worker.loop_age_s() < WAIT_S
    bench.worker.abandon()
    assert bench.worker.join(WAIT_S)
    assert bench.worker.loop_age_s(beat_ns + 10**12) == 0  # it need not turn any more


# --- Faults -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "call", "error", "text"),
    [
        (errno.EMFILE, "socket", ResourceError, "raise LimitNOFILE"),
        (errno.ENOMEM, "io_uring_register_buffers", ResourceError, "LimitMEMLOCK=infinity"),
        (errno.ENOMEM, "io_uring_register_buffers", ResourceError, "`ulimit -l 2048` for 2 MiB"),
        (errno.EPERM, "io_uring_register_buffers", ResourceError, "LimitMEMLOCK=infinity"),
        (errno.E2BIG, "io_uring_register_buffers", ConfigError, "at most 1 GiB"),
        (errno.EFAULT, "io_uring_register_buffers", ResourceError, "vm.nr_hugepages"),
        (errno.ENOMEM, "io_uring_setup", ResourceError, "ulimit -l"),
        (errno.ENOSYS, "io_uring_setup", EngineError, "use Linux 6.1 or newer"),
        (errno.EINVAL, "io_uring_setup", EngineError, "use Linux 6.1 or newer"),
        (errno.EINVAL, "area", ConfigError, "area larger, or write_bytes_max"),
        (errno.E2BIG, "mmap", ConfigError, "must fit 1 GiB"),
        (errno.ENOMEM, "calloc", ResourceError, "flows_max smaller"),
        (errno.EINVAL, "sched_setaffinity", ConfigError, "store's cpus"),
        (errno.EIO, "fsync", SystemCallError, "dmesg"),
        (errno.EPERM, "io_uring_register_ifq", EngineError, "CAP_NET_ADMIN"),
        (errno.EINVAL, "io_uring_register_ifq", EngineError, "ingestd nic apply eth7"),
        (errno.ENODEV, "io_uring_register_ifq", EngineError, "ip -br link"),
        (errno.EOPNOTSUPP, "io_uring_register_ifq", EngineError, "ethtool -i eth7"),
        (errno.EEXIST, "io_uring_register_ifq", ResourceError, "still holds the queue"),
        (errno.EBUSY, "io_uring_register_ifq", ResourceError, "engine.queue_retry_s"),
        (errno.ERANGE, "io_uring_register_ifq", EngineError, "ethtool -l eth7"),
        (errno.ENOMEM, "io_uring_register_ifq", ResourceError, "LimitMEMLOCK"),
    ],
)
def test_faults_have_a_class_and_a_remedy(
    code: int, call: str, error: type[IngestdError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)  # who gets a remedy that only root has
    monkeypatch.setattr("ingestd.daemon.machine.limits.locked_memory_limit", lambda: None)
    made = fault_to_error(CoreFault(code, call, "this object"), "worker data-0", 2 * MIB, "eth7")
    assert type(made) is error
    assert str(made).startswith(
        f"worker data-0: {call} for this object failed ({os.strerror(code)}): "
    )
    assert text in str(made)
    assert "\n" not in str(made)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2\n", "kernel.io_uring_disabled is 2: set it to 0"),
        ("1\n", "kernel.io_uring_group"),
        ("0\n", "seccomp profile"),
        (None, "seccomp profile"),
    ],
)
def test_io_uring_forbidden(
    value: str | None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysctl = tmp_path / "io_uring_disabled"
    if value is not None:
        sysctl.write_text(value)
    monkeypatch.setattr(faults, "IO_URING_DISABLED_PATH", sysctl)
    made = fault_to_error(CoreFault(errno.EPERM, "io_uring_setup", "ring"), "worker data-0")
    assert isinstance(made, EngineError)
    assert text in str(made)


def test_features_that_cannot_be_asked_for() -> None:
    core = FakeCore()
    core.faults["kernel_features"] = CoreFault(errno.ENOSYS, "io_uring_setup", "ring")
    with pytest.raises(EngineError, match="Linux 6.1"):
        worker.kernel_features(core)

# SPDX-License-Identifier: Apache-2.0
"""A device that hangs or crawls: senders are held back, memory does not grow, nothing is lost.

The store is a file on a file system that is frozen (fsfreeze) and thawed again:
every write to it waits, as on a disk that resets itself. The crawling device is
a block device under a limit of the kernel's I/O controller, where there is one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingestd.errors import SystemCallError
from support.daemon import Daemon, format_store, run_ingestd
from support.loop import frozen, loop_device, make_ext4, mounted, throttled
from support.observe import (
    RSS_BEYOND_AREA_MAX,
    assert_adds_up,
    assert_clean,
    assert_stored,
    list_flows,
    rss_bytes_max,
    scrape,
    wait_until,
)
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send_all
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
AREA_BYTES = 16 * MIB
FLOW_BYTES = 12 * MIB
FLOWS_COUNT = 8
DRAIN_S = 2.0
CRAWL_BYTES_PER_S = 8 * MIB


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """The directory of a file system that can be frozen."""
    with loop_device(tmp_path / "fs.img", 300 * MIB) as device:
        make_ext4(device)
        with mounted(device, tmp_path / "mnt") as directory:
            yield directory


def _start(start_daemon: StartDaemon, store: Path, directory: Path) -> Daemon:
    config = write_config(
        directory / "c.toml",
        store={"default": {"area": AREA_BYTES, "write_bytes_max": MIB // 4}},
        daemon={"drain_timeout_s": DRAIN_S},
    )
    return start_daemon(store, config=config, log=directory / "daemon.log")


class _Senders:
    """Flows that are sent at once, beside the test."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.payloads = [Payload(seed + number, FLOW_BYTES) for number in range(FLOWS_COUNT)]
        self.sent: list[Sent] = []
        self._thread = threading.Thread(target=self._run, args=(daemon,), daemon=True)
        self._thread.start()

    def _run(self, daemon: Daemon) -> None:
        self.sent = send_all(daemon.address, self.payloads, ["socket"] * FLOWS_COUNT)

    def finish(self) -> list[Sent]:
        """Wait for all receipts."""
        self._thread.join(WAIT_S)
        assert len(self.sent) == FLOWS_COUNT, "a sender failed or never got its receipt"
        return self.sent


def _held_s(daemon: Daemon) -> float:
    return scrape(daemon).total("ingestd_backpressure_seconds_total")


def _received(daemon: Daemon) -> float:
    return scrape(daemon).total("ingestd_received_bytes_total")


def _settled(daemon: Daemon) -> float:
    """The bytes received, once they stay the same for a while."""
    seen = [-1.0]

    def stays() -> bool:
        time.sleep(0.5)
        seen.append(_received(daemon))
        return seen[-1] == seen[-2]

    wait_until(stays, "no more is received")
    return seen[-1]


@pytest.mark.fault("device")
@pytest.mark.needs_root
def test_device_that_hangs(
    hanging: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    store = format_store(hanging / "store.img", size="200MiB")
    daemon = _start(start_daemon, store, tmp_path)
    with frozen(hanging):
        senders = _Senders(daemon, seed)
        wait_until(lambda: _held_s(daemon) > 0.5, "senders are held back")
        stuck = _settled(daemon)
        # The area is full, and more is not taken: what is left waits with the senders.
        assert AREA_BYTES / 4 <= stuck <= AREA_BYTES
        before_s = _held_s(daemon)
        wait_until(lambda: _held_s(daemon) >= before_s + 0.5, "the time is counted")
        assert _received(daemon) == stuck
        shot = scrape(daemon)
        assert shot.total("ingestd_durable_bytes_total") == 0
        assert shot.total("ingestd_flows_waiting") > 0
        assert daemon.events("backpressure_started")
        assert not senders.sent
    sent = senders.finish()
    for flow in sent:
        assert_sealed(flow)
    assert rss_bytes_max(daemon) <= AREA_BYTES + RSS_BEYOND_AREA_MAX
    assert wait_until(lambda: daemon.events("backpressure_ended"), "the log tells")
    assert_stored(store, sent)
    assert_adds_up(daemon, FLOWS_COUNT * FLOW_BYTES)
    assert daemon.stop() == 0
    assert_clean(store)


@pytest.mark.fault("device")
@pytest.mark.needs_root
def test_nothing_is_acknowledged_while_the_device_hangs(
    hanging: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    store = format_store(hanging / "store.img", size="64MiB")
    daemon = _start(start_daemon, store, tmp_path)
    sender = SocketSender(daemon.address)
    with frozen(hanging):
        sender.write(b"a few bytes")
        sender.sock.shutdown(1)
        sender.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            sender.sock.recv(1)
        wait_until(
            lambda: scrape(daemon).total("ingestd_connections", state="closing") == 1,
            "its end is seen",
        )
    sender.sock.settimeout(WAIT_S)
    assert sender.answer()["bytes"] == 11


@pytest.mark.fault("device")
@pytest.mark.needs_root
def test_sigterm_while_the_device_hangs(
    hanging: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """It does not wait for ever: an error, its exit code, and nothing acknowledged."""
    store = format_store(hanging / "store.img", size="64MiB")
    daemon = _start(start_daemon, store, tmp_path)
    sender = SocketSender(daemon.address)
    with frozen(hanging):
        sender.write(b"x" * MIB)
        wait_until(lambda: _received(daemon) == MIB, "it is received")
        begun_s = time.monotonic()
        daemon.process.terminate()
        (event,) = wait_until(lambda: daemon.events("worker_failed"), "the log tells")
        assert "drain_timeout_s" in event["error"]
        assert time.monotonic() - begun_s >= DRAIN_S * 0.9
    assert daemon.process.wait(WAIT_S) == SystemCallError.exit_code
    daemon.start()
    assert all(entry["state"] == "interrupted" for entry in list_flows(store))
    assert daemon.stop() == 0
    run_ingestd("verify", store)


@pytest.mark.fault("device")
@pytest.mark.needs_root
def test_device_that_crawls(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    with loop_device(tmp_path / "disk.img", 256 * MIB) as device:
        run_ingestd("format", device)
        daemon = _start(start_daemon, device, tmp_path)
        with throttled(device, daemon.process.pid, CRAWL_BYTES_PER_S):
            senders = _Senders(daemon, seed)
            wait_until(lambda: _held_s(daemon) > 1.0, "senders are held back")
            begun_s, before = time.monotonic(), _received(daemon)
            time.sleep(1.0)
            wait_until(lambda: _received(daemon) > before, "it goes on")
            # As fast as the device and no faster.
            more = _received(daemon) - before
            assert more <= 4 * CRAWL_BYTES_PER_S * (time.monotonic() - begun_s)
        sent = senders.finish()
        for flow in sent:
            assert_sealed(flow)
        assert rss_bytes_max(daemon) <= AREA_BYTES + RSS_BEYOND_AREA_MAX
        assert_stored(device, sent)
        assert daemon.stop() == 0
        assert_clean(device)

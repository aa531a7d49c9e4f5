# SPDX-License-Identifier: Apache-2.0
"""Who is idle: a sender that sends nothing, and nobody whose bytes wait for us.

Invariant: the time for which the daemon stood still, its receives gathered bytes, or the device
took none is not the sender's silence.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from support.daemon import Daemon, format_store
from support.loop import cannot, loop_device, run
from support.observe import assert_clean, assert_stored
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
IDLE_S: Final = 1.0


def _start(
    start_daemon: StartDaemon, store: Path, directory: Path, **store_settings: Any
) -> Daemon:
    config = write_config(
        directory / "c.toml",
        store={"default": store_settings},
        listener={"default": {"idle_timeout_s": IDLE_S}},
    )
    return start_daemon(store, config=config, log=directory / "daemon.log")


@contextmanager
def _stopped(daemon: Daemon) -> Iterator[None]:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def _is_told_nothing(sender: SocketSender, seconds: float) -> bool:
    sender.sock.settimeout(seconds)
    try:
        return sender.sock.recv(1, socket.MSG_PEEK) == b"nothing"
    except TimeoutError:
        return True
    finally:
        sender.sock.settimeout(60)


@pytest.mark.fault("silence")
def test_a_daemon_that_is_stopped_calls_nobody_idle(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """One that sent meanwhile, one that had sent before, one that had not sent yet."""
    daemon = _start(start_daemon, store_path, tmp_path)
    payloads = [Payload(seed + number, 50_000) for number in range(3)]
    senders = [SocketSender(daemon.address) for _ in payloads]
    senders[0].write(payloads[0].data()[:100])
    senders[1].write(payloads[1].data())
    with _stopped(daemon):
        time.sleep(IDLE_S / 2)
        senders[0].write(payloads[0].data()[100:])
        time.sleep(2 * IDLE_S)
    assert all(_is_told_nothing(sender, IDLE_S / 8) for sender in senders)
    senders[2].write(payloads[2].data())
    sent = [Sent(p, s.finish()) for p, s in zip(payloads, senders, strict=True)]
    for one in sent:
        assert_sealed(one)
    assert_stored(store_path, sent)


@pytest.mark.fault("silence")
def test_receives_that_gather_for_longer_than_the_idle_time(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """A flow that fills slots is received a slot at a time; then it gets slow, and sends on."""
    daemon = _start(start_daemon, store_path, tmp_path, flush_interval_s=20 * IDLE_S)
    payload = Payload(seed, 16 * MIB)
    data = payload.data()
    slow_from = 16 * MIB - 3 * 20_000
    sender = SocketSender(daemon.address)
    sender.write(data[:slow_from])
    for at in range(slow_from, payload.size, 2000):
        sender.write(data[at : at + 2000])
        time.sleep(IDLE_S / 10)
    sent = Sent(payload, sender.finish())
    assert_sealed(sent)
    assert_stored(store_path, [sent])


def test_who_falls_silent_while_a_receive_gathers_is_idle(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    daemon = _start(start_daemon, store_path, tmp_path, flush_interval_s=20 * IDLE_S)
    payload = Payload(seed, 5 * MIB + 12_345)
    sender = SocketSender(daemon.address)
    sender.write(payload.data())
    receipt = sender.answer()
    assert receipt["error"] == "idle_timeout"
    assert receipt["bytes"] == payload.size


@contextmanager
def _frozen(directory: Path) -> Iterator[None]:
    """No write to the file system comes back meanwhile."""
    run("fsfreeze", "--freeze", directory)
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", directory)


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be frozen."""
    directory = tmp_path / "mounted"
    directory.mkdir()
    with loop_device(tmp_path / "disk.img", 256 * MIB) as device:
        if subprocess.run(["which", "mkfs.ext4"], capture_output=True, check=False).returncode:
            cannot("mkfs.ext4 is missing: apt-get install e2fsprogs")
        run("mkfs.ext4", "-q", device)
        run("mount", device, directory)
        try:
            yield directory
        finally:
            run("umount", directory)


@pytest.mark.fault("silence")
@pytest.mark.needs_root
def test_bytes_that_wait_for_the_device_are_no_silence(
    file_system: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """A store whose file system is frozen: one flow fills all memory, one has sent a little."""
    store = format_store(file_system / "s.img", size="128MiB")
    daemon = _start(start_daemon, store, tmp_path, area="8MiB", write_bytes_max="256KiB")
    payloads = [Payload(seed, 48 * MIB), Payload(seed + 1, 1000)]
    senders = [SocketSender(daemon.address) for _ in payloads]
    with _frozen(file_system):
        threads = [
            threading.Thread(target=sender.write, args=(payload.data(),), daemon=True)
            for sender, payload in zip(senders, payloads, strict=True)
        ]
        for thread in threads:
            thread.start()
        time.sleep(3 * IDLE_S)
    for thread in threads:
        thread.join(60)
    sent = [Sent(p, s.finish()) for p, s in zip(payloads, senders, strict=True)]
    for one in sent:
        assert_sealed(one)
    assert daemon.events("flow_interrupted") == []
    assert daemon.stop() == 0
    assert_clean(store)
    assert_stored(store, sent)

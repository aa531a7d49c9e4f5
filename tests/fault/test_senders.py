# SPDX-License-Identifier: Apache-2.0
"""Senders that die, say nothing, never end, or come while nobody can take them."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon
from support.observe import (
    assert_adds_up,
    assert_clean,
    assert_stored,
    cat,
    cat_sha256,
    flow_of,
    flows_by_peer,
    image_sha256,
    list_flows,
    scrape,
    wait_until,
)
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import SocketSender, assert_sealed, send
from support.stores import MIB, StoreMaker, write_config

StartDaemon = Callable[..., Daemon]


def _start(start_daemon: StartDaemon, store: Path, directory: Path, **listener: object) -> Daemon:
    """A daemon with settings for its listener, whose address comes from the command line."""
    config = write_config(directory / "ingestd.toml", listener={"default": listener})
    return start_daemon(store, config=config, log=directory / "daemon.log")


def _state(store: Path, peer: str) -> str | None:
    entry = flows_by_peer(store).get(peer)
    return None if entry is None else str(entry["state"])


def _wait_durable(daemon: Daemon, peer: str, count: int) -> None:
    def is_durable() -> bool:
        entry = flows_by_peer(daemon.store).get(peer)
        return entry is not None and entry["durable_bytes"] == count

    wait_until(is_durable, f"{count} bytes of {peer} are durable")


def test_reset_in_mid_flow(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """The flow is interrupted, and all that had come is there."""
    store = make_store(64 * MIB)
    daemon = start_daemon(store, log=tmp_path / "daemon.log")
    payload = Payload(seed, 3 * MIB + 77)
    sender = SocketSender(daemon.address)
    peer = sender.peer
    for chunk in payload.chunks():
        sender.write(chunk)
    _wait_durable(daemon, peer, payload.size)
    assert _state(store, peer) == "open"
    sender.reset()
    wait_until(lambda: _state(store, peer) == "interrupted", "the flow is interrupted")
    entry = flows_by_peer(store)[peer]
    assert entry["bytes"] == entry["durable_bytes"] == payload.size
    assert entry["ended"]
    assert cat_sha256(store, entry["flow"]) == payload.sha256()
    (event,) = wait_until(lambda: daemon.events("flow_interrupted"), "the log tells")
    assert event["flow"] == entry["flow"]
    assert event["reason"] == "connection_lost"
    assert event["durable_bytes"] == payload.size
    assert_adds_up(daemon, payload.size)
    assert scrape(daemon).total("ingestd_flows_total", outcome="interrupted") == 1
    assert daemon.stop() == 0
    assert_clean(store)


def test_reset_right_behind_the_data(
    store_path: Path, start_daemon: StartDaemon, seed: int
) -> None:
    """However the reset meets the receive, it is never taken for the end of the flow."""
    daemon = start_daemon(store_path)
    payloads = {}
    choose = random.Random(seed)
    for number in range(60):
        payload = Payload(seed + number, choose.choice([1, 5000, 65536, MIB // 2]))
        sender = SocketSender(daemon.address)
        payloads[sender.peer] = payload
        sender.write(payload.data())
        sender.reset()

    def have_ended() -> bool:
        shot = scrape(daemon)
        return all(
            shot.total("ingestd_connections", state=state) == 0 for state in ("open", "closing")
        )

    wait_until(have_ended, "all flows have ended")
    assert daemon.stop() == 0
    listed = list_flows(store_path)
    hashes = image_sha256(store_path, [entry["flow"] for entry in listed])
    for entry in listed:
        assert entry["state"] == "interrupted", entry
        assert hashes[entry["flow"]] == payloads[entry["peer"]].sha256(entry["bytes"]), entry


@pytest.mark.parametrize("kind", ["nc", "socat"])
def test_sender_program_killed_in_mid_flow(daemon: Daemon, seed: int, kind: str) -> None:
    """With bytes under way: what is kept is the beginning of what was sent.

    The kernel of a killed sender half-closes for it unless something unread is
    left, so the daemon may take what came for all of it: sealed or interrupted,
    the bytes are right.
    """
    payload = Payload(seed, 8 * MIB)
    command = {
        "nc": ["nc", "-N", daemon.host, str(daemon.port)],
        "socat": ["socat", "-", f"TCP4:{daemon.host}:{daemon.port}"],
    }[kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(payload.data())
        process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()

    def ended() -> list[dict[str, object]]:
        return [entry for entry in list_flows(daemon.store) if entry["state"] != "open"]

    (entry,) = wait_until(ended, "the flow has ended")
    assert 0 < int(entry["bytes"]) <= payload.size
    assert cat_sha256(daemon.store, entry["flow"]) == payload.sha256(int(entry["bytes"]))


def test_sender_that_connects_and_sends_nothing(daemon: Daemon, seed: int) -> None:
    """It holds nobody back, and leaves nothing in the store when it goes."""
    silent = [SocketSender(daemon.address) for _ in range(20)]
    sent = send(daemon.address, Payload(seed, 200_000))
    assert_sealed(sent)
    assert [entry["flow"] for entry in list_flows(daemon.store)] == [sent.flow]
    wait_until(
        lambda: scrape(daemon).total("ingestd_connections", state="open") == len(silent),
        "the silent ones are counted",
    )
    for sender in silent:
        sender.reset()
    wait_until(
        lambda: scrape(daemon).total("ingestd_connections", state="open") == 0, "all are gone again"
    )
    assert len(list_flows(daemon.store)) == 1
    assert scrape(daemon).total("ingestd_flows_total", outcome="interrupted") == 0


def test_silent_sender_is_refused_after_the_idle_time(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = _start(start_daemon, store_path, tmp_path, idle_timeout_s=0.3)
    receipt = SocketSender(daemon.address).answer()
    assert receipt["error"] == "idle_timeout"
    assert receipt["state"] == "refused"
    assert receipt["flow"] is None
    assert receipt["bytes"] == 0
    assert receipt["durable"] is False
    assert list_flows(store_path) == []
    assert wait_until(lambda: daemon.events("flow_refused"), "the log tells")


def test_sender_that_never_half_closes(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """After the idle time it gets its durable offset; others do not notice."""
    daemon = _start(start_daemon, store_path, tmp_path, idle_timeout_s=3.0)
    payload = Payload(seed, 123_457)
    sender = SocketSender(daemon.address)
    sender.write(payload.data())
    quick = send(daemon.address, Payload(seed + 1, 10))
    assert_sealed(quick)
    receipt = sender.answer()
    assert receipt["error"] == "idle_timeout"
    assert receipt["state"] == "interrupted"
    assert receipt["bytes"] == payload.size
    assert receipt["durable"] is True
    entry = flow_of(store_path, receipt["flow"])
    assert entry["state"] == "interrupted"
    assert entry["durable_bytes"] == payload.size
    assert cat(store_path, receipt["flow"]) == payload.data()
    (event,) = wait_until(lambda: daemon.events("flow_interrupted"), "the log tells")
    assert event["reason"] == "idle_timeout"
    assert_stored(store_path, [quick])


def test_slow_sender_is_not_idle(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """A byte now and then is enough, for longer than the idle time."""
    daemon = _start(start_daemon, store_path, tmp_path, idle_timeout_s=4.0)
    payload = Payload(seed, 12)
    sender = SocketSender(daemon.address)
    for byte in payload.data():
        sender.write(bytes([byte]))
        sender.sock.settimeout(0.4)
        with pytest.raises(TimeoutError):
            sender.sock.recv(1)
    sender.sock.settimeout(WAIT_S)
    assert sender.finish()["state"] == "sealed"


def test_idle_time_of_zero_is_never(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = _start(start_daemon, store_path, tmp_path, idle_timeout_s=0)
    sender = SocketSender(daemon.address)
    sender.sock.settimeout(2.0)
    with pytest.raises(TimeoutError):
        sender.sock.recv(1)
    sender.close()


def test_sender_that_does_not_read_its_receipt(daemon: Daemon, seed: int) -> None:
    """The flow is sealed all the same, and the connection goes."""
    payload = Payload(seed, 100_000)
    sender = SocketSender(daemon.address)
    peer = sender.peer
    sender.write(payload.data())
    sender.close()  # a FIN: the receipt meets a closed socket
    wait_until(lambda: _state(daemon.store, peer) == "sealed", "the flow is sealed")
    wait_until(
        lambda: scrape(daemon).total("ingestd_connections", state="closing") == 0, "nothing is left"
    )
    assert_adds_up(daemon, payload.size)


def test_sender_that_goes_on_after_the_idle_time(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """What comes after the answer is not taken, and the answer still arrives."""
    daemon = _start(start_daemon, store_path, tmp_path, idle_timeout_s=3.0)
    sender = SocketSender(daemon.address)
    sender.write(b"a" * 1000)
    wait_until(lambda: daemon.events("flow_interrupted"), "the flow is interrupted")
    sender.write(b"b" * 1000)
    receipt = sender.answer()
    assert receipt["error"] == "idle_timeout"
    assert receipt["bytes"] == 1000
    assert flow_of(store_path, receipt["flow"])["bytes"] == 1000


def test_more_connections_than_the_listener_takes(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """connections_max lets others wait to be accepted; none of them is lost half-way."""
    daemon = _start(start_daemon, store_path, tmp_path, connections_max=4)
    first = [SocketSender(daemon.address) for _ in range(4)]
    wait_until(
        lambda: scrape(daemon).total("ingestd_connections", state="open") == 4,
        "four flows are open",
    )
    fifth = SocketSender(daemon.address)
    fifth.write(b"x")
    fifth.sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        fifth.sock.recv(1)
    assert scrape(daemon).total("ingestd_connections", state="open") == 4
    assert scrape(daemon).total("ingestd_flows_total", outcome="opened") == 4
    first[0].reset()
    fifth.sock.settimeout(WAIT_S)
    assert fifth.finish()["bytes"] == 1
    assert daemon.process.poll() is None

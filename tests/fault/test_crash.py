# SPDX-License-Identifier: Apache-2.0
"""kill -9 in the middle of flows, SIGTERM in the middle of flows, restart after restart."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store
from support.observe import (
    assert_claims,
    assert_clean,
    assert_stored,
    flows_by_peer,
    image_sha256,
    list_flows,
    scrape,
    wait_until,
)
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import Receipt, Sent, SocketSender, assert_sealed, send
from support.stores import MIB, StoreMaker, write_config

StartDaemon = Callable[..., Daemon]
PIECE_BYTES = 64 * 1024
DRAIN_S = 3.0
# What ends by itself lasts longer on a busy machine; what would wait for ever is still seen.
DRAIN_LATE_S = 60.0
CRASHES = 2


@dataclass
class Load:
    """Threads that send flow after flow until the daemon goes away or they are to end."""

    daemon: Daemon
    seed: int
    size_max: int
    bytes_max: int | None = None  # a fast disk must not fill the store, which is another story
    begun_bytes: int = 0
    sealed: list[Sent] = field(default_factory=list)
    lost: dict[str, Payload] = field(default_factory=dict)  # by peer: no answer came
    told: list[tuple[Payload, Receipt]] = field(default_factory=list)  # another answer came
    ending: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_sealed(self, count: int) -> None:
        """Wait until so many flows are sealed; more will be by then."""
        wait_until(lambda: len(self.sealed) >= count, f"{count} flows are sealed")

    def _may_begin(self, size: int) -> bool:
        with self._lock:
            self.begun_bytes += size
            return self.bytes_max is None or self.begun_bytes <= self.bytes_max

    def run(self, number: int) -> None:
        """One thread's work."""
        choose = random.Random(self.seed * 1000 + number)
        while not self.ending.is_set():
            payload = Payload(choose.getrandbits(63), choose.randint(0, self.size_max))
            if not self._may_begin(payload.size):
                return
            try:
                sender = SocketSender(self.daemon.address)
            except OSError:
                return
            self.lost[sender.peer] = payload
            peer = sender.peer
            receipt = _send_all(sender, payload)
            if receipt is None:
                return
            del self.lost[peer]
            if receipt["state"] != "sealed":
                self.told.append((payload, receipt))
                return
            self.sealed.append(Sent(payload, receipt))


def _send_all(sender: SocketSender, payload: Payload) -> Receipt | None:
    """Send a flow to its end; None: the connection went without an answer."""
    end = sender.finish
    try:
        for chunk in payload.chunks(PIECE_BYTES):
            sender.write(chunk)
    except OSError:
        end = sender.answer  # which, if there is one, still waits to be read; nothing to half-close
    try:
        return end()
    except (OSError, AssertionError):
        sender.close()
        return None


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_kill_9_in_the_middle_of_flows(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    """Again and again on one store: acknowledged flows stay whole, others are true beginnings."""
    store = make_store(256 * MIB, "--segment-size", "2MiB")
    workers = 2 if make_store.is_device else 1
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"checksum": checksum, "area": "16MiB", "workers": workers}},
    )
    daemon = start_daemon(store, config=config, log=tmp_path / "daemon.log")
    sealed: list[Sent] = []
    lost: dict[str, Payload] = {}
    choose = random.Random(seed)
    for cycle in range(CRASHES):
        load = Load(daemon, seed + cycle, MIB // 4)
        enough = choose.randint(20, 120)
        with ThreadPoolExecutor(16) as pool:
            running = [pool.submit(load.run, number) for number in range(16)]
            load.wait_sealed(enough)
            daemon.kill()
            load.ending.set()
        for result in running:
            result.result()
        assert load.told == []
        sealed += load.sealed
        lost |= load.lost
        daemon.start()
        (opened,) = daemon.events("recovered")[cycle + 1 :]
        assert opened["flows"] == len(list_flows(store))
        _check_after_crash(store, sealed, load.lost)
    assert daemon.stop() == 0
    _check_after_crash(store, sealed, lost)
    assert_clean(store)


def _check_after_crash(store: Path, sealed: list[Sent], lost: dict[str, Payload]) -> None:
    """Nobody saw an answer for the lost ones: sealed and whole, or a beginning, or not there."""
    assert_stored(store, sealed, cat_count=1)
    listed = flows_by_peer(store)
    known = {sent.flow for sent in sealed}
    found = {
        listed[peer]["flow"]: (listed[peer], payload)
        for peer, payload in lost.items()
        if peer in listed and listed[peer]["flow"] not in known
    }
    hashes = image_sha256(store, found)
    for flow, (entry, payload) in found.items():
        assert entry["state"] in ("sealed", "interrupted"), entry
        if entry["state"] == "sealed":
            assert entry["bytes"] == payload.size, entry
        assert entry["bytes"] <= payload.size, entry
        assert hashes[flow] == payload.sha256(entry["bytes"]), entry


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_sigterm_in_the_middle_of_64_flows(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    """Every sender has an answer, and every answer is true; a second one ends the rest."""
    store = make_store(256 * MIB)
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"checksum": checksum, "area": "32MiB"}},
        daemon={"drain_timeout_s": 10 * WAIT_S},
    )
    daemon = start_daemon(store, config=config, log=tmp_path / "daemon.log")
    payloads = [Payload(seed + number, MIB + number) for number in range(64)]
    senders = [SocketSender(daemon.address) for _ in payloads]
    for payload, sender in zip(payloads, senders, strict=True):
        sender.write(payload.data()[: MIB // 2])
    halves = len(payloads) * MIB // 2
    wait_until(
        lambda: scrape(daemon).total("ingestd_received_bytes_total") == halves, "halves are taken"
    )
    daemon.process.terminate()
    wait_until(lambda: daemon.events("draining"), "the drain has begun")
    answers = []
    # Half of them end their flows while there is time, the others never do.
    for payload, sender in list(zip(payloads, senders, strict=True))[::2]:
        sender.write(payload.data()[MIB // 2 :])
        answers.append((payload, sender.finish()))
    assert daemon.process.poll() is None
    daemon.process.terminate()
    for payload, sender in list(zip(payloads, senders, strict=True))[1::2]:
        answers.append((payload, sender.answer()))
    assert daemon.process.wait(WAIT_S) == 0
    sealed = [Sent(payload, receipt) for payload, receipt in answers[:32]]
    for sent in sealed:
        assert_sealed(sent, has_checksum=checksum == "crc32c")
    for _, receipt in answers[32:]:
        assert receipt["error"] == "shutdown", receipt
        assert receipt["bytes"] == MIB // 2, receipt
        assert receipt["durable"] is True, receipt
    assert_stored(store, sealed)
    assert_claims(store, answers)
    assert {entry["state"] for entry in list_flows(store)} == {"sealed", "interrupted"}
    assert_clean(store)


def test_sigterm_under_full_load(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """64 senders that never pause: what was reported to them holds, nothing more is promised."""
    store = make_store(512 * MIB)
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"area": "16MiB"}},
        daemon={"drain_timeout_s": DRAIN_S},
    )
    daemon = start_daemon(store, config=config, log=tmp_path / "daemon.log")
    load = Load(daemon, seed, MIB, bytes_max=384 * MIB)
    with ThreadPoolExecutor(64) as pool:
        running = [pool.submit(load.run, number) for number in range(64)]
        load.wait_sealed(40)
        assert daemon.stop(DRAIN_S + DRAIN_LATE_S) == 0
        load.ending.set()
    for result in running:
        result.result()
    for sent in load.sealed:
        assert_sealed(sent)
    assert_stored(store, load.sealed)
    assert_claims(store, load.told)
    assert all(receipt["error"] == "shutdown" for _, receipt in load.told), load.told
    # Connections that were still in the listener's backlog may have been reset; no flow was. A port
    # may be an earlier connection's again, whose flow is known by its receipt.
    known = {sent.flow for sent in load.sealed} | {receipt["flow"] for _, receipt in load.told}
    unknown = [entry for entry in list_flows(store) if entry["flow"] not in known]
    assert [entry for entry in unknown if entry["peer"] in load.lost] == []
    assert_clean(store)


def test_second_sigterm_ends_the_drain(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Without it the open flow would be waited for."""
    config = write_config(tmp_path / "c.toml", daemon={"drain_timeout_s": 10 * WAIT_S})
    daemon = start_daemon(store_path, config=config)
    sender = SocketSender(daemon.address)
    sender.write(b"x" * 5000)
    wait_until(lambda: list_flows(store_path), "the flow is there")
    daemon.process.terminate()
    wait_until(lambda: daemon.events("draining"), "the drain has begun")
    assert daemon.stop() == 0
    receipt = sender.answer()
    assert receipt["error"] == "shutdown"
    assert receipt["bytes"] == 5000


def test_twenty_restarts(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """SIGTERM and kill -9 in turn; at the end everything ever acknowledged is there."""
    store_path = format_store(tmp_path / "s.img", "--segment-size", "1MiB")
    config = write_config(
        tmp_path / "c.toml", store={"default": {"area": "8MiB", "write_bytes_max": "64KiB"}}
    )
    daemon = start_daemon(store_path, config=config)
    sent: list[Sent] = []
    for cycle in range(20):
        sent.append(send(daemon.address, Payload(seed + cycle, 10_000 + cycle)))
        assert_sealed(sent[-1])
        if cycle % 2:
            daemon.kill()
        else:
            assert daemon.stop() == 0
        daemon.start()
        assert len(list_flows(store_path)) == len(sent)
    assert daemon.stop() == 0
    assert_stored(store_path, sent)
    assert_clean(store_path)

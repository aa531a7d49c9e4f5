# SPDX-License-Identifier: Apache-2.0
"""Senders of every kind at once, under settings drawn from a seed, ended by SIGTERM or kill -9.

Invariants that hold for any seed: a sealed receipt is a whole flow, any other
answer a true beginning; a flow that was reset is not sealed; nothing is in the
store that was not sent; the store is clean afterwards.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Daemon
from support.observe import (
    RSS_BEYOND_AREA_MAX,
    assert_claims,
    assert_clean,
    assert_stored,
    image_sha256,
    list_flows,
    rss_bytes_max,
)
from support.payload import Payload
from support.senders import Receipt, Sent, SocketSender
from support.stores import MIB, StoreMaker, write_config

StartDaemon = Callable[..., Daemon]
THREADS_COUNT = 24
FLOWS_PER_THREAD = 6
FLOW_BYTES_MAX = MIB
IDLE_TIMEOUT_S = 0.5
ENDS = ("finish", "finish", "finish", "reset", "close", "idle", "silent")


def _settings(choose: random.Random) -> dict[str, Any]:
    """Anything that the configuration allows and 2 CPUs and a small store can bear."""
    write_bytes_max = choose.choice([64 * 1024, 256 * 1024, MIB])
    return {
        "checksum": choose.choice(["crc32c", "none"]),
        "write_bytes_max": write_bytes_max,
        "area": max(MIB, write_bytes_max * choose.choice([4, 8, 16])),
        "writes_in_flight_max": choose.choice([1, 2, 16]),
        "workers": choose.choice([1, 2]),
        "flush_interval_s": choose.choice([0.001, 0.05, 0.3]),
        "commit_interval_s": choose.choice([0.001, 0.2, 1.0]),
    }


@dataclass
class _Outcome:
    """What became of the flows, as their senders saw it."""

    answered: list[tuple[Payload, Receipt]] = field(default_factory=list)
    reset: dict[str, Payload] = field(default_factory=dict)  # by peer
    unanswered: dict[str, Payload] = field(default_factory=dict)
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self, daemon: Daemon, choose: random.Random) -> None:
        """Send flows until they are all sent or the daemon is gone."""
        for _ in range(FLOWS_PER_THREAD):
            size = choose.choice([0, 1, choose.randrange(5000), choose.randrange(FLOW_BYTES_MAX)])
            payload = Payload(choose.getrandbits(63), size)
            try:
                sender = SocketSender(daemon.address)
                self._send(sender, payload, choose)
            except OSError:
                assert self.ending.is_set(), "the daemon is gone"
                return

    def _send(self, sender: SocketSender, payload: Payload, choose: random.Random) -> None:
        peer, end = sender.peer, choose.choice(ENDS)
        data = b"" if end == "silent" else payload.data()
        self.unanswered[peer] = payload
        piece_bytes = choose.choice([100 * 1024, FLOW_BYTES_MAX])
        for at in range(0, len(data), piece_bytes):
            sender.write(data[at : at + piece_bytes])
            self.ending.wait(choose.choice([0, 0, 0.01]))
        if end == "reset":
            self.reset[peer] = self.unanswered.pop(peer)
            sender.reset()
        elif end == "close":
            sender.close()
        else:
            if end == "finish":
                sender.sock.shutdown(socket.SHUT_WR)
            try:
                receipt = sender.answer()
            except (OSError, AssertionError):
                assert self.ending.is_set(), f"no answer to {end}"
                return
            del self.unanswered[peer]
            self.answered.append((payload, receipt))


@pytest.mark.parametrize("ending", ["sigterm", "kill"])
def test_mixture(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, ending: str
) -> None:
    choose = random.Random(seed)
    segment_bytes = choose.choice([1, 2, 8]) * MIB
    settings = _settings(choose)
    print(segment_bytes, settings)
    store = make_store(320 * MIB, "--segment-size", str(segment_bytes))
    config = write_config(
        tmp_path / "c.toml",
        store={"default": settings},
        listener={"default": {"idle_timeout_s": IDLE_TIMEOUT_S}},
        daemon={"drain_timeout_s": 2},
    )
    daemon = start_daemon(store, config=config, log=tmp_path / "daemon.log")
    outcome = _Outcome()
    with ThreadPoolExecutor(THREADS_COUNT) as pool:
        running = [
            pool.submit(outcome.run, daemon, random.Random(choose.getrandbits(64)))
            for _ in range(THREADS_COUNT)
        ]
        outcome.ending.wait(choose.uniform(0.5, 2.5))
        outcome.ending.set()
        memory_bytes = rss_bytes_max(daemon)
        if ending == "kill":
            daemon.kill()
        else:
            assert daemon.stop() == 0
    for result in running:
        result.result()
    assert memory_bytes <= settings["workers"] * settings["area"] + RSS_BEYOND_AREA_MAX
    if ending == "kill":
        _check(store, outcome)
        daemon.start()
        assert daemon.stop() == 0
    _check(store, outcome)
    assert_clean(store)


def _check(store: Path, outcome: _Outcome) -> None:
    sealed = [Sent(p, r) for p, r in outcome.answered if r["state"] == "sealed"]
    assert_stored(store, sealed, cat_count=1)
    assert_claims(store, outcome.answered)
    answered = {receipt["flow"] for _, receipt in outcome.answered}
    rest = [entry for entry in list_flows(store) if entry["flow"] not in answered]
    hashes = image_sha256(store, [entry["flow"] for entry in rest])
    for entry in rest:
        payload = outcome.reset.get(entry["peer"]) or outcome.unanswered[entry["peer"]]
        assert entry["bytes"] <= payload.size, entry
        assert hashes[entry["flow"]] == payload.sha256(entry["bytes"]), entry
        if entry["peer"] in outcome.reset:
            assert entry["state"] == "interrupted", entry

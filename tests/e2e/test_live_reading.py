# SPDX-License-Identifier: Apache-2.0
"""Reading while writing: under load readers never fail and never lag acknowledgements."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingestd.store.read.inspection import DOES_NOT_COUNT
from support.daemon import Daemon, run_ingestd
from support.observe import (
    assert_clean,
    assert_stored,
    cat_sha256,
    list_flows,
    scrape,
    verify,
    wait_until,
)
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send
from support.stores import MIB, StoreMaker, write_config

StartDaemon = Callable[..., Daemon]
SENDERS_COUNT = 8
FLOW_BYTES_MAX = 2 * MIB
LOAD_BYTES_MAX = 100 * MIB
ROUNDS = 4
COUNTERS = ("received", "kernel_copied", "durable", "written", "padding", "header")


class _Load:
    """Threads that send until they are to end, or until the store has had its share."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.sealed: list[Sent] = []
        self._daemon = daemon
        self._seed = seed
        self._ending = threading.Event()
        self._left_bytes = LOAD_BYTES_MAX
        self._pool = ThreadPoolExecutor(SENDERS_COUNT)
        self._running = [self._pool.submit(self._run, number) for number in range(SENDERS_COUNT)]

    def _run(self, number: int) -> None:
        choose = random.Random(self._seed * 1000 + number)
        while not self._ending.is_set():
            payload = Payload(choose.getrandbits(63), choose.randint(0, FLOW_BYTES_MAX))
            self._left_bytes -= payload.size
            if self._left_bytes < 0:
                payload = Payload(payload.seed, payload.size % 10)
            self.sealed.append(send(self._daemon.address, payload))
            # The readers, which need the same processors, are what this is about.
            self._ending.wait(0.05)

    def finish(self) -> list[Sent]:
        """End all threads; raises what one of them met."""
        self._ending.set()
        for result in self._running:
            result.result()
        self._pool.shutdown()
        return self.sealed


def _check_counters(daemon: Daemon, before: dict[str, float]) -> dict[str, float]:
    """Counters only grow, and at no time count more durable bytes than received ones."""
    shot = scrape(daemon)
    now = {name: shot.total(f"ingestd_{name}_bytes_total") for name in COUNTERS}
    assert all(now[name] >= before[name] for name in COUNTERS), (before, now)
    assert now["durable"] <= now["received"], now
    assert now["durable"] <= now["written"], now
    return now


def _inspect(store: Path, chance: random.Random) -> None:
    """No place of a store that is being written looks damaged."""
    told = json.loads(run_ingestd("inspect", store, "--json").stdout)
    assert told["served"] is True
    assert [copy["verdict"] for copy in told["superblocks"]] == ["whole", "whole"]
    # The newest ones are being written.
    newest = sorted(told["segments"], key=lambda segment: segment["sequence"])[-3:]
    for segment in newest:
        words = ("segment", str(segment["index"]))
        told = json.loads(run_ingestd("inspect", store, *words, "--json").stdout)
        place = f"{segment['index']}.{chance.randrange(len(told['batches']) or 1)}"
        if told["batches"]:
            found = json.loads(run_ingestd("inspect", store, "batch", place, "--json").stdout)
            # Of one that does not count yet, the payload may be on its way.
            if found["counts"] != DOES_NOT_COUNT:
                assert all(extent["whole"] is not False for extent in found["extents"])


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_readers_under_load(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    store = make_store(256 * MIB, "--segment-size", "4MiB")
    config = write_config(
        tmp_path / "c.toml", store={"default": {"checksum": checksum, "area": "16MiB"}}
    )
    daemon = start_daemon(store, config=config, log=tmp_path / "daemon.log")
    # A flow that stays open all the time; its bytes are durable as they come.
    slow = SocketSender(daemon.address)
    slow_peer = slow.peer
    slow_bytes = b""
    load = _Load(daemon, seed)
    counters = dict.fromkeys(COUNTERS, 0.0)
    for number in range(ROUNDS):
        piece = Payload(seed + number, 10_001).data()
        slow.write(piece)
        slow_bytes += piece
        count = len(load.sealed)
        wait_until(lambda enough=count + 5: len(load.sealed) >= enough, "flows are sealed")
        acknowledged = list(load.sealed)
        listed = {entry["flow"]: entry for entry in list_flows(store)}
        for sent in acknowledged:
            entry = listed[sent.flow]
            assert entry["state"] == "sealed", entry
            assert entry["bytes"] == entry["durable_bytes"] == sent.payload.size, entry
        sample = random.Random(seed + number).sample(acknowledged, 2)
        for sent in sample:
            assert cat_sha256(store, sent.flow) == sent.payload.sha256()
        assert verify(store)["findings"] == []
        run_ingestd("info", store)
        _inspect(store, random.Random(seed + number))
        counters = _check_counters(daemon, counters)
    (entry,) = [entry for entry in list_flows(store) if entry["peer"] == slow_peer]
    assert entry["state"] == "open"
    wait_until(
        lambda: cat_sha256(store, entry["flow"]) == hashlib.sha256(slow_bytes).hexdigest(),
        "all bytes of the open flow can be read",
    )
    sealed = load.finish()
    assert slow.finish()["bytes"] == len(slow_bytes)
    for sent in sealed:
        assert_sealed(sent, has_checksum=checksum == "crc32c")
    assert_stored(store, sealed)
    assert daemon.stop() == 0
    assert_clean(store)

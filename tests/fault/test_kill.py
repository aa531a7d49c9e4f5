# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at hundreds of random moments, on one store: every receipt that arrived stays true.

The daemon dies while senders send, before it has accepted, between flush and
receipt, or while it closes a segment; the next one recovers what it left.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingestd.store.device.claim import is_claimed
from ingestd.store.device.opening import open_device
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from support.daemon import format_store
from support.forked import ForkedDaemon
from support.observe import assert_clean, wait_until
from support.payload import HEAD_BYTES, Payload
from support.senders import Receipt, SocketSender
from support.stores import write_config

KILLS = 110
KILLS_BETWEEN_CHECKS = 22
SENDERS = 6
DELAY_S_MAX = 0.08
FLOW_BYTES_MAX = 60_000
PIECE_BYTES = 16 * 1024


@dataclass
class Senders:
    """What was sent to all daemons of a store, and what they answered."""

    seed: int
    receipts: dict[str, tuple[Payload, Receipt]] = field(default_factory=dict)  # by flow
    unanswered: dict[int, Payload] = field(default_factory=dict)  # by the payload's seed
    unanswered_peers: dict[str, list[Payload]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send_until_dead(self, address: tuple[str, int], number: int) -> None:
        """Send flow after flow until the daemon is gone."""
        choose = random.Random(f"{self.seed} {number}")
        while True:
            size = choose.choice(
                (0, choose.randrange(HEAD_BYTES), choose.randrange(FLOW_BYTES_MAX))
            )
            payload = Payload(choose.getrandbits(63), size)
            try:
                sender = SocketSender(address)
            except OSError:
                return
            with self.lock:
                self.unanswered[payload.seed] = payload
                self.unanswered_peers.setdefault(sender.peer, []).append(payload)
            try:
                for chunk in payload.chunks(PIECE_BYTES):
                    sender.write(chunk)
                receipt = sender.finish()
            except (OSError, AssertionError):
                sender.close()
                return
            with self.lock:
                self.receipts[receipt["flow"]] = (payload, receipt)

    def may_be(self, flow: Flow, data: bytes) -> bool:
        """Return whether the bytes are the first ones of a flow without a receipt."""
        if len(data) >= HEAD_BYTES:
            payload = self.unanswered.get(int.from_bytes(data[:8], "little"))
            sent = [payload] if payload else []
        else:
            sent = self.unanswered_peers.get(flow.peer or "", [])
        sealed = flow.state == "sealed"
        return any(
            p.data()[: len(data)] == data and (not sealed or p.size == len(data)) for p in sent
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_kill_9_at_random_moments(tmp_path: Path, seed: int, checksum: str) -> None:
    store = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="640MiB")
    settings = {"checksum": checksum, "area": "8MiB", "write_bytes_max": "64KiB", "workers": 1}
    config = write_config(tmp_path / "c.toml", store={"default": settings})
    choose, senders = random.Random(seed), Senders(seed)
    with ForkedDaemon(store, config=config, log=tmp_path / "0.log") as daemon:
        for kill in range(KILLS):
            threads = [
                threading.Thread(
                    target=senders.send_until_dead, args=(daemon.address, kill * SENDERS + number)
                )
                for number in range(SENDERS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(choose.uniform(0, DELAY_S_MAX))
            daemon.kill()
            for thread in threads:
                thread.join()
            if kill % KILLS_BETWEEN_CHECKS == 0:
                _check(store, senders)
            daemon.start_anew(tmp_path / f"{kill + 1}.log")
            (recovered,) = daemon.events("recovered")
            assert recovered["segments_damaged"] == 0, recovered
            assert recovered["warnings"] == [], recovered
        assert daemon.stop() == 0
    _check(store, senders)
    assert_clean(store)
    told_bytes = sum(payload.size for payload, _ in senders.receipts.values())
    print(f"{KILLS} kills, {len(senders.receipts)} receipts, {told_bytes} bytes acknowledged")
    assert len(senders.receipts) > KILLS


def _is_served(store: Path) -> bool:
    with open_device(str(store)) as device:
        return is_claimed(device)


def _check(store: Path, senders: Senders) -> None:
    """Every flow with a receipt is whole and sealed; any other is a true beginning."""
    # The kernel may hold a dead daemon's store a little longer: its flows are shown as open.
    wait_until(lambda: not _is_served(store), "the dead daemon's store is given up")
    with read_image(str(store)) as image:
        shown = {flow.flow: flow for flow in image.flows}
        assert senders.receipts.keys() <= shown.keys()
        for flow in image.flows:
            data = b"".join(read_flow(image, flow))
            payload, receipt = senders.receipts.get(flow.flow, (None, None))
            if payload is None or receipt is None:
                assert flow.state in ("sealed", "interrupted"), flow
                assert senders.may_be(flow, data), flow
            else:
                assert (flow.state, receipt["bytes"]) == ("sealed", payload.size), flow
                assert data == payload.data(), flow
                assert flow.checksum == receipt["checksum"], flow

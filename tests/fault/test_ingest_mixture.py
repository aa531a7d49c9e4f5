# SPDX-License-Identifier: Apache-2.0
"""Many senders of protocol ingest that lose their connections, and a daemon that is killed.

Each sender does at random what senders do, and continues until its flow is sealed.
What was reported to it stays true over every reset, restart and kill.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store
from support.ingest import Ingest, checksum, data_of, stored, trailer_block
from support.observe import assert_clean
from support.stores import MIB, write_config

SENDERS_COUNT = 24
FLOW_BYTES_MAX = 2 * MIB
KILLS_COUNT = 4
RETRY_S = 0.05
GIVE_UP_S = 120.0
# After these a sender comes again.
PASSING = {"shutdown", "idle_timeout", "replaced", "too_short", "busy", "unknown_flow"}


class Sender:
    """One flow, sent in as many connections as it takes."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.random = random.Random(seed)
        self.daemon = daemon
        self.flow = str(uuid.UUID(int=self.random.getrandbits(128)))
        self.data = data_of(seed, self.random.randrange(FLOW_BYTES_MAX))
        self.trailer = self.random.random() < 0.5
        self.stated = self.random.random() < 0.5
        self.told = 0  # to be durable
        self.connections_count = 0
        self.is_sealed = False

    def run(self) -> None:
        """Come again until the flow is sealed."""
        limit_s = time.monotonic() + GIVE_UP_S
        while not self.is_sealed:
            assert time.monotonic() < limit_s, f"{self.flow} after {self.connections_count}"
            try:
                with Ingest(self.daemon.address) as link:
                    self.connections_count += 1
                    self.feed(link)
            except OSError:
                time.sleep(RETRY_S)  # reset, or nobody is there
            except AssertionError as error:
                if "the connection ended" not in str(error) and "half a line" not in str(error):
                    raise
                time.sleep(RETRY_S)

    def feed(self, link: Ingest) -> None:
        """One connection: to the end, or until something happens."""
        more = {"bytes": len(self.data)} if self.stated else {}
        link.greet(flow=self.flow, resume="auto", trailer=self.trailer, name="mixed", **more)
        if not self.heed(link, "accepted"):
            return
        offset = link.lines[-1]["offset"]
        assert self.told <= offset <= len(self.data)
        while offset < len(self.data):
            size = self.random.choice([1, 700, 4096, 30_000, 200_000])
            link.send(self.data[offset : offset + size])
            offset = min(offset + size, len(self.data))
            chance = self.random.random()
            if chance < 0.02:
                link.reset()
                return
            if chance < 0.04 and not self.stated and not self.trailer:
                time.sleep(0.01)
            elif chance < 0.06 and self.stated and offset < len(self.data):
                link.half_close()  # too early, which is reported
                self.heed(link, "sealed")
                return
        link.send(trailer_block(self.data) if self.trailer else b"")
        link.half_close()
        if self.heed(link, "sealed"):
            assert link.lines[-1]["checksum"] == checksum(self.data)
            self.is_sealed = True

    def heed(self, link: Ingest, kind: str) -> bool:
        """Read up to a line of this type; False: an error came, after which to come again."""
        while (line := link.line()) is not None:
            if line["type"] == "durable":
                assert self.told <= line["offset"] <= len(self.data)
                self.told = line["offset"]
            elif line["type"] == "error":
                assert line["code"] in {*PASSING, "sealed"}, line
                if line["code"] == "sealed":  # its receipt was lost
                    assert (line["bytes"], line["checksum"]) == (
                        len(self.data),
                        checksum(self.data),
                    )
                    self.is_sealed = True
                assert line["durable"] >= self.told or line["durable"] == 0
                return False
            else:
                assert line["type"] in (kind, "hello"), line
                if line["type"] == kind:
                    return True
        raise ConnectionError("the connection ended")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 3])
def test_every_flow_is_sealed_in_the_end(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int, workers: int
) -> None:
    store = format_store(tmp_path / "store.img", "--segment-size", "4MiB", size="1GiB")
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"area": 8 * MIB, "write_bytes_max": "256KiB", "workers": workers}},
        listener={"default": {"protocol": "ingest", "ack_interval_s": 0.01}},
        daemon={"drain_timeout_s": 1},
    )
    daemon = start_daemon(store, config=config)
    senders = [Sender(daemon, seed + number) for number in range(SENDERS_COUNT)]
    is_over = threading.Event()

    def disturb() -> None:
        chance = random.Random(seed)
        for _ in range(KILLS_COUNT):
            if is_over.wait(chance.uniform(0.2, 0.8)):
                return
            if chance.random() < 0.7:
                daemon.kill()
                assert_clean(store)
            else:
                assert daemon.stop() == 0
            daemon.start()

    with ThreadPoolExecutor(SENDERS_COUNT + 1) as pool:
        disturbance = pool.submit(disturb)
        jobs = [pool.submit(sender.run) for sender in senders]
        try:
            for job in jobs:
                job.result()
        finally:
            is_over.set()
            disturbance.result()
    print({sender.connections_count for sender in senders})
    for sender in senders:
        shown, found = stored(daemon, sender.flow)
        assert (shown["state"], shown["name"], found) == ("sealed", "mixed", sender.data)
        assert shown["checksum"] == checksum(sender.data)
    assert daemon.stop() == 0
    assert_clean(store)

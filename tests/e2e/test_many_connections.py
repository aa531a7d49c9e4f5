# SPDX-License-Identifier: Apache-2.0
"""Ten thousand connections: idle ones cost little, and hold back nobody."""

from __future__ import annotations

import random
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store
from support.loop import cannot
from support.observe import (
    RSS_BEYOND_AREA_MAX,
    assert_adds_up,
    assert_clean,
    assert_stored,
    image_bytes,
    rss_bytes,
    rss_bytes_max,
    scrape,
    wait_until,
)
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
CONNECTIONS_COUNT = 10_000
ACTIVE_COUNT = 300
SOURCES = [f"127.0.0.{number}" for number in range(2, 10)]
AREA_BYTES = 32 * MIB


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for this process's ends of the connections; the daemon inherits the hard limit."""
    needed = CONNECTIONS_COUNT + 1000
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, before[1])))
    except (ValueError, OSError) as error:
        cannot(f"{needed} descriptors cannot be had: {error}")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("descriptors")
def test_ten_thousand_connections(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    store = format_store(tmp_path / "s.img", size="192MiB")
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"area": AREA_BYTES}},
        listener={"default": {"connections_max": CONNECTIONS_COUNT + 100}},
    )
    daemon = start_daemon(store, config=config, host="127.0.0.1")
    with ExitStack() as stack:
        senders = []
        for number in range(CONNECTIONS_COUNT):
            source = (SOURCES[number % len(SOURCES)], 0)
            senders.append(SocketSender(daemon.address, source))
            stack.callback(senders[-1].close)
        wait_until(
            lambda: scrape(daemon).total("ingestd_connections", state="open") == CONNECTIONS_COUNT,
            "all are accepted",
            60,
        )
        assert scrape(daemon).total("ingestd_accept_errors_total") == 0
        assert rss_bytes(daemon) <= AREA_BYTES + RSS_BEYOND_AREA_MAX
        # An active flow among them.
        sent = [send(daemon.address, Payload(seed, 48 * MIB), "nc")]
        # Then some of those that were idle, all at the same time.
        chosen = random.Random(seed).sample(senders, ACTIVE_COUNT)
        payloads = [Payload(seed + number, 1 + 97 * number) for number in range(ACTIVE_COUNT)]
        for payload, sender in zip(payloads, chosen, strict=True):
            sender.write(payload.data())
        # And a byte on every one of them: thousands of slots and batches at once.
        for sender in senders:
            sender.write(b"!")
        # And all of them end at the same moment.
        for sender in senders:
            sender.sock.shutdown(socket.SHUT_WR)
        sent += [Sent(payload, s.answer()) for payload, s in zip(payloads, chosen, strict=True)]
        assert rss_bytes_max(daemon) <= AREA_BYTES + RSS_BEYOND_AREA_MAX
        rest = set(senders) - set(chosen)
        total = 48 * MIB + sum(p.size + 1 for p in payloads) + len(rest)
        for sender in rest:
            assert sender.answer()["bytes"] == 1
    assert_sealed(sent[0])
    assert_stored(store, sent[:1])
    _check_active(daemon, sent[1:])
    assert_adds_up(daemon, total)
    assert rss_bytes_max(daemon) <= AREA_BYTES + RSS_BEYOND_AREA_MAX
    assert daemon.stop() == 0
    assert_clean(store)


def _check_active(daemon: Daemon, sent: list[Sent]) -> None:
    """Each has its payload and one byte more."""
    found = image_bytes(daemon.store, [flow.flow for flow in sent])
    for flow in sent:
        assert flow.receipt["state"] == "sealed"
        assert flow.receipt["bytes"] == flow.payload.size + 1
        assert found[flow.flow] == flow.payload.data() + b"!"

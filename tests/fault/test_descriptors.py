# SPDX-License-Identifier: Apache-2.0
"""Descriptors run out: accepting fails for a while, nothing else does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon
from support.observe import assert_clean, assert_stored, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send

StartDaemon = Callable[..., Daemon]
DESCRIPTORS_MAX = 64
CONNECTIONS_COUNT = 100


def _descriptor_count(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


@pytest.mark.fault("descriptors")
def test_emfile(store_path: Path, start_daemon: StartDaemon, seed: int) -> None:
    limit = ("prlimit", f"--nofile={DESCRIPTORS_MAX}:{DESCRIPTORS_MAX}")
    daemon = start_daemon(store_path, wrapper=limit)
    (warning,) = daemon.events("descriptors_short")
    assert warning["limit"] == DESCRIPTORS_MAX
    early = SocketSender(daemon.address)
    payload = Payload(seed, 1_000_003)
    early.write(payload.data()[:1000])
    wait_until(
        lambda: scrape(daemon).total("ingestd_connections", state="open") == 1, "it is accepted"
    )
    others = [SocketSender(daemon.address) for _ in range(CONNECTIONS_COUNT)]
    (event, *_) = wait_until(lambda: daemon.events("accept_failed"), "the log tells")
    assert "EMFILE" in event["error"]
    assert "LimitNOFILE" in event["hint"]
    assert _descriptor_count(daemon) == DESCRIPTORS_MAX
    # A flow that was accepted before continues to its end.
    early.write(payload.data()[1000:])
    sent = [Sent(payload, early.finish())]
    # Those that wait in the backlog are served as others leave.
    for sender in others[: CONNECTIONS_COUNT // 2]:
        sender.reset()
    for number, sender in enumerate(others[CONNECTIONS_COUNT // 2 :]):
        late = Payload(seed + number, 100 + number)
        sender.write(late.data())
        sent.append(Sent(late, sender.finish()))
    sent.append(send(daemon.address, Payload(seed, 50_000), "nc"))
    for flow in sent:
        assert_sealed(flow)
    errors = scrape(daemon).total("ingestd_accept_errors_total")
    assert errors >= 1
    assert_stored(store_path, sent)
    # Retrying is not spinning: a few attempts a second, and none any more now.
    assert scrape(daemon).total("ingestd_accept_errors_total") == errors
    assert daemon.stop() == 0
    assert_clean(store_path)


def test_descriptors_do_not_leak(daemon: Daemon, seed: int) -> None:
    """As many are open after 300 connections of every end as before."""
    send(daemon.address, Payload(seed, 10))
    before = wait_until(lambda: _settled_count(daemon), "no flow is open")
    for number in range(100):
        assert_sealed(send(daemon.address, Payload(seed, number)))
        SocketSender(daemon.address).reset()
        sender = SocketSender(daemon.address)
        sender.write(b"y")
        sender.reset()
    wait_until(lambda: _settled_count(daemon) == before, "all descriptors are closed again")


def _settled_count(daemon: Daemon) -> int:
    shot = scrape(daemon)
    active = shot.total("ingestd_connections", state="open") + shot.total(
        "ingestd_connections", state="closing"
    )
    return _descriptor_count(daemon) if active == 0 else 0

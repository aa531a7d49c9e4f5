# SPDX-License-Identifier: Apache-2.0
"""A full store: senders get the reason, what was acknowledged stays, all else continues."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store, run_ingestd
from support.observe import (
    assert_claims,
    assert_clean,
    assert_stored,
    cat_sha256,
    flow_of,
    list_flows,
    scrape,
    wait_until,
)
from support.payload import Payload
from support.senders import Receipt, Sent, SocketSender, assert_sealed, send
from support.stores import MIB, StoreMaker, write_config

StartDaemon = Callable[..., Daemon]
SMALL = ("--segment-size", "1MiB")
PIECE_BYTES = 31_251


def _send_too_much(daemon: Daemon, payload: Payload) -> Receipt:
    """Send until the daemon speaks or hangs up; return its line."""
    sender = SocketSender(daemon.address)
    for chunk in payload.chunks():
        try:
            sender.write(chunk)
        except OSError:  # it closes once it has answered
            break
    return sender.answer()


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_flow_that_does_not_fit(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    store = make_store(8 * MIB, *SMALL)
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"checksum": checksum, "area": "8MiB", "write_bytes_max": "64KiB"}},
    )
    daemon = start_daemon(store, config=config, log=tmp_path / "daemon.log")
    before = [send(daemon.address, Payload(seed + n, 100_000 + n)) for n in range(5)]
    for sent in before:
        assert_sealed(sent, has_checksum=checksum == "crc32c")
    big = Payload(seed, 64 * MIB)
    receipt = _send_too_much(daemon, big)
    assert receipt["error"] == "store_full"
    assert receipt["state"] == "interrupted"
    assert 0 < receipt["bytes"] < 8 * MIB
    # Refused at once, now that it is known; nothing of it is stored.
    refused = _send_too_much(daemon, Payload(seed, 10))
    assert refused["error"] == "store_full"
    assert refused["flow"] is None
    assert refused["bytes"] == 0
    assert wait_until(lambda: daemon.events("store_full"), "the log tells")
    assert scrape(daemon).total("ingestd_store_full") == 1
    assert scrape(daemon).total("ingestd_flows_total", outcome="refused") == 1
    _check_left(daemon, before, big, receipt)
    assert daemon.stop() == 0
    _check_left(daemon, before, big, receipt)
    assert_clean(store)


def _check_left(daemon: Daemon, before: list[Sent], big: Payload, receipt: Receipt) -> None:
    """Flows from before are whole; of the big one there is what its receipt says."""
    assert_stored(daemon.store, before)
    entry = flow_of(daemon.store, receipt["flow"])
    assert entry["state"] == "interrupted"
    assert entry["durable_bytes"] >= receipt["bytes"]
    assert cat_sha256(daemon.store, receipt["flow"]) == big.sha256(entry["bytes"])
    assert len(list_flows(daemon.store)) == len(before) + 1


def test_many_flows_into_a_store_too_small(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """Each of 32 is either sealed and whole, or refused as store_full with its durable offset."""
    store = format_store(tmp_path / "s.img", *SMALL, size="16MiB")
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"area": "8MiB", "write_bytes_max": "64KiB"}},
    )
    daemon = start_daemon(store, config=config)
    payloads = [Payload(seed + n, PIECE_BYTES * (n + 1)) for n in range(32)]
    assert sum(payload.size for payload in payloads) > 16_000_000
    receipts = _send_in_turns(daemon, payloads)
    sealed = [Sent(payload, r) for payload, r in receipts if r["state"] == "sealed"]
    others = [(payload, r) for payload, r in receipts if r["state"] != "sealed"]
    assert sealed
    assert others
    for sent in sealed:
        assert_sealed(sent)
    assert_stored(store, sealed)
    assert all(receipt["error"] == "store_full" for _, receipt in others)
    assert_claims(store, others)
    assert daemon.stop() == 0
    assert_clean(store)


def _send_in_turns(daemon: Daemon, payloads: list[Payload]) -> list[tuple[Payload, Receipt]]:
    """Give each flow a piece in turn, and end it after its last one."""
    receipts = []
    left = [(p, memoryview(p.data()), SocketSender(daemon.address)) for p in payloads]
    while left:
        rest = []
        for payload, data, sender in left:
            with suppress(OSError):  # it may have answered and gone: its line is still to be read
                sender.write(bytes(data[:PIECE_BYTES]))
            if len(data) > PIECE_BYTES:
                rest.append((payload, data[PIECE_BYTES:], sender))
                continue
            with suppress(OSError):
                sender.sock.shutdown(socket.SHUT_WR)
            receipts.append((payload, sender.answer()))
        left = rest
    return receipts


def test_nc_is_told_that_the_store_is_full(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """Our own sender too, with its exit code."""
    store = format_store(tmp_path / "s.img", *SMALL, size="4MiB")
    daemon = start_daemon(store)
    _send_too_much(daemon, Payload(seed, 32 * MIB))
    sent = send(daemon.address, Payload(seed, 100), "nc")
    assert sent.receipt["error"] == "store_full"
    path = tmp_path / "input"
    path.write_bytes(b"hello")
    result = run_ingestd("send", path, "--to", f"{daemon.host}:{daemon.port}", code=14)
    assert b"store_full" in result.stderr


def test_other_stores_and_listeners_go_on(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    small = format_store(tmp_path / "small.img", *SMALL, size="4MiB")
    other = format_store(tmp_path / "other.img")
    config = write_config(
        tmp_path / "c.toml",
        store={"other": {"path": str(other)}},
        listener={
            "default": {"store": "default"},
            "second": {"address": "127.0.0.1:0", "store": "other"},
        },
    )
    daemon = start_daemon(small, config=config)
    second = daemon.listener("second")
    spare = SocketSender(second)
    spare.write(b"first half, ")
    receipt = _send_too_much(daemon, Payload(seed, 32 * MIB))
    assert receipt["error"] == "store_full"
    spare.write(b"second half")
    assert spare.finish()["bytes"] == 23
    sent = send(second, Payload(seed, 5_000_000))
    assert_sealed(sent)
    assert_stored(other, [sent])
    shot = scrape(daemon)
    assert shot.total("ingestd_store_full", store="default") == 1
    assert shot.total("ingestd_store_full", store="other") == 0
    assert daemon.stop() == 0
    assert_clean(small)
    assert_clean(other)


def test_full_store_after_a_restart(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """It serves, refuses, and still gives out everything."""
    store = format_store(tmp_path / "s.img", *SMALL, size="4MiB")
    daemon = start_daemon(store)
    big = Payload(seed, 32 * MIB)
    receipt = _send_too_much(daemon, big)
    assert daemon.stop() == 0
    daemon.start()
    refused = _send_too_much(daemon, Payload(seed, 3 * MIB))
    assert refused["error"] == "store_full"
    entry = flow_of(store, receipt["flow"])
    assert cat_sha256(store, receipt["flow"]) == big.sha256(entry["bytes"])
    assert daemon.stop() == 0
    assert_clean(store)

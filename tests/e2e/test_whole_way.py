# SPDX-License-Identifier: Apache-2.0
"""The whole way of a byte, as a user sees it: serve, send by a plain socket, ls, cat, restart."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import time
import urllib.request
from typing import Any

from support.daemon import Daemon, run_ingestd
from support.patience import WAIT_S

POLL_INTERVAL_S = 0.05
SIZES = (0, 1, 4095, 4096, 4097, 3 * 1024 * 1024 + 17)


def _send(address: tuple[str, int], payload: bytes) -> dict[str, Any]:
    """Send as any tool would: connect, send, half-close, read one line until the end."""
    with socket.create_connection(address, timeout=WAIT_S) as sock:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as answer:
            receipt: dict[str, Any] = json.loads(answer.read())
            return receipt


def _payloads() -> list[bytes]:
    seed = random.randrange(2**32)
    print("seed:", seed)
    return [random.Random(seed + size).randbytes(size) for size in SIZES]


def test_what_was_acknowledged_is_read_back_also_after_a_kill(daemon: Daemon) -> None:
    payloads = _payloads()
    receipts = [_send(daemon.address, payload) for payload in payloads]
    for receipt, payload in zip(receipts, payloads, strict=True):
        assert (receipt["state"], receipt["durable"]) == ("sealed", True)
        assert receipt["bytes"] == len(payload)
    _assert_readable(daemon, receipts, payloads)
    daemon.kill()
    _assert_readable(daemon, receipts, payloads)
    daemon.start()
    _assert_readable(daemon, receipts, payloads)
    assert daemon.stop() == 0
    _assert_readable(daemon, receipts, payloads)
    assert json.loads(run_ingestd("info", daemon.store, "--json").stdout)["generation"] == 3


def _assert_readable(daemon: Daemon, receipts: list[dict[str, Any]], payloads: list[bytes]) -> None:
    listed = run_ingestd("ls", daemon.store, "--json").stdout.splitlines()
    states = {flow["flow"]: flow["state"] for flow in map(json.loads, listed)}
    assert states == {receipt["flow"]: "sealed" for receipt in receipts}
    for receipt, payload in zip(receipts, payloads, strict=True):
        read = run_ingestd("cat", daemon.store, receipt["flow"]).stdout
        assert hashlib.sha256(read).digest() == hashlib.sha256(payload).digest()
    run_ingestd("verify", daemon.store)


def _wait_for_end_of_flow(daemon: Daemon) -> None:
    limit = time.monotonic() + WAIT_S
    while not daemon.events("flow_interrupted") and not daemon.events("flow_sealed"):
        assert time.monotonic() < limit, daemon.log_lines()
        time.sleep(POLL_INTERVAL_S)


def test_a_lost_sender_leaves_an_interrupted_flow(daemon: Daemon) -> None:
    payload = bytes(range(256)) * 4096
    with socket.create_connection(daemon.address, timeout=WAIT_S) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.sendall(payload)
    _wait_for_end_of_flow(daemon)
    assert daemon.stop() == 0
    (flow,) = map(json.loads, run_ingestd("ls", daemon.store, "--json").stdout.splitlines())
    assert flow["state"] == "interrupted"
    read = run_ingestd("cat", daemon.store, flow["flow"]).stdout
    assert payload.startswith(read)
    assert len(read) == flow["bytes"]


def test_metrics_count_what_was_received(daemon: Daemon) -> None:
    receipt = _send(daemon.address, b"x" * 100_000)
    assert receipt["state"] == "sealed"
    with urllib.request.urlopen(daemon.metrics_url, timeout=WAIT_S) as answer:
        text = answer.read().decode()
    samples = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert float(samples['ingestd_received_bytes_total{store="default",worker="0"}']) == 100_000
    assert float(samples['ingestd_durable_bytes_total{store="default",worker="0"}']) == 100_000


def test_a_second_daemon_is_refused_the_store(daemon: Daemon) -> None:
    result = run_ingestd("serve", "--store", daemon.store, "--listen", "127.0.0.1:0", code=7)
    assert str(daemon.store) in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()

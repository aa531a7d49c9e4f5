# SPDX-License-Identifier: Apache-2.0
"""A daemon, and readers, whose standard streams are closed or full."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import PROGRAM, Daemon, format_store, free_port, run_ingestd
from support.observe import assert_clean, wait_until

WAIT_S = 60.0


def _interrupted_flow(daemon: Daemon, data: bytes) -> str:
    """Send a flow that breaks off once all of it is durable; return its id."""
    with socket.create_connection(daemon.address) as sock:
        sock.sendall(data)
        wait_until(lambda: _bytes(daemon) == len(data), "all of it is durable")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: bool(daemon.events("flow_interrupted")), "the flow is interrupted")
    return str(daemon.events("flow_interrupted")[0]["flow"])


def _bytes(daemon: Daemon) -> int:
    lines = run_ingestd("ls", daemon.store, "--json").stdout.splitlines()
    return sum(json.loads(line)["bytes"] for line in lines)


def test_cat_gives_the_flow_s_bytes_alone(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """It has a note about an interrupted flow to print, and nowhere to print it."""
    daemon, data = start_daemon(format_store(tmp_path / "store")), b"A" * 100_000
    flow = _interrupted_flow(daemon, data)
    assert daemon.stop() == 0
    for tail in ("2>&-", "2>/dev/full", "<&- 2>&-"):
        command = ["bash", "-c", f'exec "$@" {tail}', "-", PROGRAM, "cat", str(daemon.store), flow]
        result = subprocess.run(command, capture_output=True, timeout=WAIT_S, check=False)
        assert (result.returncode, result.stdout) == (0, data), tail
    for tail, code in ((">/dev/full", 15), (">&-", 2)):
        command = ["bash", "-c", f'exec "$@" {tail}', "-", PROGRAM, "cat", str(daemon.store), flow]
        result = subprocess.run(command, capture_output=True, timeout=WAIT_S, check=False)
        assert result.returncode == code, result.stderr
        assert b"standard output" in result.stderr
        assert b"Traceback" not in result.stderr
    assert_clean(daemon.store)


@pytest.mark.parametrize("tail", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_daemon_serves_and_its_log_lands_nowhere(tail: str, tmp_path: Path) -> None:
    store, address = format_store(tmp_path / "store"), ("127.0.0.1", free_port())
    command = ["serve", "--store", str(store), "--listen", f"{address[0]}:{address[1]}"]
    with subprocess.Popen(["bash", "-c", f'exec "$@" {tail}', "-", PROGRAM, *command]) as process:
        try:
            deadline_s = time.monotonic() + WAIT_S
            while True:
                try:
                    receipt = _send(address, b"x" * 5000)
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline_s
                    time.sleep(0.05)
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
    assert (receipt["state"], receipt["bytes"]) == ("sealed", 5000)
    assert run_ingestd("cat", store, receipt["flow"]).stdout == b"x" * 5000
    assert_clean(store)


def _send(address: tuple[str, int], data: bytes) -> dict[str, object]:
    with socket.create_connection(address, timeout=WAIT_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer: dict[str, object] = json.loads(sock.makefile("rb").readline())
    return answer

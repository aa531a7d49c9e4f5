# SPDX-License-Identifier: Apache-2.0
"""What stands around a daemon hangs: flows go on, and SIGTERM ends it in time."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from support.daemon import PROGRAM, Daemon, format_store, run_ingestd
from support.patience import WAIT_S

F_SETPIPE_SZ: Final = 1031
FLOWS_COUNT: Final = 200  # whose lines a pipe of a page does not take


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return format_store(tmp_path / "store.img")


@pytest.fixture
def stuck_pipe() -> Iterator[int]:
    """The writing end of a pipe that nobody reads, with a page of room."""
    reader, end = os.pipe()
    fcntl.fcntl(end, F_SETPIPE_SZ, 4096)
    yield end
    os.close(end)
    os.close(reader)


def _is_sealed(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sender:
        sender.sendall(b"x" * 100)
        sender.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sender.recv(4096):
            answer += piece
    return b'"sealed"' in answer


def test_a_log_that_nobody_reads(store: Path, tmp_path: Path, stuck_pipe: int) -> None:
    """Flows are sealed, hellos answered, and the end comes with its usual exit code."""
    with ExitStack() as held:
        ports = []
        for _ in range(2):
            sock = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(sock.getsockname()[1])
    config = tmp_path / "ingestd.toml"
    config.write_text(
        f'[store.default]\npath = "{store}"\narea = "4MiB"\n'
        f'[listener.raw]\naddress = "127.0.0.1:{ports[0]}"\n'
        f'[listener.ingest]\naddress = "127.0.0.1:{ports[1]}"\nprotocol = "ingest"\n'
        '[log]\nlevel = "debug"\n'
    )
    process = subprocess.Popen([PROGRAM, "serve", "-c", str(config)], stderr=stuck_pipe)
    try:
        limit_s = time.monotonic() + WAIT_S
        while True:
            try:
                assert _is_sealed(ports[0])
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < limit_s
                time.sleep(0.05)
        assert all(_is_sealed(ports[0]) for _ in range(FLOWS_COUNT))
        with socket.create_connection(("127.0.0.1", ports[1]), timeout=WAIT_S) as sender:
            hello = b'ingest/1\n{"name":"x"}\n'
            sender.recv(4096)
            sender.sendall(hello.ljust(4096, b"\0"))
            assert b"accepted" in sender.recv(4096)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_scrapers_that_drip_or_say_nothing(store: Path) -> None:
    with Daemon(store) as daemon, ExitStack() as clients:
        address = (daemon.host, daemon.metrics_port)
        for _ in range(50):
            clients.enter_context(socket.create_connection(address, timeout=WAIT_S))
        slow = clients.enter_context(socket.create_connection(address, timeout=WAIT_S))
        slow.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        is_over = threading.Event()

        def drip() -> None:
            while not is_over.wait(0.2):
                try:
                    slow.sendall(b"a")
                except OSError:
                    return

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            with socket.create_connection(address, timeout=WAIT_S) as scraper:
                scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert scraper.recv(12) == b"HTTP/1.0 200"
            assert daemon.stop(WAIT_S) == 0
        finally:
            is_over.set()
            dripper.join()


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_a_taken_port_is_told_before_the_store_is_touched(store: Path, option: str) -> None:
    before = store.read_bytes()[: 1 << 20]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        options = {"--listen": "127.0.0.1:0", option: taken}
        flags = [text for item in options.items() for text in item]
        result = run_ingestd("serve", "--store", store, *flags, code=12)
    assert taken.encode() in result.stderr
    assert b"store_opened" not in result.stderr
    assert store.read_bytes()[: 1 << 20] == before, "nor its generation raised"

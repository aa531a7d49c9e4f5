# SPDX-License-Identifier: Apache-2.0
"""The sending side against made-up daemons: what they answer, and when, is up to the test."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from ingestd.client import send_stream
from ingestd.errors import SenderError, SystemCallError
from ingestd.protocol import LINE_BYTES_MAX, Receipt, ReceiptState, format_receipt
from support.patience import WAIT_S

FLOW = str(uuid.UUID(int=7))
HOST = "127.0.0.1"


class MadeUpDaemon:
    """Takes one connection; `received` and `was_reset` are valid after the context."""

    def __init__(self, behave: Callable[[MadeUpDaemon, socket.socket], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server((HOST, 0))
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._listener.getsockname()[1]
        self.received = bytearray()
        self.was_reset = False

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(WAIT_S)
            self._behave(self, connection)

    def receive_all(self, connection: socket.socket) -> None:
        """Take bytes until the half-close, or note that the connection was reset."""
        try:
            while piece := connection.recv(1 << 20):
                self.received += piece
        except ConnectionResetError:
            self.was_reset = True

    @contextmanager
    def running(self) -> Iterator[MadeUpDaemon]:
        self._thread.start()
        try:
            yield self
        finally:
            self._thread.join(WAIT_S)
            self._listener.close()
            assert not self._thread.is_alive()


def _sealed(bytes_count: int, **fields: object) -> bytes:
    return format_receipt(
        Receipt(FLOW, bytes_count, True, ReceiptState.SEALED, "crc32c:00000000", **fields)  # type: ignore[arg-type]
    )


def _seal(daemon: MadeUpDaemon, connection: socket.socket) -> None:
    daemon.receive_all(connection)
    connection.sendall(_sealed(len(daemon.received)))


def _pattern(count: int) -> bytes:
    return bytes(range(251)) * (count // 251 + 1)


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(_pattern(9_000_001)[:9_000_001])
    return path


def test_file_is_sent_whole_and_receipt_returned(big_file: Path) -> None:
    steps: list[int] = []
    with MadeUpDaemon(_seal).running() as daemon, big_file.open("rb") as reader:
        receipt = send_stream(reader, HOST, daemon.port, steps.append)
    assert receipt == Receipt(FLOW, 9_000_001, True, ReceiptState.SEALED, "crc32c:00000000")
    assert bytes(daemon.received) == big_file.read_bytes()
    assert sum(steps) == 9_000_001
    assert len(steps) > 1


def test_file_is_sent_from_where_the_reader_stands(big_file: Path) -> None:
    with MadeUpDaemon(_seal).running() as daemon, big_file.open("rb") as reader:
        reader.read(1000)
        assert send_stream(reader, HOST, daemon.port).bytes == 9_000_001 - 1000
    assert bytes(daemon.received) == big_file.read_bytes()[1000:]


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with MadeUpDaemon(_seal).running() as daemon, (tmp_path / "empty").open("rb") as reader:
        assert send_stream(reader, HOST, daemon.port).bytes == 0


def test_file_without_sendfile() -> None:
    """procfs refuses sendfile, and its files say they have no bytes."""
    with MadeUpDaemon(_seal).running() as daemon, Path("/proc/version").open("rb") as reader:
        send_stream(reader, HOST, daemon.port)
    assert bytes(daemon.received) == Path("/proc/version").read_bytes()


def test_object_in_memory() -> None:
    content = _pattern(3_000_000)
    with MadeUpDaemon(_seal).running() as daemon:
        send_stream(io.BytesIO(content), HOST, daemon.port)
    assert bytes(daemon.received) == content


def _pipe(feed: Callable[[BinaryIO], None]) -> tuple[BinaryIO, threading.Thread]:
    read_fd, write_fd = os.pipe()

    def run() -> None:
        with os.fdopen(write_fd, "wb", buffering=0) as writer:
            feed(writer)

    thread = threading.Thread(target=run)
    thread.start()
    return os.fdopen(read_fd, "rb", buffering=0), thread


def test_pipe_that_dribbles() -> None:
    def feed(writer: BinaryIO) -> None:
        for number in range(50):
            writer.write(b"%d\n" % number)
            time.sleep(0.001)
        writer.write(_pattern(400_000))

    reader, thread = _pipe(feed)
    with MadeUpDaemon(_seal).running() as daemon, reader:
        send_stream(reader, HOST, daemon.port)
    thread.join()
    assert bytes(daemon.received) == b"".join(b"%d\n" % n for n in range(50)) + _pattern(400_000)


def _answer_early(line: bytes, after: int) -> Callable[[MadeUpDaemon, socket.socket], None]:
    def behave(_daemon: MadeUpDaemon, connection: socket.socket) -> None:
        taken = 0
        while taken < after:
            taken += len(connection.recv(after - taken))
        connection.sendall(line)

    return behave


STORE_FULL = format_receipt(
    Receipt(
        FLOW, 4096, True, ReceiptState.INTERRUPTED, error="store_full", text="no segment is free"
    )
)


def test_early_answer_is_told_rather_than_the_broken_pipe(big_file: Path) -> None:
    with (
        MadeUpDaemon(_answer_early(STORE_FULL, 100_000)).running() as daemon,
        big_file.open("rb") as reader,
        pytest.raises(SenderError, match="store_full: no segment is free") as caught,
    ):
        send_stream(reader, HOST, daemon.port)
    assert FLOW in str(caught.value)
    assert "of which 4 KiB (4096 bytes) are durable" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_early_answer_is_noticed_while_the_input_is_silent() -> None:
    done = threading.Event()

    def feed(writer: BinaryIO) -> None:
        writer.write(b"x" * 10)
        done.wait(WAIT_S)

    reader, thread = _pipe(feed)
    begun_s = time.monotonic()
    try:
        with (
            MadeUpDaemon(_answer_early(STORE_FULL, 10)).running() as daemon,
            reader,
            pytest.raises(SenderError, match="store_full"),
        ):
            send_stream(reader, HOST, daemon.port)
        assert time.monotonic() - begun_s < WAIT_S
    finally:
        done.set()
        thread.join()


def test_refusal() -> None:
    line = format_receipt(
        Receipt(None, 0, False, ReceiptState.REFUSED, error="limit", text="too many connections")
    )
    with (
        MadeUpDaemon(_answer_early(line, 0)).running() as daemon,
        pytest.raises(SenderError, match="refused the flow: limit: too many connections"),
    ):
        send_stream(io.BytesIO(b"abc"), HOST, daemon.port)


def test_answer_cannot_steer_the_terminal() -> None:
    line = format_receipt(
        Receipt(None, 0, False, ReceiptState.REFUSED, error="limit", text="\x1b[2J\nfaked: line")
    )
    with (
        MadeUpDaemon(_answer_early(line, 0)).running() as daemon,
        pytest.raises(SenderError) as caught,
    ):
        send_stream(io.BytesIO(b"abc"), HOST, daemon.port)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "the connection was lost after 5 bytes"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is that a raw listener"),
        (b"x" * (LINE_BYTES_MAX + 10), "longer than"),
        (_sealed(4), "with 4 bytes, but 5 were sent"),
        (_sealed(6), "with 6 bytes, but 5 were sent"),
        (_sealed(5).replace(b"true", b"false"), "interrupted flow"),
        (_sealed(5)[:-20], "no receipt came back"),
    ],
)
def test_anything_but_a_receipt_for_all_is_an_error(line: bytes, why: str) -> None:
    def behave(daemon: MadeUpDaemon, connection: socket.socket) -> None:
        daemon.receive_all(connection)
        connection.sendall(line)

    with MadeUpDaemon(behave).running() as daemon, pytest.raises(SenderError, match=why):
        send_stream(io.BytesIO(b"12345"), HOST, daemon.port)


def test_lost_connection(big_file: Path) -> None:
    def behave(_daemon: MadeUpDaemon, connection: socket.socket) -> None:
        connection.recv(1000)  # closing with bytes unread resets

    with (
        MadeUpDaemon(behave).running() as daemon,
        big_file.open("rb") as reader,
        pytest.raises(SenderError, match="the connection was lost after"),
    ):
        send_stream(reader, HOST, daemon.port)


def test_receipt_that_never_comes() -> None:
    done = threading.Event()

    def behave(daemon: MadeUpDaemon, connection: socket.socket) -> None:
        daemon.receive_all(connection)
        done.wait(WAIT_S)

    with MadeUpDaemon(behave).running() as daemon:
        with pytest.raises(SenderError, match=r"no receipt within 0\.2 s"):
            send_stream(io.BytesIO(b"abc"), HOST, daemon.port, receipt_timeout_s=0.2)
        done.set()


def test_nobody_listens() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SenderError, match=f"{HOST}:{port}: cannot connect: Connection refused"):
        send_stream(io.BytesIO(b""), HOST, port, retry_s=0)


def test_input_that_fails_resets_the_connection() -> None:
    """Half a file must not become a sealed flow."""

    class Failing(io.BytesIO):
        name = "tape"

        def read(self, count: int | None = -1, /) -> bytes:
            if self.tell() >= 2 << 20:
                raise OSError(5, "Input/output error")
            return super().read(count)

    with (
        MadeUpDaemon(MadeUpDaemon.receive_all).running() as daemon,
        pytest.raises(SystemCallError, match="tape: cannot be read: Input/output error"),
    ):
        send_stream(Failing(_pattern(4 << 20)), HOST, daemon.port)
    assert daemon.was_reset


def test_killed_sender_resets_the_connection() -> None:
    """Even without a last word, a sender that dies has not half-closed."""
    program = (
        "import sys; from ingestd.client import send_stream;"
        "send_stream(sys.stdin.buffer, sys.argv[1], int(sys.argv[2]))"
    )
    with (
        MadeUpDaemon(MadeUpDaemon.receive_all).running() as daemon,
        subprocess.Popen(
            [sys.executable, "-c", program, HOST, str(daemon.port)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as sender,
    ):
        assert sender.stdin is not None
        sender.stdin.write(b"half of it")
        sender.stdin.flush()
        deadline_s = time.monotonic() + WAIT_S
        while not daemon.received and time.monotonic() < deadline_s:
            time.sleep(0.01)
        sender.kill()
    assert bytes(daemon.received) == b"half of it"
    assert daemon.was_reset

# SPDX-License-Identifier: Apache-2.0
"""FlowWriter: what it takes from its callers, and the errors that it raises."""

from __future__ import annotations

import array
import ctypes
import io
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ingestd.client import connect, send_stream
from ingestd.errors import ResourceError, SenderError, UsageError
from support import raw_server
from support.payload import Payload
from support.protocol_server import running

MIB = 1 << 20

GRID = memoryview(bytes(range(24))).cast("B", (2, 3, 4))
BIG_ENDIAN = (ctypes.c_uint32.__ctype_be__ * 3)(1, 2, 3)


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (b"", b""),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(b"abcdef")[::-1], b"fedcba"),
        (memoryview(b"abcdef")[:0], b""),
        (GRID, bytes(range(24))),
        (memoryview(array.array("d")), b""),
        (array.array("d", [1.0, -2.0]), array.array("d", [1.0, -2.0]).tobytes()),
        (memoryview(array.array("H", range(6)))[::3], array.array("H", [0, 3]).tobytes()),
        (BIG_ENDIAN, b"\0\0\0\1\0\0\0\2\0\0\0\3"),
        ((ctypes.c_double * 0)(), b""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_again", [False, True])
def test_any_buffer_is_written_as_its_elements_follow(
    data: Any, sent: bytes, is_again: bool
) -> None:
    with running() as server:
        with connect(server.address) as flow:
            flow.write(data)
            flow.write(data if is_again else b"")
        assert bytes(server.only_flow().data) == sent * (1 + is_again)


@pytest.mark.parametrize("data", ["text", None, 7, [1, 2]])
def test_what_has_no_buffer_is_a_usage_error_and_the_flow_goes_on(data: Any) -> None:
    with running() as server:
        with connect(server.address) as flow:
            with pytest.raises(UsageError, match="takes bytes, or an object with a buffer"):
                flow.write(data)
            flow.write(b"abc")
        assert bytes(server.only_flow().data) == b"abc"


def test_write_behind_close_and_beside_a_source(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    with running() as server, (tmp_path / "f").open("rb") as reader:
        flow = connect(server.address)
        flow.close()
        for data in (b"x", b""):
            with pytest.raises(UsageError, match=f"flow {flow.flow}: is closed"):
                flow.write(data)
        assert flow.close() is flow.receipt  # closing twice is no mistake
        flow = connect(server.address, source=reader)
        with pytest.raises(UsageError, match="has a source"):
            flow.write(b"x")
        flow.close()


def test_write_behind_abort_and_behind_a_failure() -> None:
    with running() as server:
        flow = connect(server.address)
        flow.abort()
        flow.abort()
        with pytest.raises(SenderError, match="was aborted"):
            flow.write(b"x")
        server.behaviour.drops_after = [1]
        flow = connect(server.address, retry_s=0)
        flow.write(b"x")
        with pytest.raises(SenderError, match="gave up"):
            flow.close()
        with pytest.raises(SenderError, match="gave up"):
            flow.write(b"x")


def test_memory_is_given_back_when_a_flow_is_over() -> None:
    kept = []
    with running(piece_bytes_max=MIB) as server:
        before = _resident_bytes()
        for _ in range(40):
            with connect(server.address, buffer_bytes_max=4 * MIB, checksum=False) as flow:
                flow.write(bytes(4 * MIB))
            kept.append(flow)
            server.flows.clear()
        assert _resident_bytes() - before < 80 * MIB


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_is_short_on_this_machine_is_a_resource_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as server:
        with pytest.raises(ResourceError, match="no memory for a buffer of"):
            connect(server.address, buffer_bytes_max=1 << 60)
        with monkeypatch.context() as patch:
            patch.setattr(os, "eventfd", _no_descriptor)
            with pytest.raises(ResourceError, match="cannot begin: Too many open files"):
                connect(server.address)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(ResourceError, match="cannot begin: can't start new thread"):
                connect(server.address)
        with monkeypatch.context() as patch:
            patch.setattr("ingestd.client.link.socket.socket", _no_descriptor)
            with pytest.raises(ResourceError, match="cannot connect: Too many open files"):
                connect(server.address)


def _no_descriptor(*_: object) -> int:
    raise OSError(24, "Too many open files")


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_first_connection_is_tried_again_by_both_protocols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A detector that is up before its storage."""
    make = socket.create_server
    payload = Payload(1, 100_000)
    for is_raw in (True, False):
        with make(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        sent: list[Any] = []

        def send(port: int = port, is_raw: bool = is_raw, sent: list[Any] = sent) -> None:
            if is_raw:
                reader = io.BytesIO(payload.data())
                sent.append(send_stream(reader, "127.0.0.1", port, retry_s=30))
                return
            with connect(f"127.0.0.1:{port}", retry_s=30) as flow:
                flow.write(payload.data())
            sent.append(flow.receipt)

        thread = threading.Thread(target=send)
        thread.start()
        time.sleep(0.3)  # some attempts fail
        assert thread.is_alive()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "create_server", lambda _, port=port: make(("127.0.0.1", port)))
            with raw_server.running() if is_raw else running():
                thread.join(30)
        assert not thread.is_alive()
        assert sent[0].bytes == payload.size


def test_first_connection_is_not_tried_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(SenderError, match=r"Connection refused: gave up after 0\.2 s"):
        connect(f"127.0.0.1:{port}", retry_s=0.2)
    with pytest.raises(SenderError, match=r"Connection refused: gave up after 0\.2 s"):
        send_stream(io.BytesIO(b"x"), "127.0.0.1", port, retry_s=0.2)

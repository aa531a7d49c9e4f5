# SPDX-License-Identifier: Apache-2.0
"""The client of the control socket, and daemons that do not answer as they should."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingestd.control import ControlClient
from ingestd.errors import ControlError

GREETING = b'{"ingestd":"0","protocol":1,"may":"read"}\n'


@contextmanager
def _answering(path: Path, *answers: bytes) -> Iterator[None]:
    """A server that sends each answer to what it receives, and hangs up behind the last."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                for answer in answers:
                    sock.sendall(answer)
                    if not sock.recv(65536):
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join()


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="is the daemon running"):
        ControlClient(str(tmp_path / "control"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    with pytest.raises(ControlError, match="not running"):
        ControlClient(str(tmp_path / "control"))


def test_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control"))
        silent.listen()
        with pytest.raises(ControlError, match="did not answer within"):
            ControlClient(str(tmp_path / "control"), timeout_s=0.05)


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400\r\n\r\n", b'{"protocol":2}\n', b"[]\n", b"{}\n"]
)
def test_what_is_no_daemon(tmp_path: Path, greeting: bytes) -> None:
    with _answering(tmp_path / "control", greeting), pytest.raises(ControlError):
        ControlClient(str(tmp_path / "control"))


def test_a_refusal_in_the_place_of_a_greeting(tmp_path: Path) -> None:
    line = b'{"error":{"code":"busy","text":"too many"}}\n'
    with _answering(tmp_path / "control", line), pytest.raises(ControlError) as raised:
        ControlClient(str(tmp_path / "control"))
    assert raised.value.code == "busy"


def test_a_daemon_that_ends_in_the_middle(tmp_path: Path) -> None:
    with _answering(tmp_path / "control", GREETING, b'{"flow":{}}\n{"fl'):
        client = ControlClient(str(tmp_path / "control"))
        flows = client.flows("a")
        assert next(flows) == {}
        client._sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ControlError, match="hung up"):
            next(flows)
        client.close()

# SPDX-License-Identifier: Apache-2.0
"""One connection of protocol `ingest`: connecting, waiting, and what is received before its end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ingestd.address import Address
from ingestd.client.link import Link, LinkLost
from ingestd.errors import SenderError
from ingestd.protocol.lines import Durable, Sealed, format_line
from support.patience import WAIT_S

HOST = "127.0.0.1"
FLOW = "0192f0c1-2b3c-7def-8000-123456789abc"
QUEUED_MAX = 64


class _Woken(Exception):
    """What check() raises here."""


def _check() -> None:
    raise _Woken


@contextmanager
def _wake() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _deaf_listener() -> Iterator[Address]:
    """A listener whose queue is full: the kernel leaves further connections unanswered."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        address = Address(HOST, server.getsockname()[1])
        for _ in range(QUEUED_MAX):
            queued = stack.enter_context(socket.socket())
            queued.settimeout(0.2)
            try:
                queued.connect(address)
            except TimeoutError:
                break
        else:
            pytest.fail("the queue is never full")
        yield address


def test_connecting_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestd.client.link.CONNECT_TIMEOUT_S", 0.2)
    with (
        _wake() as fd,
        _deaf_listener() as address,
        pytest.raises(LinkLost, match=r"no answer within 0\.2 s"),
    ):
        Link(address, fd, _check)


def test_wake_up_ends_connecting() -> None:
    with _wake() as fd, _deaf_listener() as address:
        timer = threading.Timer(0.1, os.eventfd_write, (fd, 1))
        timer.start()
        with pytest.raises(_Woken):
            Link(address, fd, _check)
        timer.join()


def test_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    with _wake() as fd, pytest.raises(LinkLost, match="cannot connect: Name or service not known"):
        Link(Address("nowhere", 1), fd, _check)


@contextmanager
def _connected() -> Iterator[tuple[Link, socket.socket]]:
    with (
        socket.create_server((HOST, 0)) as server,
        _wake() as fd,
        Link(Address(HOST, server.getsockname()[1]), fd, _check) as link,
    ):
        peer, _ = server.accept()
        with peer:
            yield link, peer


def test_lines_in_pieces_and_together() -> None:
    sealed = Sealed(FLOW, 1, True)
    with _connected() as (link, peer):
        assert link.line() is None
        text = format_line(Durable(5))
        peer.sendall(text[:7])
        assert link.wait(wants_to_send=False, timeout_s=WAIT_S)
        assert link.line() is None
        peer.sendall(text[7:] + b'{"type": "later"}\n' + format_line(sealed))
        assert link.next_line("line", 5) == Durable(5)
        assert link.next_line("line", 5) == sealed
        with pytest.raises(LinkLost, match=r"no line within 0\.05 s"):
            link.next_line("line", 0.05)


def test_reason_is_told_before_the_end() -> None:
    """What was said before a reset comes out first, though sending has failed already."""
    with _connected() as (link, peer):
        link.send(memoryview(b"unread"))
        peer.sendall(format_line(Durable(1)) * 1000)
        peer.close()  # with bytes unread: a reset
        while link.send(memoryview(bytes(1 << 20))) > 0:
            pass
        assert [link.next_line("line", 5) for _ in range(1000)] == [Durable(1)] * 1000
        with pytest.raises(LinkLost, match="the connection was lost"):
            link.next_line("line", 5)


@pytest.mark.parametrize("text", [b"HTTP/1.1 400 Bad Request\r\n", b"x" * 5000])
def test_other_protocols(text: bytes) -> None:
    with _connected() as (link, peer):
        peer.sendall(text)
        with pytest.raises(SenderError, match="does not speak protocol ingest"):
            link.next_line("line", 5)


@pytest.mark.parametrize("is_half_closed", [True, False])
def test_only_an_end_that_is_meant_looks_like_one(is_half_closed: bool) -> None:
    with _connected() as (link, peer):
        link.send(memoryview(b"abc"))
        if is_half_closed:
            link.half_close()
        with link:
            pass
        assert peer.recv(3, socket.MSG_WAITALL) == b"abc"
        if is_half_closed:
            assert peer.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                peer.recv(1)

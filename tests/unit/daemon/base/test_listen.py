# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: ports, families, several workers, and every way to fail."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from ingestd.address import Address, parse_address
from ingestd.daemon.base import listen
from ingestd.daemon.base.listen import ListenerSockets, bind_listener, bind_problem
from ingestd.errors import ListenError, ResourceError
from support.patience import WAIT_S


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _open(opened: ExitStack, text: str, workers_count: int = 1) -> ListenerSockets:
    sockets = bind_listener("in", parse_address(text), workers_count)
    opened.callback(sockets.close)
    sockets.listen()
    return sockets


def _ports(sockets: ListenerSockets) -> set[int]:
    return {sock.getsockname()[1] for row in sockets.per_worker for sock in row}


def test_one_worker_gets_the_real_port(opened: ExitStack) -> None:
    sockets = _open(opened, "127.0.0.1:0")
    (address,) = sockets.addresses
    assert address.host == "127.0.0.1"
    assert address.port > 0
    ((sock,),) = sockets.per_worker
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    with socket.create_connection(address, timeout=WAIT_S):
        sock.settimeout(WAIT_S)
        sock.accept()[0].close()


def test_workers_share_one_port_and_the_connections(opened: ExitStack) -> None:
    sockets = _open(opened, "127.0.0.1:0", 3)
    assert len(sockets.per_worker) == 3
    assert len(_ports(sockets)) == 1
    accepted = [0, 0, 0]
    for _ in range(60):
        opened.enter_context(socket.create_connection(sockets.addresses[0], timeout=WAIT_S))
    for index, (sock,) in enumerate(sockets.per_worker):
        sock.setblocking(False)
        while True:
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                break
            accepted[index] += 1
    assert sum(accepted) == 60
    assert min(accepted) > 0  # missed with a probability of 3 * (2/3)**60


@pytest.mark.parametrize("workers_count", [1, 2])
def test_a_used_port_is_an_error(opened: ExitStack, workers_count: int) -> None:
    """Also one that another process shares by SO_REUSEPORT, which would let us join."""
    other = opened.enter_context(socket.socket())
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(ListenError, match=rf'"in": 127.0.0.1:{port} is in use .*sport = :{port}'):
        _open(opened, f"127.0.0.1:{port}", workers_count)


def test_a_port_in_time_wait_is_free(opened: ExitStack) -> None:
    """A daemon that restarts binds its port again at once."""
    first = bind_listener("in", parse_address("127.0.0.1:0"), 1)
    first.listen()
    address = first.addresses[0]
    client = socket.create_connection(address, timeout=WAIT_S)
    served, _ = first.per_worker[0][0].accept()
    served.close()  # first to close: the TIME-WAIT is the server's
    client.close()
    first.close()
    assert _open(opened, str(address)).addresses == (address,)


def test_nothing_stays_open_after_a_failure(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    real_bind = listen._bind

    def bind(target: listen._Target, port: int, *, reuse_port: bool) -> socket.socket:
        if len(made) == 3:
            raise listen._BindError(Address(target.host, port), OSError(errno.EMFILE, ""))
        made.append(real_bind(target, port, reuse_port=reuse_port))
        return made[-1]

    monkeypatch.setattr(listen, "_bind", bind)
    with pytest.raises(ResourceError, match="descriptors ran out: raise LimitNOFILE"):
        _open(opened, "127.0.0.1:0", 4)
    assert [sock.fileno() for sock in made] == [-1, -1, -1]


@needs_ipv6
def test_any_is_one_socket_for_both_families(opened: ExitStack) -> None:
    sockets = _open(opened, "*:0")
    ((sock,),) = sockets.per_worker
    port = sockets.addresses[0].port
    assert str(sockets.addresses[0]) == f"[::]:{port}"
    assert sockets.note == ""
    sock.settimeout(WAIT_S)
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port), timeout=WAIT_S):
            sock.accept()[0].close()


@needs_ipv6
def test_an_ipv6_address_leaves_ipv4_alone(opened: ExitStack) -> None:
    port = _open(opened, "[::]:0").addresses[0].port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def test_any_without_ipv6_says_so(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    real_socket = socket.socket

    def no_ipv6(family: int = socket.AF_INET, *args: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real_socket(family, *args)

    monkeypatch.setattr(listen.socket, "socket", no_ipv6)
    sockets = _open(opened, "*:0")
    assert sockets.addresses[0].host == "0.0.0.0"
    assert sockets.note == "this kernel has no IPv6: IPv4 only"


def _resolves_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 0)) for host in hosts
    ]
    monkeypatch.setattr(listen.socket, "getaddrinfo", lambda *_args, **_options: found)


def test_a_name_is_bound_at_all_its_addresses(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1")
    sockets = _open(opened, "store.example:0", 2)
    assert [address.host for address in sockets.addresses] == ["127.0.0.1", "127.0.0.2"]
    assert [len(row) for row in sockets.per_worker] == [2, 2]
    assert len(_ports(sockets)) == 1
    for address in sockets.addresses:
        with socket.socket() as client:
            client.settimeout(WAIT_S)
            client.connect(address)


def test_a_chosen_port_that_is_taken_elsewhere_is_chosen_anew(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    taken = opened.enter_context(socket.socket())
    taken.bind(("127.0.0.2", 0))
    taken.listen()
    real_bind, tried = listen._bind, []

    def bind(target: listen._Target, port: int, *, reuse_port: bool) -> socket.socket:
        if not tried:
            port = taken.getsockname()[1]
        tried.append(port)
        return real_bind(target, port, reuse_port=reuse_port)

    monkeypatch.setattr(listen, "_bind", bind)
    sockets = _open(opened, "store.example:0")
    assert len(tried) == 4  # first round: 127.0.0.1, then 127.0.0.2 in vain
    assert len(_ports(sockets)) == 1
    assert taken.getsockname()[1] not in _ports(sockets)


def test_a_name_with_too_many_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolves_to(monkeypatch, *(f"127.0.0.{n}" for n in range(1, 6)))
    with pytest.raises(ListenError, match="stands for 5 addresses, 1 to 4 can be served"):
        bind_listener("in", parse_address("store.example:0"), 1)


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(ListenError, match=r'"in": the host of nowhere.invalid:9 cannot be resol'):
        bind_listener("in", parse_address("nowhere.invalid:9"), 1)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:9 is no address of this machine"):
        bind_listener("in", parse_address("192.0.2.1:9"), 1)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EACCES, "not permitted: choose a port from 1024 up"),
        (errno.EPERM, "CAP_NET_BIND_SERVICE"),
        (errno.EAFNOSUPPORT, "no IPv6: use an IPv4 address"),
        (errno.ENFILE, "raise LimitNOFILE"),
        (errno.EINVAL, "cannot be bound: Invalid argument"),
    ],
)
def test_problems_have_a_remedy(code: int, text: str) -> None:
    assert text in bind_problem(Address("127.0.0.1", 80), OSError(code, "told by the kernel"))


def test_close_closes_all() -> None:
    sockets = bind_listener("in", parse_address("127.0.0.1:0"), 2)
    address = sockets.addresses[0]
    sockets.close()
    assert all(sock.fileno() == -1 for row in sockets.per_worker for sock in row)
    with pytest.raises(ConnectionRefusedError), closing(socket.create_connection(address)):
        pass


def test_connections_inherit_no_delay_and_keepalive(opened: ExitStack) -> None:
    sockets = _open(opened, "127.0.0.1:0")
    ((listening,),) = sockets.per_worker
    client = opened.enter_context(socket.create_connection(listening.getsockname()))
    accepted = opened.enter_context(closing(listening.accept()[0]))
    assert accepted.getpeername() == client.getsockname()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle_s = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    assert idle_s == listen.KEEPALIVE_IDLE_S

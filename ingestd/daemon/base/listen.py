# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: one address, opened once for each worker that serves it.

Invariants:
 - Either all sockets of a listener are bound, or none is left open. They are bound
   before anything that takes long is done, and listen when flows can be taken.
 - A port that another process holds is an error, also where SO_REUSEPORT would
   have let both have it: a bind without that option comes first.
 - All sockets of a listener have the same port, also when the kernel chose it.

Owned by the main thread; a worker only uses the descriptors.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingestd.address import ANY_HOST, Address
from ingestd.errors import ListenError, ResourceError

BACKLOG_COUNT: Final = 4096
# A peer that died without a word is found out after about two minutes (tcp(7)): a minute
# of silence, then six probes.
KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_PROBES_COUNT: Final = 6
# A port that the kernel chose for one address may be taken on the next.
PORT_CHOICES_MAX: Final = 8
ADDRESSES_PER_NAME_MAX: Final = 4
_SHORT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Target(NamedTuple):
    """The address that one socket binds to."""

    family: socket.AddressFamily
    host: str
    scope: tuple[int, ...]  # flow info and scope id of IPv6
    dual_stack: bool

    def sockaddr(self, port: int) -> tuple[str | int, ...]:
        return (self.host, port, *self.scope)


@dataclass(frozen=True)
class ListenerSockets:
    """The sockets of one listener: per_worker[i] are worker i's, one for each address."""

    name: str
    addresses: tuple[Address, ...]  # as bound, with the real port
    per_worker: tuple[tuple[socket.socket, ...], ...]
    note: str  # what an operator should know, or ""

    def listen(self) -> None:
        """Take connections into the backlog. Raises ListenError or ResourceError.

        Somebody else may have bound the same port meanwhile, and be the first to listen.
        """
        for sockets in self.per_worker:
            for sock in sockets:
                try:
                    sock.listen(BACKLOG_COUNT)
                except OSError as error:
                    raise _listen_error(self.name, _BindError(_address_of(sock), error)) from None

    def close(self) -> None:
        """Close all sockets; connections in their backlogs are reset."""
        for sockets in self.per_worker:
            for sock in sockets:
                sock.close()


def bind_listener(name: str, address: Address, workers_count: int) -> ListenerSockets:
    """Bind an address for a number of workers.

    A host name is bound at every address it resolves to; "*" is one socket for
    both families. Raises ListenError, or ResourceError where descriptors are short.
    """
    assert workers_count >= 1, workers_count
    targets, note = _resolve(name, address)
    choices_left = PORT_CHOICES_MAX if address.port == 0 else 1
    while True:
        choices_left -= 1
        try:
            per_worker = _open_all(targets, address.port, workers_count)
            break
        except _BindError as error:
            retry = error.cause.errno == errno.EADDRINUSE and choices_left > 0
            if not retry:
                raise _listen_error(name, error) from None
    bound = tuple(_address_of(sock) for sock in per_worker[0])
    return ListenerSockets(name, bound, per_worker, note)


class _BindError(Exception):
    def __init__(self, address: Address, cause: OSError) -> None:
        super().__init__(address, cause)
        self.address = address
        self.cause = cause


def _resolve(name: str, address: Address) -> tuple[list[_Target], str]:
    if address.host == ANY_HOST:
        return _resolve_any()
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ListenError(
            f'listener "{name}": the host of {address} cannot be resolved ({reason}):'
            " write an IP address, or mend the name service"
        ) from None
    targets = list(
        dict.fromkeys(
            _Target(family, str(sockaddr[0]), tuple(int(part) for part in sockaddr[2:]), False)
            for family, _, _, _, sockaddr in found
            if family in (socket.AF_INET, socket.AF_INET6)
        )
    )
    if not 1 <= len(targets) <= ADDRESSES_PER_NAME_MAX:
        raise ListenError(
            f'listener "{name}": {address.host} stands for {len(targets)} addresses, 1 to'
            f" {ADDRESSES_PER_NAME_MAX} can be served: write the IP address that is meant"
        )
    return targets, ""


def _resolve_any() -> tuple[list[_Target], str]:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        note = "this kernel has no IPv6: IPv4 only"
        return [_Target(socket.AF_INET, "0.0.0.0", (), False)], note  # noqa: S104 (asked for)
    return [_Target(socket.AF_INET6, "::", (0, 0), True)], ""


def _open_all(
    targets: list[_Target], port: int, workers_count: int
) -> tuple[tuple[socket.socket, ...], ...]:
    """Bind every target for every worker; the first one decides the port if it is 0."""
    with ExitStack() as undo:
        per_worker: list[list[socket.socket]] = [[] for _ in range(workers_count)]
        for target in targets:
            if workers_count > 1:
                port = _probe(target, port)
            for sockets in per_worker:
                sock = undo.enter_context(_bind(target, port, reuse_port=workers_count > 1))
                sockets.append(sock)
                port = sock.getsockname()[1]
        undo.pop_all()
    return tuple(tuple(sockets) for sockets in per_worker)


def _probe(target: _Target, port: int) -> int:
    """Return the port, which nobody else holds: SO_REUSEPORT would not have shown that."""
    with _bind(target, port, reuse_port=False) as sock:
        return int(sock.getsockname()[1])


def _bind(target: _Target, port: int, *, reuse_port: bool) -> socket.socket:
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
    except OSError as error:
        raise _BindError(Address(target.host, port), error) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if target.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not target.dual_stack))
        _set_for_connections(sock)
        sock.bind(target.sockaddr(port))
    except OSError as error:
        sock.close()
        raise _BindError(Address(target.host, port), error) from None
    return sock


def _set_for_connections(sock: socket.socket) -> None:
    """Set what accepted sockets inherit.

    A line does not wait for the peer to acknowledge the one before, and whoever
    is gone does not hold its place for ever, idle_timeout_s or not.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES_COUNT)


def _address_of(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(str(host), int(port))


def _listen_error(name: str, error: _BindError) -> ListenError | ResourceError:
    text = f'listener "{name}": {bind_problem(error.address, error.cause)}'
    return ResourceError(text) if error.cause.errno in _SHORT else ListenError(text)


def bind_problem(address: Address, cause: OSError) -> str:
    """Return why an address cannot be bound, and the remedy, as the end of a sentence."""
    if cause.errno == errno.EADDRINUSE:
        return (
            f"{address} is in use by another process: stop it"
            f" (ss -ltnp 'sport = :{address.port}' names it), or choose another port"
        )
    if cause.errno == errno.EADDRNOTAVAIL:
        return (
            f"{address} is no address of this machine: choose one that `ip address` shows,"
            " or start after the network is up"
        )
    if cause.errno in (errno.EACCES, errno.EPERM):
        return (
            f"binding {address} is not permitted: choose a port from 1024 up,"
            " or give the service CAP_NET_BIND_SERVICE"
        )
    if cause.errno == errno.EAFNOSUPPORT:
        return f"{address} cannot be bound, as this kernel has no IPv6: use an IPv4 address"
    if cause.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"{address} cannot be bound, as descriptors ran out: raise LimitNOFILE"
            " (`ulimit -n` elsewhere)"
        )
    if cause.errno in _SHORT:
        return f"{address} cannot be bound, as the kernel is short of memory: free some"
    return f"{address} cannot be bound: {os.strerror(cause.errno or 0)}"

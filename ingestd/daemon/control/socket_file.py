# SPDX-License-Identifier: Apache-2.0
"""The control socket's file: made where none of a living daemon is, and taken away at the end.

Invariants: two daemons never have the same path, as a lock of the directory orders them; what is
no socket is never removed, nor one that somebody listens on; nobody can connect before mode and
group are right. The main thread's own; nothing here waits longer than LOCK_TIME_S.
"""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ingestd.control.client import peer_of
from ingestd.control.messages import socket_address
from ingestd.errors import ConfigError, ListenError

MODE: Final = 0o660
LOCK_TIME_S: Final = 5.0
LOCK_INTERVAL_S: Final = 0.05
BACKLOG_COUNT: Final = 64


class SocketFile:
    """A bound Unix socket; listen() lets others connect, close() removes it."""

    def __init__(self, path: str, group: str | None) -> None:
        """Bind it. Raises ListenError, or ConfigError for a group that there is not."""
        self.path = path
        group_id = None if group is None else _group_id(group)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _directory_lock(path):
                _remove_stale(path)
                with socket_address(path) as address:
                    self.socket.bind(address)
            Path(path).chmod(MODE)
            if group_id is not None:
                os.chown(path, -1, group_id)
            found = Path(path).lstat()
        except OSError as error:
            self.socket.close()
            raise ListenError(
                f"control.socket: {path} cannot be made ({error.strerror}): choose a path in a"
                " directory that ingestd may write to, such as systemd's RuntimeDirectory,"
                " and a group that its user is in"
            ) from None
        except ListenError:
            self.socket.close()
            raise
        self._identity = found.st_dev, found.st_ino

    def listen(self) -> None:
        """Let others connect."""
        self.socket.listen(BACKLOG_COUNT)
        self.socket.setblocking(False)

    def close(self) -> None:
        """Take the file away, if it is still this one, and close the socket."""
        with suppress(OSError):
            found = Path(self.path).lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                Path(self.path).unlink()
        self.socket.close()


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"control.group: there is no group {name!r}: getent group lists those that there are"
        ) from None


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    """Keep other daemons from looking at the path, and binding it, meanwhile."""
    fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end_s = time.monotonic() + LOCK_TIME_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end_s:
                    raise
                time.sleep(LOCK_INTERVAL_S)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: str) -> None:
    """Remove the socket of a daemon that is no more. Raises ListenError if there is another."""
    try:
        found = Path(path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(
            f"control.socket: {path} is there already and is no socket: choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with socket_address(path) as address:
                probe.connect(address)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except BlockingIOError:
            raise _living(path, "a process that does not accept connections") from None
        raise _living(path, f"process {peer_of(probe)[0]}")


def _living(path: str, who: str) -> ListenError:
    return ListenError(
        f"control.socket: {who} listens on {path}: stop that daemon (ingestd ctl --socket {path}"
        " status), or choose another path for this one"
    )

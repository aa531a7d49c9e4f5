# SPDX-License-Identifier: Apache-2.0
"""A daemon in this process, on made-up core and stores.

The daemon runs on the main thread, as Python's signals want it; a scenario runs
beside it from the moment it is ready, and a SIGTERM ends what it left running.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingestd.config.loading import load
from ingestd.config.settings import Overrides
from ingestd.daemon.run import Daemon
from ingestd.daemon.signals import SignalInbox
from ingestd.daemon.workers.zcrx import Nic
from ingestd.log import Log
from support.fake_core import FakeCore
from support.fake_log import Recorder
from support.fake_store import FakeOpener
from support.patience import WAIT_S

ONE_STORE: dict[str, Any] = {
    "store": {"data": {"path": "/dev/made-up"}},
    "listener": {"in": {"address": "127.0.0.1:0"}},
}
TWO_STORES: dict[str, Any] = {
    "store": {"a": {"path": "/dev/made-up-a"}, "b": {"path": "/dev/made-up-b"}},
    "listener": {"in": {"address": "127.0.0.1:0", "store": "a"}},
}


def wait_for(condition: Callable[[], object], what: str = "it") -> None:
    limit_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit_s, f"{what} did not come true"
        time.sleep(0.002)


def _toml(tables: dict[str, Any]) -> str:
    """Enough of TOML for these tests: tables of tables of plain values."""
    lines: list[str] = []

    def write(prefix: str, table: dict[str, Any]) -> None:
        plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
        if plain:
            lines.append(f"[{prefix}]")
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in plain.items())
        for key, value in table.items():
            if isinstance(value, dict):
                write(f"{prefix}.{key}" if prefix else key, value)

    write("", tables)
    return "\n".join(lines) + "\n"


class Scene:
    """A daemon to be, and all that it stands on."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "ingestd.toml"
        self.core = FakeCore()
        self.opener = FakeOpener()
        self.log = Recorder()
        self.error: BaseException | None = None  # of the scenario
        self.daemon: Daemon | None = None
        self.nic_of: Callable[[str], Nic] = Nic
        self.configure(ONE_STORE)

    def configure(self, *tables: dict[str, Any]) -> None:
        merged: dict[str, Any] = {}
        for table in tables:
            for key, value in table.items():
                merged[key] = {**merged.get(key, {}), **value}
        self.config.write_text(_toml(merged))

    def make(self) -> Daemon:
        settings = load(str(self.config), Overrides())
        log = Log(self.log, settings.log.level)
        self.daemon = Daemon(
            settings, core=self.core, open_store=self.opener, log=log, nic_of=self.nic_of
        )
        return self.daemon

    def play(self, scenario: Callable[[], None] = lambda: None) -> int:
        """Run the daemon, and the scenario once it is ready; return the exit code."""
        made = self.make()
        is_over = threading.Event()

        def beside() -> None:
            try:
                wait_for(lambda: is_over.is_set() or "ready" in self.log.names(), "ready")
                if not is_over.is_set():
                    scenario()
            except BaseException as error:
                self.error = error
            if not is_over.is_set() and made._deadline_s is None:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=beside)
        with SignalInbox():  # a signal that comes late must not end pytest
            thread.start()
            try:
                return made.run()
            finally:
                is_over.set()
                thread.join()
                if self.error is not None:
                    raise self.error

    def commands(self, name: str, worker: int = 0) -> list[tuple[Any, ...]]:
        """The arguments of each such command that a worker has handled."""
        return [c[1:] for c in self.core.workers[worker].commands if c[0] == name]

    @property
    def store(self) -> Any:
        (store,) = self.opener.stores.values()
        return store


def _told_so_far(path: Path, told: list[str]) -> list[str]:
    """What the reader has when a mark of ours comes out of the socket, which keeps the order."""
    mark = f"mark {time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marker:
        marker.sendto(mark.encode(), str(path))
    wait_for(lambda: mark in told, "the mark")
    return [message for message in told[: told.index(mark)] if not message.startswith("mark ")]


@contextmanager
def service_manager(path: Path) -> Iterator[Callable[[], list[str]]]:
    """Stand in for systemd at a socket.

    Yields a function that returns what was notified so far, one message an item,
    with its newlines as spaces; nothing that was sent before it is called is missing.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        told: list[str] = []

        def read() -> None:
            while message := sock.recv(4096):
                told.append(message.decode().replace("\n", " "))

        # A thread of its own: the daemon blocks when nobody reads what it sends.
        reader = threading.Thread(target=read)
        reader.start()
        yield lambda: _told_so_far(path, told)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(path))
        reader.join()

# SPDX-License-Identifier: Apache-2.0
"""A listener of protocol `raw` in plain Python: it seals what is half-closed.

Invariant: `flows` holds what was sealed, `resets_count` how many connections were
reset. running() waits for every connection to end.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

HOST = "127.0.0.1"


class RawServer:
    """Use running()."""

    def __init__(self) -> None:
        self.flows: list[bytes] = []
        self.resets_count = 0
        self.may_read = threading.Event()  # cleared: connections are accepted, and no more
        self.may_read.set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        data = bytearray()
        with connection:
            connection.settimeout(30)
            self.may_read.wait(30)
            try:
                while piece := connection.recv(1 << 16):
                    data += piece
                with self._lock:
                    self.flows.append(bytes(data))
                receipt = {"flow": str(uuid.uuid4()), "bytes": len(data), "durable": True}
                line = json.dumps({**receipt, "state": "sealed", "checksum": None})
                connection.sendall(line.encode() + b"\n")
            except OSError:
                with self._lock:
                    self.resets_count += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def running() -> Iterator[RawServer]:
    """Serve until the context is left."""
    server = RawServer()
    thread = threading.Thread(target=server.accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.may_read.set()
        server.close()
        thread.join(30)

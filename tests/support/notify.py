# SPDX-License-Identifier: Apache-2.0
"""A service manager's end of sd_notify(3): what the daemon reports to it, in order."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from support.observe import wait_until

MESSAGE_BYTES_MAX: Final = 65536


class NotifySocket:
    """Collects datagrams on a socket for NOTIFY_SOCKET; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[tuple[float, list[str]]] = []  # when, lines
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._collect, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()

    def _collect(self) -> None:
        while data := self._socket.recv(MESSAGE_BYTES_MAX):
            self.messages.append((time.monotonic(), data.decode().split("\n")))

    def catch_up(self) -> None:
        """Return when all that was sent before is among the messages: a socket keeps the order."""
        mark = f"X_MARK={len(self.messages)}-{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marker:
            marker.sendto(mark.encode(), str(self.path))
        wait_until(lambda: self.times(mark), "the mark has come back")

    def times(self, line: str) -> list[float]:
        """When a line came; it may end in "=" to stand for any value."""
        return [
            when
            for when, lines in list(self.messages)
            if any(got == line or (line.endswith("=") and got.startswith(line)) for got in lines)
        ]

    def told(self, part: str) -> bool:
        """Return whether a line that came has this in it."""
        return any(part in got for _, lines in list(self.messages) for got in lines)

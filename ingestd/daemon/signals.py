# SPDX-License-Identifier: Apache-2.0
"""Signals as something a selector can wait for.

Invariants: a signal is never acted on where it strikes, only where take() is
called; after close() the handlers are those from before. Owned by the main
thread, the only one to which Python delivers signals.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BYTES_MAX: Final = 4096


class SignalInbox:
    """A context in which SIGTERM, SIGINT and SIGHUP are only noted."""

    def __init__(self, signals: Iterable[signal.Signals] = SIGNALS) -> None:
        self._signals = tuple(signals)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._old_fd = -1

    def __enter__(self) -> Self:
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            # A handler of Python's own makes the interpreter write to the wake-up fd.
            self._old_handlers[number] = signal.signal(number, _note_only)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        """Readable when take() has something to return."""
        return self._reader.fileno()

    def take(self) -> list[signal.Signals]:
        """Return, and forget, what came, in order; without waiting."""
        try:
            numbers = self._reader.recv(_BYTES_MAX)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in numbers if number in self._signals]


def _note_only(_number: int, _frame: FrameType | None) -> None:
    """The wake-up fd has the number already."""

# SPDX-License-Identifier: Apache-2.0
"""Calls that other threads have the main thread make: what only it may do, such as a reload.

Invariants: the main thread waits for nobody here; a caller waits for a bounded time, and a call
that it has stopped waiting for is not made any more. call() is for any thread, settle() and
close() are the main thread's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

CALL_TIME_MAX_S: Final = 30.0


class CallNotMadeError(Exception):
    """Raised where the main thread did not come to a call, or is taking everything down."""


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.is_over = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None


class MainCalls:
    """Those that wait to be made; `wake` lets the main thread call settle()."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._mutex = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._is_closed = False

    def call(self, function: Callable[[], Any], timeout_s: float = CALL_TIME_MAX_S) -> Any:
        """Return what the function returned on the main thread, or raise what it raised.

        Raises CallNotMadeError.
        """
        call = _Call(function)
        with self._mutex:
            if self._is_closed:
                raise CallNotMadeError
            self._waiting.append(call)
        self._wake()
        call.is_over.wait(timeout_s)
        with self._mutex:
            if call in self._waiting:
                self._waiting.remove(call)
                raise CallNotMadeError
        if not call.is_over.wait(timeout_s):
            raise CallNotMadeError
        if call.error is not None:
            raise call.error
        return call.result

    def settle(self) -> None:
        """Make the calls that wait now."""
        for _ in range(len(self._waiting)):
            with self._mutex:
                if not self._waiting:
                    return
                call = self._waiting.popleft()
            self._make(call)

    def close(self) -> None:
        """Make no more calls."""
        with self._mutex:
            self._is_closed = True
            waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.error = CallNotMadeError()
            call.is_over.set()

    def _make(self, call: _Call) -> None:
        try:
            call.result = call.function()
        except Exception as error:
            call.error = error
        finally:
            call.is_over.set()

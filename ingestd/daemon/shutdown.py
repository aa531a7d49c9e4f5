# SPDX-License-Identifier: Apache-2.0
"""Taking things down within a bound, whatever hangs.

A thread that waits for a device, a peer or the kernel cannot be ended from
outside. It is left behind then, by name in the log, and the process ends all the
same: leave() does not wait for it, as the interpreter would.

Invariants: all steps together take no longer than CLOSE_TIME_S and STEP_TIME_MIN_S
for each; a step that is left behind has whatever it uses for itself, for good.
Owned by the main thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from ingestd.log import Log
from ingestd.log_events import LogEvent

# For taking down what is left after the workers; announced to the service manager.
CLOSE_TIME_S: Final = 10.0
# Of it, for the last lines of the log.
LOG_TIME_S: Final = 1.0
STEP_TIME_MAX_S: Final = 2.0
# Also for a step that comes when the time is over: it may have nothing to wait for.
STEP_TIME_MIN_S: Final = 0.1
# For an error that nobody may read.
MESSAGE_TIME_S: Final = 0.5


class Shutdown:
    """The time in which everything is taken down; begin() starts it."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._deadline_s: float | None = None
        self.has_left_behind = False  # a thread that may use whatever there is

    def begin(self) -> None:
        """Let the time run; a second call changes nothing."""
        if self._deadline_s is None:
            self._deadline_s = self._clock() + CLOSE_TIME_S - LOG_TIME_S

    def time_s(self) -> float:
        """Return how long the next step may take."""
        self.begin()
        assert self._deadline_s is not None
        left_s = self._deadline_s - self._clock()
        return min(STEP_TIME_MAX_S, max(STEP_TIME_MIN_S, left_s))

    def end(self, what: str, close: Callable[[float], Collection[str]]) -> bool:
        """Call close() with the time that it has; log what it names as not ended."""
        stuck = close(self.time_s())
        for name in stuck:
            self.leave_behind(f"{what}: {name}")
        return not stuck

    def run(self, what: str, step: Callable[[], None]) -> bool:
        """Do a step that may hang, on a thread of its own; False when it was left behind.

        Raises what the step raises.
        """
        raised: list[BaseException] = []

        def main() -> None:
            try:
                step()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=main, name=f"close-{what}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had: better wait than not do it
            main()
        else:
            thread.join(self.time_s())
            if thread.is_alive():
                self.leave_behind(what)
                return False
        if raised:
            raise raised[0]
        return True

    def leave_behind(self, what: str) -> None:
        """Note, and log, something that hangs and is not waited for any more."""
        self.has_left_behind = True
        self._log.emit(
            LogEvent.LEFT_BEHIND,
            what=what,
            hint="look for what hangs (dmesg); acknowledged bytes are safe",
        )


def leave(exit_code: int, message: str = "") -> None:
    """End the process at once if a thread is left, which would keep the interpreter from it.

    Otherwise return; the caller then ends in the usual way, and logs its end itself.
    """
    own = threading.current_thread()
    if not any(thread.is_alive() for thread in threading.enumerate() if thread is not own):
        return
    if message:
        # Standard error may be what hangs.
        words = threading.Thread(target=_say, args=(message,), daemon=True)
        with suppress(RuntimeError):
            words.start()
            words.join(MESSAGE_TIME_S)
    os._exit(exit_code)


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        os.write(2, text.encode(errors="backslashreplace"))

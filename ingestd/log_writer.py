# SPDX-License-Identifier: Apache-2.0
"""The thread that writes the log, and the bounded queue before it.

Who reads the log may stop reading: a pipe to a stuck shipper, a terminal that is
held, a journal or a disk that hangs. Only this thread waits for it then.

Invariants:
 - put() never waits for the target, as long as the thread lives or is stuck.
 - At most RECORDS_MAX records, and BYTES_MAX bytes of text, wait; what finds no
   room is counted, and reported by on_gap() once there is room again.
 - Records are written in the order in which they were put.
 - In a forked child, and once close() has ended the thread, put() writes itself.

Any thread may call put(); the rest is its owner's.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from ingestd.errors import ResourceError

RECORDS_MAX: Final = 4096
BYTES_MAX: Final = 4 * 1024 * 1024
THREAD_NAME: Final = "log"


class LogWriter:
    """Calls write() with each record that was put; start() to close().

    `write` may wait for as long as it likes; that it raises OSError or ValueError
    is nothing that could be reported anywhere. `on_gap` is called, by who puts or by the
    thread, with the number of records that were dropped; it may put, and no lock of
    this object is held.
    """

    def __init__(
        self,
        write: Callable[[Any], None],
        *,
        records_max: int = RECORDS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self.on_gap: Callable[[int], None] = lambda _count: None
        self.dropped_count = 0
        self._write = write
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[tuple[Any, int]] = deque()
        self._queue_bytes = 0
        self._untold_count = 0  # of the dropped ones
        self._is_closing = False
        self._thread = threading.Thread(target=self._main, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """Begin to write. Raises ResourceError where no thread can be had."""
        try:
            self._thread.start()
        except RuntimeError as error:
            raise ResourceError(
                f"the log's thread could not be started ({error}): raise TasksMax of the unit,"
                " or `ulimit -u`"
            ) from None

    def put(self, record: Any, size: int = 0) -> None:
        """Have a record written; `size`: bytes of text that it keeps in memory."""
        if os.getpid() != self._pid or not self._thread.is_alive():
            self._write_quietly(record)
            return
        with self._changed:
            has_room = self._has_room(size)
            if not has_room:
                self.dropped_count += 1
                self._untold_count += 1
                return
            gap_count, self._untold_count = self._untold_count, 0
        if gap_count:
            self.on_gap(gap_count)
        with self._changed:
            self._queue.append((record, size))
            self._queue_bytes += size
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Write what waits and end; False when that took too long, and the thread is stuck."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread.ident is not None and os.getpid() == self._pid:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _has_room(self, size: int) -> bool:
        """Return whether one more may wait; a queue that is empty takes a record of any size."""
        if not self._queue:
            return True
        return len(self._queue) < self._records_max and self._queue_bytes + size <= self._bytes_max

    def _main(self) -> None:
        while (record := self._next()) is not None:
            self._write_quietly(record[0])

    def _next(self) -> tuple[Any, int] | None:
        """Wait for a record; None: there will be none any more."""
        while True:
            with self._changed:
                while not self._queue and not self._untold_count:
                    if self._is_closing:
                        return None
                    self._changed.wait()
                if self._queue:
                    record = self._queue.popleft()
                    self._queue_bytes -= record[1]
                    return record
                gap_count, self._untold_count = self._untold_count, 0
            self.on_gap(gap_count)

    def _write_quietly(self, record: Any) -> None:
        # A full disk, a reader that is gone, a stream that is closed: flows matter more.
        with suppress(OSError, ValueError):
            self._write(record)


class QueuedStream(io.TextIOBase):
    """A text stream that hands whole lines to a LogWriter."""

    def __init__(self, writer: LogWriter, *, is_terminal: bool) -> None:
        super().__init__()
        self._writer = writer
        self._is_terminal = is_terminal

    def write(self, text: str) -> int:
        """Take one line, or several that belong together."""
        data = text.encode(errors="backslashreplace")
        self._writer.put(data, len(data))
        return len(text)

    def isatty(self) -> bool:
        """Return whether the lines come to a terminal in the end."""
        return self._is_terminal


def descriptor_writer(fd: int) -> Callable[[bytes], None]:
    """Return a function that writes all of some bytes to a descriptor, however long it takes.

    Without a buffer of Python's, whose lock would keep the interpreter from ending
    while a thread is stuck in it.
    """

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # somebody else who has the pipe made it so
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                poll.poll()

    return write

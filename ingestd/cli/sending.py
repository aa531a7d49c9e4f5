# SPDX-License-Identifier: Apache-2.0
"""Several flows, some at a time, each file one flow, by protocol `ingest` or `raw`.

Invariants:
 - A flow that fails does not stop the others; each that was begun is handed to
   finished(), with a receipt or with why there is none.
 - Memory does not grow with the number of files.
 - Ctrl-C resets the connections, so that no flow is sealed by it.
 - Where descriptors, threads or memory are short, fewer flows are sent at once; only
   when a single one cannot be sent it has failed.

Threads: each of `parallel` threads takes the next file; the main thread looks on and
is handed what is finished. A job is filled in by the thread that has taken it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from ingestd.address import Address
from ingestd.cli.output import note
from ingestd.cli.send_input import Input
from ingestd.cli.send_state import SendState
from ingestd.client import FlowWriter, Key, Receipt
from ingestd.client.raw import Stop
from ingestd.errors import IngestdError, ResourceError, SystemCallError

LOOK_INTERVAL_S: Final = 0.1  # between two looks at progress
STOP_TIMEOUT_S: Final = 5.0  # for threads to notice Ctrl-C; the process ends all the same
SHORT_TRIES_COUNT: Final = 5  # of the only flow, while others give back what they had


@dataclass
class Job:
    """One file and the flow that it becomes."""

    path: str  # as open_input() takes it
    name: str | None
    is_found: bool
    flow: str | None = None
    writer: FlowWriter | None = None  # while it is sent by protocol ingest
    receipt: Receipt | None = None
    error: IngestdError | None = None
    was_there: bool = False  # the receipt is of an earlier command
    state_key: bytes | None = None
    seconds: float = 0.0
    raw_sent_bytes: int | None = None  # while, and after, it is sent by protocol raw
    durable_bytes: int = 0  # at its end
    shortages_count: int = 0

    def progress(self) -> tuple[int, int]:
        """Return the bytes sent and the bytes durable."""
        if self.receipt is not None:
            return self.receipt.bytes, self.receipt.bytes
        if (writer := self.writer) is not None:
            return writer.sent_offset, writer.durable_offset
        return self.raw_sent_bytes or 0, self.durable_bytes


class Options(NamedTuple):
    """The terms that all flows of a command have in common."""

    address: Address
    protocol: Literal["raw", "ingest"] | None  # None: find out
    labels: Mapping[str, str]
    key: Key | None
    name: str | None  # of the only flow; None: the file's
    resume: str | None  # the flow to resume
    is_new: bool  # make new flows, whatever the store has
    buffer_bytes_max: int
    retry_s: float | None
    state: SendState | None


SendFn = Callable[[Job, Stop], Receipt]


@dataclass
class _Shared:
    """The state that the threads share; `changed` guards all of it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    returned: deque[Job] = field(default_factory=deque)  # given back for want of resources
    active: list[Job] = field(default_factory=list)
    running_count: int = 0  # threads
    is_short_reported: bool = False
    finished_bytes: tuple[int, int] = (0, 0)


class Sending:
    """Sends every input; see run()."""

    def __init__(self, sources: Iterator[Input], send: SendFn, parallel_count: int) -> None:
        self._sources = sources
        self._send = send
        self._parallel_count = parallel_count
        self._stop = Stop()
        self._done: queue.Queue[Job] = queue.Queue(2 * parallel_count)
        self._shared = _Shared()

    def run(self, finished: Callable[[Job, bool], None], show: Callable[[int, int], None]) -> None:
        """Send all; finished(job, was_stopped) is called for each as it ends, in any order.

        show is called with all bytes sent and all bytes durable. Both on this thread.
        """
        try:
            self._start()
            while self._is_running() or not self._done.empty():
                with contextlib.suppress(queue.Empty):
                    finished(self._done.get(timeout=LOOK_INTERVAL_S), False)
                show(*self._progress())
        except BaseException:  # Ctrl-C, or nobody takes the receipts
            self._abort(finished)
            raise

    def _start(self) -> None:
        shared = self._shared
        for number in range(self._parallel_count):
            with shared.changed:
                shared.running_count += 1
            try:
                threading.Thread(target=self._work, name="ingestd-send", daemon=True).start()
            except RuntimeError as error:
                with shared.changed:
                    shared.running_count -= 1
                if number == 0:
                    raise ResourceError(f"cannot begin: {error}") from None
                self._report_short(str(error))
                return

    def _is_running(self) -> bool:
        with self._shared.changed:
            return self._shared.running_count > 0

    def _progress(self) -> tuple[int, int]:
        with self._shared.changed:
            sent_bytes, durable_bytes = self._shared.finished_bytes
            for job in self._shared.active:
                sent, durable = job.progress()
                sent_bytes += sent
                durable_bytes += durable
        return sent_bytes, durable_bytes

    def _abort(self, finished: Callable[[Job, bool], None]) -> None:
        """Reset what is under way; hand over what ended meanwhile, and what is not ended."""
        self._stop.set()
        with self._shared.changed:
            active = list(self._shared.active)
            self._shared.changed.notify_all()
        for job in active:
            if (writer := job.writer) is not None:
                writer.abort()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self._is_running() and time.monotonic() < deadline_s:
            self._hand_over(finished, LOOK_INTERVAL_S)
        while self._hand_over(finished, 0):
            pass
        with self._shared.changed:
            active = list(self._shared.active)
        for job in active:
            finished(job, True)

    def _hand_over(self, finished: Callable[[Job, bool], None], timeout_s: float) -> bool:
        try:
            job = self._done.get(timeout=timeout_s) if timeout_s else self._done.get_nowait()
        except queue.Empty:
            return False
        finished(job, True)
        return True

    # What follows runs on the threads that send.

    def _work(self) -> None:
        while (job := self._take()) is not None:
            begun_s = time.monotonic()
            try:
                self._attempt(job)
            except ResourceError as error:
                if self._give_back(job, error):
                    return
                if job.error is None:  # it is the only one, and is tried again
                    continue
            job.seconds = time.monotonic() - begun_s
            self._end(job)

    def _take(self) -> Job | None:
        shared = self._shared
        with shared.changed:
            source = None
            if not self._stop.is_set and not shared.returned:
                source = self._next_source()
            if self._stop.is_set or (source is None and not shared.returned):
                shared.running_count -= 1
                return None
            if source is None:
                job = shared.returned.popleft()
            else:
                job = Job(source.path, source.name, source.is_found, error=source.error)
            shared.active.append(job)
            return job

    def _next_source(self) -> Input | None:
        try:
            return next(self._sources, None)
        except Exception as error:  # none may end a thread: the others wait for it
            problem = IngestdError(f"no more files can be found: {error}")
            return Input("-", None, is_found=True, error=problem)

    def _attempt(self, job: Job) -> None:
        """Fill in the receipt or the error. Raises ResourceError."""
        if job.error is not None:
            return
        try:
            job.receipt = self._send(job, self._stop)
        except ResourceError:
            raise
        except IngestdError as error:
            job.error = error
        except MemoryError:
            raise ResourceError("memory ran out: send fewer at once") from None
        except OSError as error:
            job.error = SystemCallError(f"cannot be sent: {error.strerror or error}")
        except Exception as error:  # a mistake of ours; the others are sent all the same
            job.error = IngestdError(f"cannot be sent: {type(error).__name__}: {error}")

    def _give_back(self, job: Job, error: ResourceError) -> bool:
        """Leave the job to others that are still there: True; or see that it failed."""
        shared = self._shared
        with shared.changed:
            job.shortages_count += 1
            job.writer = None
            is_only = shared.running_count == 1
            if is_only and (job.shortages_count >= SHORT_TRIES_COUNT or self._stop.is_set):
                job.error = error
                return False
            shared.active.remove(job)
            shared.returned.append(job)
            if not is_only:
                shared.running_count -= 1
        if is_only:
            time.sleep(LOOK_INTERVAL_S)
            return False
        self._report_short(str(error))
        return True

    def _report_short(self, why: str) -> None:
        with self._shared.changed:
            was_reported, self._shared.is_short_reported = self._shared.is_short_reported, True
        if not was_reported:
            note(f"{why}: fewer flows than --parallel says are sent at once")

    def _end(self, job: Job) -> None:
        """Release what the job holds; hand it over."""
        shared = self._shared
        with shared.changed:
            sent, durable = job.progress()
            job.durable_bytes, job.writer = durable, None
            if not job.was_there:
                total_sent, total_durable = shared.finished_bytes
                shared.finished_bytes = total_sent + sent, total_durable + durable
            shared.active.remove(job)
        self._done.put(job)

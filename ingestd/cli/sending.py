# SPDX-License-Identifier: Apache-2.0
"""Several flows by protocol `ingest`, some at a time, each file one flow.

Invariants: a flow that fails does not stop the others; what became of each is
in its Job. Ctrl-C resets the connections, so that no flow is sealed by it.

Threads: each of `parallel` threads takes the next job; the main thread only
looks on. A job is filled in by the thread that has taken it.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from ingestd.address import Address
from ingestd.cli.inputs import open_input
from ingestd.cli.output import note
from ingestd.client import FlowWriter, Key, Receipt, connect
from ingestd.errors import IngestdError, SystemCallError

READ_BYTES_MAX: Final = 1024 * 1024
LOOK_INTERVAL_S: Final = 0.1  # between two looks at progress, or at a flow whose input is silent


@dataclass
class Job:
    """One file and the flow that it becomes."""

    path: str  # as open_input() takes it
    name: str | None
    size: int | None  # bytes, where that is known
    writer: FlowWriter | None = None
    receipt: Receipt | None = None
    error: IngestdError | None = None
    seconds: float = 0.0


class Options(NamedTuple):
    """What all flows of a command have in common."""

    address: Address
    labels: Mapping[str, str]
    key: Key | None
    resume: str | None  # the flow to go on with
    buffer_bytes_max: int
    retry_s: float


def send_all(
    jobs: Sequence[Job],
    options: Options,
    parallel_count: int,
    show: Callable[[int, int], None],
) -> None:
    """Send every job; show is called with all bytes sent and all bytes durable."""
    waiting = deque(jobs)
    threads = [
        threading.Thread(target=_work, args=(waiting, options), daemon=True)
        for _ in range(min(parallel_count, len(jobs)))
    ]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            next(thread for thread in threads if thread.is_alive()).join(LOOK_INTERVAL_S)
            show(*progress(jobs))
    except BaseException:  # Ctrl-C
        waiting.clear()
        for job in jobs:
            if job.writer is not None and job.receipt is None:
                job.writer.abort()
        raise
    assert all(job.receipt is not None or job.error is not None for job in jobs)


def progress(jobs: Sequence[Job]) -> tuple[int, int]:
    """Return the bytes sent and the bytes durable."""
    writers = [job.writer for job in jobs if job.writer is not None]
    return (
        sum(writer.sent_offset for writer in writers),
        sum(writer.durable_offset for writer in writers),
    )


def _work(waiting: deque[Job], options: Options) -> None:
    while True:
        try:
            job = waiting.popleft()
        except IndexError:
            return
        begun_s = time.monotonic()
        try:
            job.receipt = _send(job, options)
        except IngestdError as error:
            job.error = error
        job.seconds = time.monotonic() - begun_s


def _send(job: Job, options: Options) -> Receipt:
    with open_input(job.path) as reader:
        can_be_read_again = _can_be_read_again(reader)
        job.writer = connect(
            options.address,
            flow=options.resume,
            resume=True if options.resume else "auto",
            name=job.name,
            labels=options.labels,
            key=options.key,
            source=reader if can_be_read_again else None,
            from_start=True,
            buffer_bytes_max=options.buffer_bytes_max,
            retry_s=options.retry_s,
            notify=note,
        )
        if not can_be_read_again:
            _write(reader, job.path, job.writer)
        return job.writer.close()


def _can_be_read_again(reader: BinaryIO) -> bool:
    """Whether it is a plain file from its start on; made-up files, as in procfs, say 0 bytes."""
    status = os.fstat(reader.fileno())
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and reader.tell() == 0


def _write(reader: BinaryIO, path: str, writer: FlowWriter) -> None:
    """Write all that can be read; notice a flow that fails while there is nothing to read."""
    fd, buffer = reader.fileno(), memoryview(bytearray(READ_BYTES_MAX))
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        while True:
            writer.write(b"")
            if not poll.poll(LOOK_INTERVAL_S * 1000):
                continue
            try:
                count = os.readv(fd, [buffer])
            except OSError as error:
                raise SystemCallError(f"{path}: cannot be read: {error.strerror}") from None
            if count == 0:
                return
            writer.write(buffer[:count])
    except BaseException:
        writer.abort()
        raise

# SPDX-License-Identifier: Apache-2.0
"""Sending one file as a flow, by the protocol that the listener speaks.

Invariants:
 - Which protocol that is, is found out once for a command, before its first byte is
   sent: a listener of protocol `ingest` greets. If one was too busy to greet in time,
   the flow is begun again by `ingest`; what of a pipe was sent by then is kept for it.
 - A file keeps its flow's id as long as name, labels, size and time of change stay, so
   that it is there once, however often it is sent.

Threads: a FlowSender is called by several threads at once; its locks guard what it
knows of the listener, and the ids that are under way.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from ingestd.cli.inputs import STANDARD_INPUT, open_input
from ingestd.cli.output import is_terminal, note
from ingestd.cli.sending import LOOK_INTERVAL_S, Job, Options
from ingestd.client import CONNECT_RETRY_S, FlowWriter, Receipt, connect
from ingestd.client.raw import Greeted, Stop, hears_greeting, open_connection, send_over
from ingestd.client.repeat import file_flow_id, next_flow_id
from ingestd.errors import SenderError, SystemCallError, UsageError
from ingestd.protocol.blocks import Hello, format_hello
from ingestd.protocol.lines import Code

READ_BYTES_MAX: Final = 1024 * 1024
GREETING_WAIT_S: Final = 0.3  # a greeting is sent at once; a raw listener says nothing
SAME_FILES_COUNT_MAX: Final = 16  # of other bytes, but the same name, size and time

# Of struct tcp_info (linux/tcp.h): tcpi_rtt, in microseconds, follows 8 bytes and 15 numbers.
_RTT_OFFSET: Final = 8 + 15 * 4


class FlowSender:
    """Sends a job's file when it is called; returns the receipt."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._protocol = options.protocol
        self._is_unreachable = False  # so that the next flows do not wait for it as long
        self._finding_out = threading.Lock()
        self._changed = threading.Condition()
        self._ids_under_way: set[str] = set()

    def __call__(self, job: Job, stop: Stop) -> Receipt:
        with open_input(job.path, is_file=job.is_found) as reader:
            job.name = job.name if self._options.name is None else self._options.name
            status, state = os.fstat(reader.fileno()), self._options.state
            is_plain = stat.S_ISREG(status.st_mode) and job.path != STANDARD_INPUT
            if state is not None and is_plain:
                if state.is_itself(status):
                    raise UsageError(f"{job.path}: is the file of --state: keep it elsewhere")
                job.state_key = state.key(job.path, status)
                if (receipt := state.find(job.state_key)) is not None:
                    job.was_there = True
                    return receipt
            connection = self._find_out(stop)
            if self._protocol == "ingest":
                return self._send_ingest(job, reader, status if is_plain else None, b"", stop)
            try:
                return self._send_raw(job, reader, connection, stop)
            except Greeted as greeted:
                head = self._begin_again(job, greeted)
            return self._send_ingest(job, reader, status if is_plain else None, head, stop)

    def _find_out(self, stop: Stop) -> socket.socket | None:
        """Settle the protocol; return a connection of the raw protocol if one was made for it."""
        with self._finding_out:
            if self._protocol is not None:
                return None
            connection = self._connect(stop)
            rtt_us = struct.unpack_from(
                "I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128), _RTT_OFFSET
            )[0]
            try:
                greets = hears_greeting(connection, GREETING_WAIT_S + 2 * rtt_us / 1e6, stop)
            except BaseException:
                connection.close()
                raise
            self._protocol = "ingest" if greets else "raw"
            if greets:
                connection.close()
            return None if greets else connection

    def _connect(self, stop: Stop) -> socket.socket:
        retry_s = CONNECT_RETRY_S if self._options.retry_s is None else self._options.retry_s
        if self._is_unreachable:
            retry_s = 0.0
        try:
            is_shown = self._options.retry_s is not None or is_terminal(sys.stderr)
            notify = note if is_shown else None  # else the error reports it soon
            connection = open_connection(self._options.address, retry_s, stop, notify)
        except SenderError:
            self._is_unreachable = True
            raise
        self._is_unreachable = False
        return connection

    def _begin_again(self, job: Job, greeted: Greeted) -> bytes:
        """Go over to protocol ingest, as a late greeting asks for; return what was read so far."""
        address = self._options.address
        if self._options.protocol == "raw":
            raise SenderError(
                f"{address}: listens with protocol ingest: send with --protocol ingest"
            )
        self._protocol = "ingest"
        if greeted.head is None:
            raise SenderError(
                f"{address}: greeted late, with protocol ingest, when too much of {job.path}"
                " had been read: send it again with --protocol ingest"
            )
        job.raw_sent_bytes = None
        return greeted.head

    def _send_raw(
        self, job: Job, reader: BinaryIO, connection: socket.socket | None, stop: Stop
    ) -> Receipt:
        job.raw_sent_bytes = 0

        def advance(count: int) -> None:
            job.raw_sent_bytes = (job.raw_sent_bytes or 0) + count

        return send_over(
            connection or self._connect(stop),
            reader,
            self._options.address,
            advance,
            stop=stop,
            head_bytes_max=0 if self._options.protocol else self._options.buffer_bytes_max,
        )

    def _send_ingest(
        self,
        job: Job,
        reader: BinaryIO,
        status: os.stat_result | None,
        head: bytes,
        stop: Stop,
    ) -> Receipt:
        options = self._options
        self._check_name(job)
        if self._is_unreachable:
            self._connect(stop).close()
        if status is None or options.resume is not None or options.is_new:
            return self._try_ingest(job, reader, options.resume, head, stop)
        flow = file_flow_id(job.name or "", status.st_size, status.st_mtime_ns, options.labels)
        for _ in range(SAME_FILES_COUNT_MAX):
            try:
                with self._alone_with(flow, stop):
                    return self._try_ingest(job, reader, flow, head, stop)
            except SenderError as error:
                if error.code == Code.REMOVED:
                    raise SenderError(f"{error}: --new sends it as a new flow") from None
                if error.code != Code.SEALED or head:
                    raise
                flow = next_flow_id(flow, error.checksum)
        raise SenderError(f"{flow}: too many flows of other bytes have its name, size and time")

    def _check_name(self, job: Job) -> None:
        try:
            format_hello(Hello(name=job.name, labels=self._options.labels))
        except ValueError as error:
            raise UsageError(
                f"its flow cannot be described so: {error}: send it alone, with --name"
            ) from None

    @contextmanager
    def _alone_with(self, flow: str, stop: Stop) -> Iterator[None]:
        """Let one thread at a time send a flow: two files may be the same one."""
        with self._changed:
            self._changed.wait_for(lambda: stop.is_set or flow not in self._ids_under_way)
            stop.check()
            self._ids_under_way.add(flow)
        try:
            yield
        finally:
            with self._changed:
                self._ids_under_way.discard(flow)
                self._changed.notify_all()

    def _try_ingest(
        self, job: Job, reader: BinaryIO, flow: str | None, head: bytes, stop: Stop
    ) -> Receipt:
        options = self._options
        is_source = not head and _can_be_read_again(reader)
        writer = connect(
            options.address,
            flow=flow,
            resume=True if options.resume else "auto",
            name=job.name,
            labels=options.labels,
            key=options.key,
            source=reader if is_source else None,
            from_start=True,
            buffer_bytes_max=options.buffer_bytes_max,
            retry_s=options.retry_s,
            notify=note,
            wait=False,
        )
        job.flow, job.writer = writer.flow, writer
        try:
            stop.check()
            writer.await_start()
            if not is_source:
                writer.write(head)
                _write(reader, job.path, writer)
            receipt = writer.close()
        except BaseException as error:
            writer.abort()
            was_answered = writer.durable_offset > 0 or getattr(error, "code", None) is not None
            self._is_unreachable = isinstance(error, SenderError) and not was_answered
            raise
        job.was_there = writer.was_sealed
        return receipt


def _can_be_read_again(reader: BinaryIO) -> bool:
    """Return whether it is a plain file from its start on; those of procfs say 0 bytes."""
    fd = reader.fileno()
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or reader.tell() != 0:
        return False
    try:
        return status.st_size > 0 or not os.pread(fd, 1, 0)
    except OSError:
        return False


def _write(reader: BinaryIO, path: str, writer: FlowWriter) -> None:
    """Write all that can be read; notice a flow that fails while there is nothing to read."""
    fd, buffer = reader.fileno(), memoryview(bytearray(READ_BYTES_MAX))
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        writer.write(b"")
        if not poll.poll(LOOK_INTERVAL_S * 1000):
            continue
        try:
            count = os.readv(fd, [buffer])
        except BlockingIOError:
            continue
        except OSError as error:
            raise SystemCallError(f"{path}: cannot be read: {error.strerror}") from None
        if count == 0:
            return
        writer.write(buffer[:count])

# SPDX-License-Identifier: Apache-2.0
"""Sending one flow by protocol `ingest`, over as many connections as it takes.

Invariants:
 - What was written and is not durable is kept (BufferBacklog) or can be read
   again (FileBacklog). A full buffer makes write() wait; it never grows.
 - close() returns only with a receipt for every byte; the flow's length and,
   where both sides have one, its checksum were compared.
 - A durable offset never goes back. A daemon that says it did is not believed.

Threads: a FlowWriter has a thread of its own, which alone uses the socket and
reads a source. write() and close() are for one thread at a time, all else is for
any, but for the flow's own. `_changed` guards what both sides look at.
"""

from __future__ import annotations

import os
import random
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from ingestd.client.backlog import Backlog, BufferBacklog
from ingestd.client.link import Link, LinkLost
from ingestd.client.terms import Terms, bytes_of, in_the_tree, plain
from ingestd.errors import ResourceError, SenderError, UsageError
from ingestd.protocol.blocks import Hello, Resume, Trailer, format_hello, format_trailer
from ingestd.protocol.lines import (
    PASSING_CODES,
    VERSION,
    Accepted,
    Auth,
    Code,
    Durable,
    ErrorLine,
    Greeting,
    Line,
    Sealed,
)
from ingestd.protocol.receipt import Receipt, ReceiptState

HANDSHAKE_TIMEOUT_S: Final = 10.0
QUIET_S: Final = 1.0  # a listener that has not greeted by then may speak raw, which is reported
PUT_BYTES_MAX: Final = 1024 * 1024  # under the lock
RETRY_DELAY_S: Final = 0.1  # at most, before the second attempt; doubled for each further one
RETRY_DELAY_S_MAX: Final = 10.0

_ASK_RAW: Final = ": if that is a listener of protocol raw, send with --protocol raw"
_delay = random.SystemRandom().uniform


class _Aborted(Exception):
    """abort() was called; ends the flow's own thread."""


class FlowWriter:
    """A flow that is being sent; made by connect().

    A context manager: leaving it closes the flow, an exception aborts it. It sends on
    a thread of its own, so bytes become durable while the caller does other things.
    write() and close() are for one thread at a time, all else is for any.
    """

    def __init__(self, terms: Terms, backlog: Backlog) -> None:
        self._terms = terms
        self._backlog = backlog
        self._changed = threading.Condition()
        try:
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise ResourceError(f"flow {terms.flow}: cannot begin: {error.strerror}") from None
        self._start_offset: int | None = None  # None until a listener accepted the flow
        self._position = 0  # of write(), while it is given bytes that are durable already
        self._sent_offset = self._durable_offset = 0
        self._is_closing = self._is_aborted = self._was_sealed = False
        self._receipt: Receipt | None = None
        self._error: BaseException | None = None
        self._begun_s = time.monotonic()
        self._outage_begun_s: float | None = None
        self._attempts_count = 0
        self._thread = threading.Thread(target=self._run, name="ingestd-flow", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the limit of threads, or of memory
            os.close(self._wake_fd)
            backlog.free()
            raise ResourceError(f"flow {terms.flow}: cannot begin: {error}") from None

    @property
    def flow(self) -> str:
        """The flow's id: what to resume it by."""
        return self._terms.flow

    @property
    def start_offset(self) -> int:
        """The offset in the flow at which this writer began; not 0 if the flow was resumed."""
        return self._start_offset or 0

    @property
    def sent_offset(self) -> int:
        """All bytes before it were handed to the present connection, or are durable."""
        return self._sent_offset

    @property
    def durable_offset(self) -> int:
        """All bytes before it are on stable media, by word of the daemon."""
        return self._durable_offset

    @property
    def was_sealed(self) -> bool:
        """Return whether the store had the whole flow, sealed, before this writer sent anything."""
        return self._was_sealed

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, once close() has returned it."""
        return self._receipt

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error_type is None:
            self.close()
        else:
            self.abort()

    def await_start(self) -> None:
        """Wait until a listener has accepted the flow. Raises what close() raises."""
        with self._changed:
            self._changed.wait_for(lambda: self._start_offset is not None or self._is_over())
            self._check()

    def write(self, data: Any) -> None:
        """Take bytes; wait while the buffer is full. They are sent in the background.

        data: any object with a buffer, of any shape and element; also an empty one. It
        may be changed once write() returns. Gaps between elements are not sent.

        Raises SenderError as soon as the flow cannot be resumed, also with no data; UsageError
        behind close(), where the flow has a source, and for what has no buffer.
        """
        backlog = self._backlog
        with self._changed:
            self._check()
        if not isinstance(backlog, BufferBacklog):
            raise UsageError(f"flow {self.flow}: has a source, which it reads by itself")
        if self._is_closing:
            raise UsageError(f"flow {self.flow}: is closed: nothing can be written any more")
        left = self._without_durable(bytes_of(data), backlog)
        total = self._terms.bytes_total
        if total is not None and backlog.end + len(left) > total:
            raise SenderError(f"flow {self.flow}: was to have {total} bytes: more are written")
        while True:
            with self._changed:
                self._check()
                count = backlog.put(left[:PUT_BYTES_MAX]) if left else 0
                left = left[count:]
                if left and count == 0:
                    self._changed.wait()
            if count:
                self._wake()
            if not left:
                return

    def close(self) -> Receipt:
        """End the flow; wait until all of it is durable and sealed, and return the receipt.

        Raises SenderError if that does not come about, SystemCallError if a source
        cannot be read. The flow then stays interrupted and can be resumed.
        """
        total = self._terms.bytes_total
        if total is not None and self._backlog.end < total and self._error is None:
            self.abort()
            raise SenderError(
                f"flow {self.flow}: was to have {total} bytes: only {self._backlog.end} are written"
            )
        try:
            with self._changed:
                self._is_closing = True
                self._wake()
                self._changed.notify_all()
                self._changed.wait_for(self._is_over)
        except BaseException:  # such as Ctrl-C
            self.abort()
            raise
        self._join()
        self._check()
        assert self._receipt is not None
        return self._receipt

    def abort(self) -> None:
        """Reset the connection: the flow stays interrupted, with what is durable of it.

        May be called by any thread; whoever waits in another call gets SenderError.
        """
        with self._changed:
            self._is_aborted = True
            self._wake()
            self._changed.notify_all()
        self._join()

    def _without_durable(self, data: memoryview, backlog: BufferBacklog) -> memoryview:
        """Pass over what a resumed flow has already, where it is written from its start."""
        if not self._terms.is_from_start:
            return data
        durable_count = min(max(self.start_offset - self._position, 0), len(data))
        backlog.note(data[:durable_count])
        self._position += len(data)
        return data[durable_count:]

    def _is_over(self) -> bool:
        return self._receipt is not None or self._error is not None or self._is_aborted

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_aborted:
            raise SenderError(f"flow {self.flow}: was aborted")

    def _wake(self) -> None:
        with self._changed:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _join(self) -> None:
        self._thread.join()
        with self._changed:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1
                self._backlog.free()

    # What follows runs on the flow's own thread.

    def _run(self) -> None:
        try:
            receipt = self._send_all()
        except _Aborted:
            return
        except BaseException as error:  # whatever it is, whoever waits must get it
            with self._changed:
                self._error = in_the_tree(error)
                self._changed.notify_all()
            return
        with self._changed:
            self._receipt = receipt
            self._changed.notify_all()

    def _send_all(self) -> Receipt:
        while True:
            try:
                with Link(self._terms.address, self._wake_fd, self._raise_if_aborted) as link:
                    receipt = self._open(link)
                    return receipt or self._pump(link)
            except LinkLost as lost:
                self._retry_later(lost)

    def _retry_later(self, lost: LinkLost) -> None:
        """Wait before the next attempt: longer each time, never in step with other senders."""
        terms, now_s = self._terms, time.monotonic()
        self._raise_if_aborted()
        is_first = self._start_offset is None and not lost.is_passing
        if is_first and lost.is_shortage:
            raise ResourceError(f"{terms.address}: {lost}")
        retry_s = terms.connect_retry_s if is_first else terms.retry_s
        begun_s = self._outage_begun_s or (self._begun_s if is_first else now_s)
        if now_s - begun_s >= retry_s:
            raise SenderError(f"{terms.address}: {self._why_ended(lost, is_first)}")
        if self._outage_begun_s is None:
            self._outage_begun_s = begun_s
            self._attempts_count = 0
            terms.notify(f"flow {terms.flow}: {lost}: trying again for {retry_s:g} s")
        delay_s_max = min(RETRY_DELAY_S * 2**self._attempts_count, RETRY_DELAY_S_MAX)
        self._attempts_count = min(self._attempts_count + 1, 30)
        with self._changed:
            self._sent_offset = self._durable_offset
            self._changed.wait_for(lambda: self._is_aborted, _delay(0, delay_s_max))
            if self._start_offset is not None and not self._has_work():
                self._changed.wait_for(self._has_work)  # it can stay away, for as long as it likes
                self._outage_begun_s = time.monotonic()
        self._raise_if_aborted()

    def _why_ended(self, lost: LinkLost, is_first: bool) -> str:
        terms = self._terms
        if not is_first:
            return (
                f"{lost}: gave up after {terms.retry_s:g} s;"
                f" {self._durable_offset} bytes of flow {terms.flow} are durable, resume it later"
            )
        tried = f": gave up after {terms.connect_retry_s:g} s" if terms.connect_retry_s else ""
        return f"{lost}{tried}{_ASK_RAW if lost.is_silent else ''}"

    def _has_work(self) -> bool:
        return self._is_aborted or self._is_closing or self._backlog.end > self._durable_offset

    def _raise_if_aborted(self) -> None:
        if self._is_aborted:
            raise _Aborted

    def _open(self, link: Link) -> Receipt | None:
        """Greet and be accepted; return a receipt if the flow turns out to be sealed."""
        address = self._terms.address
        if not link.wait(wants_to_send=False, timeout_s=QUIET_S) and self._start_offset is None:
            self._terms.notify(f"{address}: has not greeted so far{_ASK_RAW}")
        greeting = link.next_line("hello of protocol ingest", HANDSHAKE_TIMEOUT_S)
        if isinstance(greeting, ErrorLine):
            return self._heed_refusal(greeting)
        if not isinstance(greeting, Greeting) or VERSION not in greeting.versions:
            raise SenderError(f"{address}: does not speak version {VERSION} of protocol ingest")
        block = memoryview(self._hello(greeting))
        if link.send(block) != len(block):  # the first bytes of a connection: there is room
            raise LinkLost("the hello could not be sent")
        answer = link.next_line("answer to the hello", HANDSHAKE_TIMEOUT_S)
        if isinstance(answer, ErrorLine):
            return self._heed_refusal(answer)
        if not isinstance(answer, Accepted) or answer.flow != self._terms.flow:
            raise SenderError(f"{address}: answered the hello with something else: {answer}")
        self._begin_at(answer.offset)
        return None

    def _hello(self, greeting: Greeting) -> bytes:
        terms, key = self._terms, self._terms.key
        if greeting.auth not in (Auth.NONE, Auth.HMAC_SHA256):
            raise SenderError(f"{terms.address}: asks for a proof that is not known here")
        if (greeting.auth == Auth.NONE) != (key is None):
            remedy = "give one" if key is None else "leave yours away, or ask who answers there"
            verb = "asks" if key is None else "does not ask"
            raise SenderError(f"{terms.address}: {verb} for a key: {remedy}")
        hello = Hello(
            flow=terms.flow,
            resume=self._resume(),
            name=terms.name,
            labels=terms.labels,
            bytes=terms.bytes_total,
            trailer=terms.has_trailer,
            key=None if key is None else key.name,
        )
        return format_hello(hello, None if key is None else key.secret, greeting.challenge)

    def _resume(self) -> Resume:
        """Resume if anything was acknowledged; what nothing was, the daemon may not know at all."""
        if self._start_offset is None:
            return self._terms.resume
        return True if self._durable_offset else "auto"

    def _begin_at(self, offset: int) -> None:
        backlog, address = self._backlog, self._terms.address
        if offset < self._durable_offset:
            raise SenderError(
                f"{address}: has {offset} bytes of flow {self.flow},"
                f" but acknowledged {self._durable_offset}: is that another store?"
            )
        if self._start_offset is not None and offset > backlog.end:
            raise SenderError(
                f"{address}: has {offset} bytes of flow {self.flow},"
                f" but only {backlog.end} were written: does somebody else send it?"
            )
        total = self._terms.bytes_total
        if total is not None and offset > total:
            raise SenderError(
                f"{address}: has {offset} bytes of flow {self.flow} already, more than {total}"
            )
        backlog.start(offset)
        with self._changed:
            if self._start_offset is None:
                self._start_offset = offset
            elif self._outage_begun_s is not None:
                self._terms.notify(f"flow {self.flow}: resumes at byte {offset}")
            self._sent_offset = offset
            self._advance(offset)
            if not self._has_work():
                self._outage_begun_s = None
            self._changed.notify_all()

    def _pump(self, link: Link) -> Receipt:
        """Send and listen until the receipt is there."""
        tail: memoryview | None = None  # the trailer, once the payload is sent
        is_half_closed = False
        moved_s = time.monotonic()
        while True:
            self._raise_if_aborted()
            if tail is None and self._is_closing and self._sent_offset == self._backlog.end:
                tail = memoryview(self._tail())
            if tail is not None and not tail and not is_half_closed:
                link.half_close()
                is_half_closed = True
            pending = self._backlog.view(self._sent_offset) if tail is None else tail
            is_idle = not pending and not is_half_closed and not self._has_work()
            left_s = moved_s + self._terms.stall_timeout_s - time.monotonic()
            if not link.wait(wants_to_send=bool(pending), timeout_s=None if is_idle else left_s):
                raise LinkLost(f"nothing moved for {self._terms.stall_timeout_s:g} s")
            heard = link.line()
            while heard is not None:
                if (receipt := self._heed(heard)) is not None:
                    return receipt
                moved_s, heard = time.monotonic(), link.line()
            count = link.send(pending) if pending else 0
            if tail is not None:
                tail = tail[count:]
            else:
                self._sent_offset += count
            if count or is_idle:
                moved_s = time.monotonic()

    def _tail(self) -> bytes:
        if not self._terms.has_trailer:
            return b""
        return format_trailer(Trailer(self._backlog.end, self._crc()))

    def _crc(self) -> int | None:
        """The CRC32C of the whole flow, if it was all seen here."""
        backlog = self._backlog
        return backlog.crc if backlog.crc_offset == backlog.end else None

    def _heed(self, line: Line) -> Receipt | None:
        match line:
            case Durable():
                if line.offset > self._sent_offset:
                    raise SenderError(
                        f"{self._terms.address}: acknowledged {line.offset} bytes of flow"
                        f" {self.flow}, but only {self._sent_offset} were sent"
                    )
                with self._changed:
                    self._advance(line.offset)
                    self._changed.notify_all()
            case Sealed():
                return self._judge(
                    line.flow, line.bytes, line.durable, line.checksum, line.sender_checksum
                )
            case ErrorLine():
                return self._heed_refusal(line)
            case _:
                raise SenderError(f"{self._terms.address}: said something out of turn: {line}")
        return None

    def _advance(self, offset: int) -> None:
        if offset > self._durable_offset:
            self._durable_offset = offset
            self._outage_begun_s = None
            self._backlog.release(offset)

    def _heed_refusal(self, refusal: ErrorLine) -> Receipt | None:
        """Raise what the code asks for; but a flow that is sealed as it should be is a receipt."""
        address, text = self._terms.address, plain(f"{refusal.code}: {refusal.text}")
        if refusal.code in PASSING_CODES:
            raise LinkLost(text, is_passing=True)
        may_be_ours = self._start_offset is not None or self._terms.resume is not False
        if (
            refusal.code == Code.SEALED
            and may_be_ours
            and refusal.bytes is not None
            and refusal.bytes == self._length()
        ):
            self._backlog.start(refusal.bytes)
            self._was_sealed = self._start_offset is None
            return self._judge(self.flow, refusal.bytes, True, refusal.checksum, None)
        raise SenderError(
            f"{address}: {text}; {max(refusal.durable, self._durable_offset)} bytes"
            f" of flow {self.flow} are durable",
            code=refusal.code,
            checksum=refusal.checksum,
        )

    def _length(self) -> int | None:
        """The length of the whole flow, as far as that is settled."""
        return self._backlog.end if self._is_closing or self._backlog.is_whole else None

    def _judge(
        self, flow: str, count: int, durable: bool, checksum: str | None, stated: str | None
    ) -> Receipt:
        """Return the receipt if it is for all that was written, as it was written."""
        crc = self._crc()
        ours = None if crc is None else f"crc32c:{crc:08x}"
        problem = None
        if flow != self.flow or not durable:
            problem = "is for something else"
        elif self._length() is None:
            problem = "came before the end"
        elif count != self._backlog.end:
            problem = f"is for {count} bytes, but {self._backlog.end} were sent"
        elif None not in (ours, checksum) and ours != checksum:
            problem = f"says {checksum}, but what was sent has {ours}"
        if problem is not None:
            raise SenderError(
                f"{self._terms.address}: the receipt of flow {self.flow} {problem}:"
                " do not trust it",
                code=Code.SEALED if self._was_sealed else None,
                checksum=checksum,
            )
        with self._changed:
            self._durable_offset = self._sent_offset = count
        return Receipt(flow, count, True, ReceiptState.SEALED, checksum, sender_checksum=stated)

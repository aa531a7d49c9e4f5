# SPDX-License-Identifier: Apache-2.0
"""Events of workers, as lines of the log.

Invariants: every kind of core event has exactly one line; numbers that mean
something (reasons, errnos) are given by name. Floods are the log's business.
Owned by the main thread.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ingestd.log import Log, LogEvent
from ingestd.store.format.layout import REASONS

if TYPE_CHECKING:
    from ingestd.core._core import Event
    from ingestd.daemon.workers.worker import Core, WorkerThread

# enum session_error of connection/ingest/session.h: what can end a connection before it is a flow.
_HELLO_TIMEOUT: Final = 1
_DENIALS: Final = {0: "network", 1: "peer_limit"}  # enum denial of core/connection/intake.h
_BACKPRESSURE_CAUSES: Final = {1: "area", 2: "device"}
_IS_LOST: Final = 2
_WHAT_FAILED: Final = {0: "write", 1: "flush", _IS_LOST: "store"}  # store_failure of writer.h
# Of store/serve/backing_check.py, and of the file system below a store file that is not
# preallocated (any more).
_LOSSES: Final = {errno.EIDRM, errno.ENODATA, errno.ESTALE}
_NO_SPACE: Final = (
    "make room on the file system of the store's file (df), and give the file its space back"
    " (fallocate --keep-size --length SIZE FILE)"
)
_STORE_ADVICE: Final = {
    errno.EIDRM: "the store's file was deleted: restore it from a copy or format a new one",
    errno.ENODATA: "the store was cut off: give its file or device its size back and run"
    " ingestd verify",
    errno.ESTALE: "another process took the store, or overwrote its first MiB: find who writes to"
    " it and run ingestd verify",
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: f"{_NO_SPACE}, as the quota is used up",
}
_SAFE: Final = "acknowledged is safe"
_LOST: Final = "nothing was acknowledged since, what came before may be lost"

_Fields = dict[str, Any]


def errno_text(code: int) -> str:
    """Return an errno as people look it up: "EIO: Input/output error"."""
    return f"{errno.errorcode.get(code, code)}: {os.strerror(code)}"


class EventLog:
    """Turns events of a worker's core into events of the log."""

    def __init__(
        self,
        core: Core,
        log: Log,
        listener_names: Sequence[str],
        by_copy_advice: Callable[[Event], str] | None = None,
    ) -> None:
        self._log = log
        self._by_copy_advice = by_copy_advice
        self._listener_names = listener_names
        self._formatters: dict[int, Callable[[Event], tuple[LogEvent, _Fields]]] = {
            core.EVENT_FLOW_OPENED: self._opened,
            core.EVENT_HELLO_FAILED: lambda e: (
                LogEvent.FLOW_REFUSED,
                self._flow(e, is_flow=False) | {"reason": hello_failure(e)},
            ),
            core.EVENT_FLOW_DENIED: lambda e: (
                LogEvent.CONNECTION_DENIED,
                self._flow(e)
                | {"reason": _DENIALS.get(e.code, str(e.code)), "count": e.bytes_count},
            ),
            core.EVENT_FLOW_SEALED: lambda e: (
                LogEvent.FLOW_SEALED,
                self._flow(e) | {"bytes": e.bytes_count},
            ),
            core.EVENT_FLOW_INTERRUPTED: lambda e: (
                LogEvent.FLOW_INTERRUPTED,
                self._flow(e) | {"durable_bytes": e.bytes_count} | _reason(e),
            ),
            core.EVENT_FLOW_REFUSED: lambda e: (
                LogEvent.FLOW_REFUSED,
                self._flow(e) | _reason(e),
            ),
            core.EVENT_ACCEPT_FAILED: lambda e: (
                LogEvent.ACCEPT_FAILED,
                self._listener(e.detail)
                | {"error": errno_text(e.code), "hint": _accept_advice(e.code)},
            ),
            core.EVENT_STORE_FAILED: _store_failed,
            core.EVENT_STORE_FULL: lambda _: (LogEvent.STORE_FULL, {}),
            core.EVENT_WRITE_RETRIED: lambda e: (
                LogEvent.WRITE_RETRIED,
                {"error": errno_text(e.code), "tries": e.detail, "store_offset": e.bytes_count},
            ),
            core.EVENT_SEGMENT_OPENED: lambda e: (LogEvent.SEGMENT_OPENED, _segment(e)),
            core.EVENT_SEGMENT_CLOSED: lambda e: (LogEvent.SEGMENT_CLOSED, _segment(e)),
            core.EVENT_BACKPRESSURE: _backpressure,
            core.EVENT_FLOW_BY_COPY: self._by_copy,
            core.EVENT_FLOW_ELSEWHERE: lambda e: (
                LogEvent.FLOW_HANDED_OVER,
                self._flow(e) | {"to_worker": e.code},
            ),
        }

    def report(self, worker: WorkerThread, event: Event) -> None:
        """Log one event of a worker."""
        formatter = self._formatters.get(event.kind)
        assert formatter is not None, f"event kind {event.kind} of the core is unknown"
        log_event, fields = formatter(event)
        self._log.emit(log_event, store=worker.store_name, worker=worker.index, **fields)

    def _by_copy(self, event: Event) -> tuple[LogEvent, _Fields]:
        advice = {"hint": self._by_copy_advice(event)} if self._by_copy_advice else {}
        return LogEvent.FLOW_BY_COPY, self._flow(event) | {"napi_id": event.code} | advice

    def _opened(self, event: Event) -> tuple[LogEvent, _Fields]:
        if event.bytes_count == 0:
            return LogEvent.FLOW_OPENED, self._flow(event)
        return LogEvent.FLOW_RESUMED, self._flow(event) | {"offset": event.bytes_count}

    def _flow(self, event: Event, *, is_flow: bool = True) -> _Fields:
        is_flow = is_flow and any(event.flow)
        flow = {"flow": str(uuid.UUID(bytes=event.flow))} if is_flow else {}
        return flow | {"peer": event.peer} | self._listener(event.listener_index)

    def _listener(self, index: int) -> _Fields:
        if not 0 <= index < len(self._listener_names):
            return {}
        return {"listener": self._listener_names[index]}


def hello_failure(event: Event) -> str:
    """Return why a connection ended before its hello was decided on."""
    if event.code == _HELLO_TIMEOUT:
        return "hello_timeout"
    return REASONS.get(event.detail, str(event.detail))


def _reason(event: Event) -> _Fields:
    fields: _Fields = {"reason": REASONS.get(event.code, str(event.code))}
    if event.detail:
        fields["error"] = errno_text(event.detail)
    return fields


def _segment(event: Event) -> _Fields:
    return {"segment": event.code, "sequence": event.bytes_count}


def _store_failed(event: Event) -> tuple[LogEvent, _Fields]:
    return LogEvent.STORE_FAILED, {
        "error": errno_text(event.code),
        "failed": _WHAT_FAILED.get(event.detail, str(event.detail)),
        **({} if event.detail == _IS_LOST else {"store_offset": event.bytes_count}),
        "hint": store_failed_advice(event.code),
    }


def store_failed_advice(code: int) -> str:
    """Return what there is to be done about a store that failed with an errno."""
    advice = _STORE_ADVICE.get(code, "look at the device (dmesg, smartctl)")
    return f"{advice}, then restart: {_LOST if code in _LOSSES else _SAFE}"


def _backpressure(event: Event) -> tuple[LogEvent, _Fields]:
    if event.code == 0:
        return LogEvent.BACKPRESSURE_ENDED, {}
    return LogEvent.BACKPRESSURE_STARTED, {
        "cause": _BACKPRESSURE_CAUSES.get(event.code, str(event.code))
    }


def _accept_advice(code: int) -> str:
    if code in (errno.EMFILE, errno.ENFILE):
        return "raise LimitNOFILE in the systemd unit, or `ulimit -n`"
    return "accepting resumes by itself after a moment"

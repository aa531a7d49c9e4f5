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

from ingestd.core.border import (
    AcceptFailed,
    Backpressure,
    BackpressureChanged,
    Event,
    FlowByCopy,
    FlowDenied,
    FlowElsewhere,
    FlowInterrupted,
    FlowOpened,
    FlowRefused,
    FlowSealed,
    HelloFailed,
    SegmentClosed,
    SegmentOpened,
    StoreFailed,
    StoreFailure,
    StoreFull,
    WriteRetried,
)
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.store.format import layout
from ingestd.store.format.layout import REASONS

if TYPE_CHECKING:
    from ingestd.daemon.workers.worker import WorkerThread

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
        log: Log,
        listener_names: Sequence[str],
        by_copy_advice: Callable[[Event], str] | None = None,
    ) -> None:
        self._log = log
        self._by_copy_advice = by_copy_advice
        self._listener_names = listener_names

    def report(self, worker: WorkerThread, event: Event) -> None:
        """Log one event of a worker."""
        log_event, fields = self._of_flow(event) or self._of_worker(event)
        self._log.emit(log_event, store=worker.store_name, worker=worker.index, **fields)

    def _of_flow(self, event: Event) -> tuple[LogEvent, _Fields] | None:
        """The log line of a flow or a connection; None: the event is about something else."""
        flow, fields = self._flow(event), _Fields()
        match event.detail:
            case FlowOpened(base_bytes=0):
                return LogEvent.FLOW_OPENED, flow
            case FlowOpened(base_bytes=offset):
                return LogEvent.FLOW_RESUMED, flow | {"offset": offset}
            case FlowSealed(durable_bytes=bytes_count):
                return LogEvent.FLOW_SEALED, flow | {"bytes": bytes_count}
            case FlowInterrupted() as end:
                fields = {"durable_bytes": end.durable_bytes} | _reason(end)
                return LogEvent.FLOW_INTERRUPTED, flow | fields
            case FlowRefused(reason=layout.CLOSE_REASON_EMPTY):
                return LogEvent.FLOW_EMPTY, flow
            case FlowRefused() as end:
                return LogEvent.FLOW_REFUSED, flow | _reason(end)
            case HelloFailed() as failure:
                fields = self._flow(event, is_flow=False) | {"reason": hello_failure(failure)}
                return LogEvent.FLOW_REFUSED, fields
            case FlowDenied(denial=denial, connections_count=count):
                return LogEvent.CONNECTION_DENIED, flow | {"reason": denial.value, "count": count}
            case FlowByCopy(napi_id=napi_id):
                advice = {"hint": self._by_copy_advice(event)} if self._by_copy_advice else {}
                return LogEvent.FLOW_BY_COPY, flow | {"napi_id": napi_id} | advice
            case FlowElsewhere(worker_index=None):
                return LogEvent.FLOW_HANDED_OVER, flow | {"to_worker": "any"}
            case FlowElsewhere(worker_index=number):
                return LogEvent.FLOW_HANDED_OVER, flow | {"to_worker": number}
        return None

    def _of_worker(self, event: Event) -> tuple[LogEvent, _Fields]:
        fields = _Fields()
        match event.detail:
            case AcceptFailed(error=error):
                fields = {"error": errno_text(error), "hint": _accept_advice(error)}
                return LogEvent.ACCEPT_FAILED, self._listener(event.listener_index) | fields
            case StoreFailed() as failure:
                return LogEvent.STORE_FAILED, _store_failed(failure)
            case StoreFull():
                return LogEvent.STORE_FULL, {}
            case WriteRetried(error=error, tries=tries, store_offset=offset):
                fields = {"error": errno_text(error), "tries": tries, "store_offset": offset}
                return LogEvent.WRITE_RETRIED, fields
            case SegmentOpened(segment_index=index, sequence=sequence):
                return LogEvent.SEGMENT_OPENED, {"segment": index, "sequence": sequence}
            case SegmentClosed(segment_index=index, sequence=sequence):
                return LogEvent.SEGMENT_CLOSED, {"segment": index, "sequence": sequence}
            case BackpressureChanged(cause=Backpressure.ENDED):
                return LogEvent.BACKPRESSURE_ENDED, {}
            case BackpressureChanged(cause=cause):
                return LogEvent.BACKPRESSURE_STARTED, {"cause": cause.value}
        raise AssertionError(f"an event of the core is unknown: {event.detail}")

    def _flow(self, event: Event, *, is_flow: bool = True) -> _Fields:
        is_flow = is_flow and any(event.flow)
        flow = {"flow": str(uuid.UUID(bytes=event.flow))} if is_flow else {}
        return flow | {"peer": event.peer} | self._listener(event.listener_index)

    def _listener(self, index: int) -> _Fields:
        if not 0 <= index < len(self._listener_names):
            return {}
        return {"listener": self._listener_names[index]}


def hello_failure(failure: HelloFailed) -> str:
    """Return why a connection ended before its hello was decided on."""
    if failure.is_timeout:
        return "hello_timeout"
    return REASONS.get(failure.reason, str(failure.reason))


def _reason(end: FlowInterrupted | FlowRefused) -> _Fields:
    fields: _Fields = {"reason": REASONS.get(end.reason, str(end.reason))}
    if end.error:
        fields["error"] = errno_text(end.error)
    return fields


def _store_failed(failure: StoreFailed) -> _Fields:
    is_lost = failure.failed is StoreFailure.STORE
    return {
        "error": errno_text(failure.error),
        "failed": failure.failed.value,
        **({} if is_lost else {"store_offset": failure.store_offset}),
        "hint": store_failed_advice(failure.error),
    }


def store_failed_advice(code: int) -> str:
    """Return what there is to be done about a store that failed with an errno."""
    advice = _STORE_ADVICE.get(code, "look at the device (dmesg, smartctl)")
    return f"{advice}, then restart: {_LOST if code in _LOSSES else _SAFE}"


def _accept_advice(code: int) -> str:
    if code in (errno.EMFILE, errno.ENFILE):
        return "raise LimitNOFILE in the systemd unit, or `ulimit -n`"
    return "accepting resumes by itself after a moment"

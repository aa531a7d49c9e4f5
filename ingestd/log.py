# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: one vocabulary of events, three ways to show them.

Invariants:
 - What is logged is a LogEvent with fields; there is no free text, so that
   people can look an event up and programs can match it.
 - The log goes to standard error (or the journal), never to standard output.
 - An event that comes in a flood is counted, not repeated: at most
   RATE_PER_S_MAX lines a second per kind, then one line with the count.
 - Texts that came from the network cannot break a line or steer a terminal.
 - Emitting waits for the target only as far as the stream or the sink does: the
   daemon's are a queue (log_writer.py).

Any thread may emit; configuring is the main thread's.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from enum import Enum
from typing import Any, Final, Literal, Self, TextIO

import structlog

RATE_PER_S_MAX: Final = 10
RATE_WINDOW_S: Final = 1.0

RESERVED_FIELDS: Final = frozenset({"event", "level", "message", "timestamp"})

LevelName = Literal["debug", "info", "warning", "error"]
Target = Literal["journald", "console", "json"]
JournalSink = Callable[[dict[str, Any]], None]
EventDict = MutableMapping[str, Any]

_LEVELS: Final[dict[LevelName, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LogEvent(Enum):
    """Every event of the log: name, usual level, and what it says in one line."""

    level: LevelName
    meaning: str

    DAEMON_STARTING = "daemon_starting", "info", "the process begins; version, stores, listeners"
    ENGINE_CHOSEN = "engine_chosen", "info", "which engine brings bytes in, and why"
    NIC_CHANGED = "nic_changed", "info", "the interface was prepared for zcrx: one change of it"
    NIC_RESTORED = "nic_restored", "info", "a change of the interface was undone, or was gone"
    NIC_NOT_RESTORED = "nic_not_restored", "error", "changes of the interface could not be undone"
    NIC_WARNING = "nic_warning", "warning", "what of the interface makes zcrx less than it can be"
    STORE_HELD = (
        "store_held",
        "warning",
        "another process holds the store, perhaps one that is going away; the start waits for it",
    )
    STORE_OPENED = "store_opened", "info", "a store is locked, recovered and ready to be written"
    SUPERBLOCK_DAMAGED = (
        "superblock_damaged",
        "warning",
        "one of the two superblocks was not valid; the other one was used",
    )
    RECOVERED = "recovered", "info", "what the scan of a store found after its last use"
    AREA_CHOSEN = "area_chosen", "info", 'how large an area "auto" made, and what bounded it'
    WORKER_STARTED = "worker_started", "info", "a worker's thread runs; its CPU, area and profile"
    AREA_WITHOUT_HUGEPAGES = (
        "area_without_hugepages",
        "warning",
        "no hugepages were free, so an area lies on ordinary pages",
    )
    DESCRIPTORS_SHORT = (
        "descriptors_short",
        "warning",
        "the limit of descriptors is below what the configured flows may need",
    )
    LISTENING = "listening", "info", "a listener or the metrics endpoint is bound"
    READY = "ready", "info", "every listener accepts flows"
    FLOW_OPENED = "flow_opened", "debug", "a connection was accepted and is a flow"
    FLOW_RESUMED = "flow_resumed", "info", "a connection resumes a flow at an offset"
    FLOW_SEALED = "flow_sealed", "info", "a flow ended well; all its bytes are durable"
    FLOW_INTERRUPTED = (
        "flow_interrupted",
        "warning",
        "a flow ended early; its durable bytes can be read",
    )
    FLOW_REFUSED = "flow_refused", "warning", "a connection was refused; nothing of it is stored"
    CONNECTION_DENIED = (
        "connection_denied",
        "warning",
        "connections were not admitted: their network may not, or one peer has too many; how many",
    )
    FLOW_BY_COPY = (
        "flow_by_copy",
        "info",
        "a connection came by an rx queue without zero copy; the kernel copies its bytes",
    )
    FLOW_HANDED_OVER = (
        "flow_handed_over",
        "debug",
        "a connection was passed to the worker whose rx queue it comes by",
    )
    ACCEPT_FAILED = "accept_failed", "warning", "the kernel could not hand over a connection"
    SEGMENT_OPENED = "segment_opened", "debug", "a worker begins to fill a segment"
    SEGMENT_CLOSED = "segment_closed", "debug", "a segment is full and has its footer"
    SEGMENT_OVERWRITTEN = (
        "segment_overwritten",
        "info",
        "the store is full, and its oldest segment went; whose bytes were in it",
    )
    OVERWRITING_FAILED = (
        "overwriting_failed",
        "error",
        "the oldest segment could not be evicted; why, and when it is tried again",
    )
    REMOVAL_TABLE_FULL = (
        "removal_table_full",
        "warning",
        "too many removed flows wait for their segments; some that could go stay",
    )
    CLOCK_SET = (
        "clock_set",
        "warning",
        "the machine's clock was set; terms of flows go by the former time for a while",
    )
    FLOWS_MISDATED = (
        "flows_misdated",
        "warning",
        "flows ended when they cannot have; their terms count from when they were seen",
    )
    FLOW_REMOVED = "flow_removed", "info", "a flow is gone for good; how much it was, and why"
    REMOVAL_REFUSED = (
        "removal_refused",
        "warning",
        "a flow was to be removed, and is being received, or too many are removed already",
    )
    SEGMENT_FREED = (
        "segment_freed",
        "info",
        "nothing in a segment is kept any more, and it can be used again; whose bytes were in it",
    )
    DISCARD_FAILED = (
        "discard_failed",
        "warning",
        "the device did not discard a segment that was given back; it is used again all the same",
    )
    REMOVED_FLOWS_HELD = (
        "removed_flows_held",
        "warning",
        "flows that are removed cannot be forgotten, as segments that are damaged may hold of them",
    )
    MAINTENANCE_FAILED = (
        "maintenance_failed",
        "error",
        "flows could not be removed or segments freed; why, and when it is tried again",
    )
    MAINTENANCE_RESUMED = (
        "maintenance_resumed",
        "info",
        "flows are removed and segments freed again",
    )
    STORE_SPACE_LOW = (
        "store_space_low",
        "warning",
        "fewer segments are free than warn_free_percent asks for",
    )
    STORE_FULL = "store_full", "error", "no segment is free; flows that need one are refused"
    STORE_FAILED = (
        "store_failed",
        "error",
        "the device failed, or the store is gone; nothing more is acknowledged",
    )
    STORE_MOVED = (
        "store_moved",
        "warning",
        "the path of a store leads elsewhere by now; it is served on, as long as it is open",
    )
    STORE_SPARSE = (
        "store_sparse",
        "warning",
        "a store's file has not all of its space, and asks for it; what lacks it waits",
    )
    STORE_WHOLE = "store_whole", "info", "all free segments of a store's file have space again"
    RESERVING_FAILED = "reserving_failed", "error", "asking for a store file's space failed; a bug"
    WRITE_RETRIED = "write_retried", "warning", "a device write failed or fell short; tried again"
    BACKPRESSURE_STARTED = (
        "backpressure_started",
        "info",
        "senders are held back, because the area or the device is full",
    )
    BACKPRESSURE_ENDED = "backpressure_ended", "info", "senders are no longer held back"
    EVENTS_LOST = (
        "events_lost",
        "warning",
        "a worker, or a maintenance thread, had more events than were fetched in time",
    )
    WATCHDOG_LATE = "watchdog_late", "error", "a worker's loop has not turned for too long"
    WORKER_FAILED = "worker_failed", "error", "a worker's thread ended with an error"
    CONFIG_RELOADED = "config_reloaded", "info", "changed settings are in effect"
    CONFIG_NEEDS_RESTART = (
        "config_needs_restart",
        "warning",
        "changed settings that only a restart puts into effect",
    )
    CONFIG_REFUSED = (
        "config_refused",
        "error",
        "the changed configuration is not valid; the old one stays in effect",
    )
    KEYS_RELOADED = "keys_reloaded", "info", "a listener's key file was read again"
    KEYS_REFUSED = (
        "keys_refused",
        "error",
        "a listener's changed key file cannot be used; the old keys stay in effect",
    )
    DRAINING = "draining", "info", "no more connections are accepted; open flows may end"
    STOPPED = "stopped", "info", "everything received is durable or reported lost; the process ends"
    LEFT_BEHIND = (
        "left_behind",
        "error",
        "a part of the daemon hangs and did not end in time; the process ends without it",
    )
    LOG_DROPPED = (
        "log_dropped",
        "warning",
        "nobody took the log for a while, so that lines before this one are missing; how many",
    )
    EVENTS_SUPPRESSED = "events_suppressed", "info", "how many events of a kind were not shown"

    def __new__(cls, name: str, level: LevelName, meaning: str) -> Self:
        member = object.__new__(cls)
        member._value_ = name
        member.level = level
        member.meaning = meaning
        return member


# These come once for each thing that is configured: however many, each counts.
NEVER_SUPPRESSED: Final = frozenset(
    {
        LogEvent.DAEMON_STARTING,
        LogEvent.ENGINE_CHOSEN,
        LogEvent.NIC_CHANGED,
        LogEvent.NIC_RESTORED,
        LogEvent.NIC_NOT_RESTORED,
        LogEvent.NIC_WARNING,
        LogEvent.STORE_HELD,
        LogEvent.STORE_OPENED,
        LogEvent.STORE_SPARSE,
        LogEvent.STORE_WHOLE,
        LogEvent.SUPERBLOCK_DAMAGED,
        LogEvent.RECOVERED,
        LogEvent.AREA_CHOSEN,
        LogEvent.WORKER_STARTED,
        LogEvent.AREA_WITHOUT_HUGEPAGES,
        LogEvent.LISTENING,
        LogEvent.READY,
        LogEvent.WORKER_FAILED,
        LogEvent.STORE_FAILED,
        LogEvent.DRAINING,
        LogEvent.STOPPED,
        LogEvent.LEFT_BEHIND,
        LogEvent.LOG_DROPPED,
    }
)


class RateLimiter:
    """Admits so many events per kind and window, and counts the others.

    Invariants: per kind, admitted in a window <= RATE_PER_S_MAX * RATE_WINDOW_S; each
    event not admitted is in exactly one count that admit() or take_over() returns.
    """

    def __init__(self, per_window_max: int = int(RATE_PER_S_MAX * RATE_WINDOW_S)) -> None:
        self._per_window_max = per_window_max
        self._lock = threading.Lock()
        # kind -> begin of its window (s, monotonic), admitted in it, suppressed in it
        self._windows: dict[LogEvent, tuple[float, int, int]] = {}

    def admit(self, event: LogEvent, now_s: float) -> tuple[bool, int]:
        """Return whether to show the event, and how many were suppressed before it."""
        with self._lock:
            begun_s, admitted, suppressed = self._windows.get(event, (now_s, 0, 0))
            reported = 0
            if now_s - begun_s >= RATE_WINDOW_S:
                begun_s, admitted, suppressed, reported = now_s, 0, 0, suppressed
            is_admitted = admitted < self._per_window_max
            admitted += is_admitted
            suppressed += not is_admitted
            self._windows[event] = (begun_s, admitted, suppressed)
            return is_admitted, reported

    def take_over(self, now_s: float) -> dict[LogEvent, int]:
        """Return, and forget, what was suppressed in windows that are over."""
        with self._lock:
            over = {
                event: window
                for event, window in self._windows.items()
                if now_s - window[0] >= RATE_WINDOW_S
            }
            for event in over:
                del self._windows[event]
            return {event: suppressed for event, (_, _, suppressed) in over.items() if suppressed}


class Log:
    """Emits events to one target; made by open_log()."""

    def __init__(
        self,
        logger: Any,
        level: LevelName,
        *,
        limiter: RateLimiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._limiter = limiter or RateLimiter()
        self._clock = clock
        self.set_level(level)

    def set_level(self, level: LevelName) -> None:
        """Show only events at least as severe from now on."""
        self._level = _LEVELS[level]

    def emit(self, event: LogEvent, /, *, level: LevelName | None = None, **fields: Any) -> None:
        """Log an event, at its usual level unless another is given. Raises nothing for I/O."""
        assert not RESERVED_FIELDS & fields.keys(), fields
        severity = level or event.level
        if _LEVELS[severity] < self._level:
            return
        is_admitted, suppressed = True, 0
        if event not in NEVER_SUPPRESSED:
            is_admitted, suppressed = self._limiter.admit(event, self._clock())
        if suppressed:
            self._tell_suppressed(event, suppressed)
        if is_admitted:
            self._write(event, severity, fields)

    def report_suppressed(self, *, at_end: bool = False) -> None:
        """Log the counts of floods that are over; of all, when no event comes any more.

        Call about once a second, and at the end.
        """
        now_s = math.inf if at_end else self._clock()
        for event, count in self._limiter.take_over(now_s).items():
            self._tell_suppressed(event, count)

    def _tell_suppressed(self, event: LogEvent, count: int) -> None:
        """At the level of what was not shown: a flood of infos is no warning."""
        if _LEVELS[event.level] >= self._level:
            fields = {"of": event.value, "count": count}
            self._write(LogEvent.EVENTS_SUPPRESSED, event.level, fields)

    def _write(self, event: LogEvent, level: LevelName, fields: dict[str, Any]) -> None:
        try:
            getattr(self._logger, level)(event.value, **fields)
        except (OSError, ValueError):  # a full disk, or a stream closed behind our back
            return  # the log has nowhere to complain, and flows matter more


def open_log(
    level: LevelName,
    target: Target,
    *,
    journal_sink: JournalSink | None = None,
    stream: TextIO | None = None,
) -> Log:
    """Return a log that writes to the target; stream (default: standard error) for texts.

    For "journald", journal_sink takes each event as a dict with "event", "level",
    "message" and the event's own fields.
    """
    processors: list[Any] = [structlog.processors.add_log_level, _make_safe]
    stream = stream or sys.stderr
    if target == "journald":
        assert journal_sink is not None, "the journal needs a sink"
        processors.append(_JournalRenderer(journal_sink))
    elif target == "json":
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False),
        ]
    logger = structlog.wrap_logger(
        _LineLogger(stream),
        processors=processors,
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
    )
    return Log(logger, level)


def _make_safe(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """Escape what could end a line or steer a terminal, wherever the text came from."""
    for key, value in event_dict.items():
        event_dict[key] = _safe(value)
    return event_dict


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value


class _LineLogger:
    """Writes each text as a line; a write may itself log something, which comes before it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._mutex = threading.RLock()

    def msg(self, text: str) -> None:
        with self._mutex:
            self._stream.write(text + "\n")
            self._stream.flush()

    debug = info = warning = error = msg


class _JournalRenderer:
    """The last processor of a chain whose lines the journal takes."""

    def __init__(self, sink: JournalSink) -> None:
        self._sink = sink

    def __call__(self, _logger: Any, _method: str, event_dict: EventDict) -> str:
        fields = dict(event_dict)
        own = [f"{key}={value}" for key, value in fields.items() if key not in ("event", "level")]
        fields["message"] = " ".join([str(fields["event"]), *own])
        self._sink(fields)
        raise structlog.DropEvent

# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: events of log_events.py, shown in one of three ways.

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
from typing import Any, Final, Literal, TextIO

import structlog

from ingestd.log_events import NEVER_SUPPRESSED, LevelName, LogEvent

RATE_PER_S_MAX: Final = 10
RATE_WINDOW_S: Final = 1.0

RESERVED_FIELDS: Final = frozenset({"event", "level", "message", "timestamp"})

Target = Literal["journald", "console", "json"]
JournalSink = Callable[[dict[str, Any]], None]
EventDict = MutableMapping[str, Any]

_LEVELS: Final[dict[LevelName, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


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
            self._report_suppressed(event, suppressed)
        if is_admitted:
            self._write(event, severity, fields)

    def report_suppressed(self, *, at_end: bool = False) -> None:
        """Log the counts of floods that are over; of all, when no event comes any more.

        Call about once a second, and at the end.
        """
        now_s = math.inf if at_end else self._clock()
        for event, count in self._limiter.take_over(now_s).items():
            self._report_suppressed(event, count)

    def _report_suppressed(self, event: LogEvent, count: int) -> None:
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

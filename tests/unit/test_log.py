# SPDX-License-Identifier: Apache-2.0
"""The log: vocabulary, three targets, floods, hostile text."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.log import RATE_WINDOW_S, Log, RateLimiter, open_log
from ingestd.log_events import LogEvent


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Recorder:
    """Stands in for a structlog logger: every level's method records."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((level, event, fields))


def _recorded(level: Any = "info", per_window_max: int = 3) -> tuple[Log, Recorder, FakeClock]:
    recorder, clock = Recorder(), FakeClock()
    limiter = RateLimiter(per_window_max)
    return Log(recorder, level, limiter=limiter, clock=clock), recorder, clock


def test_vocabulary() -> None:
    for event in LogEvent:
        assert event.value == event.name.lower()
        assert event.level in ("debug", "info", "warning", "error")
        assert 10 < len(event.meaning) < 90
        assert "\n" not in event.meaning
    assert LogEvent["FLOW_SEALED"].value == "flow_sealed"
    meanings = [event.meaning for event in LogEvent]
    assert len(set(meanings)) == len(meanings)


def test_json_is_one_object_a_line() -> None:
    stream = io.StringIO()
    log = open_log("info", "json", stream=stream)
    log.emit(LogEvent.READY, addresses=["[::1]:7"], workers=2)
    log.emit(LogEvent.FLOW_REFUSED, peer="a\nb", code="limit", odd=b"\xff")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "ready", "level": "info", "addresses": ["[::1]:7"], "workers": 2}
    assert second["level"] == "warning"
    assert second["odd"] == "b'\\xff'"


@pytest.mark.parametrize("target", ["json", "console"])
def test_text_from_outside_stays_on_its_line(target: Any) -> None:
    stream = io.StringIO()
    open_log("info", target, stream=stream).emit(
        LogEvent.FLOW_SEALED, peer="x\r\nready forged=1\x1b[2J\u202e\x9b"
    )
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert "forged" in text


def test_console_has_no_colours_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    open_log("info", "console", stream=stream).emit(LogEvent.READY, engine="recv")
    assert "\x1b" not in stream.getvalue()
    assert "ready" in stream.getvalue()
    assert "engine=recv" in stream.getvalue()


def test_journal_gets_a_dict_and_the_stream_nothing() -> None:
    taken: list[dict[str, Any]] = []
    stream = io.StringIO()
    log = open_log("info", "journald", journal_sink=taken.append, stream=stream)
    log.emit(LogEvent.STORE_FULL, store="raw")
    assert taken == [
        {"event": "store_full", "level": "error", "store": "raw", "message": "store_full store=raw"}
    ]
    assert stream.getvalue() == ""


def test_journal_without_a_sink_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        open_log("info", "journald")


def test_level_can_change_under_way() -> None:
    log, recorder, _ = _recorded("warning")
    log.emit(LogEvent.READY)
    log.emit(LogEvent.STORE_FULL)
    log.set_level("debug")
    log.emit(LogEvent.FLOW_OPENED)
    log.emit(LogEvent.READY, level="error")
    assert [(level, event) for level, event, _ in recorder.lines] == [
        ("error", "store_full"),
        ("debug", "flow_opened"),
        ("error", "ready"),
    ]


def test_fields_cannot_replace_what_every_line_has() -> None:
    log, recorder, _ = _recorded()
    with pytest.raises(AssertionError):
        log.emit(LogEvent.READY, message="mine")
    assert recorder.lines == []


def test_flood_is_counted_and_told_when_it_is_over() -> None:
    log, recorder, clock = _recorded()
    for _ in range(10):
        log.emit(LogEvent.FLOW_SEALED)
    log.emit(LogEvent.FLOW_REFUSED)  # another kind is not held back
    assert [event for _, event, _ in recorder.lines] == ["flow_sealed"] * 3 + ["flow_refused"]
    log.report_suppressed()
    assert len(recorder.lines) == 4, "the window is not over"
    clock.now_s += RATE_WINDOW_S
    log.report_suppressed()
    assert recorder.lines[4:] == [("info", "events_suppressed", {"of": "flow_sealed", "count": 7})]
    log.report_suppressed()
    assert len(recorder.lines) == 5, "told once"


def test_at_the_end_no_flood_goes_untold() -> None:
    log, recorder, _ = _recorded()
    for _ in range(10):
        log.emit(LogEvent.FLOW_SEALED)
    log.report_suppressed(at_end=True)
    assert recorder.lines[3:] == [("info", "events_suppressed", {"of": "flow_sealed", "count": 7})]


def test_what_is_configured_is_told_however_much_it_is() -> None:
    log, recorder, _ = _recorded(per_window_max=3)
    for number in range(64):
        log.emit(LogEvent.LISTENING, address=f"*:{number}")
    assert len(recorder.lines) == 64


def test_flood_is_told_before_the_next_of_its_kind() -> None:
    log, recorder, clock = _recorded()
    for _ in range(5):
        log.emit(LogEvent.FLOW_SEALED)
    clock.now_s += RATE_WINDOW_S
    log.emit(LogEvent.FLOW_SEALED)
    assert [event for _, event, _ in recorder.lines[3:]] == ["events_suppressed", "flow_sealed"]
    assert recorder.lines[3][2]["count"] == 2


@given(st.lists(st.tuples(st.floats(0, 0.7), st.sampled_from(list(LogEvent)[:3])), max_size=200))
def test_every_event_is_shown_or_counted(steps: list[tuple[float, LogEvent]]) -> None:
    limiter, now_s = RateLimiter(2), 0.0
    shown = counted = 0
    for wait_s, event in steps:
        now_s += wait_s
        is_admitted, told = limiter.admit(event, now_s)
        shown, counted = shown + is_admitted, counted + told
    counted += sum(limiter.take_over(now_s + 2 * RATE_WINDOW_S).values())
    assert shown + counted == len(steps)


def test_threads_lose_no_event() -> None:
    limiter = RateLimiter(5)
    shown: list[bool] = []

    def flood() -> None:
        shown.extend(limiter.admit(LogEvent.READY, 1.0)[0] for _ in range(500))

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(shown) == 5
    assert limiter.take_over(1.0 + RATE_WINDOW_S) == {LogEvent.READY: 1995}


def test_log_that_cannot_be_written_does_not_stop_the_daemon() -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    open_log("info", "json", stream=Full()).emit(LogEvent.READY)
    closed = io.StringIO()
    log = open_log("info", "json", stream=closed)
    closed.close()
    log.emit(LogEvent.READY)


def test_log_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    open_log("info", "json").emit(LogEvent.READY)
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "ready"

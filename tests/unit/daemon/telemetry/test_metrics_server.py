# SPDX-License-Identifier: Apache-2.0
"""The metrics endpoint: what it answers, and that no client keeps others out or the end away."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ingestd.address import parse_address
from ingestd.daemon.base.listen import bind_listener
from ingestd.daemon.telemetry import metrics_server
from ingestd.daemon.telemetry.metrics_server import MetricsServer, start_metrics
from ingestd.daemon.telemetry.negotiation import (
    OPENMETRICS_ACCEPT,
    TEXT_ACCEPT,
    accepted_format,
)
from ingestd.errors import ListenError
from support.patience import WAIT_S


class TwoFamilies(Collector):
    """A gauge, a counter, and a family as large as asked for."""

    def __init__(self) -> None:
        self.rows_count = 1
        self.may_answer = threading.Event()
        self.may_answer.set()

    def collect(self) -> Iterator[Metric]:
        assert self.may_answer.wait(WAIT_S)
        yield GaugeMetricFamily("ingestd_connections", "Now.", value=3)
        yield CounterMetricFamily("ingestd_flows", "Ever.", value=7)
        many = GaugeMetricFamily("many", "Rows.", labels=["number"])
        for number in range(self.rows_count):
            many.add_metric([str(number)], number)
        yield many

    def describe(self) -> list[Metric]:
        return []


@pytest.fixture
def collector() -> TwoFamilies:
    return TwoFamilies()


@pytest.fixture
def server(collector: TwoFamilies) -> Iterator[MetricsServer]:
    server = _started(collector)
    yield server
    collector.may_answer.set()
    assert server.close(WAIT_S) == []


def _started(collector: Collector, address: str = "127.0.0.1:0") -> MetricsServer:
    return start_metrics(bind_listener("metrics", parse_address(address), 1), collector)


def _get(server: MetricsServer, path: str = "/metrics", method: str = "GET", **headers: str) -> Any:
    url = f"http://{server.addresses[0]}{path}"
    request = urllib.request.Request(url, headers=headers, method=method)
    return urllib.request.urlopen(request, timeout=WAIT_S)


def _connect(server: MetricsServer, clients: ExitStack, text: bytes = b"") -> socket.socket:
    sock = clients.enter_context(socket.create_connection(server.addresses[0], timeout=WAIT_S))
    sock.sendall(text)
    return sock


def _wait_for(condition: Any) -> None:
    limit_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.005)


# --- Answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "application/openmetrics-text;q=0"])
def test_a_scrape(server: MetricsServer, accept: str) -> None:
    with _get(server, Accept=accept) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    names = {sample.name for family in families for sample in family.samples}
    assert "process_resident_memory_bytes" in names
    types = re.findall(r"^# TYPE (ingestd_\w*) (\w+)$", text, re.MULTILINE)
    assert types == [("ingestd_connections", "gauge"), ("ingestd_flows_total", "counter")]


def test_a_scrape_in_openmetrics(server: MetricsServer) -> None:
    """By the header that Prometheus sends."""
    accept = (
        "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;"
        "version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )
    with _get(server, Accept=accept) as answer:
        assert answer.headers["Content-Type"].startswith(
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        )
        text = answer.read().decode()
    assert text.endswith("# EOF\n")
    types = re.findall(r"^# TYPE (ingestd_\w*) (\w+)$", text, re.MULTILINE)
    assert types == [("ingestd_connections", "gauge"), ("ingestd_flows", "counter")]
    families = list(openmetrics_families(text))
    assert {family.name for family in families} >= {"ingestd_connections", "ingestd_flows"}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", TEXT_ACCEPT),
        ("*/*", TEXT_ACCEPT),
        ("application/openmetrics-text", OPENMETRICS_ACCEPT),
        ("Application/OpenMetrics-Text; Version=1.0.0 ; Q=0.1", OPENMETRICS_ACCEPT),
        ('application/openmetrics-text;version="1.0.0"', OPENMETRICS_ACCEPT),
        ("application/openmetrics-text;version=2.0.0", TEXT_ACCEPT),
        ("application/openmetrics-text;version=x", TEXT_ACCEPT),
        ("text/plain, application/openmetrics-text", OPENMETRICS_ACCEPT),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.8", TEXT_ACCEPT),
        ("application/openmetrics-text;q=0.000", TEXT_ACCEPT),
        ("application/openmetrics-text;q=nan", TEXT_ACCEPT),
        ("application/openmetrics-text;q=7", TEXT_ACCEPT),
        (";;q=,=;,,application/openmetrics-text", OPENMETRICS_ACCEPT),
    ],
)
def test_the_format_is_the_one_preferred(accept: str, wanted: str) -> None:
    assert accepted_format(accept) == wanted


def test_a_scrape_that_is_compressed(server: MetricsServer) -> None:
    with _get(server, **{"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"ingestd_connections 3.0" in gzip.decompress(answer.read())


def test_head_has_the_headers_alone(server: MetricsServer) -> None:
    with _get(server, method="HEAD") as answer:
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) > 100
        assert answer.read() == b""


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/", 200, b"Metrics are at /metrics\n"),
        ("/-/healthy", 200, b"ingestd is up\n"),
        ("/-/ready", 200, b"ingestd is up\n"),
        ("/metric", 404, b"Metrics are at /metrics\n"),
    ],
)
def test_other_paths(server: MetricsServer, path: str, code: int, text: bytes) -> None:
    with contextlib.ExitStack() as answers:
        try:
            answer = answers.enter_context(_get(server, path))
        except urllib.error.HTTPError as error:
            answer = error
        assert (answer.status, answer.read()) == (code, text)


def test_other_methods_are_refused(server: MetricsServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        _get(server, method="DELETE")
    assert caught.value.code == 405


def test_no_request_at_all(server: MetricsServer) -> None:
    """Bytes that are no HTTP, and a client that goes away at once, harm nobody."""
    with ExitStack() as clients:
        _connect(server, clients, b"\x16\x03\x01" + b"\xff" * 100 + b"\r\n\r\n")
        _connect(server, clients).close()
        with _get(server) as answer:
            assert answer.status == 200


# --- Clients that take their time ---------------------------------------------------------


@pytest.mark.fault("scrapers")
def test_silent_connections_keep_nobody_out(server: MetricsServer) -> None:
    with ExitStack() as clients:
        silent = [_connect(server, clients) for _ in range(10 * metrics_server.CONNECTIONS_MAX)]
        with _get(server) as answer:
            assert answer.status == 200
        _wait_for(lambda: server._threads_count <= metrics_server.CONNECTIONS_MAX)
        # Who came first had to give way, without a word.
        assert silent[0].recv(1) == b""


def test_who_is_being_answered_does_not_give_way(
    server: MetricsServer, collector: TwoFamilies
) -> None:
    collector.may_answer.clear()
    with ExitStack() as clients:
        scraper = _connect(server, clients, b"GET /metrics HTTP/1.0\r\n\r\n")
        _wait_for(lambda: any(c.has_asked for c in server._connections))
        silent = [_connect(server, clients) for _ in range(4 * metrics_server.CONNECTIONS_MAX)]
        assert silent[0].recv(1) == b""
        collector.may_answer.set()
        assert scraper.recv(9) == b"HTTP/1.0 "


@pytest.mark.fault("scrapers")
@pytest.mark.parametrize("request_begin", [b"", b"GET /metrics HTTP/1.1\r\nX: "])
def test_a_request_has_a_deadline_however_it_drips(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, request_begin: bytes
) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_TIME_MAX_S", 0.3)
    with ExitStack() as clients:
        slow = _connect(server, clients, request_begin)
        slow.settimeout(0.02)
        begun_s = time.monotonic()
        while True:
            assert time.monotonic() - begun_s < WAIT_S
            try:
                slow.sendall(b"a" if request_begin else b"")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        _wait_for(lambda: server._threads_count == 0)


@pytest.mark.fault("scrapers")
def test_an_answer_that_nobody_reads_has_a_deadline(
    server: MetricsServer, collector: TwoFamilies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_TIME_MAX_S", 0.5)
    collector.rows_count = 300_000  # more than the socket's buffers take
    with ExitStack() as clients:
        _connect(server, clients, b"GET /metrics HTTP/1.0\r\n\r\n")
        _wait_for(lambda: server._threads_count == 1)
        _wait_for(lambda: server._threads_count == 0)


@pytest.mark.fault("descriptors")
def test_out_of_descriptors_it_pauses(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    accept = socket.socket.accept

    def short(sock: socket.socket) -> Any:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(sock)

    monkeypatch.setattr(metrics_server, "ACCEPT_PAUSE_S", 0.2)
    monkeypatch.setattr(MetricsServer._pause, "__defaults__", (0.2,))
    monkeypatch.setattr(socket.socket, "accept", short)
    with _get(server) as answer:
        assert answer.status == 200
    assert len(calls) >= 2
    assert calls[1] - calls[0] >= 0.2


def test_without_a_thread_a_connection_is_closed(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MetricsServer._pause, "__defaults__", (0.05,))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ExitStack() as clients, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert _connect(server, clients).recv(1) == b""
    with _get(server) as answer:
        assert answer.status == 200


# --- The end ------------------------------------------------------------------------------


def test_a_used_port(server: MetricsServer, collector: TwoFamilies) -> None:
    with pytest.raises(ListenError, match=r'"metrics": 127\.0\.0\.1:\d+ is in use'):
        _started(collector, str(server.addresses[0]))


def test_closed_is_closed_whoever_is_there(collector: TwoFamilies) -> None:
    server = _started(collector)
    collector.may_answer.clear()
    with ExitStack() as clients:
        _connect(server, clients)
        _connect(server, clients, b"GET /metrics HTTP/1.0\r\n\r\n")
        _wait_for(lambda: any(c.has_asked for c in server._connections))
        assert server.close(WAIT_S) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.addresses[0], timeout=5)
    collector.may_answer.set()
    _wait_for(lambda: server._threads_count == 0)

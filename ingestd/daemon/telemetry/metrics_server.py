# SPDX-License-Identifier: Apache-2.0
"""The HTTP server behind /metrics: prometheus_client's exposition on the standard library's server.

Invariants:
 - A request, from its connection to the last byte of its answer, takes no longer
   than REQUEST_TIME_MAX_S, however its client drips or does not read.
 - At most CONNECTIONS_MAX connections are served; one more ends the oldest that has
   not asked yet, so that connections which say nothing cannot keep a scraper out.
   Those that are ended and their threads count until THREADS_MAX.
 - Out of descriptors or threads, the server pauses instead of trying at once.
 - The answer is in Prometheus' text format or in OpenMetrics, as the client accepts.

start_metrics() and close() belong to the main thread.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector

from ingestd.daemon.base.listen import ListenerSockets
from ingestd.daemon.base.threads import block_signals, join_threads, start_thread
from ingestd.daemon.base.waker import Waker
from ingestd.daemon.telemetry.negotiation import accepted_format
from ingestd.errors import ResourceError

PATH: Final = "/metrics"
ALIVE_PATHS: Final = ("/-/healthy", "/-/ready")
# Less than Prometheus' usual scrape_timeout of 10 s.
REQUEST_TIME_MAX_S: Final = 5.0
CONNECTIONS_MAX: Final = 16
THREADS_MAX: Final = 2 * CONNECTIONS_MAX
# Until a thread that was asked to end has ended.
THREADS_PAUSE_S: Final = 0.02
ACCEPT_PAUSE_S: Final = 1.0
CLOSE_TIME_S: Final = 2.0

_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(eq=False)
class _Connection:
    """One client: its socket, which only its own thread closes, and until when it has time."""

    sock: socket.socket
    address: Any
    deadline_s: float
    mutex: threading.Lock = field(default_factory=threading.Lock)
    is_closed: bool = False
    has_asked: bool = False  # its request is whole

    def end(self) -> None:
        """Let its thread, wherever it waits, see the end of the stream. By any thread."""
        with self.mutex, suppress(OSError):
            if not self.is_closed:
                self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self.mutex:
            self.is_closed = True
            self.sock.close()


class MetricsServer:
    """The running endpoint; close() ends it."""

    def __init__(self, sockets: ListenerSockets, app: _App) -> None:
        self.addresses = sockets.addresses
        self._waker = Waker()
        self._is_stopping = False
        self._servers = [_Server(sock, app) for sock in sockets.per_worker[0]]
        self._mutex = threading.Lock()
        self._connections: list[_Connection] = []  # the oldest first
        self._threads_count = 0
        self._resume_at_s = 0.0
        self._thread = threading.Thread(target=self._main, name="metrics", daemon=True)
        start_thread(self._thread)

    def close(self, timeout_s: float = CLOSE_TIME_S) -> list[str]:
        """Answer no more requests; return the names of threads that hang."""
        self._is_stopping = True
        self._waker.wake()
        stuck = join_threads([self._thread], timeout_s)
        if not stuck:
            self._waker.close()
        return stuck

    def _main(self) -> None:
        block_signals()
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ, None)
            while not self._is_stopping:
                self._listen(selector, is_wanted=time.monotonic() >= self._resume_at_s)
                for key, _ in selector.select(self._wait_s()):
                    if key.data is None:
                        self._waker.clear()
                    else:
                        self._accept(key.data)
                self._end_late()
        for server in self._servers:
            server.server_close()
        with self._mutex:
            for connection in self._connections:
                connection.end()

    def _listen(self, selector: selectors.BaseSelector, *, is_wanted: bool) -> None:
        """Look for new connections, or not, while there is nothing to take them with."""
        for server in self._servers:
            if is_wanted != (server.fileno() in selector.get_map()):
                if is_wanted:
                    selector.register(server, selectors.EVENT_READ, server)
                else:
                    selector.unregister(server)

    def _wait_s(self) -> float | None:
        """Until the next connection is late, or the pause is over; None: neither will be."""
        now_s = time.monotonic()
        times = [self._resume_at_s] if self._resume_at_s > now_s else []
        with self._mutex:
            times += [connection.deadline_s for connection in self._connections[:1]]
        return max(0.0, min(times) - now_s) if times else None

    def _end_late(self) -> None:
        now_s = time.monotonic()
        with self._mutex:
            late = [c for c in self._connections if c.deadline_s <= now_s]
            for connection in late:
                self._connections.remove(connection)
        for connection in late:
            connection.end()

    def _accept(self, server: _Server) -> None:
        with self._mutex:
            if self._threads_count >= THREADS_MAX:
                self._pause(THREADS_PAUSE_S)
                return
        try:
            sock, address = server.socket.accept()
        except BlockingIOError:
            return
        except ConnectionError:
            return  # it went away in the queue
        except OSError:
            self._pause()
            return
        sock.setblocking(True)
        connection = _Connection(sock, address, time.monotonic() + REQUEST_TIME_MAX_S)
        with self._mutex:
            last = self._take_last() if len(self._connections) == CONNECTIONS_MAX else None
            self._connections.append(connection)
            self._threads_count += 1
        if last is not None:
            last.end()
        thread = threading.Thread(
            target=self._serve, args=(server, connection), name="metrics-request", daemon=True
        )
        try:
            start_thread(thread)
        except ResourceError:
            self._forget(connection)
            connection.close()
            self._pause()

    def _take_last(self) -> _Connection:
        """Choose who gives way; under the mutex."""
        waiting = (c for c in self._connections if not c.has_asked)
        chosen = next(waiting, self._connections[0])
        self._connections.remove(chosen)
        return chosen

    def _pause(self, pause_s: float = ACCEPT_PAUSE_S) -> None:
        self._resume_at_s = time.monotonic() + pause_s

    def _forget(self, connection: _Connection) -> None:
        with self._mutex, suppress(ValueError):
            self._threads_count -= 1
            self._connections.remove(connection)

    def _serve(self, server: _Server, connection: _Connection) -> None:
        """The thread of a connection: one request."""
        block_signals()
        # Whatever a client does, or ends under it, is no error of ours.
        with suppress(OSError, ValueError):
            _Handler(connection, server)
            connection.sock.shutdown(socket.SHUT_WR)
        self._forget(connection)
        connection.close()


def start_metrics(sockets: ListenerSockets, collector: Collector) -> MetricsServer:
    """Serve a collector and the process's own figures. Raises ListenError or ResourceError."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    sockets.listen()
    return MetricsServer(sockets, _app(make_wsgi_app(registry)))


def _app(inner: _App) -> _App:
    """Add to the exposition what is around it: paths, HEAD, the choice of a format."""

    def app(request: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        is_head = request["REQUEST_METHOD"] == "HEAD"
        if is_head:
            request["REQUEST_METHOD"] = "GET"
        request["HTTP_ACCEPT"] = accepted_format(request.get("HTTP_ACCEPT", ""))
        answers: list[Any] = []
        if request["PATH_INFO"] == PATH:
            body = b"".join(inner(request, lambda *answer: answers.append(answer)))
            status, headers = answers[0]
        else:
            status, text = _text_of(request["PATH_INFO"])
            body, headers = text.encode(), [("Content-Type", "text/plain; charset=utf-8")]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [] if is_head else [body]

    return app


def _text_of(path: str) -> tuple[str, str]:
    if path in ALIVE_PATHS:
        return "200 OK", "ingestd is up\n"
    status = "200 OK" if path == "/" else "404 Not Found"
    return status, f"Metrics are at {PATH}\n"


class _Handler(WSGIRequestHandler):
    """One request of one connection; made, it has served it."""

    def __init__(self, client: _Connection, server: _Server) -> None:
        self._client = client
        super().__init__(client.sock, client.address, server)

    def parse_request(self) -> bool:
        """Know that there is a request, too."""
        self._client.has_asked = super().parse_request()
        return self._client.has_asked

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Scrapes are not worth a line each."""

    def get_stderr(self) -> Any:
        """Drop a traceback of a request, as clients cause them."""
        return _Nowhere()


class _Nowhere:
    def write(self, _text: str) -> None: ...

    def flush(self) -> None: ...


class _Server(WSGIServer):
    """A WSGI server on a socket that already listens; others accept and have threads."""

    def __init__(self, sock: socket.socket, app: _App) -> None:
        host, port = sock.getsockname()[:2]
        super().__init__((host, port), WSGIRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.socket.setblocking(False)
        # What server_bind() would have asked the name service for.
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()
        self.set_app(app)

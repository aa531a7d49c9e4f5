# SPDX-License-Identifier: Apache-2.0
"""The HTTP server behind /metrics.

Invariants:
 - One thread answers one request at a time, and no client holds it for longer
   than REQUEST_TIMEOUT_S: scrapes cannot pile up memory or threads.
 - The answer is Prometheus' text format, whatever the client accepts: the names
   ingestd_flows and ingestd_flows_total are two families only there.

start_metrics() and close() belong to the main thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector

from ingestd.address import Address
from ingestd.listen import ListenerSockets, open_listener

PATH: Final = "/metrics"
REQUEST_TIMEOUT_S: Final = 5.0
POLL_INTERVAL_S: Final = 0.5

_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """The running endpoint; close() ends it."""

    def __init__(self, sockets: ListenerSockets, app: _App) -> None:
        self.addresses = sockets.addresses
        self._servers = [_Server(sock, app) for sock in sockets.per_worker[0]]
        self._threads = [
            threading.Thread(
                target=server.serve_forever,
                args=(POLL_INTERVAL_S,),
                name="metrics",
                daemon=True,
            )
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Answer no more requests, and close the sockets."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def start_metrics(address: Address, collector: Collector) -> MetricsServer:
    """Serve a collector and the process's own figures. Raises ListenError."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return MetricsServer(open_listener("metrics", address, 1), _text_app(make_wsgi_app(registry)))


def _text_app(inner: _App) -> _App:
    def app(request: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if request["PATH_INFO"] != PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"Metrics are at {PATH}\n".encode()]
        request.pop("HTTP_ACCEPT", None)
        return inner(request, start_response)

    return app


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Scrapes are not worth a line each."""


class _Server(WSGIServer):
    """A WSGI server on a socket that already listens."""

    def __init__(self, sock: socket.socket, app: _App) -> None:
        host, port = sock.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        # What server_bind() would have asked the name service for.
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()
        self.set_app(app)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is no error of ours."""

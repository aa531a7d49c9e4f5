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

import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector

from ingestd.address import Address
from ingestd.daemon.listen import ListenerSockets, open_listener

PATH: Final = "/metrics"
REQUEST_TIMEOUT_S: Final = 5.0

_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer:
    """The running endpoint; close() ends it."""

    def __init__(self, sockets: ListenerSockets, app: _App) -> None:
        self.addresses = sockets.addresses
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._servers = [_Server(sock, app) for sock in sockets.per_worker[0]]
        self._thread = threading.Thread(target=self._main, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more requests, and close the sockets."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        for server in self._servers:
            server.server_close()
        os.close(self._stop_fd)

    def _main(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop_fd, selectors.EVENT_READ, None)
            for server in self._servers:
                selector.register(server, selectors.EVENT_READ, server)
            while True:
                ready = [key.data for key, _ in selector.select()]
                if None in ready:
                    return
                for server in ready:
                    server.handle_request()


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
        self.timeout = 0.0  # the caller has seen that a client waits
        # What server_bind() would have asked the name service for.
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()
        self.set_app(app)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is no error of ours."""

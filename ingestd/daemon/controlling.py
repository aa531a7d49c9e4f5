# SPDX-License-Identifier: Apache-2.0
"""The control socket's part in a daemon's life: bound first, served when all else is, closed.

Invariants: whether there is a socket, and where, is logged; the main thread makes the calls that
other threads ask it for, and waits for none of them. Owned by the main thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from ingestd.config.loading import control_path
from ingestd.control.messages import Message
from ingestd.daemon.control.main_calls import MainCalls
from ingestd.daemon.control.parts import ControlParts, ServedFlows
from ingestd.daemon.control.server import ControlServer
from ingestd.daemon.control.socket_file import SocketFile
from ingestd.daemon.control.status_report import StatusReport
from ingestd.daemon.telemetry.event_stream import EventStream
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.store.read.flow_age import floor_ns, is_misdated

if TYPE_CHECKING:
    from ingestd.config.settings import ControlSettings
    from ingestd.daemon.maintenance.coordinator import Maintenance
    from ingestd.store.read.flows import Flow
    from ingestd.store.serve.served_store import ServedStore


LISTINGS_MAX: Final = 2  # at a time, of one store, for readers and for others


class Control:
    """bind(), start() once everything is served, close()."""

    def __init__(self, wake: Callable[[], None], log: Log) -> None:
        self.events = EventStream()
        self._stopping = threading.Event()
        self._calls = MainCalls(wake)
        self._log = log
        self._file: SocketFile | None = None
        self._server: ControlServer | None = None

    @property
    def path(self) -> str:
        """The socket's path; empty if there is none."""
        return self._file.path if self._file is not None else ""

    def bind(self, settings: ControlSettings) -> None:
        """Make the socket, if it is wanted. Raises ListenError or ConfigError."""
        path = control_path(settings)
        if path is None:
            self._log.emit(
                LogEvent.CONTROL_OFF,
                hint="[control] socket, or --control, names a path: ingestd rm needs it, while"
                " the daemon runs",
            )
        else:
            self._file = SocketFile(path, settings.group)

    def unbind(self) -> None:
        """Take the socket's file away."""
        if self._file is not None:
            self._file.close()

    def start(
        self,
        stores: Mapping[str, ServedStore],
        maintenance: Maintenance,
        status: StatusReport,
        reload: Callable[[], Message],
        drain_store: Callable[..., None],
    ) -> None:
        """Let clients connect, if there is a socket. Raises ResourceError."""
        if self._file is None:
            return
        parts = ControlParts(
            status=status,
            stores={
                name: self._served_flows(name, store, maintenance) for name, store in stores.items()
            },
            events=self.events,
            call_main=self._calls.call,
            stopping=self._stopping,
            reload=reload,
            set_log_level=self._log.set_level,
            drain_store=drain_store,
        )
        self._server = ControlServer(self._file, parts, self._log)
        self._server.start()
        self._log.emit(LogEvent.LISTENING, listener="control", address=self._file.path)

    def _served_flows(self, name: str, store: ServedStore, maintenance: Maintenance) -> ServedFlows:
        def misdated(flow: Flow) -> bool:
            now_ns = time.time_ns()
            return is_misdated(flow, floor_ns(store.superblock, now_ns), now_ns)

        return ServedFlows(
            uuid=store.superblock.uuid,
            listings={may: threading.Semaphore(LISTINGS_MAX) for may in (False, True)},
            source=store.flow_source(self._stopping.is_set),
            misdated=misdated,
            remove=partial(maintenance.remove, name),
        )

    def settle(self) -> None:
        """Make the calls that other threads wait for."""
        self._calls.settle()

    def close(self, timeout_s: float) -> Sequence[str]:
        """Hang up on everybody; return the names of threads that hang."""
        self._calls.close()
        return self._server.close(timeout_s) if self._server is not None else []

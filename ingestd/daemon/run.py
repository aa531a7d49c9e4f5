# SPDX-License-Identifier: Apache-2.0
"""The daemon: everything brought up in order, looked after, and taken down.

Invariants:
 - Order: addresses and control socket (bound), stores (locked, recovered), workers (set
   up), listeners, pumps, run, metrics, control, READY=1. What a failed start has done is
   undone in reverse.
   All locks come before the first area: the kernel releases a killed daemon's
   registered memory, and so of its hugepages, before its registered file, and so
   its lock.
 - The main thread waits for no device, log, scraper or peer: recovery, granting,
   maintenance, the log, metrics and look-ups have threads of their own, and whatever of
   them hangs at the end is left behind (shutdown.py).
 - The service manager hears that the process lives only while every worker's
   loop turns.
 - A store that failed stays failed and the others continue; a worker that ends
   on its own ends the process, since nothing can take its place.

Everything here runs on the main thread, but wake(), which any thread may call.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from ingestd import __version__, systemd
from ingestd.core.border import HelloFailed, StoreFailed
from ingestd.daemon.admission.admission import Admission
from ingestd.daemon.admission.flow_index import FlowIndex
from ingestd.daemon.admission.listener_policy import policy_of
from ingestd.daemon.base.listen import bind_listener
from ingestd.daemon.base.waker import Waker
from ingestd.daemon.control.status_report import StatusReport
from ingestd.daemon.controlling import Control
from ingestd.daemon.exit_code import (
    EXIT_CODE_BUG,
    exit_code_at_end,
    exit_code_of_ended,
    exit_code_of_overdue,
    log_dead,
)
from ingestd.daemon.interruptible import Progress, StartStoppedError, attend
from ingestd.daemon.maintenance.coordinator import Maintenance
from ingestd.daemon.placing import Placing
from ingestd.daemon.reload import Reloader, ReloadOutcome
from ingestd.daemon.segments.granting import Granting
from ingestd.daemon.shutdown import CLOSE_TIME_S, STEP_TIME_MAX_S, Shutdown
from ingestd.daemon.signals import SignalInbox
from ingestd.daemon.startup import (
    StoreOpener,
    bind_listeners,
    check_limits,
    open_listeners,
    open_store,
    prepare_store,
    release_workers,
    start_workers,
    stop_workers,
)
from ingestd.daemon.status import StatusLine
from ingestd.daemon.telemetry.flow_events import FlowEvents
from ingestd.daemon.telemetry.worker_events import EventLog
from ingestd.daemon.telemetry.worker_health import WorkerHealth
from ingestd.daemon.workers import zcrx
from ingestd.daemon.workers.engine import EngineChoice, fall_back
from ingestd.daemon.workers.worker import Core, WorkerThread, kernel_features
from ingestd.errors import ConfigError, EngineError, ResourceError
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.address import Address
    from ingestd.config.settings import Settings
    from ingestd.daemon.base.listen import ListenerSockets
    from ingestd.daemon.workers.engine import ZcrxQueue
    from ingestd.store.serve.served_store import ServedStore

TICK_S: Final = 1.0
WATCHDOG_PINGS: Final = 3  # in the time that the service manager allows for one
STATUS_INTERVAL_S: Final = 5.0
# Kept of drain_timeout_s to write, flush and answer after flows were interrupted.
DRAIN_MARGIN_S: Final = 2.0
DRAIN_MARGIN_PART: Final = 0.25
# With less, a healthy flush would be called stuck.
STOP_TIMEOUT_MIN_S: Final = 2.0


def drain_time_s(drain_timeout_s: float) -> float:
    """Return how long flows may continue after SIGTERM: the time-out less a margin."""
    return drain_timeout_s - min(DRAIN_MARGIN_S, drain_timeout_s * DRAIN_MARGIN_PART)


class Daemon:
    """One run of the daemon; run() once, on the main thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        core: Core,
        open_store: StoreOpener,
        log: Log,
        nic_of: Callable[[str], zcrx.Nic] = zcrx.Nic,
        log_dropped_count: Callable[[], int] = lambda: 0,
    ) -> None:
        self._settings = settings  # as started; as reloaded: the reloader has them
        self._reloader = Reloader(settings, log)
        self._log_dropped_count = log_dropped_count
        self._closing = Shutdown(log)
        self._core = core
        self._open_store = open_store
        self._log = log
        self._nic_of = nic_of
        self._status = StatusLine(time.monotonic)
        self._watchdog_s = systemd.watchdog_timeout_s()
        self._tick_s = TICK_S
        if self._watchdog_s is not None:
            self._tick_s = min(TICK_S, self._watchdog_s / WATCHDOG_PINGS)
        self._stores: dict[str, ServedStore] = {}
        self._workers: list[WorkerThread] = []
        self._listener_names: list[str] = []
        self._granting: Granting | None = None
        self._flow_indexes: dict[str, FlowIndex] = {}
        self._maintenance = Maintenance(self._flow_indexes, self._workers, log)
        self._failed_stores: set[str] = set()
        self._placing = Placing(settings, self._stores, self._workers, self._failed_stores, log)
        self._watch = WorkerHealth(self._workers, self._failed_stores, log)
        self._control = Control(self.wake, log)
        self._reload_wanted = False
        self._deadline_s: float | None = None  # set: stopping, and until when
        self._is_ready = False
        self._exit_code: int | None = None  # set: the loop ends now, with this
        self._next_tick_s = 0.0
        self._next_status_s = 0.0

    def run(self) -> int:
        """Bring everything up, serve until asked to stop, take everything down."""
        with ExitStack() as undo:
            self._signals = undo.enter_context(SignalInbox())
            self._waker = Waker()
            undo.callback(self._waker.close)
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            self._selector.register(self._waker, selectors.EVENT_READ, self._on_wake)
            try:
                self._bring_up(undo)
                self._loop()
            except StartStoppedError as stopped:
                systemd.notify_stopping("the start was stopped", CLOSE_TIME_S)
                if stopped.left_behind:
                    self._closing.leave_behind(stopped.left_behind)
            finally:
                self._begin_closing()
        self._log.report_suppressed(at_end=True)
        exit_code = self._final_exit_code()
        self._log.emit(LogEvent.STOPPED, exit_code=exit_code)
        return exit_code

    def wake(self) -> None:
        """Let the main loop look at events and workers now."""
        self._waker.wake()

    def _begin_closing(self) -> None:
        self._closing.begin()
        if self._is_ready and self._deadline_s is None:
            systemd.notify_stopping("a part failed: everything is taken down", CLOSE_TIME_S)

    def _close_store(self, store: ServedStore) -> None:
        # Its descriptor must not be given to something else under a thread that hangs.
        own = (worker for worker in self._workers if worker.store is store)
        if not self._closing.has_left_behind and not any(worker.alive() for worker in own):
            self._closing.run(f"store {store.path}", store.close)

    # --- Start ------------------------------------------------------------------

    def _bring_up(self, undo: ExitStack) -> None:
        """Do every step of the start. Raises StartStoppedError when a signal asked to stop."""
        settings = self._settings
        self._policies = {name: policy_of(name, item) for name, item in settings.listener.items()}
        self._log.emit(
            LogEvent.DAEMON_STARTING,
            version=__version__,
            pid=os.getpid(),
            stores=sorted(settings.store),
            listeners=sorted(settings.listener),
        )
        nic_undo = ExitStack()
        undo.callback(self._closing.run, "interface", nic_undo.close)
        # An interface can only be put back when nobody holds its queues any more.
        undo.callback(release_workers, self._workers)
        features = kernel_features(self._core)
        engine = zcrx.choose(settings, features, self._log, nic_undo, self._nic_of)
        self._log.emit(LogEvent.ENGINE_CHOSEN, engine=engine.kind, reason=engine.reason)
        check_limits(settings, self._log, engine)
        bound = bind_listeners(settings, undo)
        metrics = settings.metrics.endpoint
        metrics_sockets = bind_listener("metrics", metrics, 1) if metrics else None
        if metrics_sockets is not None:
            undo.callback(metrics_sockets.close)
        self._control.bind(settings.control)
        undo.callback(self._control.unbind)
        self._open_stores(undo)
        engine = self._start_workers(engine, nic_undo, undo)
        self._look_for_stop()
        listening = open_listeners(settings, bound, self._workers, self._log)
        self._listener_names = [name for name, _ in listening]
        advice = zcrx.by_copy_advice(settings, listening) if engine.kind == "zcrx" else None
        self._event_log = EventLog(self._log, self._listener_names, advice)
        protocols = [(name, settings.listener[name].protocol) for name in self._listener_names]
        self._flow_events = FlowEvents(self._control.events, protocols)
        self._placing.begin(self._listener_names, is_tied=engine.kind == "zcrx")
        self._admission = Admission(
            self._log,
            [self._policies[name] for name in self._listener_names],
            self._flow_indexes,
            self._maintenance.flow_locks,
            self._placing.placement,
            self._placing.handover,
            self.wake,
            self._flow_events,
        )
        undo.callback(self._admission.close)
        self._run_workers(undo)
        if metrics_sockets is not None:
            self._bring_up_metrics(metrics_sockets, engine, undo)
        self._bring_up_control(listening, undo)
        self._log.emit(
            LogEvent.READY,
            addresses=[str(address) for _, address in listening],
            engine=engine.kind,
            reason=engine.reason,
        )
        systemd.notify_ready(self._status_line())
        self._is_ready = True

    def _open_stores(self, undo: ExitStack) -> None:
        settings = self._settings
        for name in settings.store:
            store = open_store(
                settings, name, self._open_store, self._attended, self._log, self._control.path
            )
            self._stores[name] = store
            undo.callback(self._close_store, store)
            prepare_store(settings, name, store, self._log)
            self._maintenance.add(name, store, settings, partial(self._placing.is_failed, name))
            flows = store.take_recovered_flows()
            if any(listener.protocol == "ingest" for _, listener in settings.listeners_of(name)):
                store_uuid = store.superblock.store_uuid
                self._flow_indexes[name] = FlowIndex(store_uuid, flows)
            self._look_for_stop()

    def _attended(self, name: str, step: Callable[[Progress], ServedStore]) -> ServedStore:
        return attend(
            name,
            step,
            is_stop_wanted=self._stop_wanted_early,
            stop_time_s=STEP_TIME_MAX_S,
            undo=lambda store: store.close(),
        )

    def _start_workers(
        self, engine: EngineChoice, nic_undo: ExitStack, undo: ExitStack
    ) -> EngineChoice:
        """Set up all workers with the engine; return the one that it came to be."""
        try:
            self._set_up_workers(engine, undo)
        except (EngineError, ResourceError) as error:
            if engine.kind != "zcrx" or self._settings.engine.kind != "auto":
                raise
            stop_workers(self._workers)
            release_workers(self._workers)
            self._workers.clear()
            nic_undo.close()
            engine = fall_back(error)
            self._log.emit(LogEvent.ENGINE_CHOSEN, engine=engine.kind, reason=engine.reason)
            self._set_up_workers(engine, undo)
        return engine

    def _set_up_workers(self, engine: EngineChoice, undo: ExitStack) -> None:
        settings = self._settings
        nic = zcrx.interface_of(settings, engine, self._nic_of)
        index = nic.index() if nic else zcrx.DEVICELESS_INDEX

        def queue_of(store_name: str, worker_index: int) -> ZcrxQueue | None:
            if engine.kind != "zcrx":
                return None
            return zcrx.zcrx_queue(settings, index, store_name, worker_index)

        start_workers(
            settings,
            self._stores,
            self._core,
            self._log,
            self.wake,
            self._workers,
            undo,
            queue_of,
            self._look_for_stop,
        )
        if nic is not None:
            zcrx.judge_areas(settings, nic, self._workers, self._log)
            zcrx.announce_napi_ids(settings, self._workers, nic)

    def _stop_wanted_early(self) -> bool:
        taken = self._signals.take()
        self._reload_wanted |= signal.SIGHUP in taken
        return any(number != signal.SIGHUP for number in taken)

    def _look_for_stop(self) -> None:
        if self._stop_wanted_early():
            raise StartStoppedError

    def _run_workers(self, undo: ExitStack) -> None:
        is_failed = self._placing.is_failed
        granting = Granting(self._stores, self._workers, is_failed, self.wake, self._log)
        self._granting = granting
        undo.callback(self._closing.end, "granting", granting.close)
        # Once more, as draining workers may still need the pumps.
        undo.callback(stop_workers, self._workers)
        undo.callback(self._closing.end, "maintenance", self._maintenance.close)
        granting.start()
        self._maintenance.start()
        for worker in self._workers:
            worker.run()

    def _bring_up_metrics(
        self, sockets: ListenerSockets, engine: EngineChoice, undo: ExitStack
    ) -> None:
        # Only now: their library is a good part of the daemon's memory.
        from ingestd.daemon.telemetry.metrics import IngestdCollector
        from ingestd.daemon.telemetry.metrics_server import start_metrics

        collector = IngestdCollector(
            self._workers,
            self._stores,
            engine,
            self._core,
            self._admission.refused_counts,
            {name: store.warn_free_percent for name, store in self._settings.store.items()},
            self._maintenance_failures,
            self._log_dropped_count,
            self._admission.lookups_waiting_counts,
            self._placing.states.reasons,
        )
        server = start_metrics(sockets, collector)
        undo.callback(self._closing.end, "metrics", server.close)
        for address in server.addresses:
            self._log.emit(LogEvent.LISTENING, listener="metrics", address=str(address))

    def _bring_up_control(self, listening: Sequence[tuple[str, Address]], undo: ExitStack) -> None:
        addresses: dict[str, list[str]] = {}
        for name, address in listening:
            addresses.setdefault(name, []).append(str(address))
        status = StatusReport(
            self._settings,
            self._stores,
            self._workers,
            addresses,
            self._maintenance_failures,
            self._placing.states.reasons,
            lambda: self._deadline_s is not None,
        )
        drain = self._placing.drain
        self._control.start(self._stores, self._maintenance, status, self._reload_by_control, drain)
        undo.callback(self._closing.end, "control", self._control.close)

    def _maintenance_failures(self) -> dict[str, str]:
        """The reason why maintenance fails now, by store. By any thread."""
        granting = self._granting.failures() if self._granting is not None else {}
        return granting | self._maintenance.failures()

    # --- Loop -------------------------------------------------------------------

    def _loop(self) -> None:
        if self._reload_wanted:
            self._reload()
        while self._exit_code is None and not self._has_stopped():
            wait_until_s = min(self._next_tick_s, self._deadline_s or self._next_tick_s)
            wait_s = min(wait_until_s - time.monotonic(), self._placing.handover.retry_s())
            for key, _ in self._selector.select(max(0.0, wait_s)):
                key.data()
            self._placing.settle()
            self._look_after_workers()
            if time.monotonic() >= self._next_tick_s:
                self._tick()
        self._report_events()

    def _has_stopped(self) -> bool:
        return self._deadline_s is not None and not any(w.alive() for w in self._workers)

    def _on_wake(self) -> None:
        self._waker.clear()
        self._control.settle()
        self._report_events()

    def _report_events(self) -> None:
        self._admission.settle()
        for worker in self._workers:
            self._admission.serve(worker)
            for event in worker.events():
                self._placing.report(worker, event)
                if isinstance(event.detail, HelloFailed):
                    self._admission.note_failed(worker, event, event.detail)
                elif isinstance(event.detail, StoreFailed):
                    self._failed_stores.add(worker.store_name)
                self._event_log.report(worker, event)
                self._flow_events.report(worker, event)
        self._placing.settle()

    def _look_after_workers(self) -> None:
        """End the loop if a worker, or a pump, did what it must not."""
        failure = self._granting.error() if self._granting is not None else None
        if failure is not None:
            log_dead(*failure, self._log)
            self._exit_code = EXIT_CODE_BUG
        if self._deadline_s is None:
            code = exit_code_of_ended(self._workers, self._log)
        elif time.monotonic() >= self._deadline_s:
            code = exit_code_of_overdue(self._workers, self._log)
        else:
            return
        self._exit_code = self._exit_code if code is None else code

    def _final_exit_code(self) -> int:
        if self._exit_code is not None:
            return self._exit_code
        return exit_code_at_end(
            self._workers, is_store_failed=bool(self._failed_stores), log=self._log
        )

    # --- Once a second ----------------------------------------------------------

    def _tick(self) -> None:
        now_s = time.monotonic()
        self._next_tick_s = now_s + self._tick_s
        self._log.report_suppressed()
        counters = [worker.counters() for worker in self._workers]
        self._watch.look_for_lost_events(counters)
        self._placing.look(counters)
        self._flow_events.look_for_lost(counters)
        self._maintenance.tick()
        if self._granting is not None:
            self._granting.tick()
        if self._watch.loops_turn() and self._watchdog_s is not None:
            systemd.notify_watchdog()
        if now_s >= self._next_status_s and self._deadline_s is None:
            self._next_status_s = now_s + STATUS_INTERVAL_S
            systemd.notify_status(self._status.line(counters, self._placing.states.texts()))

    def _status_line(self) -> str:
        counters = (worker.counters() for worker in self._workers)
        return self._status.line(counters, self._placing.states.texts())

    # --- Signals ----------------------------------------------------------------

    def _on_signals(self) -> None:
        for number in self._signals.take():
            if number != signal.SIGHUP:
                self._stop(number)
            elif self._deadline_s is None:
                self._reload()

    def _stop(self, number: signal.Signals) -> None:
        """Begin to drain; the second time, let open flows have no more time."""
        is_first = self._deadline_s is None
        timeout_s = self._reloader.settings.daemon.drain_timeout_s
        drain_s = drain_time_s(timeout_s) if is_first else 0.0
        self._log.emit(LogEvent.DRAINING, signal=number.name, drain_s=round(drain_s, 3))
        if is_first:
            stop_s = max(timeout_s, STOP_TIMEOUT_MIN_S)
            self._deadline_s = time.monotonic() + stop_s
            systemd.notify_stopping("draining: open flows may end", stop_s + CLOSE_TIME_S)
        for worker in self._workers:
            worker.stop_accepting()
            worker.drain(drain_s)

    def _reload(self) -> ReloadOutcome:
        systemd.notify_reloading()
        outcome = self._reloader.reload(
            self._workers, self._listener_names, self._admission, self._placing
        )
        systemd.notify_ready(self._status_line())
        return outcome

    def _reload_by_control(self) -> dict[str, object]:
        if self._deadline_s is not None:
            raise ConfigError("the daemon is ending: nothing is changed any more")
        outcome = self._reload()
        if outcome.error:
            raise ConfigError(outcome.error)
        return {key: value for key, value in outcome._asdict().items() if key != "error"}

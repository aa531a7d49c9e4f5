# SPDX-License-Identifier: Apache-2.0
"""The daemon: everything brought up in order, looked after, and taken down.

Invariants:
 - Order: stores (locked, recovered), workers (set up), listeners, pump, run,
   metrics, READY=1. What a failed start has done is undone in reverse. All locks
   come before the first area: the kernel lets go of a killed daemon's registered
   memory, and so of its hugepages, before its registered file, and so its lock.
 - The service manager is told that the process lives only while every worker's
   loop turns.
 - A store that failed stays failed and the others go on; a worker that ends
   unasked ends the process, since nothing can take its place.

Everything here runs on the main thread, but wake(), which any thread may call.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ingestd import __version__, systemd
from ingestd.config.settings import diff, log_target
from ingestd.daemon import zcrx
from ingestd.daemon.admission import Admission, door
from ingestd.daemon.engine import EngineChoice, fall_back
from ingestd.daemon.eventlog import EventLog, errno_text, store_failed_advice
from ingestd.daemon.flow_index import FlowIndex
from ingestd.daemon.handover import Handover
from ingestd.daemon.housekeeping import Housekeeping
from ingestd.daemon.keys import reread_keys
from ingestd.daemon.pump import Pump
from ingestd.daemon.signals import SignalInbox
from ingestd.daemon.startup import (
    StoreOpener,
    check_limits,
    listeners_of,
    open_listeners,
    open_store,
    release_workers,
    start_workers,
    stop_workers,
)
from ingestd.daemon.status import StatusLine
from ingestd.daemon.worker import Core, WorkerThread, kernel_features, load_core
from ingestd.errors import (
    ConfigError,
    EngineError,
    IngestdError,
    ResourceError,
    StoreFailedError,
    SystemCallError,
)
from ingestd.log import Log, LogEvent, open_log

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.daemon.engine import ZcrxQueue
    from ingestd.store.serving import ServedStore

TICK_S: Final = 1.0
WATCHDOG_PINGS: Final = 3  # in the time that the service manager allows for one
# The core's loop turns at least once a second; this allows for a busy machine.
LOOP_AGE_MAX_S: Final = 10.0
STATUS_INTERVAL_S: Final = 5.0
# Kept of drain_timeout_s to write, flush and answer after flows were interrupted.
DRAIN_MARGIN_S: Final = 2.0
DRAIN_MARGIN_PART: Final = 0.25
# With less, a healthy flush would be called stuck.
STOP_TIMEOUT_MIN_S: Final = 2.0
# For taking down what is left after the workers; told to the service manager.
CLOSE_TIME_S: Final = 10.0
EXIT_CODE_BUG: Final = 1


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Raises IngestdError at start."""
    from ingestd.store.serving import open_for_serving

    target = log_target(settings.log)
    sink = systemd.journal_sink() if target == "journald" else None
    log = open_log(settings.log.level, target, journal_sink=sink)
    return Daemon(settings, core=load_core(), open_store=open_for_serving, log=log).run()


def drain_time_s(drain_timeout_s: float) -> float:
    """Return how long flows may go on after SIGTERM: the time-out less a margin."""
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
    ) -> None:
        self._started_settings = settings  # what needs a restart to change
        self._settings = settings  # as reloaded
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
        self._pump: Pump | None = None
        self._flow_indexes: dict[str, FlowIndex] = {}
        self._housekeeping = Housekeeping(self._flow_indexes, self._workers, log)
        self._failed_stores: set[str] = set()
        self._late_workers: set[str] = set()
        self._events_dropped_count = 0
        self._reload_wanted = False
        self._deadline_s: float | None = None  # set: stopping, and until when
        self._exit_code: int | None = None  # set: the loop ends now, with this
        self._next_tick_s = 0.0
        self._next_status_s = 0.0

    def run(self) -> int:
        """Bring everything up, serve until told to stop, take everything down."""
        with ExitStack() as undo:
            self._signals = undo.enter_context(SignalInbox())
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(self._close_wake_fd)
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            self._selector.register(self._wake_fd, selectors.EVENT_READ, self._on_wake)
            if self._bring_up(undo):
                self._loop()
        self._log.tell_suppressed(at_end=True)
        exit_code = self._final_exit_code()
        self._log.emit(LogEvent.STOPPED, exit_code=exit_code)
        return exit_code

    def wake(self) -> None:
        """Let the main loop look at events and workers now."""
        os.eventfd_write(self._wake_fd, 1)

    def _close_wake_fd(self) -> None:
        # A worker that hangs still knows the number, which must not get another meaning.
        if not any(worker.alive() for worker in self._workers):
            os.close(self._wake_fd)

    # --- Start ------------------------------------------------------------------

    def _bring_up(self, undo: ExitStack) -> bool:
        """Do every step of the start; False when a signal asked to stop meanwhile."""
        settings = self._settings
        self._doors = {name: door(name, item) for name, item in settings.listener.items()}
        self._log.emit(
            LogEvent.DAEMON_STARTING,
            version=__version__,
            pid=os.getpid(),
            stores=sorted(settings.store),
            listeners=sorted(settings.listener),
        )
        nic_undo = undo.enter_context(ExitStack())
        # An interface can only be put back when nobody holds its queues any more.
        undo.callback(release_workers, self._workers)
        features = kernel_features(self._core)
        engine = zcrx.choose(settings, features, self._log, nic_undo, self._nic_of)
        self._log.emit(LogEvent.ENGINE_CHOSEN, engine=engine.kind, reason=engine.reason)
        check_limits(settings, self._log, engine)
        for name in settings.store:
            self._stores[name] = open_store(
                settings, name, self._open_store, self._workers, self._log, undo
            )
            self._housekeeping.add(
                name,
                self._stores[name],
                settings,
                partial(self._is_failed, name),
                self.wake,
            )
            store_uuid = self._stores[name].superblock.store_uuid
            flows = self._stores[name].take_recovered_flows()
            if any(listener.protocol == "ingest" for _, listener in listeners_of(settings, name)):
                self._flow_indexes[name] = FlowIndex(store_uuid, flows)
            if self._stop_wanted_early():
                return False
        engine = self._start_workers(engine, nic_undo, undo)
        if self._stop_wanted_early():
            return False
        listening = open_listeners(settings, self._workers, self._log, undo)
        self._listener_names = [name for name, _ in listening]
        advice = zcrx.by_copy_advice(settings, listening) if engine.kind == "zcrx" else None
        self._event_log = EventLog(self._core, self._log, self._listener_names, advice)
        self._admission = Admission(
            self._core,
            self._log,
            [self._doors[name] for name in self._listener_names],
            self._flow_indexes,
            self._housekeeping.gates,
            self.wake,
        )
        undo.callback(self._admission.close)
        self._handover = Handover(
            [(name, settings.listener[name].protocol) for name in self._listener_names],
            self._log,
            self._admission.refused_counts,
        )
        self._run_workers(undo)
        self._bring_up_metrics(engine, undo)
        self._log.emit(
            LogEvent.READY,
            addresses=[str(address) for _, address in listening],
            engine=engine.kind,
            reason=engine.reason,
        )
        systemd.notify_ready(self._status_line())
        return True

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
        )
        if nic is not None:
            zcrx.tell_napi_ids(settings, self._workers, nic)

    def _is_failed(self, store_name: str) -> bool:
        """Whether a store's device has failed. By any thread, once the workers are set up."""
        own = (worker for worker in self._workers if worker.store_name == store_name)
        return any(worker.counters()["store_errno"] for worker in own)

    def _stop_wanted_early(self) -> bool:
        taken = self._signals.take()
        self._reload_wanted |= signal.SIGHUP in taken
        return any(number != signal.SIGHUP for number in taken)

    def _run_workers(self, undo: ExitStack) -> None:
        self._pump = Pump(self._workers, self.wake)
        undo.callback(self._pump.close)
        # Once more, as draining workers may still need the pump.
        undo.callback(stop_workers, self._workers)
        undo.callback(self._housekeeping.close)
        self._pump.start()
        self._housekeeping.start()
        for worker in self._workers:
            worker.run()

    def _bring_up_metrics(self, engine: EngineChoice, undo: ExitStack) -> None:
        endpoint = self._settings.metrics.endpoint
        if endpoint is None:
            return
        # Only now: their library is a good part of the daemon's memory.
        from ingestd.daemon.metrics import IngestdCollector
        from ingestd.daemon.metrics_server import start_metrics

        collector = IngestdCollector(
            self._workers,
            self._stores,
            engine,
            self._core,
            self._admission.refused_counts,
            {name: store.warn_free_percent for name, store in self._settings.store.items()},
        )
        server = start_metrics(endpoint, collector)
        undo.callback(server.close)
        for address in server.addresses:
            self._log.emit(LogEvent.LISTENING, listener="metrics", address=str(address))

    # --- Loop -------------------------------------------------------------------

    def _loop(self) -> None:
        if self._reload_wanted:
            self._reload()
        while self._exit_code is None and not self._has_stopped():
            wait_until_s = min(self._next_tick_s, self._deadline_s or self._next_tick_s)
            wait_s = min(wait_until_s - time.monotonic(), self._handover.retry_s())
            for key, _ in self._selector.select(max(0.0, wait_s)):
                key.data()
            self._handover.settle()
            self._look_after_workers()
            if time.monotonic() >= self._next_tick_s:
                self._tick()
        self._tell_events()

    def _has_stopped(self) -> bool:
        return self._deadline_s is not None and not any(w.alive() for w in self._workers)

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        self._tell_events()

    def _tell_events(self) -> None:
        self._admission.settle()
        self._handover.settle()
        for worker in self._workers:
            self._admission.serve(worker)
            for event in worker.events():
                if event.kind == self._core.EVENT_FLOW_ELSEWHERE:
                    self._handover.give(self._workers, worker, event)
                elif event.kind == self._core.EVENT_HELLO_FAILED:
                    self._admission.note_failed(worker, event)
                elif event.kind == self._core.EVENT_STORE_FAILED:
                    self._failed_stores.add(worker.store_name)
                self._event_log.tell(worker, event)

    def _look_after_workers(self) -> None:
        """End the loop if a worker, or the pump, did what it must not."""
        if self._pump is not None and self._pump.error is not None:
            self._tell_dead("pump", self._pump.error)
            self._exit_code = EXIT_CODE_BUG
        if (failure := self._housekeeping.error()) is not None:
            self._tell_dead(*failure)
            self._exit_code = EXIT_CODE_BUG
        if self._deadline_s is None:
            for worker in self._workers:
                if not worker.alive():
                    self._tell_dead(worker.name, worker.error)
                    self._exit_code = _exit_code_of(worker.error)
        elif time.monotonic() >= self._deadline_s:
            for worker in self._workers:
                if worker.alive():
                    self._log.emit(
                        LogEvent.WORKER_FAILED,
                        worker=worker.name,
                        error="it did not stop within drain_timeout_s",
                        way_out="look for a device that hangs (dmesg); acknowledged bytes are safe",
                    )
                    self._exit_code = SystemCallError.exit_code

    def _tell_dead(self, name: str, error: BaseException | None) -> None:
        if error is None:
            self._log.emit(LogEvent.WORKER_FAILED, worker=name, error="it ended unasked")
        elif isinstance(error, IngestdError):
            self._log.emit(LogEvent.WORKER_FAILED, worker=name, error=str(error))
        else:
            trace = "".join(traceback.format_exception(error))
            self._log.emit(LogEvent.WORKER_FAILED, worker=name, error=repr(error), trace=trace)

    def _final_exit_code(self) -> int:
        if self._exit_code is not None:
            return self._exit_code
        for worker in self._workers:
            if worker.error is not None:
                self._tell_dead(worker.name, worker.error)
                return _exit_code_of(worker.error)
        return StoreFailedError.exit_code if self._failed_stores else 0

    # --- Once a second ----------------------------------------------------------

    def _tick(self) -> None:
        now_s = time.monotonic()
        self._next_tick_s = now_s + self._tick_s
        self._log.tell_suppressed()
        counters = [worker.counters() for worker in self._workers]
        self._look_for_lost_events(counters)
        self._housekeeping.tick()
        if self._loops_turn() and self._watchdog_s is not None:
            systemd.notify_watchdog()
        if now_s >= self._next_status_s and self._deadline_s is None:
            self._next_status_s = now_s + STATUS_INTERVAL_S
            systemd.notify_status(self._status.line(counters, self._failed_stores))

    def _status_line(self) -> str:
        counters = (worker.counters() for worker in self._workers)
        return self._status.line(counters, self._failed_stores)

    def _look_for_lost_events(self, counters: list[dict[str, int]]) -> None:
        """Tell what the counters know and the events, being too many, did not say."""
        dropped_count = sum(shot["events_dropped"] for shot in counters)
        if dropped_count > self._events_dropped_count:
            self._log.emit(LogEvent.EVENTS_LOST, count=dropped_count - self._events_dropped_count)
            self._events_dropped_count = dropped_count
        for worker, shot in zip(self._workers, counters, strict=True):
            if shot["store_errno"] and worker.store_name not in self._failed_stores:
                self._failed_stores.add(worker.store_name)
                self._log.emit(
                    LogEvent.STORE_FAILED,
                    store=worker.store_name,
                    worker=worker.index,
                    error=errno_text(shot["store_errno"]),
                    way_out=store_failed_advice(shot["store_errno"]),
                )

    def _loops_turn(self) -> bool:
        late = {w.name: w.loop_age_s() for w in self._workers}
        late = {name: age_s for name, age_s in late.items() if age_s > LOOP_AGE_MAX_S}
        for name in late.keys() - self._late_workers:
            self._log.emit(LogEvent.WATCHDOG_LATE, worker=name, loop_age_s=round(late[name], 1))
        self._late_workers = set(late)
        return not late

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
        timeout_s = self._settings.daemon.drain_timeout_s
        drain_s = drain_time_s(timeout_s) if is_first else 0.0
        self._log.emit(LogEvent.DRAINING, signal=number.name, drain_s=round(drain_s, 3))
        if is_first:
            stop_s = max(timeout_s, STOP_TIMEOUT_MIN_S)
            self._deadline_s = time.monotonic() + stop_s
            systemd.notify_stopping("draining: open flows may end", stop_s + CLOSE_TIME_S)
        for worker in self._workers:
            worker.stop_accepting()
            worker.drain(drain_s)

    def _reload(self) -> None:
        """Apply what of a changed configuration can be; a bad one changes nothing."""
        systemd.notify_reloading()
        try:
            new = self._settings.reload()
        except ConfigError as error:
            self._log.emit(LogEvent.CONFIG_REFUSED, error=str(error))
        else:
            self._apply(new)
        systemd.notify_ready(self._status_line())

    def _apply(self, new: Settings) -> None:
        changed = diff(self._settings, new).changed_at_run_time
        waiting = diff(self._started_settings, new).needs_restart
        self._settings = new
        self._log.set_level(new.log.level)
        for worker in self._workers:
            store = new.store.get(worker.store_name)
            if store is not None:
                worker.set_intervals(store.flush_interval_s, store.commit_interval_s)
        self._apply_idle_timeouts(new)
        self._log.emit(LogEvent.CONFIG_RELOADED, changed=list(changed))
        if waiting:
            self._log.emit(LogEvent.CONFIG_NEEDS_RESTART, keys=list(waiting))
        # Another path waits for a restart, like every option that names what is served.
        reread_keys(self._started_settings.listener, self._admission, self._log)

    def _apply_idle_timeouts(self, new: Settings) -> None:
        for index, name in enumerate(self._listener_names):
            store_name = self._started_settings.listener[name].store
            listener = new.listener.get(name)
            for worker in self._workers:
                if listener is not None and worker.store_name == store_name:
                    worker.set_idle_timeout(index, listener.idle_timeout_s)


def _exit_code_of(error: BaseException | None) -> int:
    return error.exit_code if isinstance(error, IngestdError) else EXIT_CODE_BUG

# SPDX-License-Identifier: Apache-2.0
"""Bringing the parts of the daemon up, each with its undo.

Invariants:
 - Whatever a step has done stands in the ExitStack before the step can fail,
   so that a start that fails half-way leaves nothing behind.
 - A store is closed only when none of its workers is alive any more.

Owned by the main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ingestd.address import Address
from ingestd.core_limits import AREA_HUGE_BYTES_MIN, AREA_HUGEPAGE_BYTES
from ingestd.daemon.base.listen import ListenerSockets, bind_listener
from ingestd.daemon.machine.direct_io import stricter_profile
from ingestd.daemon.machine.limits import (
    LockedNeed,
    check_locked_memory,
    locked_memory_limit,
    raise_descriptor_limit,
    raise_locked_limit,
)
from ingestd.daemon.machine.memory import bounds_now
from ingestd.daemon.workers.area import (
    AreaPlan,
    locked_bytes_min,
    plan_areas,
)
from ingestd.daemon.workers.locked_memory import locked_of
from ingestd.daemon.workers.worker import Core, WorkerThread, store_profile
from ingestd.log import Log
from ingestd.log_events import LogEvent
from ingestd.sizes import exact_size, short_size

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.daemon.machine.direct_io import DirectProfile
    from ingestd.daemon.workers.engine import EngineChoice, ZcrxQueue
    from ingestd.store.serve.served_store import RecoverySummary, ServedStore

# Descriptors of the process itself: stores, rings, event fds, log, metrics.
DESCRIPTORS_OWN_COUNT: Final = 256
WARNINGS_SHOWN_MAX: Final = 10
CATALOGUES_NAME: Final = "catalogue"  # of the directory of all catalogues, in the state directory
# For workers that are ended because the start failed or another one died.
ABANDON_TIMEOUT_S: Final = 2.0


class StoreOpener(Protocol):
    """ingestd.store.serve.served_store.open_for_serving, or what stands in for it in a test."""

    def __call__(
        self,
        path: str,
        *,
        expected_uuid: str | None = None,
        control: str = "",
        on_wait: Callable[[float], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        catalogues: Path | None = None,
    ) -> ServedStore: ...


class Attended(Protocol):
    """Opens a store on a thread of its own, as attend() does."""

    def __call__(
        self, name: str, step: Callable[[Callable[[int, int], None]], ServedStore]
    ) -> ServedStore: ...


def check_limits(settings: Settings, log: Log, engine: EngineChoice) -> None:
    """Raise ResourceError where locked memory is short; get the descriptors that are needed."""
    needs = [
        LockedNeed(name, store.workers, locked_bytes_min(store, is_zcrx=engine.kind == "zcrx"))
        for name, store in settings.store.items()
    ]
    raise_locked_limit()
    check_locked_memory(needs, locked_memory_limit())
    needed_count = DESCRIPTORS_OWN_COUNT + sum(
        store.workers * min(store.flows_max, _connections_max(settings, name))
        for name, store in settings.store.items()
    )
    limit_count = raise_descriptor_limit(needed_count)
    if limit_count < needed_count:
        log.emit(
            LogEvent.DESCRIPTORS_SHORT,
            limit=limit_count,
            needed=needed_count,
            hint="raise LimitNOFILE in the systemd unit (`ulimit -Hn` elsewhere),"
            " or lower flows_max or connections_max",
        )


def _connections_max(settings: Settings, store_name: str) -> int:
    return sum(listener.connections_max for _, listener in settings.listeners_of(store_name))


def open_store(
    settings: Settings,
    name: str,
    opener: StoreOpener,
    attended: Attended,
    log: Log,
    control: str = "",
) -> ServedStore:
    """Lock and recover one store; to be closed by the caller, also when this fails later.

    `control`: the path of the control socket, for those who find the store.
    """
    wanted = settings.store[name]
    state_dir = settings.daemon.state_dir

    def report_held(wait_s: float) -> None:
        log.emit(LogEvent.STORE_HELD, store=name, path=wanted.path, wait_s=wait_s)

    def step(on_progress: Callable[[int, int], None]) -> ServedStore:
        return opener(
            wanted.path,
            expected_uuid=wanted.uuid,
            control=control,
            on_wait=report_held,
            on_progress=on_progress,
            catalogues=Path(state_dir) / CATALOGUES_NAME if state_dir else None,
        )

    return attended(name, step)


def prepare_store(settings: Settings, name: str, store: ServedStore, log: Log) -> None:
    """Set up what is done to a store beside writing flows, and log it. Raises StoreError."""
    wanted = settings.store[name]
    missing_bytes = store.missing_bytes
    if wanted.on_full == "overwrite-oldest":
        store.overwrite_oldest(wanted.workers)
    store.reserve_room()
    if wanted.discard:
        store.sweeper.discard_freed()
    superblock = store.superblock
    log.emit(
        LogEvent.STORE_OPENED,
        store=name,
        path=store.path,
        uuid=superblock.uuid,
        generation=superblock.generation,
        size=short_size(superblock.store_bytes),
        segments=superblock.segment_count,
        segments_free=store.segments_free_count,
    )
    _log_recovery(name, store.recovery, log)
    _log_catalogue(name, store, log)
    if missing_bytes:
        _log_sparse(name, store, missing_bytes, log)


def _log_catalogue(name: str, store: ServedStore, log: Log) -> None:
    feeder = store.feeder
    if feeder is None:
        path, reason = "none", "there is no state directory (daemon.state_dir)"
    elif not feeder.is_ready:
        path, reason = "none", "it cannot be opened, which is tried again"
    elif feeder.made_because is not None:
        path, reason = str(feeder.path), f"it is made anew: {feeder.made_because}"
    else:
        path, reason = str(feeder.path), "it was found"
    log.emit(LogEvent.CATALOGUE_CHOSEN, store=name, catalogue=path, reason=reason)


def _log_sparse(name: str, store: ServedStore, missing_bytes: int, log: Log) -> None:
    without_count = store.segments_without_room
    if without_count:
        hint = (
            "make room on its file system (df), and it resumes by itself; until then these"
            " segments are not used"
        )
    else:
        hint = "none is needed: all free segments have got their space"
    log.emit(
        LogEvent.STORE_SPARSE,
        store=name,
        missing=short_size(missing_bytes),
        segments_without_room=without_count,
        hint=hint,
    )


def _log_recovery(name: str, recovery: RecoverySummary, log: Log) -> None:
    found = asdict(recovery)
    warnings = [str(text) for text in found.pop("warnings")]
    for text in warnings:
        if text.startswith("superblock"):
            log.emit(LogEvent.SUPERBLOCK_DAMAGED, store=name, warning=text)
    found["seconds"] = round(recovery.seconds, 3)
    log.emit(
        LogEvent.RECOVERED,
        level="warning" if warnings else None,
        store=name,
        warnings_count=len(warnings),
        warnings=warnings[:WARNINGS_SHOWN_MAX],
        **found,
    )


def start_workers(
    settings: Settings,
    stores: Mapping[str, ServedStore],
    core: Core,
    log: Log,
    on_end: Callable[[], None],
    workers: list[WorkerThread],
    undo: ExitStack,
    zcrx_queue: Callable[[str, int], ZcrxQueue | None],
    look_for_stop: Callable[[], None] = lambda: None,
) -> None:
    """Set up every worker, all at the same time, and append it to workers.

    zcrx_queue: the rx queue of a store's worker of that index, if it has one.
    look_for_stop: called while this waits; may raise.
    """
    undo.callback(stop_workers, workers)
    profiles = {
        name: stricter_profile(
            store_profile(core, store.fd, store.path),
            settings.store[name].direct_io,
            name,
            store.superblock.block_bytes,
        )
        for name, store in stores.items()
    }
    is_zcrx = any(zcrx_queue(name, 0) is not None for name in stores)
    areas = _plan_areas(settings, stores, profiles, core, log, is_zcrx=is_zcrx)
    for name, store in stores.items():
        for index in range(settings.store[name].workers):
            worker = WorkerThread(
                core,
                store,
                settings.store[name],
                store_name=name,
                index=index,
                profile=profiles[name],
                area=areas[name],
                on_end=on_end,
                zcrx=zcrx_queue(name, index),
            )
            workers.append(worker)
            worker.start()
    for worker in workers:
        worker.wait_ready(look_for_stop=look_for_stop)
        _log_worker(worker, settings, log)


def _plan_areas(
    settings: Settings,
    stores: Mapping[str, ServedStore],
    profiles: Mapping[str, DirectProfile],
    core: Core,
    log: Log,
    *,
    is_zcrx: bool,
) -> dict[str, AreaPlan]:
    """Decide each store's area, and log what "auto" came to."""
    locked = {
        name: locked_of(
            core, settings.store[name], store.superblock, profiles[name], is_zcrx=is_zcrx
        )
        for name, store in stores.items()
    }
    limit_bytes = locked_memory_limit()
    areas = plan_areas(settings.store, locked, limit_bytes, bounds_now(limit_bytes))
    for name, area in areas.items():
        if area.reason:
            log.emit(
                LogEvent.AREA_CHOSEN,
                store=name,
                area=exact_size(area.area_bytes),
                write_bytes_max=exact_size(area.write_bytes_max),
                locked=exact_size(area.locked_bytes),
                workers=settings.store[name].workers,
                reason=area.reason,
            )
    return areas


def _log_worker(worker: WorkerThread, settings: Settings, log: Log) -> None:
    store = settings.store[worker.store_name]
    counters = worker.counters()
    hugepage_bytes = counters["area_hugepage_bytes"]
    zcrx = worker.zcrx
    queue: dict[str, Any] = {}
    if zcrx is not None:
        queue = {"rx_queue": zcrx.rx_queue, "rx_buf": short_size(counters["rx_buf_len"])}
    log.emit(
        LogEvent.WORKER_STARTED,
        store=worker.store_name,
        worker=worker.index,
        cpu=store.cpus[worker.index] if store.cpus else "any",
        area=short_size(worker.area.area_bytes),
        hugepages=short_size(hugepage_bytes),
        mem_align=worker.profile.mem_align,
        write_align=worker.profile.write_align,
        virt_mask=worker.profile.virt_mask,
        **queue,
    )
    if hugepage_bytes == 0 and worker.area.area_bytes >= AREA_HUGE_BYTES_MIN:
        log.emit(
            LogEvent.AREA_WITHOUT_HUGEPAGES,
            store=worker.store_name,
            worker=worker.index,
            hint=f"raise vm.nr_hugepages by {worker.area.locked_bytes // AREA_HUGEPAGE_BYTES}"
            " for each worker, to save the kernel work",
        )


def stop_workers(workers: Sequence[WorkerThread]) -> None:
    """End all workers whatever they do, and wait a little for them."""
    for worker in workers:
        worker.abandon()
    deadline_s = time.monotonic() + ABANDON_TIMEOUT_S
    for worker in workers:
        worker.join(max(0.0, deadline_s - time.monotonic()))


def release_workers(workers: Sequence[WorkerThread]) -> None:
    """Release all that workers which have ended still hold of the kernel."""
    for worker in workers:
        worker.release()


class Listening(NamedTuple):
    """A bound address; its place in the list is the number that workers know it by."""

    name: str  # of the listener, which has several where a host name has several addresses
    address: Address


def bind_listeners(settings: Settings, undo: ExitStack) -> dict[str, ListenerSockets]:
    """Bind every listener for every worker of its stores, none of which need be there.

    Raises ListenError or ResourceError.
    """
    bound: dict[str, ListenerSockets] = {}
    for name, listener in settings.listener.items():
        workers_count = sum(settings.store[store].workers for store in listener.store_names)
        bound[name] = bind_listener(name, listener.endpoint, workers_count)
        undo.callback(bound[name].close)
    return bound


def open_listeners(
    settings: Settings,
    bound: Mapping[str, ListenerSockets],
    workers: Sequence[WorkerThread],
    log: Log,
) -> list[Listening]:
    """Give the workers the sockets that are bound for them, and listen.

    Raises ListenError or ResourceError.
    """
    listening: list[Listening] = []
    for name, listener in settings.listener.items():
        sockets = bound[name]
        own = [worker for worker in workers if worker.store_name in listener.store_names]
        sockets.listen()
        for worker, worker_sockets in zip(own, sockets.per_worker, strict=True):
            for offset, sock in enumerate(worker_sockets):
                worker.add_listener(sock.fileno(), len(listening) + offset, name, listener)
        listening += [Listening(name, address) for address in sockets.addresses]
        note: dict[str, Any] = {"note": sockets.note} if sockets.note else {}
        for address in sockets.addresses:
            log.emit(
                LogEvent.LISTENING,
                listener=name,
                address=str(address),
                protocol=listener.protocol,
                store=", ".join(listener.store_names),
                **note,
            )
    return listening

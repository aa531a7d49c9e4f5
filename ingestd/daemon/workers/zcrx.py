# SPDX-License-Identifier: Apache-2.0
"""The daemon's part of the engine zcrx, besides running workers.

It finds out whether the machine allows it, prepares the interface and undoes
that, deals the rx queues out to workers, and announces workers' queues to each other.

Invariants: nothing here is done, and no netlink library loaded, unless the
configuration names an interface. Owned by the main thread.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from ingestd.address import ANY_HOST, Address
from ingestd.daemon.machine.limits import LockedNeed, locked_memory_limit
from ingestd.daemon.machine.zcrx_support import (
    kernel_findings,
    locked_finding,
    own_status,
    privilege_findings,
)
from ingestd.daemon.workers.area import area_bytes_at_most, auto_write_bytes, locked_bytes_min
from ingestd.daemon.workers.engine import EngineChoice, ZcrxQueue, choose_engine
from ingestd.daemon.workers.worker import WorkerThread
from ingestd.errors import EngineError, IngestdError
from ingestd.finding import Finding, failures
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.config.settings import EngineSettings, Settings
    from ingestd.core.border import Event
    from ingestd.nic.plan import Steered
    from ingestd.nic.state import Family, NicState
    from ingestd.nic.work import NicDevice

DEVICELESS_INDEX: Final = 0  # interface_index: none


class Nic:
    """The interface of this machine that a configuration names, as far as the daemon needs it."""

    def __init__(self, interface: str) -> None:
        self.interface = interface

    def read(self) -> NicState:
        """Return what it is like now."""
        from ingestd.nic.reading import read_nic

        return read_nic(self.interface)

    def napi_ids(self, queues: Sequence[int]) -> list[int | None]:
        """Return the NAPI id of each rx queue."""
        from ingestd.nic.reading import napi_ids

        return napi_ids(self.interface, queues)

    def index(self) -> int:
        """Return the number that the kernel knows it by."""
        from ingestd.nic.netlink import read_link

        return read_link(self.interface).index

    def device(self) -> NicDevice:
        """Return it for changes."""
        from ingestd.nic.work import RealDevice

        return RealDevice(self.interface)


# --- Who gets which queue ---------------------------------------------------------------


def queues_of_stores(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Return store -> rx queues of its workers, dealt out in the order of the stores."""
    left = list(settings.engine.queues)
    dealt = {}
    for name, store in settings.store.items():
        dealt[name], left = tuple(left[: store.workers]), left[store.workers :]
    return dealt


def wanted_flows(settings: Settings) -> list[Steered]:
    """Return which flows are to come by which queues: those of the stores of their listeners.

    Without any store, as the doctor may be asked, the queues take none; so do those of a store
    that has no listener for itself alone.
    """
    from ingestd.nic.plan import Steered

    if not settings.store and settings.engine.queues:
        return [Steered((), settings.engine.queues)]
    dealt = queues_of_stores(settings)
    flows: dict[tuple[str, ...], list[tuple[Family, int]]] = {(name,): [] for name in dealt}
    for listener in settings.listener.values():
        families = steered_families(listener.endpoint)
        own = flows.setdefault(tuple(n for n in dealt if n in listener.store_names), [])
        own += [(family, listener.endpoint.port) for family in families]
    steered = [
        Steered(tuple(own), tuple(queue for name in names for queue in dealt[name]))
        for names, own in flows.items()
    ]
    return [item for item in steered if item.queues]


def steered_families(address: Address) -> tuple[Family, ...]:
    """Return the families whose flows reach an address by a NIC; none for loopback or port 0."""
    if address.port == 0:
        return ()
    if address.host == ANY_HOST:
        return ("tcp4", "tcp6")
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        return ("tcp4", "tcp6")  # a host name: whichever it resolves to
    if ip.is_loopback:
        return ()
    return ("tcp4",) if ip.version == 4 else ("tcp6",)


def zcrx_queue(settings: Settings, nic_index: int, store_name: str, index: int) -> ZcrxQueue:
    """Return the rx queue that a worker of a store takes over."""
    engine = settings.engine
    assert engine.interface is not None, engine
    rx_queue = 0 if engine.is_deviceless else queues_of_stores(settings)[store_name][index]
    return ZcrxQueue(
        interface=engine.interface,
        interface_index=nic_index,
        rx_queue=rx_queue,
        rx_buf_bytes=engine.rx_buf,
        refill_entries=engine.refill_entries,
        queue_retry_s=engine.queue_retry_s,
    )


# --- Whether, and preparing ---------------------------------------------------------------


def choose(
    settings: Settings,
    features: Mapping[str, bool],
    log: Log,
    undo: ExitStack,
    nic_of: Callable[[str], Nic] = Nic,
) -> EngineChoice:
    """Return the engine, with the interface prepared if that is wanted and ours to do.

    features: those of core.kernel_features(). Raises EngineError for a demand that cannot be met.
    """
    engine = settings.engine
    if engine.kind == "recv" or engine.interface is None:
        return choose_engine(engine, ())
    if engine.kind == "auto" and engine.is_deviceless:
        return choose_engine(engine, ())
    if any(listener.placement == "most-free" for listener in settings.listener.values()):
        text = 'a listener has placement = "most-free", and zero-copy ties flows to stores'
        return choose_engine(engine, [Finding("placement", "fail", text)])
    obstacles = failures(machine_findings(settings, features))
    if not obstacles and not engine.is_deviceless:
        obstacles = _interface_obstacles(settings, nic_of(engine.interface), log, undo)
    return choose_engine(engine, obstacles)


def machine_findings(settings: Settings, features: Mapping[str, bool]) -> list[Finding]:
    """Return what is to be said of kernel, privileges and locked memory."""
    engine, status = settings.engine, own_status()
    needs = [
        LockedNeed(name, store.workers, locked_bytes_min(store, is_zcrx=True))
        for name, store in settings.store.items()
    ]
    return [
        *kernel_findings(features, is_deviceless=engine.is_deviceless, rx_buf_bytes=engine.rx_buf),
        *privilege_findings(status),
        locked_finding(needs, locked_memory_limit(), status),
    ]


def ring_findings(settings: Settings, state: NicState) -> list[Finding]:
    """Return for each store whether its areas hold the card's rx ring and what else is to be in."""
    from ingestd.nic.ring import ring_finding

    found = []
    for name, store in settings.store.items():
        area_bytes, write_bytes = area_bytes_at_most(store), store.write_bytes_max
        if isinstance(write_bytes, str):
            write_bytes = auto_write_bytes(area_bytes)
        subject = f"rx ring, store {name}"
        found.append(ring_finding(state, settings.engine.rx_buf, area_bytes, write_bytes, subject))
    return found


def _interface_obstacles(settings: Settings, nic: Nic, log: Log, undo: ExitStack) -> list[Finding]:
    from ingestd.nic.findings import nic_findings

    wanted = wanted_flows(settings)
    try:
        if settings.engine.manage_nic:
            prepare(settings.engine, nic, wanted, log, undo)
        state = nic.read()
    except IngestdError as error:
        return [Finding("interface", "fail", str(error))]
    findings = [*nic_findings(state, wanted), *ring_findings(settings, state)]
    for finding in findings:
        if finding.verdict == "warn":
            _log_warning(log, nic, finding)
    return failures(findings)


def _log_warning(log: Log, nic: Nic, finding: Finding) -> None:
    log.emit(
        LogEvent.NIC_WARNING,
        interface=nic.interface,
        subject=finding.subject,
        warning=finding.text,
        hint=finding.remedy,
    )


def judge_areas(settings: Settings, nic: Nic, workers: Iterable[WorkerThread], log: Log) -> None:
    """Compare the rx ring with areas that "auto" made smaller than the most it takes.

    Before their size is known, the most was judged. Raises EngineError where the ring leaves
    nothing of an area.
    """
    from ingestd.nic.ring import ring_finding

    state = nic.read()
    for worker in workers:
        name, area = worker.store_name, worker.area
        if worker.index != 0 or area.area_bytes == area_bytes_at_most(settings.store[name]):
            continue
        finding = ring_finding(
            state,
            settings.engine.rx_buf,
            area.area_bytes,
            area.write_bytes_max,
            f"rx ring, store {name}",
        )
        if finding.verdict == "fail":
            raise EngineError(finding.sentence)
        if finding.verdict == "warn":
            _log_warning(log, nic, finding)


def prepare(
    engine: EngineSettings, nic: Nic, wanted: Sequence[Steered], log: Log, undo: ExitStack
) -> None:
    """Change the interface as zero-copy receive needs it, and see to its undo.

    What an earlier run left behind after a crash is undone first. Raises
    EngineError or SystemCallError; then nothing is changed.
    """
    from ingestd.nic.journal import open_journal
    from ingestd.nic.plan import plan_changes
    from ingestd.nic.work import apply
    from ingestd.nic.work import undo as undo_changes

    device = nic.device()
    journal = undo.enter_context(open_journal(nic.interface, nic.index(), engine.nic_state_dir))
    if journal.changes:
        _log_undone(log, nic, undo_changes(device, journal, engine.queue_retry_s))
    changes = plan_changes(device.read(), wanted)
    apply(device, journal, changes)
    for change in changes:
        log.emit(
            LogEvent.NIC_CHANGED, interface=nic.interface, command=change.command(nic.interface)
        )

    def take_back() -> None:
        try:
            _log_undone(log, nic, undo_changes(device, journal, engine.queue_retry_s))
        except IngestdError as error:
            log.emit(
                LogEvent.NIC_NOT_RESTORED,
                interface=nic.interface,
                error=str(error),
                hint=f"ingestd nic undo {nic.interface}",
            )

    undo.callback(take_back)


def _log_undone(log: Log, nic: Nic, undone: Iterable[Any]) -> None:
    for change, fate in undone:
        log.emit(
            LogEvent.NIC_RESTORED,
            interface=nic.interface,
            change=change.command(nic.interface),
            fate=fate,
        )


def interface_of(
    settings: Settings, engine: EngineChoice, nic_of: Callable[[str], Nic] = Nic
) -> Nic | None:
    """Return the interface whose queues are taken over, if there is one."""
    interface = settings.engine.interface
    if engine.kind != "zcrx" or interface is None or settings.engine.is_deviceless:
        return None
    return nic_of(interface)


# --- Among workers ------------------------------------------------------------------------


def announce_napi_ids(settings: Settings, workers: Sequence[WorkerThread], nic: Nic) -> None:
    """Announce to each worker the NAPI ids of its own flows, and of others that share a listener.

    The others are known by their number among all workers.

    To be called when every worker is set up, since a queue may get another id
    when it is taken over, and before any runs. An id that the kernel does not
    name is 0: then it is not checked.
    """
    ids = dict(zip(settings.engine.queues, nic.napi_ids(settings.engine.queues), strict=True))
    dealt = queues_of_stores(settings)
    own_ids = [ids[dealt[worker.store_name][worker.index]] for worker in workers]
    for worker, own_id in zip(workers, own_ids, strict=True):
        listeners = settings.listeners_of(worker.store_name)
        near = {name for _, listener in listeners for name in listener.store_names}
        others = [
            (napi_id, number)
            for number, (other, napi_id) in enumerate(zip(workers, own_ids, strict=True))
            if other is not worker and other.store_name in near and napi_id is not None
        ]
        worker.set_napi(own_id or 0, others)


def by_copy_advice(
    settings: Settings, listening: Sequence[tuple[str, Address]]
) -> Callable[[Event], str]:
    """Return what says for a flow that came by an ordinary queue how to change that."""
    from ingestd.nic.findings import steering_command

    dealt = queues_of_stores(settings)

    def advise(event: Event) -> str:
        name, address = listening[event.listener_index]
        family: Family = "tcp6" if event.peer.startswith("[") else "tcp4"
        names = settings.listener[name].store_names
        queues = tuple(queue for store_name in names for queue in dealt[store_name])
        return steering_command(settings.engine.interface or "", family, address.port, queues)

    return advise

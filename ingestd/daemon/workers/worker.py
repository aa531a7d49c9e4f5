# SPDX-License-Identifier: Apache-2.0
"""A worker as the daemon sees it: one core Worker and the thread it lives on.

Invariants:
 - The core's Worker is made, set up and run on this object's own thread, which
   takes no signals, and whose end is always reported by on_end().
 - A segment is granted at most once, and none is lost on the way.

grant_segments() belongs to one thread at a time (the pump), events(), requests()
and the answers to them to one (the daemon's main thread); everything else may be
called from any.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from ingestd.core.border import Engine, WorkerSettings
from ingestd.core_limits import LISTENERS_MAX
from ingestd.daemon.base.threads import block_signals, start_thread
from ingestd.daemon.machine.direct_io import DirectProfile, assumed_profile, complete_profile
from ingestd.daemon.workers.faults import fault_to_error
from ingestd.daemon.workers.shape import shape_of
from ingestd.errors import (
    IngestdError,
    ListenError,
    NotAStoreError,
    ResourceError,
    SystemCallError,
)
from ingestd.store.format.layout import PROTOCOLS

if TYPE_CHECKING:
    from ingestd.config.settings import ListenerSettings, StoreSettings
    from ingestd.core._core import CoreFault
    from ingestd.core._core import Worker as CoreWorker
    from ingestd.core.border import AdmissionRequest, DeviceProfile, Event, WorkerShape
    from ingestd.daemon.workers.area import AreaPlan
    from ingestd.daemon.workers.engine import ZcrxQueue
    from ingestd.store.serve.served_store import ServedStore

SETUP_TIMEOUT_S: Final = 60.0
SETUP_POLL_S: Final = 0.1
NS_PER_S: Final = 1_000_000_000
_PROTOCOL_NUMBERS: Final = {name: number for number, name in PROTOCOLS.items()}


class Core(Protocol):
    """The module ingestd.core._core, or what stands in for it in a test."""

    HISTOGRAM_BOUNDS_NS: tuple[int, ...]
    HISTOGRAM_BOUNDS_BYTES: tuple[int, ...]
    CoreFault: type[CoreFault]
    Worker: type[CoreWorker]

    def device_profile(self, fd: int) -> DeviceProfile: ...
    def kernel_features(self) -> dict[str, bool]: ...
    def locked_bytes(self, shape: WorkerShape) -> int: ...


def load_core() -> Core:
    """Return the compiled core; imported late, as reading a store needs none of it.

    Raises IngestdError where a library is missing that it was built with.
    """
    try:
        from ingestd.core import _core
    except ImportError as error:
        raise IngestdError(
            f"the compiled core of ingestd cannot be loaded ({error}):"
            " apt-get install liburing2 libisal2, or install a wheel that `make wheel` made"
        ) from error
    return _core


def device_profile(path: str) -> DirectProfile:
    """Return what direct I/O on a device or file takes.

    Raises NotAStoreError where the path cannot be opened for direct I/O, or
    SystemCallError.
    """
    core = load_core()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise NotAStoreError(
            f"{path} cannot be opened for direct I/O ({error.strerror}):"
            " name a block device, or a file on a file system that has O_DIRECT"
        ) from None
    try:
        return store_profile(core, fd, path)
    finally:
        os.close(fd)


def store_profile(core: Core, fd: int, path: str) -> DirectProfile:
    """Return what direct I/O on an open store takes, assumed where the kernel does not say.

    Raises what fault_to_error() makes, or StoreError.
    """
    try:
        alignments = core.device_profile(fd)
    except core.CoreFault as fault:
        if fault.errno == errno.EOPNOTSUPP:
            return assumed_profile(path, fd)
        raise fault_to_error(fault, path) from None
    return complete_profile(alignments.mem_align, alignments.write_align, fd)


def kernel_features(core: Core) -> dict[str, bool]:
    """Return what the kernel's io_uring offers. Raises what fault_to_error() makes."""
    try:
        return core.kernel_features()
    except core.CoreFault as fault:
        raise fault_to_error(fault, "io_uring") from None


class WorkerThread:
    """One worker: start(), wait_ready(), add_listener(), run(), drain(), join()."""

    def __init__(
        self,
        core: Core,
        store: ServedStore,
        settings: StoreSettings,
        *,
        store_name: str,
        index: int,
        profile: DirectProfile,
        area: AreaPlan,
        on_end: Callable[[], None],
        zcrx: ZcrxQueue | None = None,
    ) -> None:
        self.store_name = store_name
        self.index = index
        self.name = f"{store_name}-{index}"
        self.store = store
        self.error: BaseException | None = None  # why the thread ended, if not by a drain
        self._core = core
        self._settings = settings
        self.profile = profile
        self.area = area
        self._on_end = on_end
        self.zcrx = zcrx
        self._worker: CoreWorker | None = None
        self._is_ready = threading.Event()
        self._may_run = threading.Event()
        self._is_abandoned = False
        self._has_ended = threading.Event()
        self._run_begun_ns = 0
        self._listeners_count = 0
        self._is_full_reported = False
        self._grant_held: tuple[int, int] | None = None
        # A thread that does not come back must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)

    def start(self) -> None:
        """Begin to set up; wait_ready() reports the result. Raises ResourceError."""
        start_thread(self._thread)

    def wait_ready(
        self,
        timeout_s: float = SETUP_TIMEOUT_S,
        look_for_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Return once the worker is set up, or raise why it could not be.

        `look_for_stop` is called meanwhile, and may raise.
        """
        timeout_s += self.zcrx.queue_retry_s if self.zcrx else 0
        deadline_s = time.monotonic() + timeout_s
        while not self._is_ready.wait(max(0.0, min(SETUP_POLL_S, deadline_s - time.monotonic()))):
            look_for_stop()
            if time.monotonic() < deadline_s:
                continue
            raise SystemCallError(
                f"worker {self.name}: its setup took longer than {timeout_s:g} s:"
                " make the store's area smaller, or look for a machine short of memory"
            )
        if self.error is not None:
            raise self.error

    def add_listener(self, fd: int, index: int, name: str, listener: ListenerSettings) -> None:
        """Accept flows on a listening socket; before run() only."""
        assert self._run_begun_ns == 0, self.name
        if self._listeners_count == LISTENERS_MAX:
            raise ListenError(
                f'listener "{name}": store "{self.store_name}" has {LISTENERS_MAX} addresses'
                " already, and more cannot be served: spread the listeners over several stores"
            )
        self._listeners_count += 1
        try:
            self.core_worker.add_listener(
                fd,
                index,
                name,
                _PROTOCOL_NUMBERS[listener.protocol],
                int(listener.idle_timeout_s * NS_PER_S),
                listener.connections_max,
                hello_timeout_ns=int(listener.hello_timeout_s * NS_PER_S),
                ack_interval_ns=int(listener.ack_interval_s * NS_PER_S),
                authenticates=listener.key_file is not None,
                allow=[
                    (network.version, network.network_address.packed, network.prefixlen)
                    for network in listener.networks
                ],
                flows_per_peer_max=listener.connections_per_peer_max,
                shared=len(listener.store_names) > 1,
                drops_empty=not listener.keep_empty,
            )
        except self._core.CoreFault as fault:
            raise fault_to_error(fault, f'worker {self.name}, listener "{name}"') from None

    def set_napi(self, own: int, others: list[tuple[int, int]]) -> None:
        """Set the NAPI id by which own flows come, and (id, index) of workers of the same store."""
        assert self._run_begun_ns == 0, self.name
        self.core_worker.set_napi(own, others)

    def run(self) -> None:
        """Let the loop begin."""
        self._run_begun_ns = time.monotonic_ns()
        self._may_run.set()

    def stop_accepting(self) -> None:
        """Take no more connections."""
        self._post(self.core_worker.stop_accepting)

    def drain(self, timeout_s: float) -> None:
        """Interrupt flows that are still open after a time; then the thread ends."""
        self._post(self.core_worker.drain, int(timeout_s * NS_PER_S))

    def abandon(self) -> None:
        """End the thread as soon as it can, whatever state it is in."""
        self._is_abandoned = True
        if self._may_run.is_set() and self._worker is not None and self.alive():
            self.stop_accepting()
            self.drain(0)
        self._may_run.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; return whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self.alive()

    def release(self) -> None:
        """Release what the core holds of the kernel, such as an rx queue, once the thread ended.

        Nothing can be asked of this worker any more.
        """
        if not self.alive():
            self._worker = None

    def alive(self) -> bool:
        """Return whether the thread has begun and not ended."""
        return self._thread.is_alive() and not self._has_ended.is_set()

    def set_intervals(self, flush_interval_s: float, commit_interval_s: float) -> None:
        """Change both intervals of a running worker."""
        self._post(self.core_worker.set_flush_interval, int(flush_interval_s * NS_PER_S))
        self._post(self.core_worker.set_commit_interval, int(commit_interval_s * NS_PER_S))

    def set_idle_timeout(self, listener_index: int, idle_timeout_s: float) -> None:
        """Change a listener's time-out; 0: none."""
        timeout_ns = int(idle_timeout_s * NS_PER_S)
        self._post(self.core_worker.set_idle_timeout, listener_index, timeout_ns)

    def adopt(self, fd: int, listener_index: int, move_id: int = 0) -> bool:
        """Take over an accepted connection; False when the descriptor stays the caller's.

        `move_id`: the number by which its hello is known; 0: it is to be greeted.
        """
        return self.alive() and self._post(self.core_worker.adopt, fd, listener_index, move_id)

    def pass_on(self, listener_index: int, wanted: bool) -> bool:
        """Report what a listener accepts, or serve it again; False: the box is full."""
        return self._post(self.core_worker.pass_on, listener_index, wanted)

    def admission_requests(self) -> list[AdmissionRequest]:
        """Return what is to be decided about connections of protocol `ingest`."""
        return self.core_worker.admission_requests()

    def admit(self, connection: tuple[int, int], flow: bytes, **terms: Any) -> None:
        """Answer a hello: the flow begins or resumes; terms as in core/_core.pyi."""
        self.core_worker.admit(connection, flow, **terms)

    def refuse(self, connection: tuple[int, int], line: bytes) -> None:
        """Answer a hello or a trailer by a line, with which the connection ends."""
        self.core_worker.refuse(connection, line)

    def move(self, connection: tuple[int, int]) -> None:
        """Answer a hello: it is for another worker; the note of the end has the descriptor."""
        self.core_worker.move(connection)

    def park(self, connection: tuple[int, int]) -> bool:
        """Let other requests come before this one is answered; False: too many are parked."""
        return self.core_worker.park(connection)

    def seal(self, connection: tuple[int, int], crc: int | None) -> None:
        """Answer a trailer: it is right, and states this checksum."""
        self.core_worker.seal(connection, crc)

    def end_flow(self, connection: tuple[int, int]) -> bool:
        """Interrupt a connection's flow, as a newer one resumes it; False: the box is full."""
        return self._post(self.core_worker.end_flow, connection)

    def fail_store(self, code: int) -> bool:
        """Acknowledge nothing more, for the reason of an errno; False: the box is full."""
        return not self.alive() or self._post(self.core_worker.fail_store, code)

    def grant_segments(self) -> int:
        """Give the worker the segments it wants, or report once that there are none.

        Returns how many were granted. Cheap when none is wanted.
        """
        granted_count = 0
        for _ in range(self.core_worker.segments_wanted()):
            grant = self._grant_held or self.store.take_segment()
            if grant is None:
                self._report_full()
                break
            if not self._post(self.core_worker.grant_segment, *grant):
                self._grant_held = grant
                break
            self._grant_held = None
            self._is_full_reported = False
            granted_count += 1
        return granted_count

    def _report_full(self) -> None:
        # Of a store that overwrites, one will be there when the next is closed.
        may_come = self._settings.on_full == "overwrite-oldest" and self.store.is_overwriting
        if not self._is_full_reported and not may_come:
            self._is_full_reported = self._post(self.core_worker.note_store_full)

    def _post(self, command: Callable[..., None], *arguments: Any) -> bool:
        """Post a command; False when the box is full: the worker has obeyed none for long.

        Then a grant is tried again at the next wake; all else is lost on a
        worker that hangs, which the watchdog and the deadline of a stop see to.
        """
        try:
            command(*arguments)
        except self._core.CoreFault as fault:
            if fault.errno != errno.EAGAIN:
                raise
            return False
        return True

    @property
    def core_worker(self) -> CoreWorker:
        """The core's side; there is one once wait_ready() has returned."""
        assert self._worker is not None, f"worker {self.name} is not set up"
        return self._worker

    @property
    def event_fd(self) -> int:
        """Readable when grant_segments() or events() have something to do."""
        return self.core_worker.event_fd

    def events(self) -> list[Event]:
        """Return, and forget, what happened."""
        return self.core_worker.events()

    def counters(self) -> dict[str, int]:
        """Return the worker's counters, named as in core/base/stats.h."""
        return self.core_worker.counters()

    def listener_connections(self) -> dict[int, int]:
        """Return how many connections each listener has, by its index."""
        return self.core_worker.listener_connections()

    def histograms(self) -> dict[str, tuple[int, ...]]:
        """Return counts per latency bucket."""
        return self.core_worker.histograms()

    def loop_age_s(self, now_ns: int | None = None) -> float:
        """Return how long ago the loop last turned; 0 as long as it need not run."""
        if self._run_begun_ns == 0 or not self.alive():
            return 0.0
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        beat_ns = max(self._run_begun_ns, self.counters()["loop_beat_ns"])
        return max(0, now_ns - beat_ns) / NS_PER_S

    def _main(self) -> None:
        """The thread: everything that must happen on the ring's own thread."""
        block_signals()
        try:
            self._worker = self._make()
            self._worker.setup()
            self._is_ready.set()
            self._may_run.wait()
            if not self._is_abandoned:
                self._worker.run()
        except self._core.CoreFault as fault:
            self.error = fault_to_error(
                fault,
                f"worker {self.name}",
                self.area.locked_bytes,
                self.zcrx.interface if self.zcrx else "",
            )
        except MemoryError:
            self.error = ResourceError(
                f"worker {self.name} could not be made: give the machine or the unit (MemoryMax)"
                " more memory, and raise LimitNOFILE if it is near"
            )
        except BaseException as bug:
            self.error = bug  # logged by the main thread, which then ends the process
        finally:
            self._has_ended.set()
            self._is_ready.set()
            self._on_end()

    def _make(self) -> CoreWorker:
        settings, superblock = self._settings, self.store.superblock
        engine = Engine.RECV if self.zcrx is None else Engine.ZCRX
        shape = shape_of(
            settings,
            superblock,
            self.profile,
            engine,
            self.area.area_bytes,
            self.area.write_bytes_max,
            self.area.writes_in_flight_max,
        )
        return self._core.Worker(
            WorkerSettings(
                shape=shape,
                store_fd=self.store.fd,
                store_uuid=superblock.store_uuid,
                store_bytes=superblock.store_bytes,
                segments_offset=superblock.segments_offset,
                worker_index=self.index,
                cpu=settings.cpus[self.index] if settings.cpus else -1,
                flush_interval_ns=int(settings.flush_interval_s * NS_PER_S),
                commit_interval_ns=int(settings.commit_interval_s * NS_PER_S),
                checksum=self._wants_checksum(),
                **self._queue_settings(),
            )
        )

    def _wants_checksum(self) -> bool:
        """Return whether "auto" is to: the recv engine's bytes have passed the CPU anyway."""
        if self._settings.checksum == "auto":
            return self.zcrx is None
        return self._settings.checksum == "crc32c"

    def _queue_settings(self) -> dict[str, int]:
        if self.zcrx is None:
            return {}
        return {
            "interface_index": self.zcrx.interface_index,
            "rx_queue": self.zcrx.rx_queue,
            "rx_buf_len": self.zcrx.rx_buf_bytes,
            "refill_entries": self.zcrx.refill_entries,
            "queue_retry_ns": int(self.zcrx.queue_retry_s * NS_PER_S),
        }

# SPDX-License-Identifier: Apache-2.0
"""The core's border: a worker's loop in C, its counters, events and commands."""

from collections.abc import Sequence
from typing import Final

from ingestd.core.border import (
    AdmissionRequest,
    DeviceProfile,
    Event,
    ProbeResult,
    WorkerSettings,
    WorkerShape,
)

class CoreFault(OSError):
    """A system call failed: errno, the call's name and the object it was made for."""

    call: str
    object_name: str

def probe(fd: int, write_align: int) -> ProbeResult:
    """Write shapes to bytes 65536..458751 of a store, which hold nothing, and read them back.

    fd: open for reading and writing with O_DIRECT. Raises CoreFault.
    """

def device_profile(fd: int) -> DeviceProfile: ...
def kernel_features() -> dict[str, bool]:
    """Features of the running kernel's io_uring, e.g. writev_fixed, zcrx; queried, not derived."""

def locked_bytes(shape: WorkerShape) -> int:
    """Bytes that a worker of this shape locks.

    The area, the worker's own part behind it, the ring, and with engine zcrx the area once more.
    0 where the area is too small for the rest of the settings, -1 where it is too large to be
    registered (AREA_MAPPING_BYTES_MAX of core/memory/area.h).
    """

class Worker:
    """One worker.

    setup() and run() are called on the worker's own thread, once each; the
    GIL is released for the whole of run(). All else may be called from any
    thread at any time.
    """

    def __init__(self, settings: WorkerSettings) -> None: ...
    def setup(self) -> None: ...
    def run(self) -> None: ...
    def add_listener(
        self,
        fd: int,
        index: int,
        name: str,
        protocol: int,
        idle_timeout_ns: int,
        flows_max: int,
        *,
        hello_timeout_ns: int = 0,  # protocol ingest, as the next ones
        ack_interval_ns: int = 0,
        authenticates: bool = False,  # the greeting requests a MAC
        allow: Sequence[tuple[int, bytes, int]] = (),  # (4 or 6, address, bits of the prefix)
        flows_per_peer_max: int = 0,  # of one IPv4 address or IPv6 /64 network; 0: no limit
        shared: bool = False,  # workers of other stores have it too
        drops_empty: bool = False,  # protocol raw: of a connection without a byte nothing is kept
    ) -> None:
        """Before run(): accept on a listening socket; fd stays the caller's.

        allow: the networks admitted, 64 at most, mapped addresses being of family 4; none: all.
        """
    def set_napi(self, own: int, others: list[tuple[int, int]]) -> None:
        """Between setup() and run(), zcrx only: NAPI id of the worker's own rx queue, and (NAPI id,
        worker index) of others' (64 at most); connections that came by those are handed away."""
    # Commands: each raises CoreFault with EAGAIN where the worker's mailbox is full.
    def grant_segment(self, index: int, sequence: int) -> None:
        """Grant a segment that it wants, or raise CoreFault with EINVAL if it wants none."""
    def note_store_full(self) -> None:
        """No segment can be had: flows that need one are refused."""
    def stop_accepting(self) -> None: ...
    def drain(self, timeout_ns: int) -> None:
        """Interrupt flows that are still open after that time; then run() returns."""
    def set_flush_interval(self, interval_ns: int) -> None: ...
    def set_commit_interval(self, interval_ns: int) -> None: ...
    def set_idle_timeout(self, listener_index: int, timeout_ns: int) -> None:
        """0: none."""
    def listener_connections(self) -> dict[int, int]:
        """Return how many connections each listener has, by its index. Any thread may call."""
    def adopt(self, fd: int, listener_index: int, move_id: int = 0) -> None:
        """Take over an accepted connection, and its descriptor.

        move_id: the number by which the request that comes names its hello, which another
        worker has received; 0: it is to be greeted.
        """
    def pass_on(self, listener_index: int, wanted: bool) -> None:
        """Report what a listener accepts as FlowElsewhere instead of serving it, or serve again."""
    def end_flow(self, connection: tuple[int, int]) -> None:
        """Interrupt a connection, which a newer one replaces; a note of its end is to come."""
    def fail_store(self, error: int) -> None:
        """Acknowledge nothing more, for the reason of an errno."""
    def events(self) -> list[Event]: ...
    def admission_requests(self) -> list[AdmissionRequest]:
        """Take the pending requests and notes. Each request gets exactly one response, by admit(),
        refuse(), seal() or move(), even if its connection has ended meanwhile."""
    def admit(
        self,
        connection: tuple[int, int],
        flow: bytes,
        *,
        base_bytes: int,  # where the connection begins in the flow
        limit_bytes: int,  # the most that the flow may have; 2**64 - 1: any
        crc: int,  # the flow's chain of CRC32C at base_bytes
        is_crc_known: bool,  # ... and it is that of all bytes before
        is_stated: bool,  # limit_bytes is the flow's length as the sender announced it
        has_trailer: bool,  # a trailer follows the payload
        name: bytes,  # 255 bytes at most
        labels: bytes,  # 1024 bytes at most
    ) -> None: ...
    def refuse(self, connection: tuple[int, int], line: bytes) -> None:
        """Send a line, 1024 bytes at most, and hang up; a flow whose trailer it is about is
        interrupted."""
    def move(self, connection: tuple[int, int]) -> None:
        """Give the connection of a hello up: the note of its end has its descriptor as moved_fd,
        or none where it has ended meanwhile."""
    def park(self, connection: tuple[int, int]) -> bool:
        """Free the request's place for another one's, as its response, which is still due, takes
        long; False: too many are parked."""
    def seal(self, connection: tuple[int, int], crc: int | None) -> None:
        """The trailer is right; crc: what it says, if it does."""
    @property
    def event_fd(self) -> int:
        """Readable when events, requests or segments_wanted() are to be read; clear by
        os.eventfd_read."""
    def segments_wanted(self) -> int:
        """Number of segments that the worker wants to hold ready and does not have."""
    def counters(self) -> dict[str, int]:
        """Totals and gauges; see ingestd/core/base/stats.h for each name and unit."""
    def histograms(self) -> dict[str, tuple[int, ...]]:
        """write_latency, flush_latency, ack_latency: counts per bucket of HISTOGRAM_BOUNDS_NS,
        then over; their sums, such as write_latency_sum_ns, are among the counters.
        commit_bytes: per bucket of HISTOGRAM_BOUNDS_BYTES; its sum is durable_bytes."""

HISTOGRAM_BOUNDS_NS: Final[tuple[int, ...]]
HISTOGRAM_BOUNDS_BYTES: Final[tuple[int, ...]]

# SPDX-License-Identifier: Apache-2.0
"""The core's border: a worker's loop in C, its counters, events and commands."""

from collections.abc import Sequence
from typing import Final, NamedTuple

COMMAND_GRANT_SEGMENT: Final[int]  # a: segment index, b: segment sequence
COMMAND_STORE_FULL: Final[int]  # no segment can be had: flows that need one are refused
COMMAND_STOP_ACCEPTING: Final[int]
COMMAND_DRAIN: Final[int]  # a: ns until flows still open are interrupted; then run() returns
COMMAND_SET_FLUSH_INTERVAL: Final[int]  # a: ns
COMMAND_SET_COMMIT_INTERVAL: Final[int]  # a: ns
COMMAND_SET_IDLE_TIMEOUT: Final[int]  # a: listener index, b: ns, 0: none
COMMAND_ADOPT: Final[int]  # a: descriptor of a connection, b: listener index
COMMAND_FAIL_STORE: Final[int]  # a: errno; nothing more is acknowledged
COMMAND_END_FLOW: Final[int]  # a, b: a connection, which a newer one replaces; Note is to come

EVENT_FLOW_OPENED: Final[int]
EVENT_FLOW_SEALED: Final[int]  # bytes_count: the flow's bytes, all durable
EVENT_FLOW_INTERRUPTED: Final[int]  # code: close_reason of core/format/format.h; detail: errno or 0
EVENT_FLOW_REFUSED: Final[int]  # code: close_reason; nothing was stored of it
EVENT_ACCEPT_FAILED: Final[int]  # code: errno
EVENT_STORE_FAILED: Final[int]  # code: errno; detail: 0 write, 1 flush; bytes_count: store offset
EVENT_STORE_FULL: Final[int]
EVENT_WRITE_RETRIED: Final[int]  # code: errno; bytes_count: store offset
EVENT_SEGMENT_OPENED: Final[int]  # code: segment index; bytes_count: sequence
EVENT_SEGMENT_CLOSED: Final[int]  # code: segment index; bytes_count: sequence
EVENT_BACKPRESSURE: Final[int]  # lasts a second; code: 0 ended, 1 area, 2 device
EVENT_FLOW_BY_COPY: Final[int]  # code: NAPI id of an rx queue without zero copy
# code: index of the worker that the connection belongs to; detail: its descriptor,
# which now belongs to whoever reads this: pass it on by COMMAND_ADOPT, or close it.
EVENT_FLOW_ELSEWHERE: Final[int]
# protocol ingest; code: session_error of ingest/session.h or 0, then detail: close_reason.
EVENT_HELLO_FAILED: Final[int]
# code: enum denial of connection/intake.h; bytes_count: how many connections were not let in for
# it, since the last such event; peer: the last one's.
EVENT_FLOW_DENIED: Final[int]

# Kinds of Question; the third is none, and is not to be answered.
QUESTION_HELLO: Final[int]
QUESTION_TRAILER: Final[int]
NOTE_ENDED: Final[int]

ENGINE_RECV: Final[int]
ENGINE_ZCRX: Final[int]

class Event(NamedTuple):
    kind: int
    code: int
    detail: int
    bytes_count: int
    listener_index: int  # -1: none
    peer: str  # "192.0.2.1:4000", "[2001:db8::1]:4000" or ""
    flow: bytes  # 16 bytes, zeros where no flow is meant
    time_ns: int  # Unix time

class Question(NamedTuple):
    """Protocol ingest: what a worker asks, or notes, about a connection."""

    kind: int
    connection: tuple[int, int]  # names it in answers and COMMAND_END_FLOW
    listener_index: int
    bytes_count: int  # trailer: of the payload; ended: those of the flow that are durable
    crc: int  # the flow's chain of CRC32C at bytes_count
    is_crc_known: bool  # ... and it is that of all of the flow's bytes
    is_whole: bool  # ended: everything stored of it is durable
    is_stored: bool  # ended: this connection has stored something
    is_sealed: bool  # ended: and the flow with it
    flow: bytes  # 16 bytes; of no meaning before the connection was admitted
    peer: str
    challenge: bytes  # 32 bytes, those of the greeting
    block: bytes  # 4096 bytes: hello or trailer

class CoreFault(OSError):
    """A system call failed: errno, the call's name and the object it was made for."""

    call: str
    object_name: str

class DeviceProfile(NamedTuple):
    """What direct I/O on an open file or device takes; bytes."""

    mem_align: int
    write_align: int

class ProbeResult(NamedTuple):
    """What survived being written and read back; bytes."""

    mem_align: int
    virt_mask: int  # 0 or 4095
    iovecs_max: int
    shapes_tried: int
    shapes_lied: int  # reported as written, read back otherwise

def probe(fd: int, write_align: int) -> ProbeResult:
    """Write shapes to bytes 65536..458751 of a store, which hold nothing, and read them back.

    fd: open for reading and writing with O_DIRECT. Raises CoreFault.
    """

def device_profile(fd: int) -> DeviceProfile: ...
def kernel_features() -> dict[str, bool]:
    """What the running kernel's io_uring offers, e.g. writev_fixed, zcrx; asked, not derived."""

def locked_bytes(
    *,
    segment_bytes: int,
    block_bytes: int,
    mem_align: int,
    write_align: int,
    virt_mask: int,
    iovecs_max: int,
    area_bytes: int,
    write_bytes_max: int,
    writes_in_flight_max: int,
    flows_max: int,
    engine: int,
) -> int:
    """What a worker of these settings locks, bytes.

    The area, the worker's own part behind it, the ring, and with engine zcrx the area once more.
    0 where the area is too small for the rest of the settings, -1 where it is too large to be
    registered (AREA_MAPPING_BYTES_MAX of core/memory/area.h).
    """

class Worker:
    """One worker. Every argument is a keyword; sizes in bytes, times in ns.

    setup() and run() are called on the worker's own thread, once each; the
    GIL is released for the whole of run(). All else may be called from any
    thread at any time.
    """

    def __init__(
        self,
        *,
        store_fd: int,
        store_uuid: bytes,
        segments_offset: int,
        segment_bytes: int,
        block_bytes: int,
        mem_align: int,
        write_align: int,
        virt_mask: int,
        iovecs_max: int,
        worker_index: int,
        cpu: int,  # -1: not pinned
        area_bytes: int,
        write_bytes_max: int,
        writes_in_flight_max: int,
        flows_max: int,
        flush_interval_ns: int,
        commit_interval_ns: int,
        checksum: bool,
        engine: int = 0,  # ENGINE_RECV or ENGINE_ZCRX
        interface_index: int = 0,  # zcrx; 0: the kernel's device-less mode
        rx_queue: int = 0,
        rx_buf_len: int = 0,  # asked for; 0: a page
        refill_entries: int = 4096,  # a power of two, at most 32768
        store_bytes: int = 0,  # what a store file must have, looked at with each commit; 0: not
        queue_retry_ns: int = 0,  # how long a queue that is still held is asked for again
    ) -> None: ...
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
        authenticates: bool = False,  # the greeting asks for a MAC
        allow: Sequence[tuple[int, bytes, int]] = (),  # (4 or 6, address, bits of the prefix)
        flows_per_peer_max: int = 0,  # of one IPv4 address or IPv6 /64 network; 0: no limit
    ) -> None:
        """Before run(): accept on a listening socket; fd stays the caller's.

        allow: the networks let in, 64 at most, mapped addresses being of family 4; none: all.
        """
    def set_napi(self, own: int, others: list[tuple[int, int]]) -> None:
        """Between setup() and run(), zcrx only: NAPI id of the worker's own rx queue, and (NAPI id,
        worker index) of others' (64 at most); connections that came by those are handed away."""
    def command(self, kind: int, a: int = 0, b: int = 0) -> None: ...
    def events(self) -> list[Event]: ...
    def questions(self) -> list[Question]:
        """What is to be decided; each but NOTE_ENDED is to be answered exactly once, by one
        of the three below, whatever has become of its connection meanwhile."""
    def admit(
        self,
        connection: tuple[int, int],
        flow: bytes,
        *,
        base_bytes: int,  # where the connection begins in the flow
        limit_bytes: int,  # the most that the flow may have; 2**64 - 1: any
        crc: int,  # the flow's chain of CRC32C at base_bytes
        is_crc_known: bool,  # ... and it is that of all bytes before
        is_stated: bool,  # limit_bytes is the flow's length as the sender states it
        has_trailer: bool,  # a trailer follows the payload
        name: bytes,  # 255 bytes at most
        labels: bytes,  # 1024 bytes at most
    ) -> None: ...
    def refuse(self, connection: tuple[int, int], line: bytes) -> None:
        """Send a line, 1024 bytes at most, and hang up; a flow whose trailer it is about is
        interrupted."""
    def park(self, connection: tuple[int, int]) -> bool:
        """Free the question's place for another one's, as its answer, which is still to be given,
        takes long; False: too many are parked."""
    def seal(self, connection: tuple[int, int], crc: int | None) -> None:
        """The trailer is right; crc: what it says, if it does."""
    @property
    def event_fd(self) -> int:
        """Readable when events, questions or segments_wanted() ask for a look; clear by
        os.eventfd_read."""
    def segments_wanted(self) -> int:
        """How many segments the worker wants to hold ready and does not have."""
    def counters(self) -> dict[str, int]:
        """Totals and gauges; see ingestd/core/base/stats.h for each name and unit."""
    def histograms(self) -> dict[str, tuple[int, ...]]:
        """write_latency, flush_latency, ack_latency: counts per bucket of HISTOGRAM_BOUNDS_NS,
        then over; their sums, such as write_latency_sum_ns, are among the counters.
        commit_bytes: per bucket of HISTOGRAM_BOUNDS_BYTES; its sum is durable_bytes."""

HISTOGRAM_BOUNDS_NS: Final[tuple[int, ...]]
HISTOGRAM_BOUNDS_BYTES: Final[tuple[int, ...]]

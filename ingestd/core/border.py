# SPDX-License-Identifier: Apache-2.0
"""The border between Python and the core: all that crosses it, typed, and in no other place.

The compiled core (_core.pyx) takes and makes these, and so does what stands in for it in a
test. Needs no compiled core itself. Invariants:
 - An event's kind is the type of its `detail`; each kind of enum event_kind has one.
 - Numbers of the core's enums stay in its headers: here they have names.
Sizes are in bytes, times in ns; an `error` is an errno, 0 where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Engine(Enum):
    """The engine that receives fragments (enum worker_engine)."""

    RECV = "recv"
    ZCRX = "zcrx"


class DeviceProfile(NamedTuple):
    """The alignments of direct I/O on an open file or device."""

    mem_align: int
    write_align: int


class ProbeResult(NamedTuple):
    """The shapes of writes that were read back as they were written."""

    mem_align: int
    virt_mask: int  # 0 or 4095
    iovecs_max: int
    shapes_tried: int
    shapes_lied: int  # reported as written, read back otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShape:
    """The parameters that decide how much memory a worker takes and locks."""

    segment_bytes: int
    block_bytes: int
    mem_align: int
    write_align: int
    virt_mask: int
    iovecs_max: int
    area_bytes: int
    write_bytes_max: int
    writes_in_flight_max: int
    flows_max: int
    engine: Engine = Engine.RECV


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The settings of a new worker (struct worker_settings)."""

    shape: WorkerShape
    store_fd: int
    store_uuid: bytes
    segments_offset: int
    worker_index: int
    flush_interval_ns: int
    commit_interval_ns: int
    checksum: bool
    cpu: int = -1  # not pinned
    store_bytes: int = 0  # what a store file must have, looked at with each commit; 0: not
    interface_index: int = 0  # zcrx; 0: the kernel's device-less mode
    rx_queue: int = 0
    rx_buf_len: int = 0  # requested; 0: a page
    refill_entries: int = 4096  # a power of two, at most 32768
    queue_retry_ns: int = 0  # how long a queue that is still held is asked for again


# --- Events ---------------------------------------------------------------------------


class FlowOpened(NamedTuple):
    """A flow begins, or is resumed where this connection begins in it."""

    base_bytes: int = 0


class FlowSealed(NamedTuple):
    """A flow has ended with all of its bytes durable."""

    durable_bytes: int = 0
    crc32c: int | None = None  # of all of its bytes; None: not known


class FlowInterrupted(NamedTuple):
    """A flow's connection has ended, and something of it is stored."""

    reason: int = 0  # close_reason of format/format.h
    error: int = 0
    durable_bytes: int = 0


class FlowRefused(NamedTuple):
    """A connection has ended of which nothing is stored."""

    reason: int = 0  # as above
    error: int = 0


class AcceptFailed(NamedTuple):
    """A connection could not be accepted; the event's listener says where."""

    error: int = 0


class StoreFailure(Enum):
    """The operation that failed (enum storage_failure), or that the store is gone."""

    WRITE = "write"
    FLUSH = "flush"
    STORE = "store"


class StoreFailed(NamedTuple):
    """The store has failed: nothing is acknowledged any more."""

    error: int = 0
    failed: StoreFailure = StoreFailure.WRITE
    store_offset: int = 0


class StoreFull(NamedTuple):
    """No segment can be had, and what there was is used up."""


class WriteRetried(NamedTuple):
    """A write is submitted again."""

    error: int = 0
    tries: int = 0
    store_offset: int = 0


class SegmentOpened(NamedTuple):
    """A segment is appended to from now on."""

    segment_index: int = 0
    sequence: int = 0


class SegmentClosed(NamedTuple):
    """A segment has its footer."""

    segment_index: int = 0
    sequence: int = 0


class Backpressure(Enum):
    """The resource that flows have waited for, for a second."""

    ENDED = ""
    AREA = "area"
    DEVICE = "device"


class BackpressureChanged(NamedTuple):
    """Flows have begun to wait, or do not any more."""

    cause: Backpressure = Backpressure.ENDED


class FlowByCopy(NamedTuple):
    """A connection came by an rx queue without zero copy."""

    napi_id: int = 0


class FlowElsewhere(NamedTuple):
    """A connection belongs to another worker.

    Its descriptor belongs to whoever reads this: give it to that worker's adopt(), or close it.
    """

    worker_index: int | None = 0  # None: any worker that has the listener
    fd: int = -1


class HelloFailed(NamedTuple):
    """A connection of protocol `ingest` has ended before it was admitted, not by a response."""

    is_timeout: bool = False  # its hello did not come in time
    reason: int = 0  # as of an interrupted flow


class Denial(Enum):
    """The reason why a connection was denied (enum denial)."""

    NETWORK = "network"
    PEER_LIMIT = "peer_limit"


class FlowDenied(NamedTuple):
    """Connections were denied since the last such event; the event's peer is the last one's."""

    denial: Denial = Denial.NETWORK
    connections_count: int = 0


EventDetail = (
    FlowOpened
    | FlowSealed
    | FlowInterrupted
    | FlowRefused
    | AcceptFailed
    | StoreFailed
    | StoreFull
    | WriteRetried
    | SegmentOpened
    | SegmentClosed
    | BackpressureChanged
    | FlowByCopy
    | FlowElsewhere
    | HelloFailed
    | FlowDenied
)

NO_FLOW = bytes(16)


class Event(NamedTuple):
    """Something that a worker reports."""

    detail: EventDetail
    listener_index: int = -1  # none
    peer: str = ""  # "192.0.2.1:4000", "[2001:db8::1]:4000"
    flow: bytes = NO_FLOW  # 16 bytes, zeros where no flow is meant
    time_ns: int = 0  # Unix time


# --- Admission ------------------------------------------------------------------------


class RequestKind(Enum):
    """The kind of a request of a worker to Python; a note gets no response."""

    HELLO = "hello"
    TRAILER = "trailer"
    NOTE_ENDED = "ended"


class AdmissionRequest(NamedTuple):
    """Protocol ingest: what a worker asks, or notes, about a connection."""

    kind: RequestKind
    connection: tuple[int, int]  # names it in responses and end_flow()
    listener_index: int
    bytes_count: int  # trailer: of the payload; ended: those of the flow that are durable
    crc: int  # the flow's chain of CRC32C at bytes_count
    is_crc_known: bool  # ... and it is that of all of the flow's bytes
    is_whole: bool  # ended: everything stored of it is durable
    is_stored: bool  # ended: this connection has stored something
    is_sealed: bool  # ended: and the flow with it
    moved_fd: int | None  # ended by move(): the connection's, which belongs to whoever takes this
    move_id: int  # hello: not in block, but known by the number that adopt() was given; else 0
    flow: bytes  # 16 bytes; of no meaning before the connection was admitted
    peer: str
    challenge: bytes  # 32 bytes, those of the greeting
    block: bytes  # 4096 bytes: hello or trailer
    reason: int = 0  # ended and not sealed: close_reason of format/format.h

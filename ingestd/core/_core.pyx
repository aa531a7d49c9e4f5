# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, embedsignature=False
"""The core's border; _core.pyi documents each name.

Nothing is decided here: arguments go into C structs, results come out of them.
"""

import errno

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ingestd.core.border import (
    AcceptFailed, Backpressure, BackpressureChanged, Denial, DeviceProfile, Engine, Event,
    FlowByCopy, FlowDenied, FlowElsewhere, FlowInterrupted, FlowOpened, FlowRefused, FlowSealed,
    HelloFailed, ProbeResult, AdmissionRequest, RequestKind, SegmentClosed, SegmentOpened, StoreFailed,
    StoreFailure, StoreFull, WriteRetried,
)

HISTOGRAM_BOUNDS_NS = tuple(histogram_bound_ns(i) for i in range(HISTOGRAM_BUCKETS_COUNT))
HISTOGRAM_BOUNDS_BYTES = tuple(histogram_bound_bytes(i) for i in range(HISTOGRAM_BUCKETS_COUNT))

cdef dict KINDS = {
    _REQUEST_HELLO: RequestKind.HELLO,
    _REQUEST_TRAILER: RequestKind.TRAILER,
    _NOTE_ENDED: RequestKind.NOTE_ENDED,
}
cdef dict FAILURES = {
    _FAILED_WRITE: StoreFailure.WRITE,
    _FAILED_FLUSH: StoreFailure.FLUSH,
    _FAILED_LOST: StoreFailure.STORE,
}
cdef dict DENIALS = {_DENIED_NETWORK: Denial.NETWORK, _DENIED_PEER: Denial.PEER_LIMIT}
cdef dict CAUSES = {0: Backpressure.ENDED, 1: Backpressure.AREA, 2: Backpressure.DEVICE}


class CoreFault(OSError):
    def __init__(self, code, call, object_name):
        super().__init__(code, f"{call} for {object_name}")
        self.call = call
        self.object_name = object_name


cdef raise_fault(fault *f):
    raise CoreFault(f.code, f.call.decode(), f.object.decode())


def device_profile(int fd):
    cdef uint32_t mem_align, write_align
    cdef int code = direct_io_alignment(fd, &mem_align, &write_align)
    if code < 0:
        raise CoreFault(-code, "statx", f"file descriptor {fd}")
    return DeviceProfile(mem_align, write_align)


def probe(int fd, uint32_t write_align):
    cdef probe_profile p
    cdef fault f
    cdef int code
    memset(&f, 0, sizeof(f))
    with nogil:
        code = probe_device(fd, write_align, &p, &f)
    if code < 0:
        raise_fault(&f)
    return ProbeResult(p.mem_align, p.virt_mask, p.iovecs_max, p.shapes_tried, p.shapes_lied)


def kernel_features():
    features = {}
    for i in range(FEATURES_COUNT):
        code = feature_query(i)
        if code < 0:
            raise CoreFault(-code, "io_uring_setup", "ring to ask the kernel")
        features[feature_name(i).decode()] = code > 0
    return features


cdef put_shape(worker_settings *s, shape):
    s.segment_bytes, s.block_bytes = shape.segment_bytes, shape.block_bytes
    s.mem_align, s.write_align = shape.mem_align, shape.write_align
    s.virt_mask, s.iovecs_max = shape.virt_mask, shape.iovecs_max
    s.area_bytes, s.write_bytes_max = shape.area_bytes, shape.write_bytes_max
    s.writes_in_flight_max, s.flows_max = shape.writes_in_flight_max, shape.flows_max
    s.engine = _ENGINE_ZCRX if shape.engine is Engine.ZCRX else _ENGINE_RECV


def locked_bytes(shape):
    cdef worker_settings s
    memset(&s, 0, sizeof(s))
    put_shape(&s, shape)
    bytes_count = worker_locked_bytes(&s)
    return bytes_count if bytes_count > 0 else -1 if bytes_count == -errno.E2BIG else 0


cdef detail_of(const event_detail *d):
    """The typed detail of an event; its kind is the type."""
    if d.kind == _FLOW_OPENED:
        return FlowOpened(d.base_bytes)
    if d.kind == _FLOW_SEALED:
        return FlowSealed(d.seal.durable_bytes, d.seal.crc if d.seal.has_crc else None)
    if d.kind == _FLOW_INTERRUPTED:
        return FlowInterrupted(d.end.reason, d.end.error, d.end.durable_bytes)
    if d.kind == _FLOW_REFUSED:
        return FlowRefused(d.end.reason, d.end.error)
    if d.kind == _ACCEPT_FAILED:
        return AcceptFailed(d.accept_error)
    if d.kind == _STORE_FAILED:
        return StoreFailed(d.store_failure.error, FAILURES[d.store_failure.what],
                           d.store_failure.store_offset)
    if d.kind == _EVENT_STORE_FULL:
        return StoreFull()
    if d.kind == _WRITE_RETRIED:
        return WriteRetried(d.retry.error, d.retry.tries, d.retry.store_offset)
    if d.kind == _SEGMENT_OPENED:
        return SegmentOpened(d.segment.index, d.segment.sequence)
    if d.kind == _SEGMENT_CLOSED:
        return SegmentClosed(d.segment.index, d.segment.sequence)
    if d.kind == _BACKPRESSURE:
        return BackpressureChanged(CAUSES[d.backpressure])
    if d.kind == _FLOW_BY_COPY:
        return FlowByCopy(d.napi_id)
    if d.kind == _FLOW_ELSEWHERE:
        owner = d.elsewhere.worker_index
        return FlowElsewhere(None if owner == _ELSEWHERE_ANY else owner, d.elsewhere.fd)
    if d.kind == _HELLO_FAILED:
        return HelloFailed(d.hello.error == _HELLO_TIMEOUT, d.hello.reason)
    assert d.kind == _FLOW_DENIED, d.kind
    return FlowDenied(DENIALS[d.denial.why], d.denial.count)


cdef class Worker:
    cdef worker *w

    def __init__(self, settings):
        cdef worker_settings s
        cdef bytes uuid = settings.store_uuid
        if len(uuid) != 16 or self.w != NULL:
            raise ValueError("store_uuid has 16 bytes, and a worker is made once")
        memset(&s, 0, sizeof(s))
        put_shape(&s, settings.shape)
        memcpy(s.store_uuid, <const char *>uuid, 16)
        s.store_fd, s.store_bytes = settings.store_fd, settings.store_bytes
        s.segments_offset = settings.segments_offset
        s.worker_index, s.cpu = settings.worker_index, settings.cpu
        s.flush_interval_ns = settings.flush_interval_ns
        s.commit_interval_ns = settings.commit_interval_ns
        s.checksum = settings.checksum
        s.interface_index, s.rx_queue = settings.interface_index, settings.rx_queue
        s.rx_buf_len, s.refill_entries = settings.rx_buf_len, settings.refill_entries
        s.queue_retry_ns = settings.queue_retry_ns
        self.w = worker_create(&s)
        if self.w == NULL:
            raise MemoryError("a worker could not be created")

    def __dealloc__(self):
        worker_destroy(self.w)

    def add_listener(self, int fd, index, str name, protocol, idle_timeout_ns, flows_max, *,
                     hello_timeout_ns=0, ack_interval_ns=0, bint authenticates=False, allow=(),
                     flows_per_peer_max=0, bint shared=False, bint drops_empty=False):
        cdef listener_settings s
        cdef bytes text = name.encode()
        if len(text) >= sizeof(s.name):
            raise CoreFault(errno.E2BIG, "add_listener", name)
        memset(&s, 0, sizeof(s))
        memcpy(s.name, <const char *>text, len(text))
        s.fd = fd
        s.index = index
        s.protocol = protocol
        s.idle_timeout_ns = idle_timeout_ns
        s.flows_max = flows_max
        s.flows_per_peer_max = flows_per_peer_max
        s.hello_timeout_ns = hello_timeout_ns
        s.ack_interval_ns = ack_interval_ns
        s.authenticates = authenticates
        s.shared = shared
        s.drops_empty = drops_empty
        if len(allow) > NETWORKS_MAX:
            raise CoreFault(errno.E2BIG, "add_listener", name)
        for i, (family, address, prefix_bits) in enumerate(allow):
            text = address
            if (family, len(text)) not in ((4, 4), (6, 16)) or prefix_bits > 8 * len(text):
                raise ValueError("an allowed network has a family, address or prefix of its own")
            s.allow[i].family = family
            s.allow[i].prefix_bits = prefix_bits
            memcpy(s.allow[i].address, <const char *>text, len(text))
        s.allow_count = len(allow)
        code = worker_add_listener(self.w, &s)
        if code < 0:
            raise CoreFault(-code, "add_listener", name)

    def set_napi(self, own, others):
        if len(others) > ZCRX_NAPI_IDS_MAX:
            raise ValueError(f"{len(others)} NAPI ids are more than {ZCRX_NAPI_IDS_MAX}")
        for i, (napi_id, worker_index) in enumerate(others):
            self.w.receiver.zcrx.napi_others[i] = napi_id
            self.w.receiver.zcrx.napi_owners[i] = worker_index
        self.w.receiver.zcrx.napi_other_count = len(others)
        self.w.receiver.zcrx.napi_own = own

    def setup(self):
        cdef int code
        with nogil:
            code = worker_setup(self.w)
        if code < 0:
            raise_fault(&self.w.reactor.fault)

    def run(self):
        cdef int code
        with nogil:
            code = worker_run(self.w)
        if code < 0:
            raise_fault(&self.w.reactor.fault)

    cdef post(self, command c):
        code = mailbox_post(&self.w.reactor.mailbox, c)
        if code < 0:
            raise CoreFault(-code, "command", "worker's mailbox")

    cdef post_plain(self, uint32_t kind):
        cdef command c
        c.kind = kind
        self.post(c)

    cdef post_interval(self, uint32_t kind, uint64_t interval_ns):
        cdef command c
        c.kind = kind
        c.interval_ns = interval_ns
        self.post(c)

    def grant_segment(self, index, sequence):
        cdef command c
        c.kind = _GRANT_SEGMENT
        c.segment.index, c.segment.sequence = index, sequence
        self.post(c)

    def note_store_full(self):
        self.post_plain(_STORE_FULL)

    def stop_accepting(self):
        self.post_plain(_STOP_ACCEPTING)

    def drain(self, timeout_ns):
        cdef command c
        c.kind = _DRAIN
        c.timeout_ns = timeout_ns
        self.post(c)

    def set_flush_interval(self, interval_ns):
        self.post_interval(_SET_FLUSH_INTERVAL, interval_ns)

    def set_commit_interval(self, interval_ns):
        self.post_interval(_SET_COMMIT_INTERVAL, interval_ns)

    def set_idle_timeout(self, listener_index, timeout_ns):
        cdef command c
        c.kind = _SET_IDLE_TIMEOUT
        c.idle_timeout.listener_index, c.idle_timeout.timeout_ns = listener_index, timeout_ns
        self.post(c)

    def listener_connections(self):
        cdef uint32_t i
        counts = {}
        for i in range(self.w.connections.listener_count):
            index = self.w.connections.listeners[i].index
            counts[index] = counts.get(index, 0) + listener_connections(
                &self.w.connections.listeners[i])
        return counts

    def adopt(self, fd, listener_index, move_id=0):
        cdef command c
        c.kind = _ADOPT
        c.adopt.fd, c.adopt.listener_index, c.adopt.move_id = fd, listener_index, move_id
        self.post(c)

    def pass_on(self, listener_index, bint wanted):
        cdef command c
        c.kind = _PASS_ON
        c.pass_on.listener_index, c.pass_on.wanted = listener_index, wanted
        self.post(c)

    def end_flow(self, connection):
        cdef command c
        c.kind = _END_FLOW
        c.connection.index, c.connection.serial = connection
        self.post(c)

    def fail_store(self, error):
        cdef command c
        c.kind = _FAIL_STORE
        c.error = error
        self.post(c)

    def events(self):
        cdef event e
        events = []
        while mailbox_read(&self.w.reactor.mailbox, &e):
            events.append(Event(detail_of(&e.detail), e.listener_index, (<bytes>e.peer).decode(),
                                PyBytes_FromStringAndSize(<char *>e.flow, 16), e.time_ns))
        return events

    def admission_requests(self):
        cdef admission_request q
        requests = []
        while admission_take_request(&self.w.connections.admission, &q):
            requests.append(AdmissionRequest(
                KINDS[q.kind], (q.connection_index, q.serial), q.listener_index,
                q.bytes_count, q.crc,
                bool(q.flags & _REQUEST_HAS_CRC), bool(q.flags & _REQUEST_WHOLE),
                bool(q.flags & _REQUEST_STORED), bool(q.flags & _REQUEST_SEALED),
                q.fd if q.flags & _REQUEST_MOVED else None, q.move_id,
                PyBytes_FromStringAndSize(<char *>q.flow, 16), (<bytes>q.peer).decode(),
                PyBytes_FromStringAndSize(<char *>q.challenge, 32),
                PyBytes_FromStringAndSize(<char *>q.block, 4096), q.reason))
        return requests

    def admit(self, connection, bytes flow, *, base_bytes, limit_bytes, crc, bint is_crc_known,
              bint is_stated, bint has_trailer, bytes name, bytes labels):
        cdef admission_response a
        if len(flow) != 16 or len(name) > sizeof(a.name) or len(labels) > sizeof(a.labels):
            raise ValueError("flow, name or labels have a size that no response can hold")
        memset(&a, 0, sizeof(a))
        a.kind = _ADMIT
        a.connection_index, a.serial = connection
        a.flags = ((_RESPONSE_HAS_CRC if is_crc_known else 0) | (_RESPONSE_LENGTH_KNOWN if is_stated else 0)
                   | (_RESPONSE_TRAILER if has_trailer else 0))
        a.crc = crc
        a.base_bytes = base_bytes
        a.limit_bytes = limit_bytes
        memcpy(a.flow, <const char *>flow, 16)
        memcpy(a.name, <const char *>name, len(name))
        memcpy(a.labels, <const char *>labels, len(labels))
        a.name_bytes = len(name)
        a.labels_bytes = len(labels)
        worker_respond(self.w, &a)

    def refuse(self, connection, bytes line):
        cdef admission_response a
        if not 0 < len(line) <= sizeof(a.text):
            raise ValueError("a refusal has a size that no response can hold")
        memset(&a, 0, sizeof(a))
        a.kind = _REFUSE
        a.connection_index, a.serial = connection
        memcpy(a.text, <const char *>line, len(line))
        a.text_bytes = len(line)
        worker_respond(self.w, &a)

    def move(self, connection):
        cdef admission_response a
        memset(&a, 0, sizeof(a))
        a.kind = _MOVE
        a.connection_index, a.serial = connection
        worker_respond(self.w, &a)

    def park(self, connection):
        return bool(worker_park(self.w, connection[1]))

    def seal(self, connection, crc):
        cdef admission_response a
        memset(&a, 0, sizeof(a))
        a.kind = _SEAL
        a.connection_index, a.serial = connection
        a.flags = _RESPONSE_HAS_CRC if crc is not None else 0
        a.crc = crc or 0
        worker_respond(self.w, &a)

    @property
    def event_fd(self):
        return self.w.reactor.mailbox.event_fd

    def segments_wanted(self):
        return mailbox_grants_wanted(&self.w.reactor.mailbox)

    def counters(self):
        return {stats_name(i).decode(): stats_value(self.w, i) for i in range(STATS_COUNT)}

    def histograms(self):
        buckets = range(HISTOGRAM_BUCKETS_COUNT + 1)
        return {
            "write_latency": tuple([histogram_count(&self.w.reactor.write_latency, i) for i in buckets]),
            "flush_latency": tuple([histogram_count(&self.w.reactor.flush_latency, i) for i in buckets]),
            "ack_latency": tuple([histogram_count(&self.w.reactor.ack_latency, i) for i in buckets]),
            "commit_bytes": tuple([histogram_count(&self.w.reactor.commit_bytes, i) for i in buckets]),
        }

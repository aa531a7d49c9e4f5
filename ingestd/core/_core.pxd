# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
"""Declarations of the core's headers for _core.pyx; Cython reads this file by itself.

Invariant: names and types are those of the headers, which the C compiler checks.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "base/fault.h" nogil:
    struct fault:
        int code
        char call[40]
        char object[88]

cdef extern from "base/stats.h" nogil:
    int HISTOGRAM_BUCKETS_COUNT
    struct histogram:
        uint64_t counts[21]

cdef extern from "base/mailbox.h" nogil:
    enum:
        _GRANT_SEGMENT "COMMAND_GRANT_SEGMENT"
        _STORE_FULL "COMMAND_STORE_FULL"
        _STOP_ACCEPTING "COMMAND_STOP_ACCEPTING"
        _DRAIN "COMMAND_DRAIN"
        _SET_FLUSH_INTERVAL "COMMAND_SET_FLUSH_INTERVAL"
        _SET_COMMIT_INTERVAL "COMMAND_SET_COMMIT_INTERVAL"
        _SET_IDLE_TIMEOUT "COMMAND_SET_IDLE_TIMEOUT"
        _ADOPT "COMMAND_ADOPT"
        _END_FLOW "COMMAND_END_FLOW"
        _FAIL_STORE "COMMAND_FAIL_STORE"
        _PASS_ON "COMMAND_PASS_ON"
        _ELSEWHERE_ANY "ELSEWHERE_ANY"
        _FLOW_OPENED "EVENT_FLOW_OPENED"
        _FLOW_SEALED "EVENT_FLOW_SEALED"
        _FLOW_INTERRUPTED "EVENT_FLOW_INTERRUPTED"
        _FLOW_REFUSED "EVENT_FLOW_REFUSED"
        _ACCEPT_FAILED "EVENT_ACCEPT_FAILED"
        _STORE_FAILED "EVENT_STORE_FAILED"
        _EVENT_STORE_FULL "EVENT_STORE_FULL"
        _WRITE_RETRIED "EVENT_WRITE_RETRIED"
        _SEGMENT_OPENED "EVENT_SEGMENT_OPENED"
        _SEGMENT_CLOSED "EVENT_SEGMENT_CLOSED"
        _BACKPRESSURE "EVENT_BACKPRESSURE"
        _FLOW_BY_COPY "EVENT_FLOW_BY_COPY"
        _FLOW_ELSEWHERE "EVENT_FLOW_ELSEWHERE"
        _HELLO_FAILED "EVENT_HELLO_FAILED"
        _FLOW_DENIED "EVENT_FLOW_DENIED"
    struct command_segment:
        uint32_t index
        uint64_t sequence
    struct command_idle_timeout:
        uint32_t listener_index
        uint64_t timeout_ns
    struct command_adopt:
        int fd
        uint32_t listener_index
        uint64_t move_id
    struct command_pass_on:
        uint32_t listener_index
        bint wanted
    struct command_connection:
        uint32_t index
        uint64_t serial
    struct command:
        uint32_t kind
        command_segment segment
        uint64_t timeout_ns
        uint64_t interval_ns
        command_idle_timeout idle_timeout
        command_adopt adopt
        command_pass_on pass_on
        command_connection connection
        int error
    struct event_seal:
        uint64_t durable_bytes
        uint32_t crc
        bint has_crc
    struct event_end:
        uint32_t reason
        int error
        uint64_t durable_bytes
    struct event_store_failure:
        int error
        uint32_t what
        uint64_t store_offset
    struct event_retry:
        int error
        uint32_t tries
        uint64_t store_offset
    struct event_segment:
        uint32_t index
        uint64_t sequence
    struct event_elsewhere:
        uint32_t worker_index
        int fd
    struct event_hello:
        uint32_t error
        uint32_t reason
    struct event_denial:
        uint32_t why
        uint32_t count
    struct event_detail:
        uint32_t kind
        uint64_t base_bytes
        event_seal seal
        event_end end
        int accept_error
        event_store_failure store_failure
        event_retry retry
        event_segment segment
        uint32_t backpressure
        uint32_t napi_id
        event_elsewhere elsewhere
        event_hello hello
        event_denial denial
    struct event:
        event_detail detail
        int32_t listener_index
        uint64_t time_ns
        uint8_t flow[16]
        char peer[64]
    struct mailbox:
        int event_fd
    int mailbox_post(mailbox *m, command c)
    bint mailbox_read(mailbox *m, event *out)
    uint32_t mailbox_grants_wanted(mailbox *m)

cdef extern from "base/reactor.h" nogil:
    struct reactor:
        fault fault
        mailbox mailbox
        histogram write_latency
        histogram flush_latency
        histogram ack_latency
        histogram commit_bytes

cdef extern from "connection/ingest/admission.h" nogil:
    enum:
        _REQUEST_HELLO "REQUEST_HELLO"
        _REQUEST_TRAILER "REQUEST_TRAILER"
        _NOTE_ENDED "NOTE_ENDED"
        _REQUEST_HAS_CRC "REQUEST_HAS_CRC"
        _REQUEST_WHOLE "REQUEST_WHOLE"
        _REQUEST_STORED "REQUEST_STORED"
        _REQUEST_SEALED "REQUEST_SEALED"
        _REQUEST_MOVED "REQUEST_MOVED"
        _ADMIT "RESPONSE_ADMIT"
        _REFUSE "RESPONSE_REFUSE"
        _SEAL "RESPONSE_SEAL"
        _MOVE "RESPONSE_MOVE"
        _RESPONSE_HAS_CRC "RESPONSE_HAS_CRC"
        _RESPONSE_LENGTH_KNOWN "RESPONSE_LENGTH_KNOWN"
        _RESPONSE_TRAILER "RESPONSE_TRAILER"
    struct admission_request:
        uint32_t kind
        uint32_t connection_index
        uint64_t serial
        int32_t listener_index
        uint32_t flags
        uint64_t bytes_count
        uint32_t crc
        uint32_t reason
        uint8_t flow[16]
        char peer[64]
        int fd
        uint64_t move_id
        uint8_t challenge[32]
        uint8_t block[4096]
    struct admission_response:
        uint32_t kind
        uint32_t connection_index
        uint64_t serial
        uint32_t flags
        uint32_t crc
        uint64_t base_bytes
        uint64_t limit_bytes
        uint8_t flow[16]
        uint16_t name_bytes
        uint16_t labels_bytes
        uint16_t text_bytes
        char name[255]
        char labels[1024]
        char text[1024]
    struct admission:
        pass
    bint admission_take_request(admission *a, admission_request *out)

cdef extern from "connection/ingest/session.h" nogil:
    enum:
        _HELLO_TIMEOUT "SESSION_ERROR_HELLO_TIMEOUT"

cdef extern from "connection/listener.h" nogil:
    struct listener:
        uint32_t index
    uint32_t listener_connections(const listener *l)
    enum:
        _DENIED_NETWORK "DENIED_NETWORK"
        _DENIED_PEER "DENIED_PEER"

cdef extern from "storage/writer.h" nogil:
    enum:
        _FAILED_WRITE "FAILED_WRITE"
        _FAILED_FLUSH "FAILED_FLUSH"
        _FAILED_LOST "FAILED_LOST"

cdef extern from "connection/network.h" nogil:
    int NETWORKS_MAX
    struct network:
        uint8_t family
        uint8_t prefix_bits
        uint8_t address[16]

cdef extern from "worker.h" nogil:
    struct listener_settings:
        int fd
        uint32_t index
        uint32_t protocol
        uint64_t idle_timeout_ns
        uint32_t flows_max
        uint32_t flows_per_peer_max
        uint64_t hello_timeout_ns
        uint64_t ack_interval_ns
        bint authenticates
        bint shared
        bint drops_empty
        char name[64]
        uint32_t allow_count
        network allow[64]
    void worker_respond(worker *w, const admission_response *a)
    bint worker_park(worker *w, uint64_t serial)
    enum:
        _ENGINE_RECV "ENGINE_RECV"
        _ENGINE_ZCRX "ENGINE_ZCRX"
    struct worker_settings:
        int store_fd
        uint8_t store_uuid[16]
        uint64_t store_bytes, segments_offset, segment_bytes
        uint32_t block_bytes
        uint32_t mem_align, write_align, virt_mask, iovecs_max
        uint32_t worker_index
        int cpu
        uint64_t area_bytes
        uint32_t write_bytes_max
        uint32_t writes_in_flight_max
        uint32_t flows_max
        uint64_t flush_interval_ns
        uint64_t commit_interval_ns
        bint checksum
        uint32_t engine
        uint32_t interface_index
        uint32_t rx_queue
        uint32_t rx_buf_len
        uint32_t refill_entries
        uint64_t queue_retry_ns
    int ZCRX_NAPI_IDS_MAX
    struct zcrx:
        uint32_t napi_own
        uint32_t napi_others[64]
        uint32_t napi_owners[64]
        uint32_t napi_other_count
    struct receiver:
        zcrx zcrx
    struct connections:
        uint32_t listener_count
        listener listeners[16]
        admission admission
    struct worker:
        reactor reactor
        receiver receiver
        connections connections
    worker *worker_create(const worker_settings *s)
    void worker_destroy(worker *w)
    int worker_add_listener(worker *w, const listener_settings *s)
    int worker_setup(worker *w)
    int64_t worker_locked_bytes(const worker_settings *s)
    int worker_run(worker *w)

cdef extern from "storage/probe.h" nogil:
    struct probe_profile:
        uint32_t mem_align
        uint32_t virt_mask
        uint32_t iovecs_max
        uint32_t shapes_tried
        uint32_t shapes_lied
    int probe_device(int fd, uint32_t write_align, probe_profile *out, fault *f)

cdef extern from "inspect.h" nogil:
    int STATS_COUNT
    const char *stats_name(int index)
    uint64_t stats_value(const worker *w, int index)
    uint64_t histogram_count(const histogram *h, int bucket)
    uint64_t histogram_bound_ns(int bucket)
    uint64_t histogram_bound_bytes(int bucket)
    int FEATURES_COUNT
    const char *feature_name(int index)
    int feature_query(int index)
    int direct_io_alignment(int fd, uint32_t *mem_align, uint32_t *write_align)

/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker's counters: written by its thread alone, read by any.
 *
 * Invariants: each is one aligned 64-bit word, stored and loaded relaxed, so a
 * reader sees every word whole (though not all of one instant).
 */
#ifndef INGESTD_BASE_STATS_H
#define INGESTD_BASE_STATS_H

#include <stdint.h>

/* name, what it counts (and its unit where it is not a number of things) */
#define STATS_LIST(X)                                                                              \
    X(received_bytes, "payload bytes taken from sockets")                                          \
    X(written_bytes, "bytes of completed writes: headers, payload, padding")                       \
    X(durable_bytes, "payload bytes on stable media, covered by a commit")                         \
    X(padding_bytes, "zeros written so that extents and batches end on a boundary")                \
    X(header_bytes, "bytes of batch headers, segment headers, marks and footers")                  \
    X(direct_bytes, "payload bytes written from where they were received")                         \
    X(bounced_head_bytes, "bytes copied: before the first multiple of the memory alignment")       \
    X(bounced_tail_bytes, "bytes copied: behind the last multiple of the memory alignment")        \
    X(bounced_small_bytes, "bytes copied: the piece was cheaper to copy than to gather")           \
    X(bounced_boundary_bytes, "bytes copied: the device's virtual boundary")                       \
    X(bounced_pressure_bytes, "bytes copied: to release a chunk under pressure")                   \
    X(bounced_trailer_bytes, "bytes copied: held back until they were known to be no trailer")     \
    X(kernel_copied_bytes, "bytes that the kernel copied into the area")                           \
    X(batches, "batches written")                                                                  \
    X(flushes, "device flushes completed")                                                         \
    X(commits, "commit points reached")                                                            \
    X(write_retries, "writes submitted again after an error or a short write")                     \
    X(write_latency_sum_ns, "sum of write latencies, ns")                                          \
    X(flush_latency_sum_ns, "sum of flush latencies, ns")                                          \
    X(ack_latency_sum_ns, "sum of times from a batch's begin to its commit, each flow in it, ns")  \
    X(flows_denied, "connections closed at once: their network is not allowed")                    \
    X(flows_over_peer_max, "connections refused by a line: their peer has as many as it may")      \
    X(flows_opened, "connections accepted")                                                        \
    X(flows_sealed, "flows sealed, receipt due")                                                   \
    X(flows_interrupted, "flows interrupted")                                                      \
    X(flows_refused, "connections refused")                                                        \
    X(flows_empty, "connections without a byte, of which nothing is kept")                         \
    X(flows_resumed, "connections that resumed a flow begun before")                               \
    X(durable_lines, "lines sent that report a durable offset")                                    \
    X(flows_open, "gauge: flows being received")                                                   \
    X(flows_greeting, "gauge: connections whose hello block has not come")                         \
    X(flows_closing, "gauge: flows waiting for durability or for their receipt to leave")          \
    X(area_bytes, "gauge: bytes of the area")                                                      \
    X(area_receiving_bytes, "gauge: lent to flows to receive into")                                \
    X(area_writing_bytes, "gauge: waiting for or under a write")                                   \
    X(area_free_bytes, "gauge: free")                                                              \
    X(writes_in_flight, "gauge: device writes submitted and not completed")                        \
    X(backpressure_area_ns, "time in which a flow waited for room in the area, ns")                \
    X(backpressure_device_ns, "time in which a flow waited because the device was behind, ns")     \
    X(flows_waiting, "gauge: flows that wait for room in the area")                                \
    X(segments_used, "segments opened by this worker")                                             \
    X(segments_ready, "gauge: segments granted and not yet opened")                                \
    X(events_dropped, "events lost because nobody read them in time")                              \
    X(accept_errors, "accepts that failed")                                                        \
    X(loop_turns, "turns of the loop")                                                             \
    X(loop_beat_ns, "gauge: CLOCK_MONOTONIC at the last turn, ns")                                 \
    X(device_since_ns,                                                                             \
      "gauge: CLOCK_MONOTONIC of the oldest write or flush under way, ns; 0: none")                \
    X(store_errno, "gauge: 0, or the errno that made the store fail")                              \
    X(store_is_full, "gauge: 1 when no segment can be had")                                        \
    X(chunks_lent, "gauge: chunks of the area that are not with the kernel")                       \
    X(rx_buf_len, "gauge: bytes of a chunk, 0 without zero-copy receive")                          \
    X(alloc_failures, "times the kernel reported that it found no chunk for a packet")             \
    X(flows_by_copy, "connections on an rx queue without zero copy, served by the kernel's copy")  \
    X(flows_handed_away, "connections given to another worker")                                    \
    X(area_hugepage_bytes, "gauge: bytes of the area on MAP_HUGETLB pages")

struct stats {
#define STATS_FIELD(name, help) uint64_t name;
    STATS_LIST(STATS_FIELD)
#undef STATS_FIELD
};

/* Upper bounds of the latency buckets, ns; one more bucket counts what is over. */
#define HISTOGRAM_BUCKETS_COUNT 20
#define HISTOGRAM_BOUNDS_NS_LIST                                                                   \
    10000, 20000, 50000, 100000, 200000, 500000, 1000000, 2000000, 5000000, 10000000, 20000000,    \
        50000000, 100000000, 200000000, 500000000, 1000000000, 2000000000, 5000000000,             \
        10000000000, 30000000000

/* Of sizes, the first bucket ends here, and each of the next at twice the one before. */
#define HISTOGRAM_BYTES_MIN 4096ull

struct histogram {
    uint64_t counts[HISTOGRAM_BUCKETS_COUNT + 1];
};

void histogram_add(struct histogram *h, uint64_t value_ns);
void histogram_add_bytes(struct histogram *h, uint64_t bytes_count);

#endif

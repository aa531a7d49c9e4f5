/* SPDX-License-Identifier: Apache-2.0
 *
 * Static probes (USDT): places of a byte's way that bpftrace and perf can attach to.
 *
 * Each is one no-operation where sys/sdt.h was there when this was built, and
 * nothing where it was not: arguments are values that lie at hand anyway, and nothing
 * is computed for them. docs/tracing.md documents names and arguments; a test compares
 * them with the notes of the built object. Any thread; they fire on the worker's.
 */
#ifndef INGESTD_BASE_TRACE_H
#define INGESTD_BASE_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__has_include)
#if __has_include(<sys/sdt.h>)
#include <sys/sdt.h>
#endif
#endif

#ifdef DTRACE_PROBE
#define PROBE1(name, a) DTRACE_PROBE1(ingestd, name, a)
#define PROBE3(name, a, b, c) DTRACE_PROBE3(ingestd, name, a, b, c)
#define PROBE4(name, a, b, c, d) DTRACE_PROBE4(ingestd, name, a, b, c, d)
#define PROBE5(name, a, b, c, d, e) DTRACE_PROBE5(ingestd, name, a, b, c, d, e)
#else
#define PROBE1(name, a) ((void)(a))
#define PROBE3(name, a, b, c) ((void)(a), (void)(b), (void)(c))
#define PROBE4(name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#define PROBE5(name, a, b, c, d, e) ((void)(a), (void)(b), (void)(c), (void)(d), (void)(e))
#endif

/* Payload was taken from a socket. id: the flow's, 16 bytes; connection: index in the table. */
static inline void trace_receive(const uint8_t *id, uint32_t connection, uint32_t bytes) {
    PROBE3(receive, id, connection, bytes);
}

/* Bytes at an offset of the flow went into the open batch. batch: index in the pool. */
static inline void trace_append(const uint8_t *id, uint32_t connection, uint64_t stream_offset,
                                uint32_t bytes, uint32_t batch) {
    PROBE5(append, id, connection, stream_offset, bytes, batch);
}

/* The batch has its place, a byte of the store, and is item so-and-so of the commit; its write
 * is submitted. */
static inline void trace_place(uint32_t batch, uint64_t item, uint64_t offset, uint64_t bytes) {
    PROBE4(place, batch, item, offset, bytes);
}

/* The write of the batch that is this item is complete; it was submitted at that time
 * (CLOCK_MONOTONIC). */
static inline void trace_write_done(uint32_t batch, uint64_t item, uint64_t submitted_ns) {
    PROBE3(write_done, batch, item, submitted_ns);
}

/* A flush is complete that covers all items before upto; marks follow. */
static inline void trace_flush_done(uint64_t upto) {
    PROBE1(flush_done, upto);
}

/* All items before upto are committed: on stable media, and distinguished from torn ones. */
static inline void trace_commit(uint64_t upto) {
    PROBE1(commit, upto);
}

/* All of the flow before the offset is durable; closes: its CLOSE record, too. */
static inline void trace_ack(const uint8_t *id, uint32_t connection, uint64_t durable_offset,
                             bool closes) {
    PROBE4(ack, id, connection, durable_offset, closes);
}

/* The last line, a receipt if the flow is sealed, was taken by the socket, or (result < 0: -errno)
 * never will be. */
static inline void trace_receipt(const uint8_t *id, uint32_t connection, int32_t result) {
    PROBE3(receipt, id, connection, result);
}

#endif

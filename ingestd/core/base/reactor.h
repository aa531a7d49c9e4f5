/* SPDX-License-Identifier: Apache-2.0
 *
 * The reactor: a worker's ring, its clock, its counters and its mailbox to Python.
 *
 * Handed down to whoever submits requests, counts, or looks at the time; it knows
 * nothing of what they are for. Owned by the worker's thread. Invariants:
 *  - The ring is entered by one thread only (IORING_SETUP_SINGLE_ISSUER).
 *  - Every request bears its tag and index from the moment it has an entry.
 *  - An entry is always found: with no room left it is one that goes nowhere, and the
 *    fault that ends the loop is set.
 */
#ifndef INGESTD_BASE_REACTOR_H
#define INGESTD_BASE_REACTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/fault.h"
#include "base/mailbox.h"
#include "base/stats.h"
#include "base/uring.h"

#define TIME_NEVER UINT64_MAX
#define REACTOR_TURN_NS_MAX 1000000000ull /* the loop shows that it lives once a second */

struct reactor {
    uint64_t now_ns;           /* CLOCK_MONOTONIC, once a turn */
    uint64_t awake_ns;         /* the same less all time for which the loop stood still */
    uint64_t paused_ns;        /* that time */
    uint64_t refused_ns;       /* since when the kernel takes no requests; 0: it does */
    int64_t realtime_delta_ns; /* add to now_ns for Unix time */
    struct fault fault;
    struct io_uring ring;
    bool ring_open;
    struct io_uring_sqe lost; /* what finds no room is written here, and the loop ends */
    struct mailbox mailbox;
    struct stats stats;
    struct histogram write_latency, flush_latency, ack_latency, commit_bytes;
};

/* Of memory for up to so many bytes that are on their way, and connections; a power of two. */
uint32_t reactor_completions(uint64_t connections, uint64_t area_bytes);
/* What a ring of so many completions locks: newer kernels count it like registered memory. */
uint64_t reactor_locked_bytes(uint32_t completions, bool wide);
/* wide: completions of 32 bytes. 0 or -errno with the fault set. */
int reactor_open_ring(struct reactor *r, uint32_t completions, bool wide);
/* Makes memory and a file known to the ring, as buffer and file 0; as above. */
int reactor_register(struct reactor *r, void *memory, uint64_t bytes, int fd);
void reactor_close_ring(struct reactor *r);

/* A submission entry, for a completion that bears the tag and the index; makes room by
 * submitting when the queue is full. */
struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index);
/* The request with that tag and index is to end; whether it was found has a completion too. */
void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found);

void reactor_read_clock(struct reactor *r);
uint64_t reactor_unix_ns(const struct reactor *r);
/* Submits, and waits until something completes or the time has come, at most
 * REACTOR_TURN_NS_MAX. 0, or -errno with the fault set. */
int reactor_wait(struct reactor *r, uint64_t next_ns);
/* After a wait that began at before_ns: time for which the loop stood still does not count as
 * a sender's silence, and completions of that time are taken before any time-out. As above. */
int reactor_note_pause(struct reactor *r, uint64_t before_ns, uint64_t next_ns);

/* An event of no flow; false: its reader is late, and it was dropped. */
bool reactor_event(struct reactor *r, struct event_detail detail);
/* One to fill in, and then to publish; NULL: dropped. */
struct event *reactor_new_event(struct reactor *r, struct event_detail detail);

#define STAT_ADD(r, name, amount)                                                                  \
    __atomic_store_n(&(r)->stats.name, (r)->stats.name + (uint64_t)(amount), __ATOMIC_RELAXED)
#define STAT_SET(r, name, value)                                                                   \
    __atomic_store_n(&(r)->stats.name, (uint64_t)(value), __ATOMIC_RELAXED)

static inline uint64_t time_min(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

#endif

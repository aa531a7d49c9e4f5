/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker: one thread, one ring, one area, one store; and its loop.
 *
 * Workers share nothing. setup and run are called on the worker's own thread;
 * post, read events and read counters from any. Invariants:
 *  - All memory is taken in setup; run allocates nothing.
 */
#ifndef INGESTD_WORKER_H
#define INGESTD_WORKER_H

#include "memory/area.h"
#include "receive/engine.h"
#include "base/reactor.h"
#include "connection/connections.h"
#include "storage/storage.h"

enum worker_engine { ENGINE_RECV = 0, ENGINE_ZCRX = 1 };

struct worker_settings {
    int store_fd;
    uint8_t store_uuid[16];
    uint64_t store_bytes; /* what a file must have to be the store; 0: not looked at */
    uint64_t segments_offset;
    uint64_t segment_bytes;
    uint32_t block_bytes;
    uint32_t mem_align;
    uint32_t write_align;
    uint32_t virt_mask;
    uint32_t iovecs_max;
    uint32_t worker_index;
    int cpu; /* -1: not pinned */
    uint64_t area_bytes;
    uint32_t write_bytes_max;
    uint32_t writes_in_flight_max;
    uint32_t flows_max;
    uint64_t flush_interval_ns;
    uint64_t commit_interval_ns;
    bool checksum;
    uint32_t part_record_bytes; /* for tests: so soon a part of a footer is written; 0: when full */
    uint32_t engine;            /* enum worker_engine */
    uint32_t interface_index;   /* zcrx; 0: the kernel's device-less mode */
    uint32_t rx_queue;
    uint32_t rx_buf_len;     /* requested; 0: a page */
    uint32_t refill_entries; /* a power of two */
    uint64_t queue_retry_ns; /* how long registering a queue in use is retried */
};

struct worker {
    struct worker_settings settings;
    struct reactor reactor;
    uint64_t drain_deadline_ns;
    uint32_t backpressure; /* 0 none, 1 area, 2 device */
    uint64_t backpressure_since_ns;
    bool backpressure_reported;
    uint64_t command_buffer; /* the eventfd is read into it */

    struct area area;
    struct connection_table table;
    struct storage storage;
    const struct engine *engine;
    struct receiver receiver;
    struct connections connections;
};

struct worker *worker_create(const struct worker_settings *s);
void worker_destroy(struct worker *w);
int worker_add_listener(struct worker *w, const struct listener_settings *s);
int worker_setup(struct worker *w); /* 0 or -errno with the reactor's fault */
/* What a worker of these settings registers with its ring, and thus locks; -EINVAL where
 * the area is too small for them, -E2BIG where it is too large to be registered. Any thread;
 * nothing is taken. */
int64_t worker_locked_bytes(const struct worker_settings *s);
int worker_run(struct worker *w); /* 0 after a drain, or -errno with the reactor's fault */

/* Any thread, one at a time: takes a response, and wakes the worker. */
void worker_respond(struct worker *w, const struct admission_response *a);
/* Any thread, one at a time: the response to a request takes long; false: too many are parked. */
bool worker_park(struct worker *w, uint64_t serial);

#endif

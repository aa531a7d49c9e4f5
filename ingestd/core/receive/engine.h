/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine: how payload is received, as a table of functions. The one header of this room
 * for others.
 *
 * All are called on the worker's thread. An engine reads sockets into the area and hands bytes
 * to storage in stream order. It calls nothing above it: that a connection's payload is over, or
 * its block received, is a report, which the caller takes after each call. Each hold that it handed
 * over comes back by release(). Invariant: a connection has one report pending at a time, and
 * nothing is received for it meanwhile.
 */
#ifndef INGESTD_RECEIVE_ENGINE_H
#define INGESTD_RECEIVE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/reactor.h"
#include "memory/area.h"
#include "receive/block.h"
#include "receive/connection_table.h"
#include "receive/zcrx/zcrx.h"
#include "storage/storage.h"

#define RECEIVER_LISTENERS_MAX 16u

struct receiver_settings {
    uint32_t interface_index; /* zcrx; 0: the kernel's device-less mode */
    uint32_t rx_queue;
    uint32_t rx_buf_len;     /* requested; 0: a page */
    uint32_t refill_entries; /* a power of two */
    uint64_t queue_retry_ns; /* how long registering a queue in use is retried */
};

/* What engines work on: the parts below them, and what is their own. */
struct receiver {
    struct receiver_settings settings;
    struct reactor *reactor;
    struct area *area;
    struct storage *storage;
    struct connection_table *table;
    uint32_t connections_at_once_max; /* what the engine can bear; accepts wait beyond it */
    int listener_fds[RECEIVER_LISTENERS_MAX];
    uint32_t listener_count;
    uint32_t report_head, report_tail; /* connections with a report, linked by report_next */
    struct zcrx zcrx;
};

enum report_kind {
    REPORT_NONE = 0,
    REPORT_OVER,  /* no more payload is received: all of it is with batches, or was dropped */
    REPORT_BLOCK, /* result: bytes of the block's room, 0 at the end of the stream, or -errno */
};

struct engine_report {
    struct connection *connection;
    enum report_kind kind;
    int result;
};

/* The worker that is to serve a connection. */
struct engine_owner {
    bool is_elsewhere; /* another worker's ... */
    uint32_t worker_index;
    uint32_t napi_id; /* ours, but it arrived by this queue, which is no worker's; 0: it did not */
};

struct engine {
    const char *name;
    /* Registers what it needs with the ring; 0 or -errno with the fault set. */
    int (*open)(struct receiver *r);
    /* Which worker is to serve a new connection, of which nothing was read yet. */
    struct engine_owner (*owner)(struct receiver *r, const struct connection *conn);
    /* It stays here. */
    void (*take)(struct receiver *r, struct connection *conn);
    /* Payload is to be received, up to conn->limit_bytes. */
    void (*start)(struct receiver *r, struct connection *conn);
    /* Phases CONNECTION_HELLO and CONNECTION_TAIL: receives what the block has room for, never a
     * byte more. */
    void (*receive_block)(struct receiver *r, struct connection *conn);
    /* A completion with one of the engine's tags. */
    void (*complete)(struct receiver *r, enum uring_tag tag, struct connection *conn,
                     const struct io_uring_cqe *cqe);
    /* There may be room for a connection in QUEUE_BLOCKED; it stays there if there is none. */
    void (*resume)(struct receiver *r, struct connection *conn);
    /* Once a turn: hands over what is old, serves connections that wait. Returns the next time. */
    uint64_t (*turn)(struct receiver *r);
    /* The connection is to end now (conn->stop): hands over what it has, or drops it (conn->drop),
     * and reports; a block is reported as cancelled instead. */
    void (*stop)(struct receiver *r, struct connection *conn);
    /* A write that read from this hold is complete. */
    void (*release)(struct receiver *r, uint64_t hold);
    /* Memory of its own, taken in open(). */
    void (*close)(struct receiver *r);
};

extern const struct engine engine_recv;
extern const struct engine engine_zcrx;

/* Whether no engine has any bytes of it, nor memory for some: from take() to start(), and from
 * REPORT_OVER on. */
static inline bool engine_has_nothing(const struct connection *conn) {
    return recv_has_nothing(&conn->recv) && zcrx_has_nothing(&conn->zcrx);
}

/* The parts below; sets no engine up. */
void receiver_init(struct receiver *r, struct reactor *reactor, struct area *area,
                   struct storage *storage, struct connection_table *table);
/* The oldest report; false: there is none. */
bool engine_next_report(struct receiver *r, struct engine_report *out);
/* Cheap: it is called behind each completion, and mostly there is none. */
static inline bool engine_has_report(const struct receiver *r) {
    return r->report_head != CONNECTION_NONE;
}

/* --- Shared by the engines ---------------------------------------------------------- */

/* A connection has one report at most: a second one says the same again. */
void engine_report(struct receiver *r, struct connection *conn, enum report_kind kind, int result);
/* Payload has come from the connection's socket. */
void engine_received(struct receiver *r, struct connection *conn, uint32_t bytes);
void engine_cancel(struct receiver *r, struct connection *conn, enum uring_tag tag);

/* Hands a piece over; 0: the connection must wait. What room there is belongs to those who waited
 * for it before. */
static inline uint32_t engine_append(struct receiver *r, struct connection *conn,
                                     const struct batch_piece *piece) {
    if (connection_is_behind(r->table, conn, QUEUE_BLOCKED))
        return 0;
    return storage_append(r->storage, &conn->stream, piece);
}

/* Whether it is the block that gets what is received now. */
static inline bool engine_receives_block(const struct connection *conn) {
    return conn->phase == CONNECTION_HELLO || conn->phase == CONNECTION_TAIL;
}

/* Whether the last bytes received may be no payload, and are not to be stored yet. */
static inline bool engine_is_holding(const struct connection *conn) {
    return conn->block != NULL && conn->block->holding;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine is how fragments arrive: a table of a few functions.
 *
 * All are called on the worker's thread. An engine reads sockets into the area,
 * hands bytes to storage in stream order, and tells the flow's end by
 * connection_end(). Whatever it handed over as a hold comes back by release(). Where a
 * session wants a block, which is no payload, its bytes go there instead.
 */
#ifndef INGESTD_RECEIVE_ENGINE_H
#define INGESTD_RECEIVE_ENGINE_H

#include "receive/flow.h"
#include "base/uring.h"

struct worker;

struct engine {
    const char *name;
    /* Registers what it needs with the ring; 0 or -errno with the fault set. */
    int (*open)(struct worker *w);
    /* A connection has come, and nothing of it was read. False: it was handed to
     * the worker whose rx queue it came by. */
    bool (*take)(struct worker *w, struct flow *f);
    /* Payload is to be received, up to f->limit_bytes. */
    void (*start)(struct worker *w, struct flow *f);
    /* Phases FLOW_HELLO and FLOW_TAIL: receives what session_room() has room for,
     * never a byte more, and tells by ingest_block_received(). */
    void (*receive_block)(struct worker *w, struct flow *f);
    /* A completion with one of the engine's tags. */
    void (*complete)(struct worker *w, enum uring_tag tag, struct flow *f,
                     const struct io_uring_cqe *cqe);
    /* Once a turn: hand over what is old, serve who waits. Returns the next time. */
    uint64_t (*turn)(struct worker *w);
    /* The flow is to end now (f->stop): hand over what it has, or let go of it
     * (f->drop), then connection_end(); a block is told as cancelled instead. */
    void (*stop)(struct worker *w, struct flow *f);
    /* A write that read from this hold is complete. */
    void (*release)(struct worker *w, uint64_t hold);
    /* Memory of its own, taken in open(). */
    void (*close)(struct worker *w);
};

extern const struct engine engine_recv;
extern const struct engine engine_zcrx;

/* Hands a piece over; 0: the flow must wait. What room there is belongs to those who waited
 * for it before. */
static inline uint32_t engine_append(struct storage *s, const struct flow_table *t, struct flow *f,
                                     const struct batch_piece *piece) {
    if (flow_is_behind(t, f, QUEUE_BLOCKED))
        return 0;
    return storage_append(s, &f->stream, piece);
}

/* Shared by the engines: ends a flow whose bytes are all with batches, and lets
 * flows that found no room try again in the order in which they came. Who fails
 * again keeps its place: advance() leaves it in QUEUE_BLOCKED. */
void engine_finish(struct worker *w, struct flow *f);
void engine_serve_blocked(struct worker *w, void (*advance)(struct worker *w, struct flow *f));
void engine_cancel(struct worker *w, struct flow *f, enum uring_tag tag);
/* Whether it is the session that gets what is received now. */
static inline bool engine_receives_block(const struct flow *f) {
    return f->phase == FLOW_HELLO || f->phase == FLOW_TAIL;
}

#endif

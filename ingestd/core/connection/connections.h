/* SPDX-License-Identifier: Apache-2.0
 *
 * All connections of a worker: what they share, and the parts below that they work on.
 *
 * Handed down in this room, which knows no worker. Owned by the worker's thread, but for the
 * admission, which any thread may call. Invariants:
 *  - The parts below are the worker's and outlive this.
 *  - A connection in the table that is not free is one of one of these listeners.
 */
#ifndef INGESTD_CONNECTION_CONNECTIONS_H
#define INGESTD_CONNECTION_CONNECTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/reactor.h"
#include "connection/connection.h"
#include "connection/handover.h"
#include "connection/ingest/admission.h"
#include "connection/ingest/ingest.h"
#include "connection/listener.h"
#include "connection/peers.h"
#include "connection/progress.h"
#include "receive/engine.h"
#include "storage/storage.h"

struct connections_settings {
    uint8_t store_uuid[16];
    uint32_t worker_index;
    bool checksum; /* flows have one, as far as it is known */
};

struct connections {
    struct connections_settings settings;
    struct reactor *reactor;
    struct storage *storage;
    const struct engine *engine;
    struct receiver *receiver;
    struct connection_table *table;
    bool draining; /* no connection is taken over any more */
    struct listener listeners[LISTENERS_MAX];
    uint32_t listener_count;
    struct handover handover;
    struct peers peers; /* open from the first listener with a limit on */
    struct admission admission;
    /* Sessions whose request found no room, oldest first; hellos come behind all others. */
    struct connection_list admission_backlog, hello_backlog;
    uint32_t session_count;  /* of all listeners; 0: ingest has nothing to do in a turn */
    uint64_t session_serial; /* of the session begun last */
    uint64_t accepts_ns;     /* no accept is to be armed before; 0: there may be room again */
    uint64_t flow_id_serial; /* of the id made next */
};

/* The parts below; the rest is zero. */
static inline void connections_init(struct connections *c, struct receiver *receiver,
                                    const struct engine *engine) {
    c->reactor = receiver->reactor;
    c->storage = receiver->storage;
    c->engine = engine;
    c->receiver = receiver;
    c->table = receiver->table;
    c->admission_backlog = c->hello_backlog = CONNECTION_LIST_EMPTY;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Listeners: which connections are accepted, and which are denied.
 *
 * accept -> network and peer -> this worker's or another one's -> its protocol begins. Owned
 * by the worker's thread. Invariants:
 *  - A listener that passes on begins nothing that it accepts itself, and its accepts wait for
 *    no room here: Python gives each connection to another worker.
 *  - One accept per listener is under way, and only while there is room.
 *  - A connection that is admitted has its listener's protocol until it is freed; one that
 *    is denied is closed and counted, and their number is reported once a second.
 */
#ifndef INGESTD_CONNECTION_LISTENER_H
#define INGESTD_CONNECTION_LISTENER_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "receive/engine.h"
#include "connection/handover.h"
#include "connection/ingest/session_pool.h"
#include "connection/network.h"
#include "connection/peers.h"
#include "connection/protocol.h"

#define LISTENERS_MAX 16u
#define LISTENER_NAME_BYTES 64

struct connections;

struct listener_settings {
    int fd;
    uint32_t index;           /* the daemon's number for it */
    uint32_t protocol;        /* record_open.protocol */
    uint64_t idle_timeout_ns; /* 0: none */
    uint32_t flows_max;
    uint32_t flows_per_peer_max; /* 0: no limit */
    uint64_t hello_timeout_ns;   /* protocol ingest, as the two below */
    uint64_t ack_interval_ns;
    bool authenticates;
    bool drops_empty; /* protocol raw: of a connection without a byte nothing is kept */
    char name[LISTENER_NAME_BYTES]; /* ends with a zero byte */
    uint32_t allow_count;           /* any protocol; 0: every network */
    bool shared;                    /* workers of other stores have it too, and hand over to us */
    struct network allow[NETWORKS_MAX];
};

/* Why a connection was denied; code of EVENT_FLOW_DENIED. */
enum denial {
    DENIED_NETWORK = 0, /* its network is none of those allowed */
    DENIED_PEER = 1,    /* its peer has as many as it may */
    DENIALS_COUNT
};

struct denied {
    uint32_t count;       /* not reported yet */
    uint64_t reported_ns; /* nor to be reported before */
};

struct listener {
    int fd;
    uint32_t index; /* the daemon's number for it */
    const struct protocol *protocol;
    uint64_t idle_timeout_ns; /* 0: none */
    uint64_t hello_timeout_ns, ack_interval_ns;
    bool authenticates, drops_empty;
    struct session_pool sessions;
    struct connection_list greeting;     /* their hello has not come whole; oldest first */
    struct connection_list acks_pending; /* their durable offset is to be sent ... */
    uint64_t acks_due_ns;                /* ... not before */
    uint32_t allow_count;
    struct network allow[NETWORKS_MAX];
    struct denied denied[DENIALS_COUNT];
    uint32_t flows_per_peer_max; /* 0: no limit */
    uint32_t flows_max;
    uint32_t connection_count; /* written by the worker's thread alone, read by any */
    char name[LISTENER_NAME_BYTES];
    struct connection_list idle;
    bool accepting;    /* an accept is under way */
    bool cancelling;   /* ... and being cancelled */
    bool stopped;      /* no more accepts */
    bool passing;      /* what it accepts is for another worker */
    bool roomless;     /* ... and so the accept under way has no room kept for it */
    uint64_t retry_ns; /* not before, after an accept failed */
    struct sockaddr_storage peer;
    socklen_t peer_bytes;
};

static inline void listener_count_connection(struct listener *l, int change) {
    __atomic_store_n(&l->connection_count, l->connection_count + (uint32_t)change,
                     __ATOMIC_RELAXED);
}

/* Any thread. */
static inline uint32_t listener_connections(const struct listener *l) {
    return __atomic_load_n(&l->connection_count, __ATOMIC_RELAXED);
}

/* Its accept is complete: a descriptor, or -errno. */
void listener_accepted(struct connections *c, uint32_t listener, int result);
/* A connection that another worker accepted; there is room. */
void listener_adopt(struct connections *c, struct listener *l, const struct handed_over *handed);
/* What the listener of that number accepts from now on is for another worker, or ours again. */
void listener_pass_on(struct connections *c, uint32_t listener_index, bool wanted);
/* A connection that cannot become a flow is sent the reason (enum close_reason), counted, and
 * closed. */
void listener_turn_away(struct connections *c, struct listener *l, int fd, uint8_t reason);
/* Whom its peer is among struct peers. */
static inline struct peer listener_peer(const struct connection *conn) {
    return peers_name(conn->listener, conn->peer_family, conn->peer_address);
}

/* Accepts to arm. Returns when to call again; before that, when there may be room again: see
 * accepts_ns of struct connections. */
uint64_t listeners_turn(struct connections *c);
/* No more accepts. */
void listeners_stop(struct connections *c);

#endif

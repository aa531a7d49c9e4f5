/* SPDX-License-Identifier: Apache-2.0
 *
 * Intake: connections become flows, and flows end with an answer.
 *
 * accept -> engine receives -> intake_end() -> CLOSE record -> commit ->
 * receipt -> close. Owned by the worker's thread. Invariants:
 *  - A flow is sealed only with every byte of its payload that was received.
 *  - A sealed flow's receipt is sent only after its CLOSE record is committed.
 *  - A connection that never sent a byte and never half-closed leaves nothing
 *    in the store.
 *  - One accept per listener is under way, and only while there is room.
 */
#ifndef INGESTD_CONNECTION_INTAKE_H
#define INGESTD_CONNECTION_INTAKE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "receive/flow.h"
#include "connection/network.h"
#include "connection/ingest/session_pool.h"
#include "base/uring.h"

#define PROTOCOL_RAW 1u /* record_open.protocol */
#define PROTOCOL_INGEST 2u
#define LISTENERS_MAX 16u
#define LISTENER_NAME_BYTES 64

struct worker;

struct listener_settings {
    int fd;
    uint32_t index; /* the daemon's number for it */
    uint32_t protocol;
    uint64_t idle_timeout_ns; /* 0: none */
    uint32_t flows_max;
    uint32_t flows_per_peer_max; /* 0: no limit */
    uint64_t hello_timeout_ns;   /* protocol ingest, as the two below */
    uint64_t ack_interval_ns;
    bool authenticates;
    char name[LISTENER_NAME_BYTES]; /* ends with a zero byte */
    uint32_t allow_count;           /* any protocol; 0: every network */
    struct network allow[NETWORKS_MAX];
};

/* Why a connection was not let in; code of EVENT_FLOW_DENIED. */
enum denial {
    DENIED_NETWORK = 0, /* its network is none of those allowed */
    DENIED_PEER = 1,    /* its peer has as many as it may */
    DENIALS_COUNT
};

struct denied {
    uint32_t count;   /* not told of yet */
    uint64_t told_ns; /* nor to be told of before */
};

struct listener {
    int fd;
    uint32_t index; /* the daemon's number for it */
    uint32_t protocol;
    uint64_t idle_timeout_ns; /* 0: none */
    uint64_t hello_timeout_ns, ack_interval_ns;
    bool authenticates;
    struct session_pool sessions;
    struct flow_list greeting; /* their hello has not come whole; oldest first */
    struct flow_list news;     /* their durable offset is to be told ... */
    uint64_t news_ns;          /* ... not before */
    uint32_t allow_count;
    struct network allow[NETWORKS_MAX];
    struct denied denied[DENIALS_COUNT];
    uint32_t flows_per_peer_max; /* 0: no limit */
    uint32_t flows_max;
    uint32_t flow_count;
    char name[LISTENER_NAME_BYTES];
    struct flow_list idle;
    bool accepting;    /* an accept is under way */
    bool cancelling;   /* ... and being cancelled */
    bool stopped;      /* no more accepts */
    uint64_t retry_ns; /* not before, after an accept failed */
    struct sockaddr_storage peer;
    socklen_t peer_bytes;
};

/* The last line of a session has left, or (result < 0) never will. */
void intake_answered(struct worker *w, struct flow *f, int result);

/* The engine took bytes from the flow's socket. */
void intake_received(struct worker *w, struct flow *f, uint32_t bytes);

/* Nothing more is received: all bytes are with batches. The flow is closed as
 * sealed or interrupted, for a reason (enum close_reason) and maybe an errno. */
void intake_end(struct worker *w, struct flow *f, uint8_t state, uint8_t reason, int error);

/* Its CLOSE record is committed, or never will be. */
void intake_closed(struct worker *w, struct flow *f);

/* A CLOSE record that did not get in is to be tried again; true once it is in. */
bool intake_retry_close(struct worker *w, struct flow *f);

/* Its CLOSE record was given up with its batch. */
void intake_unclosed(struct worker *w, struct flow *f);

/* A completion or commit that a closed flow had to wait for has come. */
void intake_gone(struct worker *w, struct flow *f);

/* Ends a flow from outside: time-out, shutdown, full store. */
void intake_interrupt(struct worker *w, struct flow *f, uint8_t reason, bool drop);
void intake_interrupt_all(struct worker *w, uint8_t reason, bool drop);
/* A drain does not wait for connections that never sent anything. */
void intake_refuse_silent(struct worker *w);

/* A connection that another worker accepted and that came by our rx queue; there is room. */
void intake_adopt(struct worker *w, struct listener *l, int fd);
/* A connection that cannot become a flow is told why (enum close_reason), counted, and closed. */
void intake_turn_away(struct worker *w, struct listener *l, int fd, uint8_t reason);

/* Gives a connection just accepted to another worker; false if that cannot be told. */
bool intake_hand_away(struct worker *w, struct flow *f, uint32_t owner);

void intake_accepted(struct worker *w, uint32_t listener, int result);
void intake_complete(struct worker *w, enum uring_tag tag, struct flow *f, int result);

/* Once a turn: accepts to arm, time-outs. Returns the next time. */
uint64_t intake_turn(struct worker *w);
void intake_stop_accepting(struct worker *w);

#endif

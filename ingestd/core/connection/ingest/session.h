/* SPDX-License-Identifier: Apache-2.0
 *
 * A session: what protocol `ingest` keeps beside a flow, and its steps.
 *
 * greeting -> hello block -> Python decides -> `accepted` -> payload, which is the
 * engine's, with `durable` lines meanwhile -> trailer -> last line. Taken from a
 * pool of its listener, which has one for each connection that may be open. Owned
 * by the worker's thread. Invariants:
 *  - One line is under way to the sender at a time, and none is ever cut in two
 *    by another one.
 *  - A sender that does not read its lines is told less often, and keeps nobody
 *    waiting: only its last line waits, and not for long.
 *  - A silent connection costs a few hundred bytes; pages that one touched are given
 *    back at its end.
 *  - Python is told of the end of each connection that it was asked about.
 */
#ifndef INGESTD_CONNECTION_INGEST_SESSION_H
#define INGESTD_CONNECTION_INGEST_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "connection/flow.h"

#define PROTOCOL_RAW 1u /* record_open.protocol */
#define PROTOCOL_INGEST 2u
#define SESSION_BLOCK_BYTES 4096u /* hello and trailer: blocks of payload stay blocks */
#define SESSION_CHALLENGE_BYTES 32u
#define SESSION_NAME_BYTES_MAX 255u
#define SESSION_LABELS_BYTES_MAX 1024u
#define SESSION_LINE_BYTES 1536u
#define SESSION_PAGES_BYTES 8192u
#define SESSIONS_WARM_MAX 64u /* so many sessions of a listener keep their pages */

struct worker;
struct listener;
struct batch;

/* Why a session ends that no close_reason tells; 0: one does. */
enum session_error {
    SESSION_HELLO_TIMEOUT = 1,
    SESSION_TOO_LONG = 2,   /* more bytes than stated */
    SESSION_TOO_SHORT = 3,  /* half-closed before the bytes stated */
    SESSION_NO_TRAILER = 4, /* announced, and not there */
    SESSION_REFUSED = 5,    /* by Python: text has the line */
};

/* What a connection needs once it says something. It lies on pages of its own, which
 * cost no memory before that, and are given back. */
struct session_pages {
    uint8_t
        block[SESSION_BLOCK_BYTES + 1]; /* hello; then held bytes, or the trailer and one more */
    char name[SESSION_NAME_BYTES_MAX];
    char labels[SESSION_LABELS_BYTES_MAX];
    char text[SESSION_LINE_BYTES]; /* the last line, if Python has worded it */
};

struct session {
    uint32_t index, next_free;
    uint64_t serial;
    bool in_use;
    bool asked;        /* Python knows of the connection ... */
    bool told;         /* ... and has been told of its end */
    bool admitted;     /* it is a flow */
    bool stated;       /* limit_bytes is the length that the sender stated */
    bool trailer;      /* a trailer follows the payload */
    bool holding;      /* the last SESSION_BLOCK_BYTES may be the trailer, and are held back */
    bool sending;      /* a line is under way */
    bool last_line;    /* ... and it is the last one */
    bool mute;         /* sending has failed: nothing more is said */
    bool beyond;       /* more came than its room can have */
    bool accepted_due; /* the line that the sender waits for before it sends payload */
    bool has_sender_crc;
    uint8_t question; /* enum question_kind that waits for room, or 0 */
    uint8_t error;    /* enum session_error */
    uint32_t sender_crc;
    uint32_t filled;     /* bytes of block */
    uint32_t came;       /* engine zcrx: behind them, by the receive under way */
    uint64_t told_bytes; /* the durable offset that the sender was told last */
    uint16_t name_bytes, labels_bytes, text_bytes;
    uint16_t line_bytes, line_sent;
    const char *saying; /* the line that is under way: of its flow, or text */
    uint8_t challenge[SESSION_CHALLENGE_BYTES];
    struct session_pages *pages;
};

/* Where an engine puts bytes that are no payload, and how many there may be. */
struct session_room {
    uint8_t *at;
    uint32_t bytes;
};

struct session_pool {
    struct session *sessions;
    uint8_t *pages; /* SESSION_PAGES_BYTES of each */
    uint32_t capacity, used_upto, free_head;
};

int session_pool_open(struct session_pool *p, uint32_t capacity); /* 0 or -ENOMEM */
void session_pool_close(struct session_pool *p);
/* One that is cleared; the pool has one for each connection that may be open. */
struct session *session_pool_take(struct session_pool *p);
/* The kernel gets the first bytes of its pages back, unless it is one of those that
 * keep them; what is read of them next are zeros. */
void session_give_pages(const struct session *s, size_t bytes);

/* A connection was accepted: greets it, and receives its hello. */
void session_begin(struct worker *w, struct flow *f);
void session_line_sent(struct worker *w, struct flow *f, int result);
struct session_room session_room(struct session *s);
/* The engine has filled so many bytes of that room; 0: the stream has ended; or -errno. */
void session_received(struct worker *w, struct flow *f, int result);
/* Takes what Python has answered. */
void session_take_answers(struct worker *w);
/* A newer connection takes the flow over, if that serial still has it. */
void session_replace(struct worker *w, uint32_t flow_index, uint64_t serial);

/* The engine has received all payload, up to the limit or the end, and handed it
 * over. True: the session goes on with what follows, and ends the flow itself. */
bool session_goes_on(struct worker *w, struct flow *f);
/* Bytes that came behind the payload with its last ones, as the kernel did not keep to
 * the receive's bound: they are the first of what follows. */
void session_take_beyond(struct flow *f, const uint8_t *data, uint32_t bytes);
/* The flow is to end now. True: it has ended, as nothing of it was being received. */
bool session_stop(struct worker *w, struct flow *f);
/* Whether the last SESSION_BLOCK_BYTES received are not to be stored yet. */
static inline bool session_holds_back(const struct flow *f) {
    return f->session != NULL && f->session->holding;
}
/* Keeps the last bytes of a slot back; returns how many. */
uint32_t session_hold(struct session *s, const uint8_t *slot, uint32_t bytes);

/* The flow's durable offset has advanced. */
void session_advanced(struct worker *w, struct flow *f);
/* The flow has ended and all is known: Python is told; then the sender is. */
void session_closed(struct worker *w, struct flow *f);
void session_send_last(struct worker *w, struct flow *f);
/* Its flow can be freed; false as long as Python is not told. */
bool session_give(struct worker *w, struct flow *f);

/* Once a turn. Returns when to call again at the latest. */
uint64_t session_turn(struct worker *w);

#endif

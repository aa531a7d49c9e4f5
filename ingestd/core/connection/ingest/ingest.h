/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections of protocol `ingest`: what the acts of their sessions come to.
 *
 * The session (session.h) says what comes next, the outbox (outbox.h) which line; here is
 * what does it: receives, sends, questions to Python, the flow's end. Owned by the worker's
 * thread. Invariants:
 *  - Each connection of the protocol has a session from its begin until it is freed, and
 *    Python is told of its end before.
 *  - A sender that does not read its lines keeps nobody waiting: only its last line waits,
 *    and not for long.
 *  - A silent connection costs a few hundred bytes; pages that one touched are given
 *    back at its end.
 */
#ifndef INGESTD_CONNECTION_INGEST_INGEST_H
#define INGESTD_CONNECTION_INGEST_INGEST_H

#include "receive/flow.h"
#include "connection/ingest/session.h"
#include "connection/ingest/session_pool.h"

struct worker;

/* A connection was accepted: greets it, and receives its hello. */
void ingest_begin(struct worker *w, struct flow *f);
/* A send of a line is complete. */
void ingest_line_sent(struct worker *w, struct flow *f, int result);
/* The engine has filled so many bytes of session_room(); 0: the stream has ended; or -errno. */
void ingest_block_received(struct worker *w, struct flow *f, int result);
/* The engine receives no more payload: what there was is with batches, or given up. */
void ingest_payload_over(struct worker *w, struct flow *f);
/* Takes what Python has answered. */
void ingest_take_answers(struct worker *w);
/* A newer connection takes the flow over, if that serial still has it. */
void ingest_replace(struct worker *w, uint32_t flow_index, uint64_t serial);
/* The flow is to end now. True: it has ended, as nothing of it was being received. */
bool ingest_stop(struct worker *w, struct flow *f);
/* The flow's durable offset has advanced. */
void ingest_advanced(struct worker *w, struct flow *f);
/* The flow has ended and all is known: Python is told; then the sender is. */
void ingest_closed(struct worker *w, struct flow *f);
void ingest_send_last(struct worker *w, struct flow *f);
/* Its flow can be freed; false as long as Python is not told. */
bool ingest_free(struct worker *w, struct flow *f);
/* Once a turn. Returns when to call again at the latest. */
uint64_t ingest_turn(struct worker *w);

/* Whether the last SESSION_BLOCK_BYTES received are not to be stored yet. */
static inline bool ingest_is_holding(const struct flow *f) {
    return f->session != NULL && session_is_holding(f->session);
}

#endif

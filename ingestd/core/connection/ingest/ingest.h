/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections of protocol `ingest`: what the acts of their sessions come to.
 *
 * The session (session.h) says what comes next, the outbox (outbox.h) which line; here is
 * what does it: receives, sends, requests to Python, the flow's end. Owned by the worker's
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

#include "receive/engine.h"
#include "connection/ingest/session.h"
#include "connection/ingest/session_pool.h"

struct connections;

/* Takes what Python has answered. */
void ingest_take_responses(struct connections *c);
/* A newer connection takes the flow over, if that serial still has it. */
void ingest_replace(struct connections *c, uint32_t flow_index, uint64_t serial);
/* Once a turn. Returns when to call again at the latest. */
uint64_t ingest_turn(struct connections *c);

#endif

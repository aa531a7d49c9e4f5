/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections of protocol `ingest`: carries out the acts of their sessions.
 *
 * The session (session.h) decides on the next act, the outbox (outbox.h) on the next line;
 * this file does the receives, sends, requests to Python, and the flow's end. Owned by the
 * worker's thread. Invariants:
 *  - Each connection of the protocol has a session from its begin until it is freed, and
 *    its end is reported to Python before that.
 *  - A sender that does not read its lines delays nobody: only its last line waits, for
 *    10 s at most.
 *  - A silent connection costs a few hundred bytes; pages that one touched are released
 *    at its end.
 */
#ifndef INGESTD_CONNECTION_INGEST_INGEST_H
#define INGESTD_CONNECTION_INGEST_INGEST_H

#include "receive/engine.h"
#include "connection/ingest/session.h"
#include "connection/ingest/session_pool.h"

struct connections;

/* Takes Python's responses. */
void ingest_take_responses(struct connections *c);
/* A newer connection takes the flow over, if that serial still has it. */
void ingest_replace(struct connections *c, uint32_t connection_index, uint64_t serial);
/* Once a turn. Returns when to call again at the latest. */
uint64_t ingest_turn(struct connections *c);

#endif

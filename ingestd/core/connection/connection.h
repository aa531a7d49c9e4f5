/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections: what they have received, how they end, and the last line to their senders.
 *
 * engine receives -> connection_end() -> CLOSE record -> commit -> last line -> close. Owned
 * by the worker's thread. Invariants:
 *  - A flow is sealed in one place, and only with every byte of its payload that was received.
 *  - A sealed flow's receipt is sent only after its CLOSE record is committed.
 *  - A connection that never sent a byte and never half-closed leaves nothing
 *    in the store.
 */
#ifndef INGESTD_CONNECTION_CONNECTION_H
#define INGESTD_CONNECTION_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "receive/engine.h"
#include "connection/protocol.h"

#define CONNECTION_DISCARD_BYTES (1u << 20) /* of what nobody reads, by one receive */

struct connections;

/* Nothing more is received: all bytes are with batches. The flow is closed as
 * sealed or interrupted, for a reason (enum close_reason) and maybe an errno. */
void connection_end(struct connections *c, struct connection *conn, uint8_t state, uint8_t reason,
                    int error);
/* A CLOSE record that did not get in is to be tried again; true once it is in. */
bool connection_retry_close(struct connections *c, struct connection *conn);
/* Its CLOSE record is committed, or never will be. */
void connection_closed(struct connections *c, struct connection *conn);
/* Its CLOSE record was dropped with its batch. */
void connection_close_dropped(struct connections *c, struct connection *conn);
/* Something of it is durable; is_closed: its CLOSE record too. */
void connection_acknowledged(struct connections *c, struct connection *conn, bool is_closed);

/* Ends a connection from outside: time-out, shutdown, full store. */
void connection_interrupt(struct connections *c, struct connection *conn, uint8_t reason,
                          bool drop);
void connection_interrupt_all(struct connections *c, uint8_t reason, bool drop);
/* A drain does not wait for connections that never sent anything. */
void connection_refuse_silent(struct connections *c);

/* The last line has left, or (result < 0) never will. */
void connection_last_line_sent(struct connections *c, struct connection *conn, int result);
/* What a lingering connection still sent was dropped. */
void connection_discarded(struct connections *c, struct connection *conn, int result);
/* It is closed, and something that it had to wait for has come. */
void connection_try_free(struct connections *c, struct connection *conn);

/* Once a turn: time-outs. Returns the next time. */
uint64_t connection_turn(struct connections *c);

#endif

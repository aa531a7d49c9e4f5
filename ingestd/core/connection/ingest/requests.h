/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests and notes of sessions on their way to Python.
 *
 * Those that find no room in the admission wait, oldest first, and hellos behind all others.
 * Owned by the worker's thread. Invariant: a connection has one at most, and is in no other
 * list linked by `idle` while that waits.
 */
#ifndef INGESTD_CONNECTION_INGEST_REQUESTS_H
#define INGESTD_CONNECTION_INGEST_REQUESTS_H

#include <stdint.h>

struct connection;
struct connections;

/* Of that kind (enum request_kind); the connection is in no list linked by `idle`. */
void requests_put(struct connections *c, struct connection *conn, uint8_t kind);
/* What waits of it is not sent. */
void requests_withdraw(struct connections *c, struct connection *conn);
/* Once a turn: what waits is sent, as far as there is room. */
void requests_turn(struct connections *c);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The lines that senders get. Protocol raw: the last one, a receipt or why there
 * is none. Protocol ingest: the server's whole side of the conversation. Each is
 * one JSON object and a newline. Pure.
 *
 * Every function writes its line, without terminator counted, and returns its
 * bytes; CONNECTION_LINE_BYTES of capacity do. What Python has worded is no matter of theirs.
 */
#ifndef INGESTD_LINES_H
#define INGESTD_LINES_H

#include <stddef.h>

#include "receive/engine.h"
#include "connection/ingest/session.h"

/* store_errno: 0, or why the store failed. */
size_t line_of_raw(const struct connection *conn, int store_errno, char *line, size_t capacity);

size_t line_greeting(bool authenticates, const uint8_t challenge[SESSION_CHALLENGE_BYTES],
                     char *line, size_t capacity);
size_t line_accepted(const struct connection *conn, uint64_t ack_interval_ns, char *line,
                     size_t capacity);
size_t line_durable(uint64_t offset, char *line, size_t capacity);
size_t line_last(const struct connection *conn, int store_errno, char *line, size_t capacity);

/* Of a connection that is no session yet, and will be none: why (conn->reason). */
size_t line_denial(const struct connection *conn, char *line, size_t capacity);

#endif

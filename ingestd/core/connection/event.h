/* SPDX-License-Identifier: Apache-2.0
 *
 * Events of a connection: what the daemon logs of it. Owned by the worker's thread.
 */
#ifndef INGESTD_CONNECTION_EVENT_H
#define INGESTD_CONNECTION_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/mailbox.h"

struct connections;
struct connection;

/* As reactor_event(), with the flow's id, its peer and its listener. */
bool connection_event(struct connections *c, const struct connection *conn,
                      struct event_detail detail);
/* Of how it has ended: EVENT_FLOW_INTERRUPTED or EVENT_FLOW_REFUSED. */
void connection_event_end(struct connections *c, const struct connection *conn,
                          enum event_kind kind);
/* "192.0.2.1:4711", "[2001:db8::1]:4711"; left as it is where the peer is unknown. */
void connection_format_peer(const struct connection *conn, char *out, size_t capacity);

#endif

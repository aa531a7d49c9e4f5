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
struct flow;

/* As reactor_event(), with the flow's id, its peer and its listener. */
bool flow_event(struct connections *c, const struct flow *f, struct event_detail detail);
/* Of how it has ended: EVENT_FLOW_INTERRUPTED or EVENT_FLOW_REFUSED. */
void flow_event_end(struct connections *c, const struct flow *f, enum event_kind kind);
/* "192.0.2.1:4711", "[2001:db8::1]:4711"; left as it is where the peer is unknown. */
void flow_format_peer(const struct flow *f, char *out, size_t capacity);

#endif

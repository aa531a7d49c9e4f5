/* SPDX-License-Identifier: Apache-2.0
 *
 * The events of event.h.
 */
#include "connection/event.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "connection/connections.h"

void flow_format_peer(const struct flow *f, char *out, size_t capacity) {
    char address[INET6_ADDRSTRLEN];
    if (f->peer_family == 0)
        return;
    inet_ntop(f->peer_family == 4 ? AF_INET : AF_INET6, f->peer_address, address, sizeof address);
    snprintf(out, capacity, f->peer_family == 4 ? "%s:%u" : "[%s]:%u", address, f->peer_port);
}

void flow_event_end(struct connections *c, const struct flow *f, enum event_kind kind) {
    flow_event(
        c, f,
        (struct event_detail){.kind = kind, .end = {f->reason, f->error, f->stream.durable_bytes}});
}

bool flow_event(struct connections *c, const struct flow *f, struct event_detail detail) {
    struct event *e = reactor_new_event(c->reactor, detail);
    if (e == NULL)
        return false;
    e->listener_index = (int32_t)c->listeners[f->listener].index;
    memcpy(e->flow, f->stream.id, sizeof e->flow);
    flow_format_peer(f, e->peer, sizeof e->peer);
    mailbox_publish(&c->reactor->mailbox, false);
    return true;
}

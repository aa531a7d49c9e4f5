/* SPDX-License-Identifier: Apache-2.0
 *
 * The events of event.h.
 */
#include "connection/event.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "worker.h"

void flow_format_peer(const struct flow *f, char *out, size_t capacity) {
    char address[INET6_ADDRSTRLEN];
    if (f->peer_family == 0)
        return;
    inet_ntop(f->peer_family == 4 ? AF_INET : AF_INET6, f->peer_address, address, sizeof address);
    snprintf(out, capacity, f->peer_family == 4 ? "%s:%u" : "[%s]:%u", address, f->peer_port);
}

bool flow_event(struct worker *w, enum event_kind kind, const struct flow *f, int code, int detail,
                uint64_t bytes_count) {
    struct event *e = reactor_new_event(&w->reactor, kind, code, detail, bytes_count);
    if (e == NULL)
        return false;
    e->listener_index = (int32_t)w->listeners[f->listener].index;
    memcpy(e->flow, f->stream.id, sizeof e->flow);
    flow_format_peer(f, e->peer, sizeof e->peer);
    mailbox_publish(&w->reactor.mailbox, false);
    return true;
}

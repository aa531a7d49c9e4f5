/* SPDX-License-Identifier: Apache-2.0
 *
 * The events of event.h.
 */
#include "connection/event.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "connection/connections.h"

void connection_format_peer(const struct connection *conn, char *out, size_t capacity) {
    char address[INET6_ADDRSTRLEN];
    if (conn->peer_family == 0)
        return;
    inet_ntop(conn->peer_family == 4 ? AF_INET : AF_INET6, conn->peer_address, address,
              sizeof address);
    snprintf(out, capacity, conn->peer_family == 4 ? "%s:%u" : "[%s]:%u", address, conn->peer_port);
}

void connection_event_end(struct connections *c, const struct connection *conn,
                          enum event_kind kind) {
    connection_event(
        c, conn,
        (struct event_detail){.kind = kind,
                              .end = {conn->reason, conn->error, conn->stream.durable_bytes}});
}

bool connection_event(struct connections *c, const struct connection *conn,
                      struct event_detail detail) {
    struct event *e = reactor_new_event(c->reactor, detail);
    if (e == NULL)
        return false;
    e->listener_index = (int32_t)c->listeners[conn->listener].index;
    memcpy(e->flow, conn->stream.id, sizeof e->flow);
    connection_format_peer(conn, e->peer, sizeof e->peer);
    mailbox_publish(&c->reactor->mailbox, false);
    return true;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * How requests are made up, and where they wait: requests.h.
 */
#include "connection/ingest/requests.h"

#include <string.h>

#include "connection/connection.h"
#include "connection/connections.h"
#include "connection/event.h"
#include "format/close_reason.h"

static bool requests_send(struct connections *c, struct connection *conn) {
    struct session *s = conn->session;
    struct admission_request q = {
        .kind = s->pending,
        .connection_index = conn->index,
        .serial = s->serial,
        .listener_index = (int32_t)c->listeners[conn->listener].index,
        .bytes_count =
            s->pending == NOTE_ENDED ? conn->stream.durable_bytes : conn->stream.stored_bytes,
        .crc = conn->stream.crc,
        .reason = s->pending == NOTE_ENDED ? conn->reason : CLOSE_REASON_NONE,
        .move_id = conn->move_id,
    };
    bool whole = conn->stream.durable_bytes == conn->stream.stored_bytes;
    q.flags = (conn->checksummed ? REQUEST_HAS_CRC : 0) | (whole ? REQUEST_WHOLE : 0) |
              (conn->stream.opened ? REQUEST_STORED : 0) |
              (conn->ended && conn->state == FLOW_STATE_SEALED ? REQUEST_SEALED : 0);
    memcpy(q.flow, conn->stream.id, sizeof q.flow);
    connection_format_peer(conn, q.peer, sizeof q.peer);
    memcpy(q.challenge, s->challenge, sizeof q.challenge);
    memcpy(q.block, s->pages->block, sizeof q.block);
    q.fd = -1;
    if (s->step == SESSION_MOVED) {
        q.flags |= REQUEST_MOVED;
        q.fd = conn->fd;
    }
    if (!admission_send(&c->admission, &q))
        return false;
    if (s->step == SESSION_MOVED)
        conn->fd = -1; /* whoever takes the note has it */
    session_requested(s);
    c->reactor->mailbox.event_pending = true; /* its reader takes requests too */
    return true;
}

static struct connection_list *requests_backlog(struct connections *c, uint8_t request) {
    return request == REQUEST_HELLO ? &c->hello_backlog : &c->admission_backlog;
}

/* The connection is in no list linked by `idle` then, so that it can wait in this one. */
void requests_put(struct connections *c, struct connection *conn, uint8_t kind) {
    struct connection_list *before = requests_backlog(c, kind);
    conn->session->pending = kind;
    if (before->count > 0 || !requests_send(c, conn))
        connection_idle_touch(c->table, before, conn);
}

void requests_withdraw(struct connections *c, struct connection *conn) {
    struct session *s = conn->session;
    if (s->pending == 0)
        return;
    connection_idle_remove(c->table, requests_backlog(c, s->pending), conn);
    s->pending = 0;
}

static void requests_send_waiting(struct connections *c, struct connection_list *waiting) {
    while (waiting->head != CONNECTION_NONE) {
        struct connection *conn = &c->table->connections[waiting->head];
        if (!requests_send(c, conn))
            return;
        connection_idle_remove(c->table, waiting, conn);
        if (conn->phase == CONNECTION_GONE)
            connection_try_free(c, conn);
    }
}

void requests_turn(struct connections *c) {
    requests_send_waiting(c, &c->admission_backlog);
    requests_send_waiting(c, &c->hello_backlog);
}

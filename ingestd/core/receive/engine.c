/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engines of engine.h have in common.
 */
#include "receive/engine.h"

#include <assert.h>

#include "base/trace.h"

void receiver_init(struct receiver *r, struct reactor *reactor, struct area *area,
                   struct storage *storage, struct connection_table *table) {
    r->reactor = reactor;
    r->area = area;
    r->storage = storage;
    r->table = table;
    r->report_head = r->report_tail = CONNECTION_NONE;
}

void engine_report(struct receiver *r, struct connection *conn, enum report_kind kind, int result) {
    assert(kind != REPORT_NONE && !conn->ended);
    if (conn->report != REPORT_NONE) {
        assert(conn->report == kind);
        return;
    }
    conn->report = (uint8_t)kind;
    conn->report_result = result;
    conn->report_next = CONNECTION_NONE;
    if (r->report_tail == CONNECTION_NONE)
        r->report_head = conn->index;
    else
        r->table->connections[r->report_tail].report_next = conn->index;
    r->report_tail = conn->index;
}

bool engine_next_report(struct receiver *r, struct engine_report *out) {
    if (r->report_head == CONNECTION_NONE)
        return false;
    struct connection *conn = &r->table->connections[r->report_head];
    assert(conn->phase != CONNECTION_FREE && conn->report != REPORT_NONE);
    *out = (struct engine_report){conn, (enum report_kind)conn->report, conn->report_result};
    r->report_head = conn->report_next;
    if (r->report_head == CONNECTION_NONE)
        r->report_tail = CONNECTION_NONE;
    conn->report = REPORT_NONE;
    return true;
}

void engine_received(struct receiver *r, struct connection *conn, uint32_t bytes) {
    conn->received_bytes += bytes;
    conn->active_ns = r->reactor->awake_ns;
    STAT_ADD(r->reactor, received_bytes, bytes);
    trace_receive(conn->stream.id, conn->index, bytes);
    connection_idle_touch(r->table, conn->idle_list, conn);
}

void engine_cancel(struct receiver *r, struct connection *conn, enum uring_tag tag) {
    reactor_cancel(r->reactor, tag, conn->index, TAG_CANCEL);
    conn->ops_in_flight++;
}

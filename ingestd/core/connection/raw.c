/* SPDX-License-Identifier: Apache-2.0
 *
 * Protocol `raw`: all that is sent is payload, and a half-close seals it; see protocol.h.
 */
#include <assert.h>
#include <errno.h>
#include <sys/socket.h>

#include "connection/connection.h"
#include "connection/event.h"
#include "connection/ingest/lines.h"
#include "connection/protocol.h"
#include "format/close_reason.h"
#include "format/format.h"
#include "connection/connections.h"

static void raw_begin(struct connections *c, struct connection *conn) {
    connection_idle_touch(c->table, &c->listeners[conn->listener].idle, conn);
    c->engine->start(c->receiver, conn);
    connection_event(c, conn, (struct event_detail){.kind = EVENT_FLOW_OPENED});
    if (storage_error(c->storage))
        connection_interrupt(c, conn, CLOSE_REASON_NONE, true);
    else if (storage_is_exhausted(c->storage))
        connection_interrupt(c, conn, CLOSE_REASON_STORE_FULL, true);
}

/* Whether it was no more than a look at the port, and its listener keeps nothing of such. */
static bool raw_is_dropped(const struct connections *c, const struct connection *conn) {
    if (!c->listeners[conn->listener].drops_empty || conn->received_bytes > 0)
        return false;
    if (conn->stop)
        return conn->reason == CLOSE_REASON_IDLE;
    return conn->error == 0 || close_reason_of(conn->error) == CLOSE_REASON_PEER;
}

static void raw_payload_over(struct connections *c, struct connection *conn) {
    if (raw_is_dropped(c, conn))
        connection_end(c, conn, FLOW_STATE_INTERRUPTED, CLOSE_REASON_EMPTY, conn->error);
    else if (conn->stop)
        connection_end(c, conn, FLOW_STATE_INTERRUPTED, conn->reason, 0);
    else if (conn->error != 0)
        connection_end(c, conn, FLOW_STATE_INTERRUPTED, close_reason_of(conn->error), conn->error);
    else
        connection_end(c, conn, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

static bool raw_stop(struct connections *c, struct connection *conn) {
    (void)c;
    (void)conn;
    return false; /* an engine has it, always */
}

static void raw_advanced(struct connections *c, struct connection *conn) {
    (void)c; /* its sender hears of the end alone */
    (void)conn;
}

static bool raw_sender_crc(const struct connection *conn, uint32_t *out) {
    (void)conn;
    (void)out;
    return false;
}

static void raw_report_end(struct connections *c, struct connection *conn) {
    (void)c; /* nobody has decided on it */
    (void)conn;
}

static void raw_report_refused(struct connections *c, struct connection *conn) {
    connection_event_end(c, conn, EVENT_FLOW_REFUSED);
}

static void raw_send_last(struct connections *c, struct connection *conn) {
    assert(conn->ended && conn->phase == CONNECTION_CLOSING);
    conn->line_bytes =
        (uint16_t)line_of_raw(conn, storage_error(c->storage), conn->line, sizeof conn->line);
    connection_set_phase(conn, CONNECTION_LAST_LINE);
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_LINE, conn->index);
    io_uring_prep_send(sqe, conn->fd, conn->line, conn->line_bytes, MSG_NOSIGNAL | MSG_WAITALL);
    conn->ops_in_flight++;
}

static void raw_line_sent(struct connections *c, struct connection *conn, int result) {
    connection_last_line_sent(c, conn, result);
}

static bool raw_release(struct connections *c, struct connection *conn) {
    (void)c;
    (void)conn;
    return true;
}

static size_t raw_format_denial(const struct connection *conn, char *line, size_t capacity) {
    return line_of_raw(conn, 0, line, capacity);
}

const struct protocol protocol_raw = {
    .name = "raw",
    .number = PROTOCOL_RAW,
    .begin = raw_begin,
    .payload_over = raw_payload_over,
    .stop = raw_stop,
    .advanced = raw_advanced,
    .sender_crc = raw_sender_crc,
    .report_end = raw_report_end,
    .report_refused = raw_report_refused,
    .send_last = raw_send_last,
    .line_sent = raw_line_sent,
    .release = raw_release,
    .format_denial = raw_format_denial,
};

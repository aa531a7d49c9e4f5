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

static void raw_begin(struct connections *c, struct flow *f) {
    flow_idle_touch(c->flows, &c->listeners[f->listener].idle, f);
    c->engine->start(c->receiver, f);
    flow_event(c, f, (struct event_detail){.kind = EVENT_FLOW_OPENED});
    if (storage_error(c->storage))
        connection_interrupt(c, f, CLOSE_REASON_NONE, true);
    else if (storage_is_exhausted(c->storage))
        connection_interrupt(c, f, CLOSE_REASON_STORE_FULL, true);
}

static void raw_payload_over(struct connections *c, struct flow *f) {
    if (f->stop)
        connection_end(c, f, FLOW_STATE_INTERRUPTED, f->reason, 0);
    else if (f->error != 0)
        connection_end(c, f, FLOW_STATE_INTERRUPTED, close_reason_of(f->error), f->error);
    else
        connection_end(c, f, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

static bool raw_stop(struct connections *c, struct flow *f) {
    (void)c;
    (void)f;
    return false; /* an engine has it, always */
}

static void raw_advanced(struct connections *c, struct flow *f) {
    (void)c; /* its sender hears of the end alone */
    (void)f;
}

static bool raw_sender_crc(const struct flow *f, uint32_t *out) {
    (void)f;
    (void)out;
    return false;
}

static void raw_report_end(struct connections *c, struct flow *f) {
    (void)c; /* nobody has decided on it */
    (void)f;
}

static void raw_report_refused(struct connections *c, struct flow *f) {
    flow_event_end(c, f, EVENT_FLOW_REFUSED);
}

static void raw_send_last(struct connections *c, struct flow *f) {
    assert(f->ended && f->phase == FLOW_CLOSING);
    f->line_bytes = (uint16_t)line_of_raw(f, storage_error(c->storage), f->line, sizeof f->line);
    flow_set_phase(f, FLOW_ANSWERING);
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_LINE, f->index);
    io_uring_prep_send(sqe, f->fd, f->line, f->line_bytes, MSG_NOSIGNAL | MSG_WAITALL);
    f->ops_in_flight++;
}

static void raw_line_sent(struct connections *c, struct flow *f, int result) {
    connection_answered(c, f, result);
}

static bool raw_release(struct connections *c, struct flow *f) {
    (void)c;
    (void)f;
    return true;
}

static size_t raw_format_denial(const struct flow *f, char *line, size_t capacity) {
    return line_of_raw(f, 0, line, capacity);
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

/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps of outbox.h.
 */
#include "connection/ingest/outbox.h"

#include <assert.h>
#include <errno.h>

void outbox_accept(struct outbox *o, uint64_t base_bytes) {
    assert(!o->accepted_due && !o->reports && !o->closing);
    o->accepted_due = true;
    o->reports = true;
    o->reported_bytes = base_bytes;
}

void outbox_end_reports(struct outbox *o) {
    o->reports = false;
}

void outbox_close(struct outbox *o) {
    assert(!o->closing && !o->last_taken);
    o->reports = false;
    o->closing = true;
}

enum outbox_line outbox_next(struct outbox *o, uint64_t durable_bytes) {
    if (o->step == OUTBOX_CUT)
        return OUTBOX_REST;
    if (o->step != OUTBOX_READY)
        return OUTBOX_NOTHING;
    assert(o->line_sent == o->line_bytes);
    if (o->accepted_due) {
        o->accepted_due = false;
        return OUTBOX_ACCEPTED;
    }
    if (o->closing) {
        assert(!o->last_taken);
        o->last_taken = true;
        return OUTBOX_LAST;
    }
    if (!o->reports || durable_bytes <= o->reported_bytes)
        return OUTBOX_NOTHING;
    o->reported_bytes = durable_bytes;
    return OUTBOX_DURABLE;
}

void outbox_put(struct outbox *o, const char *line, uint16_t bytes) {
    assert(o->step == OUTBOX_READY && bytes > 0);
    o->line = line;
    o->line_bytes = bytes;
    o->line_sent = 0;
}

void outbox_send(struct outbox *o) {
    assert(o->step == OUTBOX_READY || o->step == OUTBOX_CUT);
    assert(o->line_sent < o->line_bytes);
    o->step = OUTBOX_SENDING;
}

enum outbox_after outbox_sent(struct outbox *o, int result) {
    assert(o->step == OUTBOX_SENDING);
    assert(result <= o->line_bytes - o->line_sent);
    bool full = result == -EAGAIN || result == -EINTR;
    if (result > 0)
        o->line_sent = (uint16_t)(o->line_sent + result);
    bool whole = o->line_sent == o->line_bytes;
    if (result <= 0 && !full) /* its receive will report the errno */
        o->step = OUTBOX_FAILED;
    else
        o->step = whole ? OUTBOX_READY : OUTBOX_CUT;
    if (o->closing && (outbox_failed(o) || (whole && o->last_taken)))
        return OUTBOX_OVER;
    if (outbox_failed(o))
        return OUTBOX_WAIT;
    if (o->closing || (whole && o->accepted_due))
        return OUTBOX_NEXT;
    return whole ? OUTBOX_WAIT : OUTBOX_LATER;
}

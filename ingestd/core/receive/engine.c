/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engines of engine.h have in common.
 */
#include "receive/engine.h"

#include <assert.h>

#include "base/trace.h"

void receiver_init(struct receiver *r, struct reactor *reactor, struct area *area,
                   struct storage *storage, struct flow_table *flows) {
    r->reactor = reactor;
    r->area = area;
    r->storage = storage;
    r->flows = flows;
    r->report_head = r->report_tail = FLOW_NONE;
}

void engine_report(struct receiver *r, struct flow *f, enum report_kind kind, int result) {
    assert(kind != REPORT_NONE && !f->ended);
    if (f->report != REPORT_NONE) {
        assert(f->report == kind);
        return;
    }
    f->report = (uint8_t)kind;
    f->report_result = result;
    f->report_next = FLOW_NONE;
    if (r->report_tail == FLOW_NONE)
        r->report_head = f->index;
    else
        r->flows->flows[r->report_tail].report_next = f->index;
    r->report_tail = f->index;
}

bool engine_next_report(struct receiver *r, struct engine_report *out) {
    if (r->report_head == FLOW_NONE)
        return false;
    struct flow *f = &r->flows->flows[r->report_head];
    assert(f->phase != FLOW_FREE && f->report != REPORT_NONE);
    *out = (struct engine_report){f, (enum report_kind)f->report, f->report_result};
    r->report_head = f->report_next;
    if (r->report_head == FLOW_NONE)
        r->report_tail = FLOW_NONE;
    f->report = REPORT_NONE;
    return true;
}

void engine_received(struct receiver *r, struct flow *f, uint32_t bytes) {
    f->received_bytes += bytes;
    f->active_ns = r->reactor->awake_ns;
    STAT_ADD(r->reactor, received_bytes, bytes);
    trace_receive(f->stream.id, f->index, bytes);
    flow_idle_touch(r->flows, f->idle_list, f);
}

void engine_cancel(struct receiver *r, struct flow *f, enum uring_tag tag) {
    reactor_cancel(r->reactor, tag, f->index, TAG_CANCEL);
    f->ops_in_flight++;
}

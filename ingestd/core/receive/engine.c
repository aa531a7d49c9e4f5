/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engines of engine.h have in common.
 */
#include "receive/engine.h"

#include "format/close_reason.h"
#include "worker.h"

void engine_finish(struct worker *w, struct flow *f) {
    if (f->session != NULL)
        ingest_payload_over(w, f);
    else if (f->stop)
        intake_end(w, f, FLOW_STATE_INTERRUPTED, f->reason, 0);
    else if (f->error)
        intake_end(w, f, FLOW_STATE_INTERRUPTED, close_reason_of(f->error), f->error);
    else
        intake_end(w, f, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

void engine_serve_blocked(struct worker *w, void (*advance)(struct worker *w, struct flow *f)) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_BLOCKED)) != NULL) {
        if (f->phase == FLOW_CLOSING) {
            if (!intake_retry_close(w, f))
                return;
            continue;
        }
        advance(w, f);
        if (f->queue == QUEUE_BLOCKED)
            return;
    }
}

void engine_cancel(struct worker *w, struct flow *f, enum uring_tag tag) {
    reactor_cancel(&w->reactor, tag, f->index, TAG_CANCEL);
    f->ops_in_flight++;
}

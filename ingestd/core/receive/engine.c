/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engines of engine.h have in common.
 */
#include "receive/engine.h"

#include "worker.h"

void engine_finish(struct worker *w, struct flow *f) {
    f->protocol->payload_over(w, f);
}

void engine_serve_blocked(struct worker *w, void (*advance)(struct worker *w, struct flow *f)) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_BLOCKED)) != NULL) {
        if (f->phase == FLOW_CLOSING) {
            if (!connection_retry_close(w, f))
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

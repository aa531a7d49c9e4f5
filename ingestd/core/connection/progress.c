/* SPDX-License-Identifier: Apache-2.0
 *
 * The two of progress.h.
 */
#include "connection/progress.h"

#include <assert.h>

#include "connection/connection.h"
#include "worker.h"

void connection_take_reports(struct worker *w) {
    struct engine_report report;
    while (engine_next_report(&w->receiver, &report)) {
        struct flow *f = report.flow;
        assert(!f->ended && f->phase != FLOW_FREE);
        if (report.kind == REPORT_BLOCK)
            f->protocol->block_received(w, f, report.result);
        else
            f->protocol->payload_over(w, f);
    }
}

void connection_serve_blocked(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_BLOCKED)) != NULL) {
        if (f->phase == FLOW_CLOSING) {
            if (!connection_retry_close(w, f))
                return;
            continue;
        }
        w->engine->resume(&w->receiver, f);
        connection_take_reports(w);
        if (f->queue == QUEUE_BLOCKED)
            return;
    }
}

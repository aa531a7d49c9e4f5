/* SPDX-License-Identifier: Apache-2.0
 *
 * The two of progress.h.
 */
#include "connection/progress.h"

#include <assert.h>

#include "connection/connection.h"
#include "connection/connections.h"

void connection_take_reports(struct connections *c) {
    struct engine_report report;
    while (engine_next_report(c->receiver, &report)) {
        struct flow *f = report.flow;
        assert(!f->ended && f->phase != FLOW_FREE);
        if (report.kind == REPORT_BLOCK)
            f->protocol->block_received(c, f, report.result);
        else
            f->protocol->payload_over(c, f);
    }
}

void connection_serve_blocked(struct connections *c) {
    struct flow *f;
    while ((f = flow_first(c->flows, QUEUE_BLOCKED)) != NULL) {
        if (f->phase == FLOW_CLOSING) {
            if (!connection_retry_close(c, f))
                return;
            continue;
        }
        c->engine->resume(c->receiver, f);
        connection_take_reports(c);
        if (f->queue == QUEUE_BLOCKED)
            return;
    }
}

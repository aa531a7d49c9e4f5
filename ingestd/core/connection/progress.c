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
        struct connection *conn = report.connection;
        assert(!conn->ended && conn->phase != CONNECTION_FREE);
        if (report.kind == REPORT_BLOCK)
            conn->protocol->block_received(c, conn, report.result);
        else
            conn->protocol->payload_over(c, conn);
    }
}

void connection_serve_blocked(struct connections *c) {
    struct connection *conn;
    while ((conn = connection_first(c->table, QUEUE_BLOCKED)) != NULL) {
        if (conn->phase == CONNECTION_CLOSING) {
            if (!connection_retry_close(c, conn))
                return;
            continue;
        }
        c->engine->resume(c->receiver, conn);
        connection_take_reports(c);
        if (conn->queue == QUEUE_BLOCKED)
            return;
    }
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Flows that found no room keep their place (progress.c), whoever tries in between; reports are
 * taken once, in the order in which they came (engine.c).
 *
 * What the two call of the worker is played here.
 */
#include <errno.h>

#include "connection/progress.h"
#include "harness.h"
#include "worker.h"

#define FLOWS 5

static struct worker worker;
static uint32_t room; /* how many connections find room yet */
static uint32_t over[FLOWS], over_count;

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)r, (void)tag, (void)index, (void)found;
}

bool connection_retry_close(struct connections *c, struct connection *conn) {
    if (room == 0)
        return false;
    room--;
    connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
    return true;
}

static void test_resume(struct receiver *r, struct connection *conn) {
    if (connection_is_behind(r->table, conn, QUEUE_BLOCKED) || room == 0) {
        connection_set_phase(conn, CONNECTION_BLOCKED);
        connection_keep_waiting(r->table, conn, QUEUE_BLOCKED, r->reactor->now_ns);
        return;
    }
    room--;
    connection_set_phase(conn, CONNECTION_POLLING);
    connection_wait(r->table, conn, QUEUE_NONE, r->reactor->now_ns);
}

static void payload_over(struct connections *c, struct connection *conn) {
    (void)c;
    over[over_count++] = conn->index;
}

static void block_received(struct connections *c, struct connection *conn, int result) {
    (void)c;
    CHECK_EQUAL(conn->index, 3);
    CHECK_EQUAL(result, -EPIPE);
}

static const struct engine engine = {.resume = test_resume};
static const struct protocol protocol = {.payload_over = payload_over,
                                         .block_received = block_received};

static void open_worker(void) {
    CHECK_EQUAL(connection_table_init(&worker.table, FLOWS), 0);
    receiver_init(&worker.receiver, &worker.reactor, &worker.area, &worker.storage, &worker.table);
    connections_init(&worker.connections, &worker.receiver, &engine);
    worker.engine = &engine;
}

static void check_order(uint32_t first) {
    uint32_t index = worker.table.waiting[QUEUE_BLOCKED].head;
    for (uint32_t expected = first; expected < FLOWS; expected++) {
        CHECK_EQUAL(index, expected);
        index = worker.table.connections[index].wait.next;
    }
    CHECK_EQUAL(index, CONNECTION_NONE);
}

static void who_waits_for_a_batch_keeps_its_place(void) {
    open_worker();
    room = 0;
    for (uint32_t i = 0; i < FLOWS; i++) {
        struct connection *conn = connection_table_take(&worker.table);
        connection_set_phase(conn, CONNECTION_POLLING);
        test_resume(&worker.receiver, conn);
    }
    connection_set_phase(&worker.table.connections[1], CONNECTION_CLOSING);
    for (int turn = 0; turn < 3; turn++) {
        connection_serve_blocked(&worker.connections);
        check_order(0);
    }
    room = 1;
    test_resume(&worker.receiver,
                &worker.table.connections[3]); /* it may try, and does not overtake */
    check_order(0);
    connection_serve_blocked(&worker.connections);
    check_order(1);
    room = 2;
    connection_serve_blocked(&worker.connections);
    check_order(3);
    room = FLOWS;
    connection_serve_blocked(&worker.connections);
    check_order(FLOWS);
    connection_table_deinit(&worker.table);
}

static void reports_are_taken_once_and_in_order(void) {
    open_worker();
    for (uint32_t i = 0; i < FLOWS; i++) {
        struct connection *conn = connection_table_take(&worker.table);
        conn->protocol = &protocol;
        connection_set_phase(conn, i == 3 ? CONNECTION_HELLO : CONNECTION_POLLING);
    }
    struct connection *connections = worker.table.connections;
    over_count = 0;
    engine_report(&worker.receiver, &connections[4], REPORT_OVER, 0);
    engine_report(&worker.receiver, &connections[3], REPORT_BLOCK, -EPIPE);
    engine_report(&worker.receiver, &connections[0], REPORT_OVER, 0);
    engine_report(&worker.receiver, &connections[4], REPORT_OVER, 0); /* says the same again */
    for (int i = 0; i < 2; i++) {
        connection_take_reports(&worker.connections);
        CHECK_EQUAL(over_count, 2);
        CHECK_EQUAL(over[0], 4);
        CHECK_EQUAL(over[1], 0);
    }
    connection_table_deinit(&worker.table);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(who_waits_for_a_batch_keeps_its_place),
        TEST(reports_are_taken_once_and_in_order),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

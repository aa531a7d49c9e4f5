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
static uint32_t room; /* how many flows find room yet */
static uint32_t over[FLOWS], over_count;

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)r, (void)tag, (void)index, (void)found;
}

bool connection_retry_close(struct connections *c, struct flow *f) {
    if (room == 0)
        return false;
    room--;
    flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
    return true;
}

static void test_resume(struct receiver *r, struct flow *f) {
    if (flow_is_behind(r->flows, f, QUEUE_BLOCKED) || room == 0) {
        flow_set_phase(f, FLOW_BLOCKED);
        flow_keep_waiting(r->flows, f, QUEUE_BLOCKED, r->reactor->now_ns);
        return;
    }
    room--;
    flow_set_phase(f, FLOW_POLLING);
    flow_wait(r->flows, f, QUEUE_NONE, r->reactor->now_ns);
}

static void payload_over(struct connections *c, struct flow *f) {
    (void)c;
    over[over_count++] = f->index;
}

static void block_received(struct connections *c, struct flow *f, int result) {
    (void)c;
    CHECK_EQUAL(f->index, 3);
    CHECK_EQUAL(result, -EPIPE);
}

static const struct engine engine = {.resume = test_resume};
static const struct protocol protocol = {.payload_over = payload_over,
                                         .block_received = block_received};

static void open_worker(void) {
    CHECK_EQUAL(flow_table_init(&worker.flows, FLOWS), 0);
    receiver_init(&worker.receiver, &worker.reactor, &worker.area, &worker.storage, &worker.flows);
    connections_init(&worker.connections, &worker.receiver, &engine);
    worker.engine = &engine;
}

static void check_order(uint32_t first) {
    uint32_t index = worker.flows.waiting[QUEUE_BLOCKED].head;
    for (uint32_t expected = first; expected < FLOWS; expected++) {
        CHECK_EQUAL(index, expected);
        index = worker.flows.flows[index].wait.next;
    }
    CHECK_EQUAL(index, FLOW_NONE);
}

static void who_waits_for_a_batch_keeps_its_place(void) {
    open_worker();
    room = 0;
    for (uint32_t i = 0; i < FLOWS; i++) {
        struct flow *f = flow_take(&worker.flows);
        flow_set_phase(f, FLOW_POLLING);
        test_resume(&worker.receiver, f);
    }
    flow_set_phase(&worker.flows.flows[1], FLOW_CLOSING);
    for (int turn = 0; turn < 3; turn++) {
        connection_serve_blocked(&worker.connections);
        check_order(0);
    }
    room = 1;
    test_resume(&worker.receiver, &worker.flows.flows[3]); /* it may try, and does not overtake */
    check_order(0);
    connection_serve_blocked(&worker.connections);
    check_order(1);
    room = 2;
    connection_serve_blocked(&worker.connections);
    check_order(3);
    room = FLOWS;
    connection_serve_blocked(&worker.connections);
    check_order(FLOWS);
    flow_table_destroy(&worker.flows);
}

static void reports_are_taken_once_and_in_order(void) {
    open_worker();
    for (uint32_t i = 0; i < FLOWS; i++) {
        struct flow *f = flow_take(&worker.flows);
        f->protocol = &protocol;
        flow_set_phase(f, i == 3 ? FLOW_HELLO : FLOW_POLLING);
    }
    struct flow *flows = worker.flows.flows;
    over_count = 0;
    engine_report(&worker.receiver, &flows[4], REPORT_OVER, 0);
    engine_report(&worker.receiver, &flows[3], REPORT_BLOCK, -EPIPE);
    engine_report(&worker.receiver, &flows[0], REPORT_OVER, 0);
    engine_report(&worker.receiver, &flows[4], REPORT_OVER, 0); /* says the same again */
    for (int i = 0; i < 2; i++) {
        connection_take_reports(&worker.connections);
        CHECK_EQUAL(over_count, 2);
        CHECK_EQUAL(over[0], 4);
        CHECK_EQUAL(over[1], 0);
    }
    flow_table_destroy(&worker.flows);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(who_waits_for_a_batch_keeps_its_place),
        TEST(reports_are_taken_once_and_in_order),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

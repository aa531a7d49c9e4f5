/* SPDX-License-Identifier: Apache-2.0
 *
 * Flows that found no room keep their place (engine.c), whoever tries in between.
 *
 * What engine.c calls of the worker is played here.
 */
#include "harness.h"
#include "worker.h"

#define FLOWS 5

static struct worker worker;
static uint32_t room; /* how many flows find room yet */

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)r, (void)tag, (void)index, (void)found;
}

bool connection_retry_close(struct worker *w, struct flow *f) {
    if (room == 0)
        return false;
    room--;
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    return true;
}

static void test_advance(struct worker *w, struct flow *f) {
    if (flow_is_behind(&w->flows, f, QUEUE_BLOCKED) || room == 0) {
        flow_set_phase(f, FLOW_BLOCKED);
        flow_keep_waiting(&w->flows, f, QUEUE_BLOCKED, w->reactor.now_ns);
        return;
    }
    room--;
    flow_set_phase(f, FLOW_POLLING);
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
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
    CHECK_EQUAL(flow_table_init(&worker.flows, FLOWS), 0);
    room = 0;
    for (uint32_t i = 0; i < FLOWS; i++) {
        struct flow *f = flow_take(&worker.flows);
        flow_set_phase(f, FLOW_POLLING);
        test_advance(&worker, f);
    }
    flow_set_phase(&worker.flows.flows[1], FLOW_CLOSING);
    for (int turn = 0; turn < 3; turn++) {
        engine_serve_blocked(&worker, test_advance);
        check_order(0);
    }
    room = 1;
    test_advance(&worker, &worker.flows.flows[3]); /* it may try, and does not overtake */
    check_order(0);
    engine_serve_blocked(&worker, test_advance);
    check_order(1);
    room = 2;
    engine_serve_blocked(&worker, test_advance);
    check_order(3);
    room = FLOWS;
    engine_serve_blocked(&worker, test_advance);
    check_order(FLOWS);
    flow_table_destroy(&worker.flows);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(who_waits_for_a_batch_keeps_its_place),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

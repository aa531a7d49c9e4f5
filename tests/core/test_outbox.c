/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines to a sender: their order, one at a time, and sockets that take a part or nothing.
 */
#include "connection/ingest/outbox.h"

#include <errno.h>

#include "harness.h"

/* Takes the next line, of so many bytes, and begins to send it. */
static enum outbox_line next(struct outbox *o, uint64_t durable_bytes, uint16_t bytes) {
    enum outbox_line line = outbox_next(o, durable_bytes);
    if (line != OUTBOX_NOTHING && line != OUTBOX_REST)
        outbox_put(o, "", bytes);
    if (line != OUTBOX_NOTHING)
        outbox_send(o);
    return line;
}

static struct outbox greeted(void) {
    struct outbox o = {0};
    outbox_put(&o, "", 10);
    outbox_send(&o);
    return o;
}

static void lines_come_in_their_order(void) {
    struct outbox o = greeted();
    CHECK_EQUAL(outbox_sent(&o, 10), OUTBOX_WAIT);
    CHECK_EQUAL(next(&o, 0, 5), OUTBOX_NOTHING);
    outbox_accept(&o, 100);
    CHECK_EQUAL(next(&o, 100, 5), OUTBOX_ACCEPTED);
    CHECK_EQUAL(outbox_sent(&o, 5), OUTBOX_WAIT);
    CHECK_EQUAL(next(&o, 100, 5), OUTBOX_NOTHING); /* it knows that offset */
    CHECK_EQUAL(next(&o, 200, 5), OUTBOX_DURABLE);
    CHECK_EQUAL(outbox_sent(&o, 5), OUTBOX_WAIT);
    CHECK_EQUAL(next(&o, 200, 5), OUTBOX_NOTHING);
    outbox_close(&o);
    CHECK_EQUAL(next(&o, 300, 5), OUTBOX_LAST);
    CHECK_EQUAL(outbox_sent(&o, 5), OUTBOX_OVER);
    CHECK(!outbox_failed(&o));
}

static void one_line_is_under_way(void) {
    struct outbox o = greeted();
    outbox_accept(&o, 0);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_NOTHING); /* the greeting has not left */
    CHECK_EQUAL(outbox_sent(&o, 10), OUTBOX_NEXT);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_ACCEPTED);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_NOTHING);
    CHECK_EQUAL(outbox_sent(&o, 5), OUTBOX_WAIT);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_DURABLE);
}

static void no_line_is_cut_in_two_by_another(void) {
    struct outbox o = greeted();
    outbox_accept(&o, 0);
    CHECK_EQUAL(outbox_sent(&o, 4), OUTBOX_LATER);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_REST);
    CHECK_EQUAL(o.line_sent, 4);
    CHECK_EQUAL(outbox_sent(&o, -EAGAIN), OUTBOX_LATER);
    outbox_close(&o);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_REST);
    CHECK_EQUAL(outbox_sent(&o, 1), OUTBOX_NEXT);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_REST);
    CHECK_EQUAL(outbox_sent(&o, 5), OUTBOX_NEXT);
    CHECK_EQUAL(next(&o, 50, 7), OUTBOX_ACCEPTED);
    CHECK_EQUAL(outbox_sent(&o, 7), OUTBOX_NEXT);
    CHECK_EQUAL(next(&o, 50, 8), OUTBOX_LAST);
    CHECK_EQUAL(outbox_sent(&o, 3), OUTBOX_NEXT);
    CHECK_EQUAL(next(&o, 50, 8), OUTBOX_REST);
    CHECK_EQUAL(outbox_sent(&o, 5), OUTBOX_OVER);
    CHECK(!outbox_failed(&o));
}

static void behind_a_failed_send_nothing_is_said(void) {
    struct outbox o = greeted();
    CHECK_EQUAL(outbox_sent(&o, -ECONNRESET), OUTBOX_WAIT);
    CHECK(outbox_failed(&o));
    outbox_accept(&o, 0);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_NOTHING);
    outbox_close(&o);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_NOTHING);

    o = greeted();
    outbox_sent(&o, 10);
    outbox_close(&o);
    CHECK_EQUAL(next(&o, 0, 5), OUTBOX_LAST);
    CHECK_EQUAL(outbox_sent(&o, 0), OUTBOX_OVER); /* a send of nothing is none */
    CHECK(outbox_failed(&o));
}

static void an_ended_flow_reports_nothing(void) {
    struct outbox o = greeted();
    outbox_sent(&o, 10);
    outbox_accept(&o, 0);
    next(&o, 0, 5);
    outbox_sent(&o, 5);
    outbox_end_reports(&o);
    CHECK_EQUAL(next(&o, 50, 5), OUTBOX_NOTHING);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(lines_come_in_their_order),        TEST(one_line_is_under_way),
        TEST(no_line_is_cut_in_two_by_another), TEST(behind_a_failed_send_nothing_is_said),
        TEST(an_ended_flow_reports_nothing),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

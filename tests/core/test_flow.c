/* SPDX-License-Identifier: Apache-2.0
 *
 * The flow table, its queues, and the last line that a sender gets.
 */
#include "receive/flow.h"

#include <string.h>

#include "connection/ingest/lines.h"
#include "harness.h"

#define CAPACITY 4

static struct flow *taken(struct flow_table *t) {
    struct flow *f = flow_take(t);
    flow_set_phase(f, FLOW_POLLING);
    return f;
}

static void a_full_table_gives_nothing(void) {
    struct flow_table t;
    struct flow *flows[CAPACITY];
    CHECK_EQUAL(flow_table_init(&t, CAPACITY), 0);
    for (int i = 0; i < CAPACITY; i++)
        flows[i] = taken(&t);
    CHECK(flow_take(&t) == NULL);
    flow_set_phase(flows[2], FLOW_CLOSING);
    flow_set_phase(flows[2], FLOW_GONE);
    flow_give(&t, flows[2]);
    struct flow *again = taken(&t);
    CHECK_EQUAL(again->index, 2);
    CHECK_EQUAL(again->slot_offset, UINT64_MAX);
    CHECK_EQUAL(t.count, CAPACITY);
    flow_table_destroy(&t);
}

static void phases_lead_from_free_to_free(void) {
    for (uint32_t phase = 0; phase < FLOW_PHASES_COUNT; phase++) {
        uint32_t in = 0, out = 0;
        for (uint32_t other = 0; other < FLOW_PHASES_COUNT; other++) {
            in += flow_phase_may_follow(other, phase);
            out += flow_phase_may_follow(phase, other);
        }
        CHECK(in > 0 && out > 0);
        CHECK(flow_phase_name(phase) != NULL);
    }
    /* Who has begun does not go away but by its end, nor come back from there. */
    CHECK(!flow_phase_may_follow(FLOW_RECEIVING, FLOW_GONE));
    CHECK(!flow_phase_may_follow(FLOW_CLOSING, FLOW_RECEIVING));
    CHECK(!flow_phase_may_follow(FLOW_ANSWERING, FLOW_CLOSING));
    CHECK(!flow_phase_may_follow(FLOW_GONE, FLOW_NEW));
}

static void waiting_is_first_come_first_served(void) {
    struct flow_table t;
    flow_table_init(&t, CAPACITY);
    struct flow *a = taken(&t), *b = taken(&t), *c = taken(&t);
    flow_wait(&t, a, QUEUE_STARVED, 1);
    flow_wait(&t, b, QUEUE_STARVED, 2);
    flow_wait(&t, c, QUEUE_STARVED, 3);
    CHECK(flow_first(&t, QUEUE_STARVED) == a);
    flow_wait(&t, b, QUEUE_NONE, 4); /* out of the middle */
    flow_wait(&t, a, QUEUE_DIRTY, 5);
    CHECK(flow_first(&t, QUEUE_STARVED) == c);
    CHECK(flow_first(&t, QUEUE_DIRTY) == a);
    CHECK_EQUAL(t.waiting[QUEUE_STARVED].count, 1);
    flow_wait(&t, c, QUEUE_NONE, 6);
    CHECK(flow_first(&t, QUEUE_STARVED) == NULL);
    flow_table_destroy(&t);
}

/* A flow that had its turn and got nothing keeps its place. */
static void waiting_goes_on_at_the_same_place(void) {
    struct flow_table t;
    flow_table_init(&t, CAPACITY);
    struct flow *a = taken(&t), *b = taken(&t), *c = taken(&t);
    flow_wait_in_order(&t, a, QUEUE_STARVED, 1);
    flow_wait_in_order(&t, b, QUEUE_STARVED, 2);
    flow_wait_in_order(&t, c, QUEUE_STARVED, 3);
    flow_wait(&t, a, QUEUE_NONE, 4);
    flow_wait(&t, b, QUEUE_NONE, 4);
    flow_wait_in_order(&t, a, QUEUE_STARVED, 1);
    flow_wait_in_order(&t, b, QUEUE_STARVED, 2); /* into the middle */
    struct flow *const order[] = {a, b, c};
    for (int i = 0; i < 3; i++) {
        CHECK(flow_first(&t, QUEUE_STARVED) == order[i]);
        flow_wait(&t, order[i], QUEUE_NONE, 5);
    }
    CHECK_EQUAL(t.waiting[QUEUE_STARVED].count, 0);
    CHECK_EQUAL(t.waiting[QUEUE_STARVED].tail, FLOW_NONE);
    flow_table_destroy(&t);
}

static void the_least_active_flow_is_first(void) {
    struct flow_table t;
    struct flow_list idle = {FLOW_NONE, FLOW_NONE, 0};
    flow_table_init(&t, CAPACITY);
    struct flow *a = taken(&t), *b = taken(&t);
    flow_idle_touch(&t, &idle, a);
    CHECK_EQUAL(idle.count, 1);
    flow_idle_touch(&t, &idle, a); /* alone in the list: stays */
    CHECK_EQUAL(idle.count, 1);
    flow_idle_touch(&t, &idle, b);
    flow_idle_touch(&t, &idle, a);
    CHECK_EQUAL(idle.head, b->index);
    flow_idle_remove(&t, &idle, b);
    flow_idle_remove(&t, &idle, b); /* already out: nothing happens */
    CHECK_EQUAL(idle.count, 1);
    flow_idle_remove(&t, &idle, a);
    CHECK_EQUAL(idle.count, 0);
    flow_table_destroy(&t);
}

static void flows_with_news_are_told_in_turn(void) {
    struct flow_table t;
    struct flow_list news = {FLOW_NONE, FLOW_NONE, 0};
    flow_table_init(&t, CAPACITY);
    struct flow *a = taken(&t), *b = taken(&t), *c = taken(&t);
    CHECK_EQUAL(a->limit_bytes, UINT64_MAX);
    flow_ack_add(&t, &news, a);
    flow_ack_add(&t, &news, b);
    flow_ack_add(&t, &news, a); /* is there: keeps its turn */
    flow_ack_add(&t, &news, c);
    CHECK_EQUAL(news.count, 3);
    CHECK_EQUAL(news.head, a->index);
    flow_ack_remove(&t, &news, b);
    flow_ack_remove(&t, &news, b);
    CHECK_EQUAL(news.count, 2);
    CHECK_EQUAL(a->ack.next, c->index);
    flow_table_destroy(&t);
}

static const char *answer(const struct flow *f, int store_errno) {
    static char line[FLOW_LINE_BYTES];
    size_t bytes = line_of_raw(f, store_errno, line, sizeof line);
    CHECK_EQUAL(bytes, strlen(line));
    CHECK(line[bytes - 1] == '\n');
    return line;
}

static void a_receipt_is_one_line_of_json(void) {
    struct flow f = {.stream.opened = true, .state = FLOW_STATE_SEALED, .checksummed = true};
    for (int i = 0; i < 16; i++)
        f.stream.id[i] = (uint8_t)(i * 17);
    f.stream.crc = 0xE3069283u;
    f.stream.durable_bytes = f.received_bytes = UINT64_MAX;
    CHECK(strcmp(answer(&f, 0),
                 "{\"flow\": \"00112233-4455-6677-8899-aabbccddeeff\", "
                 "\"bytes\": 18446744073709551615, \"durable\": true, "
                 "\"state\": \"sealed\", \"checksum\": \"crc32c:e3069283\"}\n") == 0);
    f.checksummed = false;
    CHECK(strstr(answer(&f, 0), "\"checksum\": null}") != NULL);
}

static void a_failed_store_never_says_sealed(void) {
    struct flow f = {.stream.opened = true, .state = FLOW_STATE_SEALED, .received_bytes = 10};
    CHECK(strstr(answer(&f, 5), "\"sealed\"") == NULL);
    CHECK(strstr(answer(&f, 5), "\"error\": \"store_failed\"") != NULL);
    CHECK(strstr(answer(&f, 5), "\"durable\": false") != NULL);
}

static void only_bytes_prove_a_flow_of_a_failed_store(void) {
    struct flow f = {.stream.opened = true, .state = FLOW_STATE_SEALED};
    CHECK(strstr(answer(&f, 0), "\"durable\": true") != NULL);
    CHECK(strstr(answer(&f, 5), "\"bytes\": 0, \"durable\": false") != NULL);
    f.received_bytes = f.stream.durable_bytes = 10;
    CHECK(strstr(answer(&f, 5), "\"bytes\": 10, \"durable\": true") != NULL);
}

static void every_reason_fits_its_line(void) {
    for (uint8_t reason = 0; reason <= CLOSE_REASON_RECEIVER; reason++) {
        struct flow f = {
            .stream.opened = reason % 2, .state = FLOW_STATE_INTERRUPTED, .reason = reason};
        f.stream.durable_bytes = UINT64_MAX;
        CHECK(strstr(answer(&f, 0), f.stream.opened ? "\"interrupted\"" : "\"refused\"") != NULL);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(a_full_table_gives_nothing),         TEST(phases_lead_from_free_to_free),
        TEST(waiting_is_first_come_first_served), TEST(waiting_goes_on_at_the_same_place),
        TEST(the_least_active_flow_is_first),     TEST(a_receipt_is_one_line_of_json),
        TEST(a_failed_store_never_says_sealed),   TEST(every_reason_fits_its_line),
        TEST(flows_with_news_are_told_in_turn),   TEST(only_bytes_prove_a_flow_of_a_failed_store),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

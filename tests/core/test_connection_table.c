/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of connections, its queues, and the last line that a sender gets.
 */
#include "receive/connection_table.h"

#include <string.h>

#include "connection/ingest/lines.h"
#include "harness.h"

#define CAPACITY 4

static struct connection *taken(struct connection_table *t) {
    struct connection *conn = connection_table_take(t);
    connection_set_phase(conn, CONNECTION_POLLING);
    return conn;
}

static void a_full_table_gives_nothing(void) {
    struct connection_table t;
    struct connection *connections[CAPACITY];
    CHECK_EQUAL(connection_table_init(&t, CAPACITY), 0);
    for (int i = 0; i < CAPACITY; i++)
        connections[i] = taken(&t);
    CHECK(connection_table_take(&t) == NULL);
    connection_set_phase(connections[2], CONNECTION_CLOSING);
    connection_set_phase(connections[2], CONNECTION_GONE);
    connection_table_put(&t, connections[2]);
    struct connection *again = taken(&t);
    CHECK_EQUAL(again->index, 2);
    CHECK(recv_has_nothing(&again->recv) && zcrx_has_nothing(&again->zcrx));
    CHECK_EQUAL(t.count, CAPACITY);
    connection_table_deinit(&t);
}

static void phases_lead_from_free_to_free(void) {
    for (uint32_t phase = 0; phase < CONNECTION_PHASES_COUNT; phase++) {
        uint32_t in = 0, out = 0;
        for (uint32_t other = 0; other < CONNECTION_PHASES_COUNT; other++) {
            in += connection_phase_may_follow(other, phase);
            out += connection_phase_may_follow(phase, other);
        }
        CHECK(in > 0 && out > 0);
        CHECK(connection_phase_name(phase) != NULL);
    }
    /* Who has begun does not go away but by its end, nor come back from there. */
    CHECK(!connection_phase_may_follow(CONNECTION_RECEIVING, CONNECTION_GONE));
    CHECK(!connection_phase_may_follow(CONNECTION_CLOSING, CONNECTION_RECEIVING));
    CHECK(!connection_phase_may_follow(CONNECTION_LAST_LINE, CONNECTION_CLOSING));
    CHECK(!connection_phase_may_follow(CONNECTION_GONE, CONNECTION_NEW));
}

static void waiting_is_first_come_first_served(void) {
    struct connection_table t;
    connection_table_init(&t, CAPACITY);
    struct connection *a = taken(&t), *b = taken(&t), *c = taken(&t);
    connection_wait(&t, a, QUEUE_STARVED, 1);
    connection_wait(&t, b, QUEUE_STARVED, 2);
    connection_wait(&t, c, QUEUE_STARVED, 3);
    CHECK(connection_first(&t, QUEUE_STARVED) == a);
    connection_wait(&t, b, QUEUE_NONE, 4); /* out of the middle */
    connection_wait(&t, a, QUEUE_DIRTY, 5);
    CHECK(connection_first(&t, QUEUE_STARVED) == c);
    CHECK(connection_first(&t, QUEUE_DIRTY) == a);
    CHECK_EQUAL(t.waiting[QUEUE_STARVED].count, 1);
    connection_wait(&t, c, QUEUE_NONE, 6);
    CHECK(connection_first(&t, QUEUE_STARVED) == NULL);
    connection_table_deinit(&t);
}

/* A connection that had its turn and got nothing keeps its place. */
static void waiting_goes_on_at_the_same_place(void) {
    struct connection_table t;
    connection_table_init(&t, CAPACITY);
    struct connection *a = taken(&t), *b = taken(&t), *c = taken(&t);
    connection_wait_in_order(&t, a, QUEUE_STARVED, 1);
    connection_wait_in_order(&t, b, QUEUE_STARVED, 2);
    connection_wait_in_order(&t, c, QUEUE_STARVED, 3);
    connection_wait(&t, a, QUEUE_NONE, 4);
    connection_wait(&t, b, QUEUE_NONE, 4);
    connection_wait_in_order(&t, a, QUEUE_STARVED, 1);
    connection_wait_in_order(&t, b, QUEUE_STARVED, 2); /* into the middle */
    struct connection *const order[] = {a, b, c};
    for (int i = 0; i < 3; i++) {
        CHECK(connection_first(&t, QUEUE_STARVED) == order[i]);
        connection_wait(&t, order[i], QUEUE_NONE, 5);
    }
    CHECK_EQUAL(t.waiting[QUEUE_STARVED].count, 0);
    CHECK_EQUAL(t.waiting[QUEUE_STARVED].tail, CONNECTION_NONE);
    connection_table_deinit(&t);
}

static void the_least_active_is_first(void) {
    struct connection_table t;
    struct connection_list idle = CONNECTION_LIST_EMPTY;
    connection_table_init(&t, CAPACITY);
    struct connection *a = taken(&t), *b = taken(&t);
    connection_idle_touch(&t, &idle, a);
    CHECK_EQUAL(idle.count, 1);
    connection_idle_touch(&t, &idle, a); /* alone in the list: stays */
    CHECK_EQUAL(idle.count, 1);
    connection_idle_touch(&t, &idle, b);
    connection_idle_touch(&t, &idle, a);
    CHECK_EQUAL(idle.head, b->index);
    connection_idle_remove(&t, &idle, b);
    connection_idle_remove(&t, &idle, b); /* already out: nothing happens */
    CHECK_EQUAL(idle.count, 1);
    connection_idle_remove(&t, &idle, a);
    CHECK_EQUAL(idle.count, 0);
    connection_table_deinit(&t);
}

static void acknowledgements_are_sent_in_turn(void) {
    struct connection_table t;
    struct connection_list news = CONNECTION_LIST_EMPTY;
    connection_table_init(&t, CAPACITY);
    struct connection *a = taken(&t), *b = taken(&t), *c = taken(&t);
    CHECK_EQUAL(a->limit_bytes, UINT64_MAX);
    connection_ack_add(&t, &news, a);
    connection_ack_add(&t, &news, b);
    connection_ack_add(&t, &news, a); /* is there: keeps its turn */
    connection_ack_add(&t, &news, c);
    CHECK_EQUAL(news.count, 3);
    CHECK_EQUAL(news.head, a->index);
    connection_ack_remove(&t, &news, b);
    connection_ack_remove(&t, &news, b);
    CHECK_EQUAL(news.count, 2);
    CHECK_EQUAL(a->ack.next, c->index);
    connection_table_deinit(&t);
}

static const char *answer(const struct connection *conn, int store_errno) {
    static char line[CONNECTION_LINE_BYTES];
    size_t bytes = line_of_raw(conn, store_errno, line, sizeof line);
    CHECK_EQUAL(bytes, strlen(line));
    CHECK(line[bytes - 1] == '\n');
    return line;
}

static void a_receipt_is_one_line_of_json(void) {
    struct connection conn = {
        .stream.opened = true, .state = FLOW_STATE_SEALED, .checksummed = true};
    for (int i = 0; i < 16; i++)
        conn.stream.id[i] = (uint8_t)(i * 17);
    conn.stream.crc = 0xE3069283u;
    conn.stream.durable_bytes = conn.received_bytes = UINT64_MAX;
    CHECK(strcmp(answer(&conn, 0),
                 "{\"flow\": \"00112233-4455-6677-8899-aabbccddeeff\", "
                 "\"bytes\": 18446744073709551615, \"durable\": true, "
                 "\"state\": \"sealed\", \"checksum\": \"crc32c:e3069283\"}\n") == 0);
    conn.checksummed = false;
    CHECK(strstr(answer(&conn, 0), "\"checksum\": null}") != NULL);
}

static void a_failed_store_never_says_sealed(void) {
    struct connection conn = {
        .stream.opened = true, .state = FLOW_STATE_SEALED, .received_bytes = 10};
    CHECK(strstr(answer(&conn, 5), "\"sealed\"") == NULL);
    CHECK(strstr(answer(&conn, 5), "\"error\": \"store_failed\"") != NULL);
    CHECK(strstr(answer(&conn, 5), "\"durable\": false") != NULL);
}

static void only_bytes_prove_a_flow_of_a_failed_store(void) {
    struct connection conn = {.stream.opened = true, .state = FLOW_STATE_SEALED};
    CHECK(strstr(answer(&conn, 0), "\"durable\": true") != NULL);
    CHECK(strstr(answer(&conn, 5), "\"bytes\": 0, \"durable\": false") != NULL);
    conn.received_bytes = conn.stream.durable_bytes = 10;
    CHECK(strstr(answer(&conn, 5), "\"bytes\": 10, \"durable\": true") != NULL);
}

static void every_reason_fits_its_line(void) {
    for (uint8_t reason = 0; reason <= CLOSE_REASON_EMPTY; reason++) {
        struct connection conn = {
            .stream.opened = reason % 2, .state = FLOW_STATE_INTERRUPTED, .reason = reason};
        conn.stream.durable_bytes = UINT64_MAX;
        CHECK(strstr(answer(&conn, 0), conn.stream.opened ? "\"interrupted\"" : "\"refused\"") !=
              NULL);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(a_full_table_gives_nothing),         TEST(phases_lead_from_free_to_free),
        TEST(waiting_is_first_come_first_served), TEST(waiting_goes_on_at_the_same_place),
        TEST(the_least_active_is_first),          TEST(a_receipt_is_one_line_of_json),
        TEST(a_failed_store_never_says_sealed),   TEST(every_reason_fits_its_line),
        TEST(acknowledgements_are_sent_in_turn),  TEST(only_bytes_prove_a_flow_of_a_failed_store),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

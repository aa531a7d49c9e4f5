/* SPDX-License-Identifier: Apache-2.0
 *
 * How flows end, and how connections from other workers begin or are turned away.
 */
#include "connection_stage.h"

/* --- The end of a flow ---------------------------------------------------------------- */

static struct connection *a_connection(uint64_t received, uint64_t stored) {
    struct connection *conn = connection_table_take(&stage.w->table);
    conn->fd = -1;
    conn->protocol = &protocol_raw;
    connection_set_phase(conn, CONNECTION_RECEIVING);
    conn->stream.opened = true;
    conn->received_bytes = received;
    conn->stream.stored_bytes = stored;
    return conn;
}

static void sealed_is_what_was_stored_whole(void) {
    open_stage();
    connection_end(&stage.w->connections, a_connection(1000, 1000), FLOW_STATE_SEALED,
                   CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(stage.state, FLOW_STATE_SEALED);
    connection_end(&stage.w->connections, a_connection(1000, 999), FLOW_STATE_SEALED,
                   CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(stage.state, FLOW_STATE_INTERRUPTED);
    CHECK_EQUAL(stage.reason, CLOSE_REASON_RECEIVER);
    CHECK_EQUAL(stage.closes, 2);
    close_stage();
}

/* ... also when the record is made later than the flow has ended. */
static void what_is_given_up_meanwhile_counts(void) {
    open_stage();
    struct connection *conn = a_connection(1000, 1000);
    stage.refuses_close = true;
    connection_end(&stage.w->connections, conn, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(stage.closes, 0);
    stage.refuses_close = false;
    conn->stream.stored_bytes = 500;
    stage.w->storage.state = STORAGE_EXHAUSTED;
    CHECK(connection_retry_close(&stage.w->connections, conn));
    CHECK_EQUAL(stage.state, FLOW_STATE_INTERRUPTED);
    CHECK_EQUAL(stage.reason, CLOSE_REASON_STORE_FULL);
    close_stage();
}

/* --- Connections from other workers --------------------------------------------------- */

static int hand_over(uint32_t listener_index) {
    int ends[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    handover_take(&stage.w->connections, (struct handed_over){ends[1], listener_index, 0});
    return ends[0];
}

static const char *heard(int fd) {
    static char line[1024];
    ssize_t bytes = recv(fd, line, sizeof line - 1, MSG_DONTWAIT);
    line[bytes > 0 ? bytes : 0] = 0;
    return line;
}

static void who_finds_no_room_waits(void) {
    int senders[CAPACITY + 4];
    open_stage();
    stage.w->receiver.connections_at_once_max = 4;
    for (uint32_t i = 0; i < CAPACITY + 4; i++)
        senders[i] = hand_over(7 + i % 2);
    CHECK_EQUAL(stage.begun, 4);
    CHECK_EQUAL(stage.w->connections.handover.count, CAPACITY);
    stage.w->receiver.connections_at_once_max = CAPACITY; /* two places are the listeners' */
    handover_turn(&stage.w->connections);
    CHECK_EQUAL(stage.begun, CAPACITY - 2);
    CHECK_EQUAL(stage.refused, 0);
    for (uint32_t i = 0; i < CAPACITY + 4; i++)
        CHECK_EQUAL(strlen(heard(senders[i])), 0);
    handover_stop(&stage.w->connections);
    listeners_stop(&stage.w->connections);
    CHECK_EQUAL(stage.refused, 6);
    CHECK(strstr(heard(senders[CAPACITY + 2]), "\"state\": \"refused\", \"error\": \"shutdown\""));
    CHECK(strstr(heard(senders[CAPACITY + 3]), "\"code\": \"shutdown\""));
    int late = hand_over(8);
    CHECK(strstr(heard(late), "\"code\": \"shutdown\""));
    for (uint32_t i = 0; i < CAPACITY + 4; i++)
        close(senders[i]);
    close(late);
    close_stage();
}

static void who_finds_no_place_to_wait_is_told(void) {
    open_stage();
    stage.w->receiver.connections_at_once_max = 0;
    stage.w->connections.handover.count = HANDOVER_WAITING_MAX;
    int raw = hand_over(7), ingest = hand_over(8);
    CHECK(strstr(heard(raw), "\"error\": \"limit\""));
    CHECK(strstr(heard(ingest), "\"type\": \"error\", \"code\": \"busy\""));
    CHECK_EQUAL(stage.refused, 2);
    CHECK_EQUAL(stage.w->reactor.stats.flows_refused, 2);
    CHECK_EQUAL(recv(raw, &raw, 1, MSG_DONTWAIT), 0); /* it was closed, not reset */
    close(raw);
    close(ingest);
    close_stage();
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(sealed_is_what_was_stored_whole),
        TEST(what_is_given_up_meanwhile_counts),
        TEST(who_finds_no_room_waits),
        TEST(who_finds_no_place_to_wait_is_told),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

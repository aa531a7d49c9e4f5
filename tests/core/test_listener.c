/* SPDX-License-Identifier: Apache-2.0
 *
 * Whom a listener admits, passes on, or turns away.
 */
#include "connection_stage.h"

/* --- Connections of one peer ---------------------------------------------------------- */

static void limit_peers(uint32_t count_max) {
    const uint64_t secret[PEERS_SECRET_WORDS] = {1, 2, 3, 4, 5, 6};
    CHECK_EQUAL(peers_open(&stage.w->connections.peers, CAPACITY, secret), 0);
    for (uint32_t i = 0; i < 2; i++)
        stage.w->connections.listeners[i].flows_per_peer_max = count_max;
}

/* Both ends of a connection over loopback, from 127.0.0.HOST. */
static void connect_from(uint8_t host, int ends[2]) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000000u + host)};
    socklen_t bytes = sizeof to;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQUAL(bind(listening, (void *)&to, sizeof to), 0);
    CHECK_EQUAL(listen(listening, 1), 0);
    CHECK_EQUAL(getsockname(listening, (void *)&to, &bytes), 0);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQUAL(bind(ends[0], (void *)&from, sizeof from), 0);
    CHECK_EQUAL(connect(ends[0], (void *)&to, sizeof to), 0);
    ends[1] = accept(listening, NULL, NULL);
    CHECK(ends[1] >= 0);
    close(listening);
}

static int accepted_from(uint8_t host, uint32_t listener) {
    int ends[2];
    struct listener *l = &stage.w->connections.listeners[listener];
    connect_from(host, ends);
    socklen_t bytes = sizeof l->peer;
    CHECK_EQUAL(getpeername(ends[1], (void *)&l->peer, &bytes), 0);
    l->accepting = true;
    listener_accepted(&stage.w->connections, listener, ends[1]);
    return ends[0];
}

static int adopted_from(uint8_t host, uint32_t listener) {
    int ends[2];
    connect_from(host, ends);
    handover_take(&stage.w->connections, (struct handed_over){ends[1], 7 + listener, 0});
    return ends[0];
}

/* What the sender gets until the connection's end, which must have come. */
static const char *heard_last(int fd) {
    static char line[1024];
    ssize_t bytes = recv(fd, line, sizeof line - 1, 0);
    line[bytes > 0 ? bytes : 0] = 0;
    CHECK_EQUAL(recv(fd, line + sizeof line - 1, 1, 0), 0);
    return line;
}

static void end_all(void) {
    for (uint32_t i = 0; i < CAPACITY; i++) {
        struct connection *conn = &stage.w->table.connections[i];
        if (conn->phase == CONNECTION_FREE)
            continue;
        close(conn->fd);
        connection_idle_remove(&stage.w->table,
                               &stage.w->connections.listeners[conn->listener].idle, conn);
        connection_set_phase(conn, CONNECTION_CLOSING);
        connection_set_phase(conn, CONNECTION_GONE);
        connection_try_free(&stage.w->connections, conn);
    }
}

static void one_too_many_of_a_peer_is_told(void) {
    int senders[6];
    open_stage();
    limit_peers(2);
    senders[0] = accepted_from(1, 0);
    senders[1] = accepted_from(1, 0);
    CHECK_EQUAL(stage.begun, 2);
    senders[2] = accepted_from(1, 0);
    CHECK(strstr(heard_last(senders[2]), "\"error\": \"limit\", \"text\": \"your address has"));
    CHECK_EQUAL(stage.begun, 2);
    CHECK_EQUAL(stage.w->table.count, 2);
    CHECK_EQUAL(stage.w->connections.listeners[0].connection_count, 2);
    CHECK_EQUAL(stage.w->reactor.stats.flows_over_peer_max, 1);
    CHECK_EQUAL(stage.w->reactor.stats.flows_opened, 2);
    CHECK_EQUAL(stage.denial, DENIED_PEER);
    CHECK_EQUAL(stage.denied, 1);
    senders[3] = accepted_from(2, 0); /* somebody else */
    senders[4] = accepted_from(1, 1); /* ... or another listener */
    CHECK_EQUAL(stage.begun, 4);
    end_all();
    CHECK_EQUAL(stage.w->connections.peers.connections, 0);
    senders[5] = accepted_from(1, 0);
    CHECK_EQUAL(stage.begun, 5);
    end_all();
    for (uint32_t i = 0; i < 6; i++)
        close(senders[i]);
    close_stage();
}

static void a_session_too_many_may_come_back(void) {
    open_stage();
    limit_peers(1);
    int first = accepted_from(1, 1), second = accepted_from(1, 1);
    CHECK(strstr(heard_last(second), "\"code\": \"busy\", \"text\": \"your address has"));
    CHECK_EQUAL(stage.begun, 1);
    end_all();
    close(first);
    close(second);
    close_stage();
}

/* One event a second reports a flood. */
static void a_flood_of_one_peer_is_one_event(void) {
    open_stage();
    limit_peers(1);
    int first = accepted_from(1, 0);
    for (uint32_t i = 0; i < 5; i++)
        close(accepted_from(1, 0));
    CHECK_EQUAL(stage.told, 1);
    stage.w->reactor.now_ns += 2000000000ull;
    close(accepted_from(1, 0));
    CHECK_EQUAL(stage.told, 2);
    CHECK_EQUAL(stage.denied, 6);
    CHECK_EQUAL(stage.w->reactor.stats.flows_over_peer_max, 6);
    end_all();
    close(first);
    close_stage();
}

/* Where one worker accepts what belongs to another, that other one counts. */
static void who_is_handed_over_is_counted_where_it_goes(void) {
    open_stage();
    limit_peers(1);
    stage.is_elsewhere = true;
    for (uint32_t i = 0; i < 3; i++) {
        int sender = accepted_from(1, 0);
        CHECK_EQUAL(stage.w->connections.peers.connections, 0);
        close(stage.handed_away);
        close(sender);
    }
    CHECK_EQUAL(stage.told, 0);
    int first = adopted_from(1, 0), second = adopted_from(1, 0), other = adopted_from(2, 0);
    CHECK_EQUAL(stage.w->connections.peers.connections, 2);
    CHECK_EQUAL(stage.begun, 2);
    CHECK(strstr(heard_last(second), "\"error\": \"limit\""));
    end_all();
    CHECK_EQUAL(stage.w->connections.peers.connections, 0);
    close(first);
    close(second);
    close(other);
    close_stage();
}

/* Its address cannot be asked for any more: it is taken, ends by itself, and nobody is counted. */
static void who_has_gone_already_is_nobody(void) {
    int ends[2];
    open_stage();
    limit_peers(1);
    for (uint32_t i = 0; i < 2; i++) {
        connect_from(1, ends);
        const struct linger at_once = {.l_onoff = 1};
        CHECK_EQUAL(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
        close(ends[0]); /* a reset: getpeername() fails with ENOTCONN */
        handover_take(&stage.w->connections, (struct handed_over){ends[1], 7, 0});
    }
    CHECK_EQUAL(stage.begun, 2);
    CHECK_EQUAL(stage.w->table.connections[0].peer_family, 0);
    CHECK_EQUAL(stage.w->connections.peers.connections, 0);
    end_all();
    close_stage();
}

/* --- A listener that passes on ---------------------------------------------------------- */

static void who_is_passed_on_has_no_place_here(void) {
    open_stage();
    struct listener *l = &stage.w->connections.listeners[0];
    l->flows_max = 1;
    int kept = accepted_from(1, 0);
    CHECK_EQUAL(stage.begun, 1);
    listeners_turn(&stage.w->connections);
    CHECK(!l->accepting); /* it has as many as it may */
    listener_pass_on(&stage.w->connections, 7, true);
    listeners_turn(&stage.w->connections);
    CHECK(l->accepting && l->roomless);
    int passed = accepted_from(2, 0);
    CHECK_EQUAL(stage.begun, 1);
    CHECK_EQUAL(stage.w->table.count, 1);
    CHECK_EQUAL(stage.handed_to, ELSEWHERE_ANY);
    CHECK_EQUAL(stage.w->reactor.stats.flows_handed_away, 1);
    close(stage.handed_away);
    int other = accepted_from(1, 1); /* another listener does not */
    CHECK_EQUAL(stage.begun, 2);
    end_all();
    close(kept);
    close(passed);
    close(other);
    close_stage();
}

static void who_comes_behind_the_passing_on_finds_no_room(void) {
    open_stage();
    struct listener *l = &stage.w->connections.listeners[0];
    listener_pass_on(&stage.w->connections, 7, true);
    listeners_turn(&stage.w->connections);
    CHECK(l->accepting && l->roomless); /* flows_max is 0 */
    listener_pass_on(&stage.w->connections, 7, false);
    int sender = accepted_from(1, 0);
    CHECK(strstr(heard_last(sender), "\"error\": \"limit\""));
    CHECK_EQUAL(stage.begun, 0);
    close(sender);
    close_stage();
}

static void who_cannot_be_passed_on_may_come_back(void) {
    open_stage();
    listener_pass_on(&stage.w->connections, 7, true);
    stage.is_reader_late = true;
    int sender = accepted_from(1, 0);
    CHECK(strstr(heard_last(sender), "\"error\": \"limit\""));
    CHECK_EQUAL(stage.w->reactor.stats.flows_handed_away, 0);
    close(sender);
    close_stage();
}

/* --- Accepts that were faster than what ends accepting ---------------------------------- */

static void who_is_accepted_behind_a_stop_is_told(void) {
    open_stage();
    listeners_stop(&stage.w->connections);
    int raw = accepted_from(1, 0), ingest = accepted_from(1, 1);
    CHECK_EQUAL(stage.begun, 2);
    CHECK_EQUAL(stage.stopped, 2);
    CHECK_EQUAL(stage.stopped_for, CLOSE_REASON_SHUTDOWN);
    CHECK(stage.w->table.connections[0].drop && stage.w->table.connections[1].drop);
    end_all();
    close(raw);
    close(ingest);
    close_stage();
}

static void who_is_accepted_behind_a_full_store_is_told(void) {
    open_stage();
    stage.w->storage.state = STORAGE_EXHAUSTED;
    int raw = accepted_from(1, 0);
    CHECK_EQUAL(stage.stopped, 1);
    CHECK_EQUAL(stage.stopped_for, CLOSE_REASON_STORE_FULL);
    end_all();
    close(raw);
    close_stage();
}

/* An accept that the kernel cancelled, or that found nobody any more, is no failure; one that
 * found no descriptor is, and the next try waits a moment. */
static void an_accept_that_fails_waits(void) {
    open_stage();
    struct listener *l = &stage.w->connections.listeners[0];
    l->flows_max = CAPACITY;
    const int harmless[] = {ECANCELED, ECONNABORTED, EINTR, EAGAIN};
    for (uint32_t i = 0; i < 4; i++) {
        l->accepting = true;
        listener_accepted(&stage.w->connections, 0, -harmless[i]);
        CHECK_EQUAL(l->retry_ns, 0);
    }
    CHECK_EQUAL(stage.w->reactor.stats.accept_errors, 0);
    l->accepting = true;
    listener_accepted(&stage.w->connections, 0, -EMFILE);
    CHECK_EQUAL(stage.accept_event.detail.accept_error, EMFILE);
    CHECK_EQUAL(stage.accept_event.listener_index, 7);
    CHECK_EQUAL(stage.w->reactor.stats.accept_errors, 1);
    CHECK(l->retry_ns > stage.w->reactor.now_ns);
    CHECK_EQUAL(listeners_turn(&stage.w->connections), l->retry_ns);
    CHECK(!l->accepting);
    stage.w->reactor.now_ns = l->retry_ns;
    listeners_turn(&stage.w->connections);
    CHECK(l->accepting);
    close_stage();
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(one_too_many_of_a_peer_is_told),
        TEST(a_session_too_many_may_come_back),
        TEST(a_flood_of_one_peer_is_one_event),
        TEST(who_is_handed_over_is_counted_where_it_goes),
        TEST(who_has_gone_already_is_nobody),
        TEST(who_is_passed_on_has_no_place_here),
        TEST(who_comes_behind_the_passing_on_finds_no_room),
        TEST(who_cannot_be_passed_on_may_come_back),
        TEST(who_is_accepted_behind_a_stop_is_told),
        TEST(who_is_accepted_behind_a_full_store_is_told),
        TEST(an_accept_that_fails_waits),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * How flows end and connections are turned away: the rest of the worker is played here.
 */
#include "connection/connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection/ingest/lines.h"
#include "harness.h"
#include "worker.h"

#define CAPACITY 8u

static struct {
    struct worker *w;
    struct io_uring_sqe sqe;
    uint32_t closes;       /* CLOSE records made ... */
    uint8_t state, reason; /* ... and what the last one says */
    bool refuses_close;    /* no batch has room for one */
    uint32_t begun, refused;
    uint32_t stopped;      /* flows that were stopped ... */
    uint8_t stopped_for;   /* ... and why, the last one */
    bool is_elsewhere;     /* connections accepted belong to another worker */
    int handed_away;       /* ... which has this one now */
    uint32_t denied, told; /* connections denied, events that report them */
    int denial;            /* and why, the last one */
    struct event accept_event;
} stage;

struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index) {
    (void)r, (void)tag, (void)index;
    return &stage.sqe;
}

uint64_t reactor_unix_ns(const struct reactor *r) {
    return r->now_ns;
}

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)r, (void)tag, (void)index, (void)found;
}

struct event *reactor_new_event(struct reactor *r, struct event_detail detail) {
    stage.accept_event.detail = ((void)r, detail);
    return &stage.accept_event;
}

void mailbox_publish(struct mailbox *m, bool quiet) {
    (void)m, (void)quiet;
}

void connection_event_end(struct connections *c, const struct connection *conn,
                          enum event_kind kind) {
    (void)c, (void)conn;
    stage.refused += kind == EVENT_FLOW_REFUSED;
}

bool connection_event(struct connections *c, const struct connection *conn,
                      struct event_detail detail) {
    (void)c, (void)conn;
    if (detail.kind == EVENT_FLOW_ELSEWHERE)
        stage.handed_away = detail.elsewhere.fd;
    if (detail.kind != EVENT_FLOW_DENIED)
        return true;
    stage.told++;
    stage.denied += detail.denial.count;
    stage.denial = (int)detail.denial.why;
    return true;
}

bool storage_append_close(struct storage *s, struct storage_stream *t,
                          const struct frame_close *c) {
    (void)s, (void)t;
    if (stage.refuses_close)
        return false;
    stage.closes++;
    stage.state = (uint8_t)c->state;
    stage.reason = (uint8_t)c->reason;
    return true;
}

/* --- Another protocol than raw, played --------------------------------------------------- */

static void played_begin(struct connections *c, struct connection *conn) {
    (void)c;
    connection_set_phase(conn, CONNECTION_HELLO);
    stage.begun++;
}

static bool played_yes(struct connections *c, struct connection *conn) {
    (void)c, (void)conn;
    return true;
}

static bool played_no(struct connections *c, struct connection *conn) {
    (void)c, (void)conn;
    return false; /* an engine has it */
}

const struct protocol protocol_ingest = {
    .number = PROTOCOL_INGEST,
    .begin = played_begin,
    .stop = played_no,
    .release = played_yes,
    .format_denial = line_denial,
};

static void stop(struct receiver *r, struct connection *conn) {
    (void)r;
    stage.stopped++;
    stage.stopped_for = conn->reason;
}

static struct engine_owner owner(struct receiver *r, const struct connection *conn) {
    (void)r, (void)conn;
    return (struct engine_owner){.is_elsewhere = stage.is_elsewhere, .worker_index = 1};
}

static void take(struct receiver *r, struct connection *conn) {
    (void)r, (void)conn;
}

static void start(struct receiver *r, struct connection *conn) {
    (void)r;
    connection_set_phase(conn, CONNECTION_RECEIVING);
    stage.begun++;
}

static const struct engine engine = {.owner = owner, .take = take, .start = start, .stop = stop};

static void open_stage(void) {
    memset(&stage, 0, sizeof stage);
    struct worker *w = stage.w = calloc(1, sizeof *w);
    CHECK_EQUAL(connection_table_init(&w->table, CAPACITY), 0);
    w->receiver.reactor = &w->reactor;
    w->receiver.storage = &w->storage;
    w->receiver.table = &w->table;
    connections_init(&w->connections, &w->receiver, &engine);
    w->receiver.connections_at_once_max = CAPACITY;
    w->reactor.now_ns = 1;
    for (uint32_t i = 0; i < 2; i++) {
        struct listener *l = &w->connections.listeners[w->connections.listener_count++];
        l->index = 7 + i;
        l->protocol = i == 0 ? &protocol_raw : &protocol_ingest;
        l->idle = l->greeting = l->acks_pending = CONNECTION_LIST_EMPTY;
    }
}

static void close_stage(void) {
    CHECK_EQUAL(stage.w->connections.peers.connections, 0);
    connection_table_deinit(&stage.w->table);
    peers_close(&stage.w->connections.peers);
    free(stage.w);
}

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
    handover_take(&stage.w->connections, listener_index, ends[1]);
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
    handover_take(&stage.w->connections, 7 + listener, ends[1]);
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
        handover_take(&stage.w->connections, 7, ends[1]);
    }
    CHECK_EQUAL(stage.begun, 2);
    CHECK_EQUAL(stage.w->table.connections[0].peer_family, 0);
    CHECK_EQUAL(stage.w->connections.peers.connections, 0);
    end_all();
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
        TEST(sealed_is_what_was_stored_whole),
        TEST(what_is_given_up_meanwhile_counts),
        TEST(who_finds_no_room_waits),
        TEST(who_finds_no_place_to_wait_is_told),
        TEST(one_too_many_of_a_peer_is_told),
        TEST(a_session_too_many_may_come_back),
        TEST(a_flood_of_one_peer_is_one_event),
        TEST(who_is_handed_over_is_counted_where_it_goes),
        TEST(who_has_gone_already_is_nobody),
        TEST(who_is_accepted_behind_a_stop_is_told),
        TEST(who_is_accepted_behind_a_full_store_is_told),
        TEST(an_accept_that_fails_waits),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

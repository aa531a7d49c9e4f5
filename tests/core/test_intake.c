/* SPDX-License-Identifier: Apache-2.0
 *
 * How flows end and connections are turned away, with the rest of the worker played here: what a
 * CLOSE record says, what a sender hears.
 */
#include "intake.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

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
} stage;

struct io_uring_sqe *worker_sqe(struct worker *w) {
    (void)w;
    return &stage.sqe;
}

uint64_t worker_unix_ns(const struct worker *w) {
    return w->now_ns;
}

bool worker_event(struct worker *w, enum event_kind kind, const struct flow *f, int code,
                  int detail, uint64_t bytes_count) {
    (void)w, (void)f, (void)code, (void)detail, (void)bytes_count;
    stage.refused += kind == EVENT_FLOW_REFUSED;
    return true;
}

bool batch_add_close(struct worker *w, struct flow *f) {
    (void)w;
    if (stage.refuses_close)
        return false;
    stage.closes++;
    stage.state = f->state;
    stage.reason = f->reason;
    return true;
}

void session_begin(struct worker *w, struct flow *f) {
    (void)w, (void)f;
    stage.begun++;
}

void session_closed(struct worker *w, struct flow *f) {
    (void)w, (void)f;
}

void session_send_last(struct worker *w, struct flow *f) {
    (void)w, (void)f;
}

bool session_give(struct worker *w, struct flow *f) {
    (void)w, (void)f;
    return true;
}

bool session_stop(struct worker *w, struct flow *f) {
    (void)w, (void)f;
    return true;
}

static bool take(struct worker *w, struct flow *f) {
    (void)w, (void)f;
    return true;
}

static void start(struct worker *w, struct flow *f) {
    (void)w;
    f->phase = FLOW_RECEIVING;
    stage.begun++;
}

static const struct engine engine = {.take = take, .start = start};

static void open_stage(void) {
    memset(&stage, 0, sizeof stage);
    struct worker *w = stage.w = calloc(1, sizeof *w);
    CHECK_EQUAL(flow_table_init(&w->flows, CAPACITY), 0);
    w->engine = &engine;
    w->flows_at_once_max = CAPACITY;
    w->now_ns = 1;
    for (uint32_t i = 0; i < 2; i++) {
        struct listener *l = &w->listeners[w->listener_count++];
        l->index = 7 + i;
        l->protocol = i == 0 ? PROTOCOL_RAW : PROTOCOL_INGEST;
        l->idle = l->greeting = l->news = (struct flow_list){FLOW_NONE, FLOW_NONE, 0};
    }
}

static void close_stage(void) {
    flow_table_destroy(&stage.w->flows);
    free(stage.w);
}

/* --- The end of a flow ---------------------------------------------------------------- */

static struct flow *a_flow(uint64_t received, uint64_t stored) {
    struct flow *f = flow_take(&stage.w->flows);
    f->fd = -1;
    f->phase = FLOW_RECEIVING;
    f->opened = true;
    f->received_bytes = received;
    f->stored_bytes = stored;
    return f;
}

static void sealed_is_what_was_stored_whole(void) {
    open_stage();
    intake_end(stage.w, a_flow(1000, 1000), FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(stage.state, FLOW_STATE_SEALED);
    intake_end(stage.w, a_flow(1000, 999), FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(stage.state, FLOW_STATE_INTERRUPTED);
    CHECK_EQUAL(stage.reason, CLOSE_REASON_RECEIVER);
    CHECK_EQUAL(stage.closes, 2);
    close_stage();
}

/* ... also when the record is made later than the flow has ended. */
static void what_is_given_up_meanwhile_counts(void) {
    open_stage();
    struct flow *f = a_flow(1000, 1000);
    stage.refuses_close = true;
    intake_end(stage.w, f, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(stage.closes, 0);
    stage.refuses_close = false;
    f->stored_bytes = 500;
    stage.w->writer.exhausted = true;
    CHECK(intake_retry_close(stage.w, f));
    CHECK_EQUAL(stage.state, FLOW_STATE_INTERRUPTED);
    CHECK_EQUAL(stage.reason, CLOSE_REASON_STORE_FULL);
    close_stage();
}

/* --- Connections from other workers --------------------------------------------------- */

static int hand_over(uint32_t listener_index) {
    int ends[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    handover_take(stage.w, listener_index, ends[1]);
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
    stage.w->flows_at_once_max = 4;
    for (uint32_t i = 0; i < CAPACITY + 4; i++)
        senders[i] = hand_over(7 + i % 2);
    CHECK_EQUAL(stage.begun, 4);
    CHECK_EQUAL(stage.w->handover.count, CAPACITY);
    stage.w->flows_at_once_max = CAPACITY; /* two places are the listeners' */
    handover_turn(stage.w);
    CHECK_EQUAL(stage.begun, CAPACITY - 2);
    CHECK_EQUAL(stage.refused, 0);
    for (uint32_t i = 0; i < CAPACITY + 4; i++)
        CHECK_EQUAL(strlen(heard(senders[i])), 0);
    intake_stop_accepting(stage.w);
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
    stage.w->flows_at_once_max = 0;
    stage.w->handover.count = HANDOVER_WAITING_MAX;
    int raw = hand_over(7), ingest = hand_over(8);
    CHECK(strstr(heard(raw), "\"error\": \"limit\""));
    CHECK(strstr(heard(ingest), "\"type\": \"error\", \"code\": \"busy\""));
    CHECK_EQUAL(stage.refused, 2);
    CHECK_EQUAL(stage.w->stats.flows_refused, 2);
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

/* SPDX-License-Identifier: Apache-2.0
 *
 * The worker's loop on a kernel and a clock that the test plays: what the kernel refuses for a
 * moment, what it refuses for good, and time for which the loop stood still.
 *
 * The ring's queues are memory of the test, which moves them on as the kernel would.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "harness.h"
#include "worker.h"

#define MS 1000000ull
#define SECOND (1000 * MS)
#define TURNS_MAX 100000u
#define QUEUE_ENTRIES 4u

static struct {
    struct worker *w;
    uint64_t now_ns;
    uint32_t turns, turns_wanted; /* the loop is over after so many */
    uint32_t refusals;            /* so many of the next calls find no memory in the kernel */
    bool refuses_every_other;     /* or those between two that go well */
    uint64_t wait_ns;             /* how long each call takes */
    uint64_t stall_ns;            /* how long the next wait that goes well takes beside */
    uint32_t waits, pauses;
    bool accept_comes; /* while it stands still */
    uint32_t accepted, accepted_in_turn;
} stage;

/* --- The clock ------------------------------------------------------------------------ */

/* It stands in for clock_gettime() and nanosleep(): test_c_core.py builds it so. */
int stage_gettime(clockid_t clock, struct timespec *out) {
    (void)clock;
    *out = (struct timespec){(time_t)(stage.now_ns / SECOND), (long)(stage.now_ns % SECOND)};
    return 0;
}

int stage_nanosleep(const struct timespec *wanted, struct timespec *left) {
    (void)left;
    stage.now_ns += (uint64_t)wanted->tv_sec * SECOND + (uint64_t)wanted->tv_nsec;
    stage.pauses++;
    return 0;
}

/* --- The kernel ----------------------------------------------------------------------- */

static bool is_refused(void) {
    if (stage.refuses_every_other)
        return stage.waits % 2 == 0;
    if (stage.refusals == 0)
        return false;
    stage.refusals--;
    return true;
}

static int take_all(struct io_uring *ring) {
    unsigned count = ring->sq.sqe_tail - *ring->sq.khead;
    *ring->sq.khead = ring->sq.sqe_tail;
    return (int)count;
}

int io_uring_submit(struct io_uring *ring) {
    return is_refused() ? -EAGAIN : take_all(ring);
}

static void complete_accept(struct io_uring *ring) {
    unsigned tail = *ring->cq.ktail;
    struct io_uring_cqe *cqe = &ring->cq.cqes[tail & ring->cq.ring_mask];
    cqe->user_data = uring_tag(TAG_ACCEPT, 0);
    cqe->res = -EAGAIN;
    cqe->flags = 0;
    *ring->cq.ktail = tail + 1;
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
                                     unsigned wait_nr, struct __kernel_timespec *t,
                                     sigset_t *mask) {
    (void)cqe, (void)wait_nr, (void)t, (void)mask;
    stage.waits++;
    stage.now_ns += stage.wait_ns;
    if (is_refused())
        return -EAGAIN;
    take_all(ring);
    stage.now_ns += stage.stall_ns;
    if (stage.accept_comes && stage.stall_ns == 0) {
        complete_accept(ring);
        stage.accept_comes = false;
    }
    stage.stall_ns = 0;
    return -ETIME;
}

/* --- The rest of the worker ----------------------------------------------------------- */

static uint64_t engine_turn(struct receiver *r) {
    (void)r;
    return TIME_NEVER;
}

static const struct engine engine = {.turn = engine_turn};

void connection_take_reports(struct connections *c) {
    (void)c;
}

void connection_serve_blocked(struct connections *c) {
    (void)c;
}

uint64_t connection_turn(struct connections *c) {
    if (stage.accepted > 0 && stage.accepted_in_turn == 0)
        stage.accepted_in_turn = stage.turns;
    stage.turns++;
    (void)c;
    return TIME_NEVER;
}

void handover_turn(struct connections *c) {
    (void)c;
}

uint64_t listeners_turn(struct connections *c) {
    (void)c;
    return TIME_NEVER;
}

void listener_accepted(struct connections *c, uint32_t listener, int result) {
    (void)c, (void)listener, (void)result;
    stage.accepted++;
}

bool storage_is_finished(const struct storage *s) {
    (void)s;
    return stage.turns >= stage.turns_wanted;
}

bool storage_is_behind(const struct storage *s) {
    (void)s;
    return false;
}

void storage_place_full(struct storage *s) {
    (void)s;
}

uint64_t storage_turn(struct storage *s) {
    (void)s;
    return TIME_NEVER;
}

bool storage_next_news(struct storage *s, struct storage_news *out) {
    (void)s, (void)out;
    return false;
}

uint64_t ingest_turn(struct connections *c) {
    (void)c;
    return TIME_NEVER;
}

/* No part of these tests: nothing that would call them completes or is commanded. */
#define UNCALLED(name, ...)                                                                        \
    void name(__VA_ARGS__) {                                                                       \
        abort();                                                                                   \
    }
#define ANY __attribute__((unused))
UNCALLED(handover_take, struct connections *c ANY, struct handed_over handed ANY)
UNCALLED(listener_pass_on, struct connections *c ANY, uint32_t listener_index ANY, bool wanted ANY)
UNCALLED(connection_discarded, struct connections *c ANY, struct connection *conn ANY,
         int result ANY)
UNCALLED(connection_acknowledged, struct connections *c ANY, struct connection *conn ANY,
         bool is_closed ANY)
UNCALLED(connection_try_free, struct connections *c ANY, struct connection *conn ANY)
UNCALLED(connection_interrupt_all, struct connections *c ANY, uint8_t reason ANY, bool drop ANY)
UNCALLED(connection_refuse_silent, struct connections *c ANY)
UNCALLED(handover_stop, struct connections *c ANY)
UNCALLED(listeners_stop, struct connections *c ANY)
UNCALLED(ingest_replace, struct connections *c ANY, uint32_t connection_index ANY,
         uint64_t serial ANY)
UNCALLED(ingest_take_responses, struct connections *c ANY)
UNCALLED(io_uring_queue_exit, struct io_uring *ring ANY)
UNCALLED(connection_close_dropped, struct connections *c ANY, struct connection *conn ANY)
UNCALLED(storage_complete, struct storage *s ANY, enum uring_tag tag ANY, uint32_t index ANY,
         int result ANY)
UNCALLED(storage_fail, struct storage *s ANY, int code ANY, enum storage_failure what ANY,
         uint64_t offset ANY)
UNCALLED(storage_finish, struct storage *s ANY, bool wanted ANY)
UNCALLED(storage_grant, struct storage *s ANY, uint32_t index ANY, uint64_t sequence ANY)
UNCALLED(storage_note_full, struct storage *s ANY)
UNCALLED(zcrx_event, struct receiver *r ANY, uint32_t type ANY)

#define UNCALLED_INT(name, ...)                                                                    \
    int name(__VA_ARGS__) {                                                                        \
        abort();                                                                                   \
    }
UNCALLED_INT(io_uring_queue_init_params, unsigned entries ANY, struct io_uring *ring ANY,
             struct io_uring_params *p ANY)
UNCALLED_INT(io_uring_register_buffers, struct io_uring *ring ANY, const struct iovec *iovecs ANY,
             unsigned count ANY)
UNCALLED_INT(io_uring_register_files, struct io_uring *ring ANY, const int *files ANY,
             unsigned count ANY)

/* --- The stage ------------------------------------------------------------------------ */

static unsigned heads[4];
static struct io_uring_sqe entries[QUEUE_ENTRIES];
static struct io_uring_cqe completions[QUEUE_ENTRIES];

static struct worker *open_stage(uint32_t turns_wanted) {
    memset(&stage, 0, sizeof stage);
    memset(heads, 0, sizeof heads);
    struct worker *w = stage.w = calloc(1, sizeof *w);
    struct io_uring *ring = &w->reactor.ring;
    ring->sq.khead = &heads[0];
    ring->sq.ktail = &heads[1];
    ring->cq.khead = &heads[2];
    ring->cq.ktail = &heads[3];
    ring->sq.sqes = entries;
    ring->cq.cqes = completions;
    ring->sq.ring_entries = ring->cq.ring_entries = QUEUE_ENTRIES;
    ring->sq.ring_mask = ring->cq.ring_mask = QUEUE_ENTRIES - 1;
    w->engine = &engine;
    w->storage.error = EIO; /* there is no store to be flushed at the end */
    stage.now_ns = 1000 * SECOND;
    stage.wait_ns = MS;
    stage.turns_wanted = turns_wanted;
    return w;
}

static void close_stage(void) {
    free(stage.w);
}

static void fill_queue(struct worker *w) {
    for (uint32_t i = 0; i < QUEUE_ENTRIES; i++)
        CHECK(reactor_sqe(&w->reactor, TAG_POLL, 0) != &w->reactor.lost);
}

/* --- A kernel without memory for requests ----------------------------------------------- */

static void a_moment_without_memory_is_waited_for(void) {
    struct worker *w = open_stage(100);
    stage.refusals = 60;
    CHECK_EQUAL(worker_run(w), 0);
    CHECK_EQUAL(stage.pauses, 60);
    CHECK_EQUAL(w->reactor.refused_ns, 0);
    CHECK_EQUAL(w->reactor.fault.code, 0);
    close_stage();
}

static void a_kernel_that_never_has_memory_ends_the_loop(void) {
    struct worker *w = open_stage(TURNS_MAX);
    stage.refusals = UINT32_MAX;
    uint64_t begun_ns = stage.now_ns;
    CHECK_EQUAL(worker_run(w), -EAGAIN);
    CHECK_EQUAL(strcmp(w->reactor.fault.call, "io_uring_enter"), 0);
    CHECK_EQUAL(w->reactor.fault.code, EAGAIN);
    CHECK(stage.now_ns - begun_ns >= 10 * SECOND && stage.now_ns - begun_ns < 11 * SECOND);
    close_stage();
}

/* Its patience is for one refusal, not for all that there ever were. */
static void refusals_with_work_between_do_not_add_up(void) {
    struct worker *w = open_stage(20000);
    stage.refuses_every_other = true;
    uint64_t begun_ns = stage.now_ns;
    CHECK_EQUAL(worker_run(w), 0);
    CHECK(stage.now_ns - begun_ns > 20 * SECOND);
    CHECK(stage.pauses > 9000);
    close_stage();
}

static void a_full_queue_waits_for_room(void) {
    struct worker *w = open_stage(1);
    fill_queue(w);
    stage.refusals = 5;
    CHECK(reactor_sqe(&w->reactor, TAG_POLL, 0) != &w->reactor.lost);
    CHECK_EQUAL(stage.pauses, 5);
    CHECK_EQUAL(w->reactor.fault.code, 0);
    close_stage();
}

/* What finds no room at all is written where it does no harm, and the loop ends. */
static void a_queue_that_stays_full_ends_the_loop(void) {
    struct worker *w = open_stage(TURNS_MAX);
    fill_queue(w);
    stage.refusals = UINT32_MAX;
    CHECK(reactor_sqe(&w->reactor, TAG_POLL, 0) == &w->reactor.lost);
    uint32_t pauses = stage.pauses;
    CHECK(reactor_sqe(&w->reactor, TAG_POLL, 0) == &w->reactor.lost); /* nobody waits once more */
    CHECK_EQUAL(stage.pauses, pauses);
    stage.refusals = 0;
    CHECK_EQUAL(worker_run(w), -EAGAIN);
    CHECK_EQUAL(stage.waits, 0);
    close_stage();
}

/* --- Time that stood still -------------------------------------------------------------- */

static void a_stop_of_the_process_is_no_time_awake(void) {
    struct worker *w = open_stage(10);
    stage.stall_ns = 500 * SECOND;
    CHECK_EQUAL(worker_run(w), 0);
    CHECK_EQUAL(w->reactor.now_ns, w->reactor.awake_ns + w->reactor.paused_ns);
    /* A second was asked for, in which the loop may sleep. */
    CHECK(w->reactor.paused_ns >= 498 * SECOND && w->reactor.paused_ns <= 500 * SECOND);
    CHECK(w->reactor.now_ns - 1000 * SECOND > 500 * SECOND);
    close_stage();
}

static void a_wait_as_long_as_asked_for_is_no_stop(void) {
    struct worker *w = open_stage(50);
    stage.wait_ns = SECOND + 50 * MS; /* a busy machine */
    CHECK_EQUAL(worker_run(w), 0);
    CHECK_EQUAL(w->reactor.paused_ns, 0);
    CHECK_EQUAL(w->reactor.awake_ns, w->reactor.now_ns);
    close_stage();
}

/* ... and is taken before a turn, which judges who was silent. */
static void what_came_while_it_stood_still_is_taken_first(void) {
    struct worker *w = open_stage(3);
    stage.stall_ns = 60 * SECOND;
    stage.accept_comes = true;
    CHECK_EQUAL(worker_run(w), 0);
    CHECK_EQUAL(stage.accepted, 1);
    CHECK_EQUAL(stage.accepted_in_turn, 1); /* one turn was before it stood still */
    close_stage();
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(a_moment_without_memory_is_waited_for),
        TEST(a_kernel_that_never_has_memory_ends_the_loop),
        TEST(refusals_with_work_between_do_not_add_up),
        TEST(a_full_queue_waits_for_room),
        TEST(a_queue_that_stays_full_ends_the_loop),
        TEST(a_stop_of_the_process_is_no_time_awake),
        TEST(a_wait_as_long_as_asked_for_is_no_stop),
        TEST(what_came_while_it_stood_still_is_taken_first),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The ring, the clock and the events of reactor.h.
 */
#include "base/reactor.h"

#include <assert.h>
#include <errno.h>
#include <time.h>

#define RING_ENTRIES 4096u
#define RING_AREA_BYTES 512u
#define RING_PAGE_BYTES 4096u
#define RING_COMPLETIONS_MAX 65536u /* IORING_MAX_CQ_ENTRIES, io_uring/io_uring.h, Linux 6.1 */
#define LOCK_TRIES_MAX 50u          /* 5 s, as long as for a store in use */
#define LOCK_PAUSE_NS 100000000
/* The kernel may have no memory for requests for a moment (-EAGAIN): they are submitted
 * again after a pause, for so long in all. */
#define SUBMIT_PAUSE_NS 1000000
#define SUBMIT_PATIENCE_NS 10000000000ull
/* A wait longer than requested by this: the process or the machine was stopped. */
#define LOOP_PAUSE_NS 100000000ull

/* --- The ring --------------------------------------------------------------------- */

uint32_t reactor_completions(uint64_t connections, uint64_t area_bytes) {
    /* What is under way is bounded by the connections, and by the memory for their bytes. */
    uint64_t by_connections = 4 * connections + 2 * RING_ENTRIES;
    uint64_t by_area = area_bytes / RING_AREA_BYTES + 2 * RING_ENTRIES;
    uint64_t count = time_min(time_min(by_connections, by_area), RING_COMPLETIONS_MAX);
    uint32_t power = 1;
    while (power * 2ull <= count)
        power *= 2;
    return power;
}

/* Both queues with their heads, and the entries for submission: Linux 6.14, io_uring/memmap.c. */
uint64_t reactor_locked_bytes(uint32_t completions, bool wide) {
    uint64_t heads = 2 * RING_PAGE_BYTES + RING_ENTRIES * sizeof(uint32_t);
    return heads + completions * (wide ? 32ull : 16ull) +
           RING_ENTRIES * sizeof(struct io_uring_sqe);
}

/* The kernel releases the memory that a process had locked some time after its exit
 * (io_ring_exit_work, a work queue): its successor, which has the store already, retries. */
static bool reactor_lock_again(int code, uint32_t *tries) {
    struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    if (code != -ENOMEM || ++*tries > LOCK_TRIES_MAX)
        return false;
    nanosleep(&pause, NULL);
    return true;
}

static int reactor_create_ring(struct reactor *r, uint32_t completions, bool wide) {
    struct io_uring_params p = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE |
                 IORING_SETUP_SUBMIT_ALL | (wide ? IORING_SETUP_CQE32 : 0),
        .cq_entries = completions,
    };
    return io_uring_queue_init_params(RING_ENTRIES, &r->ring, &p);
}

int reactor_open_ring(struct reactor *r, uint32_t completions, bool wide) {
    uint32_t tries = 0;
    int code = reactor_create_ring(r, completions, wide);
    while (reactor_lock_again(code, &tries))
        code = reactor_create_ring(r, completions, wide);
    if (code < 0)
        return fault_set(&r->fault, -code, "io_uring_setup", "worker's ring");
    r->ring_open = true;
    return 0;
}

int reactor_register(struct reactor *r, void *memory, uint64_t bytes, int fd) {
    char object[64];
    struct iovec all = {memory, bytes};
    uint32_t tries = 0;
    snprintf(object, sizeof object, "area of %llu bytes", (unsigned long long)bytes);
    int code = io_uring_register_buffers(&r->ring, &all, 1);
    while (reactor_lock_again(code, &tries))
        code = io_uring_register_buffers(&r->ring, &all, 1);
    if (code < 0)
        return fault_set(&r->fault, -code, "io_uring_register_buffers", object);
    code = io_uring_register_files(&r->ring, &fd, 1);
    if (code < 0)
        return fault_set(&r->fault, -code, "io_uring_register_files", "store");
    return 0;
}

void reactor_close_ring(struct reactor *r) {
    if (r->ring_open)
        io_uring_queue_exit(&r->ring);
    r->ring_open = false;
}

/* --- The clock -------------------------------------------------------------------- */

static uint64_t reactor_clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void reactor_read_clock(struct reactor *r) {
    r->now_ns = reactor_clock_ns(CLOCK_MONOTONIC);
    r->awake_ns = r->now_ns - r->paused_ns;
    r->realtime_delta_ns = (int64_t)(reactor_clock_ns(CLOCK_REALTIME) - r->now_ns);
    STAT_SET(r, loop_beat_ns, r->now_ns);
    STAT_ADD(r, loop_turns, 1);
}

uint64_t reactor_unix_ns(const struct reactor *r) {
    return (uint64_t)((int64_t)r->now_ns + r->realtime_delta_ns);
}

/* --- Requests --------------------------------------------------------------------- */

/* The kernel did not take what was submitted. False: it has not for too long. */
static bool reactor_may_try_again(struct reactor *r, int code) {
    const struct timespec pause = {.tv_nsec = SUBMIT_PAUSE_NS};
    uint64_t now_ns = reactor_clock_ns(CLOCK_MONOTONIC);
    if (r->refused_ns == 0)
        r->refused_ns = now_ns;
    if (now_ns - r->refused_ns >= SUBMIT_PATIENCE_NS) {
        fault_set(&r->fault, -code, "io_uring_enter", "worker's ring");
        return false;
    }
    nanosleep(&pause, NULL);
    return true;
}

/* The queue is full. */
static struct io_uring_sqe *reactor_sqe_after_submit(struct reactor *r) {
    struct io_uring_sqe *sqe = NULL;
    while (sqe == NULL && r->fault.code == 0) {
        int code = io_uring_submit(&r->ring);
        if (code > 0)
            r->refused_ns = 0;
        else if (!reactor_may_try_again(r, code < 0 ? code : -EAGAIN))
            break;
        sqe = io_uring_get_sqe(&r->ring);
    }
    return sqe != NULL ? sqe : &r->lost;
}

struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
    if (sqe == NULL)
        sqe = reactor_sqe_after_submit(r);
    sqe->user_data = uring_tag(tag, index);
    return sqe;
}

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    struct io_uring_sqe *sqe = reactor_sqe(r, found, index);
    io_uring_prep_cancel64(sqe, uring_tag(tag, index), 0);
}

int reactor_wait(struct reactor *r, uint64_t next_ns) {
    uint64_t wait_ns = next_ns > r->now_ns ? next_ns - r->now_ns : 0;
    wait_ns = time_min(wait_ns, REACTOR_TURN_NS_MAX);
    struct __kernel_timespec t = {
        .tv_sec = (long long)(wait_ns / 1000000000ull),
        .tv_nsec = (long long)(wait_ns % 1000000000ull),
    };
    struct io_uring_cqe *cqe;
    if (r->fault.code != 0)
        return -r->fault.code;
    int code = io_uring_submit_and_wait_timeout(&r->ring, &cqe, 1, &t, NULL);
    if (code == -EAGAIN)
        return reactor_may_try_again(r, code) ? 0 : code;
    r->refused_ns = 0;
    bool benign = code >= 0 || code == -ETIME || code == -EINTR || code == -EBUSY;
    return benign ? 0 : fault_set(&r->fault, -code, "io_uring_enter", "worker's ring");
}

int reactor_note_pause(struct reactor *r, uint64_t before_ns, uint64_t next_ns) {
    uint64_t due_ns =
        time_min(next_ns > before_ns ? next_ns : before_ns, before_ns + REACTOR_TURN_NS_MAX);
    assert(r->now_ns >= before_ns);
    if (r->now_ns < due_ns + LOOP_PAUSE_NS)
        return 0;
    r->paused_ns += r->now_ns - due_ns;
    r->awake_ns = r->now_ns - r->paused_ns;
    return reactor_wait(r, r->now_ns);
}

/* --- Events ------------------------------------------------------------------------ */

struct event *reactor_new_event(struct reactor *r, struct event_detail detail) {
    struct event *e = mailbox_event(&r->mailbox);
    assert(detail.kind >= EVENT_FLOW_OPENED && detail.kind <= EVENT_FLOW_DENIED);
    if (e == NULL) {
        STAT_ADD(r, events_dropped, 1);
        return NULL;
    }
    e->detail = detail;
    e->time_ns = reactor_unix_ns(r);
    return e;
}

bool reactor_event(struct reactor *r, struct event_detail detail) {
    bool is_quiet = detail.kind == EVENT_SEGMENT_OPENED || detail.kind == EVENT_SEGMENT_CLOSED;
    if (reactor_new_event(r, detail) == NULL)
        return false;
    mailbox_publish(&r->mailbox, is_quiet);
    return true;
}

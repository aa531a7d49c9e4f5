/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker's loop: submit and wait, switch on the tag, then let each part have
 * its turn. Runs on the worker's thread from run() to the end of the drain.
 */
#include <assert.h>
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

/* The kernel may have no memory for requests for a moment (-EAGAIN): it is asked
 * again after a pause, and for so long. */
#define SUBMIT_PAUSE_NS 1000000
#define SUBMIT_PATIENCE_NS 10000000000ull
/* Longer than it asked for: the process was stopped, or the machine was. */
#define LOOP_PAUSE_NS 100000000ull
#define BACKPRESSURE_TOLD_NS 1000000000ull

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void read_clock(struct worker *w) {
    w->now_ns = clock_ns(CLOCK_MONOTONIC);
    w->awake_ns = w->now_ns - w->paused_ns;
    w->realtime_delta_ns = (int64_t)(clock_ns(CLOCK_REALTIME) - w->now_ns);
    STAT_SET(w, loop_beat_ns, w->now_ns);
    STAT_ADD(w, loop_turns, 1);
}

uint64_t worker_unix_ns(const struct worker *w) {
    return (uint64_t)((int64_t)w->now_ns + w->realtime_delta_ns);
}

/* The kernel did not take what was submitted. False: it has not for too long. */
static bool loop_may_try_again(struct worker *w, int code) {
    const struct timespec pause = {.tv_nsec = SUBMIT_PAUSE_NS};
    uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    if (w->refused_ns == 0)
        w->refused_ns = now_ns;
    if (now_ns - w->refused_ns >= SUBMIT_PATIENCE_NS) {
        fault_set(&w->fault, -code, "io_uring_enter", "worker's ring");
        return false;
    }
    nanosleep(&pause, NULL);
    return true;
}

struct io_uring_sqe *worker_sqe(struct worker *w) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&w->ring);
    while (sqe == NULL && w->fault.code == 0) {
        int code = io_uring_submit(&w->ring);
        if (code > 0)
            w->refused_ns = 0;
        else if (!loop_may_try_again(w, code < 0 ? code : -EAGAIN))
            break;
        sqe = io_uring_get_sqe(&w->ring);
    }
    return sqe != NULL ? sqe : &w->lost;
}

static void arm_command(struct worker *w) {
    struct io_uring_sqe *sqe = worker_sqe(w);
    io_uring_prep_read(sqe, w->mailbox.command_fd, &w->command_buffer, sizeof w->command_buffer, 0);
    sqe->user_data = uring_tag(TAG_COMMAND, 0);
}

static void obey(struct worker *w, const struct command *c) {
    switch (c->kind) {
    case COMMAND_GRANT_SEGMENT:
        writer_grant(w, (uint32_t)c->a, c->b);
        break;
    case COMMAND_STORE_FULL:
        w->writer.full = true;
        break;
    case COMMAND_STOP_ACCEPTING:
        intake_stop_accepting(w);
        break;
    case COMMAND_DRAIN:
        intake_stop_accepting(w);
        intake_refuse_silent(w);
        w->draining = true;
        w->drain_deadline_ns = w->now_ns + c->a;
        break;
    case COMMAND_END_FLOW:
        session_replace(w, (uint32_t)c->a, c->b);
        break;
    case COMMAND_FAIL_STORE:
        writer_fail(w, (int)c->a, FAILED_LOST, 0);
        break;
    case COMMAND_ADOPT:
        handover_take(w, (uint32_t)c->b, (int)c->a);
        break;
    case COMMAND_SET_FLUSH_INTERVAL:
        w->settings.flush_interval_ns = c->a;
        break;
    case COMMAND_SET_COMMIT_INTERVAL:
        w->settings.commit_interval_ns = c->a;
        break;
    case COMMAND_SET_IDLE_TIMEOUT:
        for (uint32_t i = 0; i < w->listener_count; i++)
            if (w->listeners[i].index == c->a)
                w->listeners[i].idle_timeout_ns = c->b;
        break;
    }
}

static void obey_all(struct worker *w) {
    struct command c;
    while (mailbox_take(&w->mailbox, &c))
        obey(w, &c);
    session_take_answers(w);
    arm_command(w);
}

static void flow_complete(struct worker *w, enum uring_tag tag, uint32_t index,
                          const struct io_uring_cqe *cqe) {
    struct flow *f = &w->flows.flows[index];
    assert(index < w->flows.used_upto && f->phase != FLOW_FREE && f->ops_in_flight > 0);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        f->ops_in_flight--;
    if (tag == TAG_SEND || tag == TAG_DISCARD)
        intake_complete(w, tag, f, cqe->res);
    else if (tag == TAG_LINE)
        session_line_sent(w, f, cqe->res);
    else if (tag != TAG_CLOSE)
        w->engine->complete(w, tag, f, cqe);
    if (f->phase == FLOW_GONE)
        intake_gone(w, f);
}

static void loop_complete(struct worker *w, const struct io_uring_cqe *cqe) {
    enum uring_tag tag = (enum uring_tag)(cqe->user_data >> 32);
    uint32_t index = (uint32_t)cqe->user_data;
    switch (tag) {
    case TAG_COMMAND:
        obey_all(w);
        break;
    case TAG_ACCEPT:
        intake_accepted(w, index, cqe->res);
        break;
    case TAG_WRITE:
        device_write_complete(w, index, cqe->res);
        break;
    case TAG_FLUSH:
        device_flush_complete(w, cqe->res);
        break;
    case TAG_RETRY:
        device_retry(w, index);
        break;
    case TAG_ACCEPT_CANCEL:
        break;
    case TAG_ZCRX_EVENT:
        zcrx_event(w, (uint32_t)cqe->res);
        break;
    case TAG_POLL:
    case TAG_RECEIVE:
    case TAG_CANCEL:
    case TAG_SEND:
    case TAG_DISCARD:
    case TAG_LINE:
    case TAG_BLOCK:
    case TAG_CLOSE:
        flow_complete(w, tag, index, cqe);
        break;
    }
}

/* What a full store could not take is given up, and its flows are told. */
static void settle_full_store(struct worker *w) {
    const struct batch *b = w->batches.open;
    if (!w->writer.exhausted || w->writer.failed || b == NULL || !b->full)
        return;
    if (b->rescued && !w->writer.speechless)
        return; /* it only waits for its turn to be written */
    batch_abandon(w);
    intake_interrupt_all(w, CLOSE_REASON_STORE_FULL, true);
}

static uint64_t drain(struct worker *w) {
    if (!w->draining)
        return TIME_NEVER;
    if (w->now_ns >= w->drain_deadline_ns)
        intake_interrupt_all(w, CLOSE_REASON_SHUTDOWN, false);
    /* When the last flow has its CLOSE record, what is open is written out and closed. */
    w->writer.closing = w->flows.count == 0 && w->batches.open == NULL;
    return w->drain_deadline_ns > w->now_ns ? w->drain_deadline_ns : TIME_NEVER;
}

/* Moments of it are normal and only counted; what lasts is told. */
static void tell_backpressure(struct worker *w) {
    bool lasts = w->now_ns - w->backpressure_since_ns >= BACKPRESSURE_TOLD_NS;
    bool told = w->backpressure_told;
    if (lasts && told != (w->backpressure != 0)) {
        worker_event(w, EVENT_BACKPRESSURE, NULL, (int)w->backpressure, 0, 0);
        w->backpressure_told = !told;
    }
}

/* Whether flows wait when a turn ends, and for what. */
static void note_backpressure(struct worker *w) {
    const struct flow_table *t = &w->flows;
    uint32_t waiting = t->waiting[QUEUE_STARVED].count + t->waiting[QUEUE_BLOCKED].count;
    bool device = w->device.batches_in_flight >= w->settings.writes_in_flight_max ||
                  (w->batches.open != NULL && w->batches.open->full) || w->batches.free_count == 0;
    uint32_t cause = waiting == 0 ? 0 : device ? 2 : 1;
    if ((cause != 0) != (w->backpressure != 0))
        w->backpressure_since_ns = w->now_ns;
    w->backpressure = cause;
    tell_backpressure(w);
}

/* The time since the turn ended is time in which they waited. */
static void account_backpressure(struct worker *w, uint64_t before_ns) {
    if (w->backpressure == 1)
        STAT_ADD(w, backpressure_area_ns, w->now_ns - before_ns);
    if (w->backpressure == 2)
        STAT_ADD(w, backpressure_device_ns, w->now_ns - before_ns);
}

static uint64_t publish(struct worker *w) {
    STAT_SET(w, flows_waiting,
             w->flows.waiting[QUEUE_STARVED].count + w->flows.waiting[QUEUE_BLOCKED].count);
    uint64_t open = 0, greeting = 0;
    for (uint32_t i = 0; i < w->listener_count; i++) {
        open += w->listeners[i].idle.count;
        greeting += w->listeners[i].greeting.count;
    }
    STAT_SET(w, flows_open, open);
    STAT_SET(w, flows_greeting, greeting);
    STAT_SET(w, flows_closing, w->flows.count - open - greeting);
    STAT_SET(w, writes_in_flight, w->device.batches_in_flight);
    STAT_SET(w, segments_ready, w->writer.ready_count);
    STAT_SET(w, store_is_full, w->writer.exhausted);
    return mailbox_wake_reader(&w->mailbox, w->now_ns);
}

static int loop_wait(struct worker *w, uint64_t next_ns) {
    uint64_t wait_ns = next_ns > w->now_ns ? next_ns - w->now_ns : 0;
    wait_ns = time_min(wait_ns, WORKER_TURN_NS_MAX);
    struct __kernel_timespec t = {
        .tv_sec = (long long)(wait_ns / 1000000000ull),
        .tv_nsec = (long long)(wait_ns % 1000000000ull),
    };
    struct io_uring_cqe *cqe;
    if (w->fault.code != 0)
        return -w->fault.code;
    int code = io_uring_submit_and_wait_timeout(&w->ring, &cqe, 1, &t, NULL);
    if (code == -EAGAIN)
        return loop_may_try_again(w, code) ? 0 : code;
    w->refused_ns = 0;
    bool benign = code >= 0 || code == -ETIME || code == -EINTR || code == -EBUSY;
    return benign ? 0 : fault_set(&w->fault, -code, "io_uring_enter", "worker's ring");
}

/* Time for which the loop stood still is nobody's silence; and what came meanwhile
 * is taken before any time-out is judged. */
static int loop_note_pause(struct worker *w, uint64_t before_ns, uint64_t next_ns) {
    uint64_t due_ns =
        time_min(next_ns > before_ns ? next_ns : before_ns, before_ns + WORKER_TURN_NS_MAX);
    if (w->now_ns < due_ns + LOOP_PAUSE_NS)
        return 0;
    w->paused_ns += w->now_ns - due_ns;
    w->awake_ns = w->now_ns - w->paused_ns;
    return loop_wait(w, w->now_ns);
}

static uint64_t turn(struct worker *w) {
    batch_turn(w); /* what was full may have its place now, and flows wait behind it */
    uint64_t next_ns = w->engine->turn(w);
    next_ns = time_min(next_ns, intake_turn(w));
    next_ns = time_min(next_ns, batch_turn(w));
    settle_full_store(w);
    next_ns = time_min(next_ns, drain(w));
    next_ns = time_min(next_ns, writer_turn(w));
    return time_min(next_ns, session_turn(w)); /* last: it tells what has become durable */
}

/* The footers written last are covered too, so that the next start scans nothing. */
static int last_flush(struct worker *w) {
    if (w->writer.failed || fdatasync(w->settings.store_fd) == 0)
        return 0;
    return fault_set(&w->fault, errno, "fdatasync", "store");
}

int worker_run(struct worker *w) {
    read_clock(w);
    arm_command(w);
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned head, count = 0;
        io_uring_for_each_cqe(&w->ring, head, cqe) {
            loop_complete(w, cqe);
            count++;
        }
        io_uring_cq_advance(&w->ring, count);
        uint64_t next_ns = turn(w);
        next_ns = time_min(next_ns, publish(w));
        if (w->writer.closing && writer_is_idle(w)) {
            mailbox_wake_reader(&w->mailbox, UINT64_MAX);
            return last_flush(w);
        }
        uint64_t before_ns = w->now_ns;
        note_backpressure(w);
        int code = loop_wait(w, next_ns);
        if (code < 0)
            return code;
        read_clock(w);
        account_backpressure(w, before_ns);
        code = loop_note_pause(w, before_ns, next_ns);
        if (code < 0)
            return code;
    }
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker's loop: submit and wait, switch on the tag, then give each part its
 * turn. Runs on the worker's thread from run() to the end of the drain.
 */
#include <assert.h>
#include <errno.h>
#include <unistd.h>

#include "worker.h"

#define BACKPRESSURE_REPORT_NS 1000000000ull

static inline void loop_take_reports(struct worker *w) {
    if (engine_has_report(&w->receiver))
        connection_take_reports(&w->connections);
}

/* Hands each of storage's news to the connection or the engine that it concerns. */
static void loop_report_news(struct worker *w) {
    struct storage_news n;
    while (storage_next_news(&w->storage, &n)) {
        switch (n.kind) {
        case NEWS_DURABLE:
        case NEWS_CLOSED:
            connection_acknowledged(&w->connections, &w->table.connections[n.stream->owner],
                                    n.kind == NEWS_CLOSED);
            break;
        case NEWS_UNDONE:
            connection_close_dropped(&w->connections, &w->table.connections[n.stream->owner]);
            break;
        case NEWS_RELEASED:
            for (uint32_t i = 0; i < n.hold_count; i++)
                w->engine->release(&w->receiver, n.holds[i]);
            break;
        case NEWS_FULL:
            connection_interrupt_all(&w->connections, CLOSE_REASON_STORE_FULL, true);
            break;
        case NEWS_FAILED:
            connection_interrupt_all(&w->connections, CLOSE_REASON_NONE, true);
            break;
        }
    }
    loop_take_reports(w); /* of those that were interrupted */
}

static inline void loop_take_news(struct worker *w) {
    if (storage_may_have_news(&w->storage))
        loop_report_news(w);
}

static void loop_arm_command(struct worker *w) {
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_COMMAND, 0);
    io_uring_prep_read(sqe, w->reactor.mailbox.command_fd, &w->command_buffer,
                       sizeof w->command_buffer, 0);
}

static void loop_handle_command(struct worker *w, const struct command *c) {
    switch (c->kind) {
    case COMMAND_GRANT_SEGMENT:
        storage_grant(&w->storage, c->segment.index, c->segment.sequence);
        break;
    case COMMAND_STORE_FULL:
        storage_note_full(&w->storage);
        break;
    case COMMAND_STOP_ACCEPTING:
        handover_stop(&w->connections);
        listeners_stop(&w->connections);
        break;
    case COMMAND_DRAIN:
        handover_stop(&w->connections);
        listeners_stop(&w->connections);
        connection_refuse_silent(&w->connections);
        w->connections.draining = true;
        w->drain_deadline_ns = w->reactor.now_ns + c->timeout_ns;
        w->storage.retry_deadline_ns = w->drain_deadline_ns;
        break;
    case COMMAND_END_FLOW:
        ingest_replace(&w->connections, c->connection.index, c->connection.serial);
        break;
    case COMMAND_FAIL_STORE:
        storage_fail(&w->storage, c->error, FAILED_LOST, 0);
        break;
    case COMMAND_ADOPT:
        handover_take(&w->connections,
                      (struct handed_over){.fd = c->adopt.fd,
                                           .listener_index = c->adopt.listener_index,
                                           .move_id = c->adopt.move_id});
        break;
    case COMMAND_PASS_ON:
        listener_pass_on(&w->connections, c->pass_on.listener_index, c->pass_on.wanted);
        break;
    case COMMAND_SET_FLUSH_INTERVAL:
        w->storage.settings.flush_interval_ns = c->interval_ns;
        break;
    case COMMAND_SET_COMMIT_INTERVAL:
        w->storage.settings.commit_interval_ns = c->interval_ns;
        break;
    case COMMAND_SET_IDLE_TIMEOUT:
        for (uint32_t i = 0; i < w->connections.listener_count; i++)
            if (w->connections.listeners[i].index == c->idle_timeout.listener_index)
                w->connections.listeners[i].idle_timeout_ns = c->idle_timeout.timeout_ns;
        break;
    }
}

static void loop_handle_commands(struct worker *w) {
    struct command c;
    while (mailbox_take(&w->reactor.mailbox, &c))
        loop_handle_command(w, &c);
    loop_take_news(w); /* the store may have failed */
    ingest_take_responses(&w->connections);
    loop_arm_command(w);
}

static void loop_connection_complete(struct worker *w, enum uring_tag tag, uint32_t index,
                                     const struct io_uring_cqe *cqe) {
    struct connection *conn = &w->table.connections[index];
    assert(index < w->table.used_upto && conn->phase != CONNECTION_FREE && conn->ops_in_flight > 0);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        conn->ops_in_flight--;
    if (tag == TAG_DISCARD)
        connection_discarded(&w->connections, conn, cqe->res);
    else if (tag == TAG_LINE)
        conn->protocol->line_sent(&w->connections, conn, cqe->res);
    else if (tag != TAG_CLOSE)
        w->engine->complete(&w->receiver, tag, conn, cqe);
    if (conn->phase == CONNECTION_GONE)
        connection_try_free(&w->connections, conn);
}

static void loop_complete(struct worker *w, const struct io_uring_cqe *cqe) {
    enum uring_tag tag = (enum uring_tag)(cqe->user_data >> 32);
    uint32_t index = (uint32_t)cqe->user_data;
    switch (tag) {
    case TAG_COMMAND:
        loop_handle_commands(w);
        break;
    case TAG_ACCEPT:
        listener_accepted(&w->connections, index, cqe->res);
        break;
    case TAG_WRITE:
    case TAG_FLUSH:
    case TAG_RETRY:
        storage_complete(&w->storage, tag, index, cqe->res);
        loop_take_news(w); /* what it released serves the next completions */
        break;
    case TAG_ACCEPT_CANCEL:
        break;
    case TAG_ZCRX_EVENT:
        zcrx_event(&w->receiver, (uint32_t)cqe->res);
        break;
    case TAG_POLL:
    case TAG_RECEIVE:
    case TAG_CANCEL:
    case TAG_DISCARD:
    case TAG_LINE:
    case TAG_BLOCK:
    case TAG_CLOSE:
        loop_connection_complete(w, tag, index, cqe);
        break;
    }
    loop_take_reports(w);
}

static uint64_t loop_drain(struct worker *w) {
    if (!w->connections.draining)
        return TIME_NEVER;
    if (w->reactor.now_ns >= w->drain_deadline_ns)
        connection_interrupt_all(&w->connections, CLOSE_REASON_SHUTDOWN, false);
    /* When the last connection has its CLOSE record, what is open is written out and closed. */
    storage_finish(&w->storage, w->table.count == 0);
    return w->drain_deadline_ns > w->reactor.now_ns ? w->drain_deadline_ns : TIME_NEVER;
}

/* Short backpressure is normal and only counted; what lasts is reported. */
static void loop_report_backpressure(struct worker *w) {
    bool lasts = w->reactor.now_ns - w->backpressure_since_ns >= BACKPRESSURE_REPORT_NS;
    bool reported = w->backpressure_reported;
    if (lasts && reported != (w->backpressure != 0)) {
        reactor_event(&w->reactor, (struct event_detail){.kind = EVENT_BACKPRESSURE,
                                                         .backpressure = w->backpressure});
        w->backpressure_reported = !reported;
    }
}

/* Whether connections wait when a turn ends, and for what. */
static void loop_note_backpressure(struct worker *w) {
    const struct connection_table *t = &w->table;
    uint32_t waiting = t->waiting[QUEUE_STARVED].count + t->waiting[QUEUE_BLOCKED].count;
    uint32_t cause = waiting == 0 ? 0 : storage_is_behind(&w->storage) ? 2 : 1;
    if ((cause != 0) != (w->backpressure != 0))
        w->backpressure_since_ns = w->reactor.now_ns;
    w->backpressure = cause;
    loop_report_backpressure(w);
}

/* The time since the turn ended is time in which they waited. */
static void loop_account_backpressure(struct worker *w, uint64_t before_ns) {
    if (w->backpressure == 1)
        STAT_ADD(&w->reactor, backpressure_area_ns, w->reactor.now_ns - before_ns);
    if (w->backpressure == 2)
        STAT_ADD(&w->reactor, backpressure_device_ns, w->reactor.now_ns - before_ns);
}

static uint64_t loop_publish(struct worker *w) {
    STAT_SET(&w->reactor, flows_waiting,
             w->table.waiting[QUEUE_STARVED].count + w->table.waiting[QUEUE_BLOCKED].count);
    uint64_t open = 0, greeting = 0;
    for (uint32_t i = 0; i < w->connections.listener_count; i++) {
        open += w->connections.listeners[i].idle.count;
        greeting += w->connections.listeners[i].greeting.count;
    }
    STAT_SET(&w->reactor, flows_open, open);
    STAT_SET(&w->reactor, flows_greeting, greeting);
    STAT_SET(&w->reactor, flows_closing, w->table.count - open - greeting);
    return mailbox_wake_reader(&w->reactor.mailbox, w->reactor.now_ns);
}

static uint64_t loop_turn(struct worker *w) {
    /* What was full may have its place now, and connections wait behind it. */
    storage_place(&w->storage);
    if (connection_first(&w->table, QUEUE_BLOCKED) != NULL)
        connection_serve_blocked(&w->connections);
    uint64_t next_ns = w->engine->turn(&w->receiver);
    loop_take_reports(w);
    next_ns = time_min(next_ns, connection_turn(&w->connections));
    handover_turn(&w->connections);
    if (w->connections.accepts_ns <= w->reactor.now_ns)
        w->connections.accepts_ns = listeners_turn(&w->connections);
    next_ns = time_min(next_ns, w->connections.accepts_ns);
    next_ns = time_min(next_ns, loop_drain(w));
    loop_take_reports(w); /* of those that were stopped */
    uint32_t connections = w->table.count;
    next_ns = time_min(next_ns, storage_turn(&w->storage));
    loop_take_news(w);
    if (w->connections.session_count > 0) /* last: it sends what has become durable */
        next_ns = time_min(next_ns, ingest_turn(&w->connections));
    loop_take_reports(w);
    if (w->connections.draining && connections > 0 && w->table.count == 0)
        return w->reactor.now_ns; /* the last one has gone: the store is to be closed */
    return next_ns;
}

/* The footers written last are covered too, so that the next start scans nothing. */
static int loop_last_flush(struct worker *w) {
    if (storage_error(&w->storage) != 0 || fdatasync(w->settings.store_fd) == 0)
        return 0;
    return fault_set(&w->reactor.fault, errno, "fdatasync", "store");
}

int worker_run(struct worker *w) {
    reactor_read_clock(&w->reactor);
    loop_arm_command(w);
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned head, count = 0;
        io_uring_for_each_cqe(&w->reactor.ring, head, cqe) {
            loop_complete(w, cqe);
            count++;
        }
        io_uring_cq_advance(&w->reactor.ring, count);
        uint64_t next_ns = loop_turn(w);
        next_ns = time_min(next_ns, loop_publish(w));
        if (storage_is_finished(&w->storage)) {
            mailbox_wake_reader(&w->reactor.mailbox, UINT64_MAX);
            return loop_last_flush(w);
        }
        uint64_t before_ns = w->reactor.now_ns;
        loop_note_backpressure(w);
        int code = reactor_wait(&w->reactor, next_ns);
        if (code < 0)
            return code;
        reactor_read_clock(&w->reactor);
        loop_account_backpressure(w, before_ns);
        code = reactor_note_pause(&w->reactor, before_ns, next_ns);
        if (code < 0)
            return code;
    }
}

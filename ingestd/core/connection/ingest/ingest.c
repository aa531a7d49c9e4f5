/* SPDX-License-Identifier: Apache-2.0
 *
 * What the acts of sessions come to: ingest.h.
 */
#include "connection/ingest/ingest.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/socket.h"
#include "connection/connection.h"
#include "connection/event.h"
#include "connection/ingest/lines.h"
#include "connection/connections.h"

/* A last line that finds no room in the socket for so long is dropped. */
#define LAST_LINE_NS 10000000000ull

static struct listener *ingest_listener(struct connections *c, const struct flow *f) {
    return &c->listeners[f->listener];
}

static bool ingest_release(struct connections *c, struct flow *f) {
    struct listener *l = ingest_listener(c, f);
    if (f->session == NULL)
        return true; /* denied: its peer has too many, so that no session has begun */
    if (session_owes_report(f->session))
        return false;
    flow_ack_remove(c->flows, &l->acks_pending, f);
    session_pool_put(&l->sessions, f->session);
    f->session = NULL;
    f->block = NULL;
    return true;
}

/* --- Lines to the sender -------------------------------------------------------- */

static void ingest_send(struct connections *c, struct flow *f) {
    struct outbox *o = &f->session->outbox;
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_LINE, f->index);
    /* Only the last line may wait for a sender that does not read. */
    int flags = o->closing ? MSG_WAITALL : MSG_DONTWAIT;
    outbox_send(o);
    io_uring_prep_send(sqe, f->fd, o->line + o->line_sent, (size_t)(o->line_bytes - o->line_sent),
                       MSG_NOSIGNAL | flags);
    f->ops_in_flight++;
}

/* The last line is one that Python has worded, unless the store has failed meanwhile. */
static void ingest_put_last(struct connections *c, struct flow *f) {
    struct session *s = f->session;
    if (s->error == SESSION_ERROR_REFUSED && storage_error(c->storage) == 0) {
        outbox_put(&s->outbox, s->pages->text, s->text_bytes);
        return;
    }
    size_t bytes = line_last(f, storage_error(c->storage), f->line, sizeof f->line);
    outbox_put(&s->outbox, f->line, (uint16_t)bytes);
}

/* Sends what is to be sent next, if nothing is under way. */
static void ingest_say(struct connections *c, struct flow *f) {
    struct outbox *o = &f->session->outbox;
    size_t bytes = 0;
    if (f->phase == FLOW_GONE)
        return;
    switch (outbox_next(o, f->stream.durable_bytes)) {
    case OUTBOX_NOTHING:
        return;
    case OUTBOX_REST:
        break;
    case OUTBOX_ACCEPTED:
        bytes = line_accepted(f, ingest_listener(c, f)->ack_interval_ns, f->line, sizeof f->line);
        outbox_put(o, f->line, (uint16_t)bytes);
        break;
    case OUTBOX_DURABLE:
        bytes = line_durable(f->stream.durable_bytes, f->line, sizeof f->line);
        outbox_put(o, f->line, (uint16_t)bytes);
        STAT_ADD(c->reactor, durable_lines, 1);
        break;
    case OUTBOX_LAST:
        ingest_put_last(c, f);
        break;
    }
    ingest_send(c, f);
}

static void ingest_line_sent(struct connections *c, struct flow *f, int result) {
    struct outbox *o = &f->session->outbox;
    switch (outbox_sent(o, result)) {
    case OUTBOX_WAIT:
        break;
    case OUTBOX_NEXT:
        ingest_say(c, f);
        break;
    case OUTBOX_LATER:
        if (!f->ended)
            flow_ack_add(c->flows, &ingest_listener(c, f)->acks_pending, f);
        break;
    case OUTBOX_OVER:
        connection_answered(c, f, outbox_failed(o) ? -EPIPE : 0);
        break;
    }
}

static void ingest_send_last(struct connections *c, struct flow *f) {
    struct outbox *o = &f->session->outbox;
    flow_set_phase(f, FLOW_ANSWERING);
    flow_wait(c->flows, f, QUEUE_ANSWER, c->reactor->now_ns);
    outbox_close(o);
    if (outbox_failed(o))
        connection_answered(c, f, -EPIPE);
    else
        ingest_say(c, f);
}

static void ingest_advanced(struct connections *c, struct flow *f) {
    if (!f->ended)
        flow_ack_add(c->flows, &ingest_listener(c, f)->acks_pending, f);
}

/* --- Requests to Python -------------------------------------------------------- */

static bool ingest_send_request(struct connections *c, struct flow *f) {
    struct session *s = f->session;
    struct admission_request q = {
        .kind = s->pending,
        .flow_index = f->index,
        .serial = s->serial,
        .listener_index = (int32_t)ingest_listener(c, f)->index,
        .bytes_count = s->pending == NOTE_ENDED ? f->stream.durable_bytes : f->stream.stored_bytes,
        .crc = f->stream.crc,
    };
    bool whole = f->stream.durable_bytes == f->stream.stored_bytes;
    q.flags = (f->checksummed ? REQUEST_HAS_CRC : 0) | (whole ? REQUEST_WHOLE : 0) |
              (f->stream.opened ? REQUEST_STORED : 0) |
              (f->ended && f->state == FLOW_STATE_SEALED ? REQUEST_SEALED : 0);
    memcpy(q.flow, f->stream.id, sizeof q.flow);
    flow_format_peer(f, q.peer, sizeof q.peer);
    memcpy(q.challenge, s->challenge, sizeof q.challenge);
    memcpy(q.block, s->pages->block, sizeof q.block);
    if (!admission_send(&c->admission, &q))
        return false;
    session_requested(s);
    c->reactor->mailbox.event_pending = true; /* its reader takes requests too */
    return true;
}

static struct flow_list *ingest_backlog(struct connections *c, uint8_t request) {
    return request == REQUEST_HELLO ? &c->hello_backlog : &c->admission_backlog;
}

/* The flow is in no list linked by `idle` then, so that it can wait in this one. */
static void ingest_request(struct connections *c, struct flow *f, uint8_t request) {
    struct flow_list *before = ingest_backlog(c, request);
    f->session->pending = request;
    if (before->count > 0 || !ingest_send_request(c, f))
        flow_idle_touch(c->flows, before, f);
}

static void ingest_withdraw(struct connections *c, struct flow *f) {
    struct session *s = f->session;
    if (s->pending == 0)
        return;
    flow_idle_remove(c->flows, ingest_backlog(c, s->pending), f);
    s->pending = 0;
}

static void ingest_send_backlog(struct connections *c, struct flow_list *waiting) {
    while (waiting->head != FLOW_NONE) {
        struct flow *f = &c->flows->flows[waiting->head];
        if (!ingest_send_request(c, f))
            return;
        flow_idle_remove(c->flows, waiting, f);
        if (f->phase == FLOW_GONE)
            connection_try_free(c, f);
    }
}

static void ingest_report_end(struct connections *c, struct flow *f) {
    if (session_owes_report(f->session))
        ingest_request(c, f, NOTE_ENDED);
}

/* --- What sessions say ------------------------------------------------------------ */

/* The list that is linked by `idle` has the flow no longer. */
static void ingest_leave_lists(struct connections *c, struct flow *f) {
    struct listener *l = ingest_listener(c, f);
    if (f->phase == FLOW_HELLO)
        flow_idle_remove(c->flows, &l->greeting, f);
    else if (f->phase == FLOW_PENDING)
        ingest_withdraw(c, f);
    else
        flow_idle_remove(c->flows, &l->idle, f);
}

static void ingest_receive_block(struct connections *c, struct flow *f) {
    if (f->session->step == SESSION_TAIL) {
        flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
        flow_set_phase(f, FLOW_TAIL);
    }
    c->engine->receive_block(c->receiver, f);
}

static void ingest_do(struct connections *c, struct flow *f, struct session_act act) {
    f->received_bytes -= act.held_bytes;
    switch (act.kind) {
    case SESSION_DO_NOTHING:
        break;
    case SESSION_RECEIVE_BLOCK:
        ingest_receive_block(c, f);
        break;
    case SESSION_START:
        c->engine->start(c->receiver, f);
        break;
    case SESSION_REQUEST:
        ingest_leave_lists(c, f);
        flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
        flow_set_phase(f, FLOW_PENDING);
        ingest_request(c, f, act.request);
        break;
    case SESSION_STOP:
        flow_idle_remove(c->flows, &ingest_listener(c, f)->greeting, f);
        connection_interrupt(c, f, act.stop_reason, true);
        break;
    case SESSION_END:
        ingest_leave_lists(c, f);
        connection_end(c, f, act.end.state, act.end.reason, act.end.error);
        break;
    }
}

static void ingest_on(struct connections *c, struct flow *f, const struct session_input *in) {
    ingest_do(c, f, session_on(f->session, in));
}

static void ingest_begin(struct connections *c, struct flow *f) {
    struct listener *l = ingest_listener(c, f);
    struct session *s = session_pool_take(&l->sessions);
    f->session = s;
    f->block = &s->block;
    flow_set_phase(f, FLOW_HELLO);
    s->serial = ++c->session_serial;
    size_t have = 0;
    while (have < sizeof s->challenge) {
        ssize_t n = getrandom(s->challenge + have, sizeof s->challenge - have, 0);
        have += n > 0 ? (size_t)n : 0;
    }
    flow_idle_touch(c->flows, &l->greeting, f);
    size_t bytes = line_greeting(l->authenticates, s->challenge, f->line, sizeof f->line);
    outbox_put(&s->outbox, f->line, (uint16_t)bytes);
    ingest_send(c, f);
    ingest_do(c, f, session_begin(s));
}

static void ingest_block_received(struct connections *c, struct flow *f, int result) {
    struct session_input in = {.kind = SESSION_BLOCK_CAME};
    assert(engine_receives_block(f));
    if (f->stop) {
        in.kind = SESSION_STOPPED;
        in.reason = f->reason;
    } else if (result > 0) {
        in.bytes = (uint32_t)result;
        if (f->phase == FLOW_TAIL) {
            f->active_ns = c->reactor->awake_ns;
            flow_idle_touch(c->flows, &ingest_listener(c, f)->idle, f);
        }
    } else if (result == -EINTR || result == -EAGAIN || result == -ECANCELED) {
        in.kind = SESSION_BLOCK_AGAIN;
    } else {
        int error = result < 0 ? -result : socket_end_of_stream(f->fd);
        f->eof = error == 0;
        in.kind = error == 0 ? SESSION_STREAM_ENDED : SESSION_STREAM_FAILED;
        if (error == 0)
            in.bytes = f->received_bytes;
        else
            in.error = error;
    }
    ingest_on(c, f, &in);
}

static void ingest_payload_over(struct connections *c, struct flow *f) {
    struct session_input in = {.kind = SESSION_LIMIT_CAME, .bytes = f->received_bytes};
    if (f->stop)
        in = (struct session_input){.kind = SESSION_STOPPED, .reason = f->reason};
    else if (f->error != 0)
        in = (struct session_input){.kind = SESSION_STREAM_FAILED, .error = f->error};
    else if (f->eof)
        in.kind = SESSION_STREAM_ENDED;
    else
        assert(f->received_bytes == f->limit_bytes);
    ingest_on(c, f, &in);
}

static bool ingest_stop(struct connections *c, struct flow *f) {
    if (f->phase != FLOW_PENDING)
        return false;
    struct session_input in = {.kind = SESSION_STOPPED, .reason = f->reason};
    ingest_on(c, f, &in);
    return true;
}

/* --- Responses ------------------------------------------------------------------- */

/* The flow begins, or is resumed. */
static void ingest_admit(struct connections *c, struct flow *f, const struct admission_response *a,
                         struct session_act act) {
    const struct session *s = f->session;
    memcpy(f->stream.id, a->flow, sizeof f->stream.id);
    f->base_bytes = f->received_bytes = f->stream.stored_bytes = f->stream.durable_bytes =
        a->base_bytes;
    /* Without checksums the records say 0, which readers take for unknown. */
    f->stream.crc = c->settings.checksum ? a->crc : 0;
    f->checksummed = c->settings.checksum && (a->flags & RESPONSE_HAS_CRC) != 0;
    f->limit_bytes = act.limit_bytes;
    f->opening.stream_offset = a->base_bytes;
    f->opening.name = s->pages->name;
    f->opening.name_bytes = s->name_bytes;
    f->opening.labels = s->pages->labels;
    f->opening.labels_bytes = s->labels_bytes;
    f->active_ns = c->reactor->awake_ns;
    session_pool_clear_pages(f->session, SESSION_BLOCK_BYTES); /* the hello has been read */
    flow_idle_touch(c->flows, &ingest_listener(c, f)->idle, f);
    STAT_ADD(c->reactor, flows_resumed, a->base_bytes > 0);
    flow_event(c, f, (struct event_detail){.kind = EVENT_FLOW_OPENED, .base_bytes = a->base_bytes});
    ingest_say(c, f);
    if (f->received_bytes == f->limit_bytes)
        ingest_payload_over(c, f); /* there is none */
    else
        ingest_do(c, f, act);
}

static void ingest_on_response(struct connections *c, struct flow *f,
                               const struct admission_response *a) {
    struct session_input in = {.kind = SESSION_RESPONSE, .answer = a};
    if (a->kind == RESPONSE_ADMIT &&
        (storage_error(c->storage) || storage_is_exhausted(c->storage))) {
        in.kind = SESSION_STOPPED;
        in.reason = storage_error(c->storage) ? CLOSE_REASON_NONE : CLOSE_REASON_STORE_FULL;
    }
    struct session_act act = session_on(f->session, &in);
    if (act.kind == SESSION_START)
        ingest_admit(c, f, a, act);
    else
        ingest_do(c, f, act);
}

void ingest_take_responses(struct connections *c) {
    struct admission_response a;
    while (admission_take_response(&c->admission, &a)) {
        assert(a.flow_index < c->flows->used_upto);
        struct flow *f = &c->flows->flows[a.flow_index];
        bool late = f->session == NULL || f->session->serial != a.serial;
        if (!late && f->phase == FLOW_PENDING) /* else it has ended, as a note reports */
            ingest_on_response(c, f, &a);
    }
}

void ingest_replace(struct connections *c, uint32_t flow_index, uint64_t serial) {
    if (flow_index >= c->flows->used_upto)
        return;
    struct flow *f = &c->flows->flows[flow_index];
    if (f->session != NULL && f->session->serial == serial)
        connection_interrupt(c, f, CLOSE_REASON_REPLACED, false);
}

/* --- Once a turn ------------------------------------------------------------------ */

static uint64_t ingest_end_silent_hellos(struct connections *c, struct listener *l) {
    const struct session_input late = {.kind = SESSION_TIMED_OUT};
    while (l->greeting.head != FLOW_NONE) {
        struct flow *f = &c->flows->flows[l->greeting.head];
        uint64_t due_ns = f->active_ns + l->hello_timeout_ns;
        if (due_ns > c->reactor->awake_ns)
            return due_ns + c->reactor->paused_ns;
        ingest_on(c, f, &late);
    }
    return TIME_NEVER;
}

/* All that have something to report, together: none is sent to more often than once
 * in ack_interval_s, whenever its bytes became durable. */
static uint64_t ingest_report_durable(struct connections *c, struct listener *l) {
    if (l->acks_pending.count == 0)
        return TIME_NEVER;
    if (l->acks_due_ns > c->reactor->now_ns)
        return l->acks_due_ns;
    l->acks_due_ns = c->reactor->now_ns + l->ack_interval_ns;
    for (uint32_t left = l->acks_pending.count; left > 0; left--) {
        struct flow *f = &c->flows->flows[l->acks_pending.head];
        flow_ack_remove(c->flows, &l->acks_pending, f);
        if (!f->ended)
            ingest_say(c, f);
    }
    return TIME_NEVER;
}

static uint64_t ingest_end_unread(struct connections *c) {
    struct flow *f;
    while ((f = flow_first(c->flows, QUEUE_ANSWER)) != NULL) {
        if (f->since_ns + LAST_LINE_NS > c->reactor->now_ns)
            return f->since_ns + LAST_LINE_NS;
        flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
        shutdown(f->fd, SHUT_RDWR); /* the send comes back with an error */
    }
    return TIME_NEVER;
}

uint64_t ingest_turn(struct connections *c) {
    ingest_send_backlog(c, &c->admission_backlog);
    ingest_send_backlog(c, &c->hello_backlog);
    uint64_t next_ns = ingest_end_unread(c);
    for (uint32_t i = 0; i < c->listener_count; i++) {
        next_ns = time_min(next_ns, ingest_end_silent_hellos(c, &c->listeners[i]));
        next_ns = time_min(next_ns, ingest_report_durable(c, &c->listeners[i]));
    }
    return next_ns;
}

/* --- The row of the table ----------------------------------------------------------- */

static bool ingest_sender_crc(const struct flow *f, uint32_t *out) {
    *out = f->session->sender_crc;
    return f->session->has_sender_crc;
}

static void ingest_report_refused(struct connections *c, struct flow *f) {
    const struct session *s = f->session;
    if (session_is_admitted(s))
        flow_event_end(c, f, EVENT_FLOW_REFUSED);
    else if (s->error != SESSION_ERROR_REFUSED) /* else Python reports it */
        flow_event(
            c, f,
            (struct event_detail){.kind = EVENT_HELLO_FAILED, .hello = {s->error, f->reason}});
}

const struct protocol protocol_ingest = {
    .name = "ingest",
    .number = PROTOCOL_INGEST,
    .begin = ingest_begin,
    .payload_over = ingest_payload_over,
    .block_received = ingest_block_received,
    .stop = ingest_stop,
    .advanced = ingest_advanced,
    .sender_crc = ingest_sender_crc,
    .report_end = ingest_report_end,
    .report_refused = ingest_report_refused,
    .send_last = ingest_send_last,
    .line_sent = ingest_line_sent,
    .release = ingest_release,
    .format_denial = line_denial,
};

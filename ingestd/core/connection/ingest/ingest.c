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
#include "connection/ingest/requests.h"
#include "connection/connections.h"

/* A last line that finds no room in the socket for so long is dropped. */
#define LAST_LINE_NS 10000000000ull

static struct listener *ingest_listener(struct connections *c, const struct connection *conn) {
    return &c->listeners[conn->listener];
}

static bool ingest_release(struct connections *c, struct connection *conn) {
    struct listener *l = ingest_listener(c, conn);
    if (conn->session == NULL)
        return true; /* denied: its peer has too many, so that no session has begun */
    if (session_owes_report(conn->session))
        return false;
    connection_ack_remove(c->table, &l->acks_pending, conn);
    assert(c->session_count > 0);
    c->session_count--;
    session_pool_put(&l->sessions, conn->session);
    conn->session = NULL;
    conn->block = NULL;
    return true;
}

/* --- Lines to the sender -------------------------------------------------------- */

static void ingest_send(struct connections *c, struct connection *conn) {
    struct outbox *o = &conn->session->outbox;
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_LINE, conn->index);
    /* Only the last line may wait for a sender that does not read. */
    int flags = o->closing ? MSG_WAITALL : MSG_DONTWAIT;
    outbox_send(o);
    io_uring_prep_send(sqe, conn->fd, o->line + o->line_sent,
                       (size_t)(o->line_bytes - o->line_sent), MSG_NOSIGNAL | flags);
    conn->ops_in_flight++;
}

/* The last line is one that Python has worded, unless the store has failed meanwhile. */
static void ingest_put_last(struct connections *c, struct connection *conn) {
    struct session *s = conn->session;
    if (s->error == SESSION_ERROR_REFUSED && storage_error(c->storage) == 0) {
        outbox_put(&s->outbox, s->pages->text, s->text_bytes);
        return;
    }
    size_t bytes = line_last(conn, storage_error(c->storage), conn->line, sizeof conn->line);
    outbox_put(&s->outbox, conn->line, (uint16_t)bytes);
}

/* Sends what is to be sent next, if nothing is under way. */
static void ingest_send_next(struct connections *c, struct connection *conn) {
    struct outbox *o = &conn->session->outbox;
    size_t bytes = 0;
    if (conn->phase == CONNECTION_GONE)
        return;
    switch (outbox_next(o, conn->stream.durable_bytes)) {
    case OUTBOX_NOTHING:
        return;
    case OUTBOX_REST:
        break;
    case OUTBOX_ACCEPTED:
        bytes = line_accepted(conn, ingest_listener(c, conn)->ack_interval_ns, conn->line,
                              sizeof conn->line);
        outbox_put(o, conn->line, (uint16_t)bytes);
        break;
    case OUTBOX_DURABLE:
        bytes = line_durable(conn->stream.durable_bytes, conn->line, sizeof conn->line);
        outbox_put(o, conn->line, (uint16_t)bytes);
        STAT_ADD(c->reactor, durable_lines, 1);
        break;
    case OUTBOX_LAST:
        ingest_put_last(c, conn);
        break;
    }
    ingest_send(c, conn);
}

static void ingest_on_move(struct connections *c, struct connection *conn);

static void ingest_line_sent(struct connections *c, struct connection *conn, int result) {
    struct outbox *o = &conn->session->outbox;
    switch (outbox_sent(o, result)) {
    case OUTBOX_WAIT:
        if (conn->session->moves && conn->phase == CONNECTION_PENDING)
            ingest_on_move(c, conn);
        break;
    case OUTBOX_NEXT:
        ingest_send_next(c, conn);
        break;
    case OUTBOX_LATER:
        if (!conn->ended)
            connection_ack_add(c->table, &ingest_listener(c, conn)->acks_pending, conn);
        break;
    case OUTBOX_OVER:
        connection_last_line_sent(c, conn, outbox_failed(o) ? -EPIPE : 0);
        break;
    }
}

static void ingest_send_last(struct connections *c, struct connection *conn) {
    struct outbox *o = &conn->session->outbox;
    connection_set_phase(conn, CONNECTION_LAST_LINE);
    connection_wait(c->table, conn, QUEUE_LAST_LINE, c->reactor->now_ns);
    outbox_close(o);
    if (outbox_failed(o))
        connection_last_line_sent(c, conn, -EPIPE);
    else
        ingest_send_next(c, conn);
}

static void ingest_advanced(struct connections *c, struct connection *conn) {
    if (!conn->ended)
        connection_ack_add(c->table, &ingest_listener(c, conn)->acks_pending, conn);
}

static void ingest_report_end(struct connections *c, struct connection *conn) {
    if (session_owes_report(conn->session))
        requests_put(c, conn, NOTE_ENDED);
}

/* --- What sessions say ------------------------------------------------------------ */

/* The list that is linked by `idle` has the connection no longer. */
static void ingest_leave_lists(struct connections *c, struct connection *conn) {
    struct listener *l = ingest_listener(c, conn);
    if (conn->phase == CONNECTION_HELLO)
        connection_idle_remove(c->table, &l->greeting, conn);
    else if (conn->phase == CONNECTION_PENDING)
        requests_withdraw(c, conn);
    else
        connection_idle_remove(c->table, &l->idle, conn);
}

static void ingest_receive_block(struct connections *c, struct connection *conn) {
    if (conn->session->step == SESSION_TAIL) {
        connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
        connection_set_phase(conn, CONNECTION_TAIL);
    }
    c->engine->receive_block(c->receiver, conn);
}

/* Its descriptor goes with the note of its end; until there is room for that, it stays here. */
static void ingest_move(struct connections *c, struct connection *conn) {
    assert(conn->phase == CONNECTION_PENDING && engine_has_nothing(conn));
    assert(conn->session->outbox.step == OUTBOX_READY);
    ingest_leave_lists(c, conn);
    conn->ended = true;
    conn->state = FLOW_STATE_INTERRUPTED;
    connection_set_phase(conn, CONNECTION_GONE);
    STAT_ADD(c->reactor, flows_handed_away, 1);
    ingest_report_end(c, conn);
    connection_try_free(c, conn);
}

static void ingest_do(struct connections *c, struct connection *conn, struct session_act act) {
    conn->received_bytes -= act.held_bytes;
    switch (act.kind) {
    case SESSION_DO_NOTHING:
        break;
    case SESSION_RECEIVE_BLOCK:
        ingest_receive_block(c, conn);
        break;
    case SESSION_START:
        c->engine->start(c->receiver, conn);
        break;
    case SESSION_REQUEST:
        ingest_leave_lists(c, conn);
        connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
        connection_set_phase(conn, CONNECTION_PENDING);
        requests_put(c, conn, act.request);
        break;
    case SESSION_STOP:
        connection_idle_remove(c->table, &ingest_listener(c, conn)->greeting, conn);
        connection_interrupt(c, conn, act.stop_reason, true);
        break;
    case SESSION_END:
        ingest_leave_lists(c, conn);
        connection_end(c, conn, act.end.state, act.end.reason, act.end.error);
        break;
    case SESSION_MOVE:
        ingest_move(c, conn);
        break;
    }
}

static void ingest_on(struct connections *c, struct connection *conn,
                      const struct session_input *in) {
    ingest_do(c, conn, session_on(conn->session, in));
}

static void ingest_greet(struct connections *c, struct connection *conn) {
    struct listener *l = ingest_listener(c, conn);
    struct session *s = conn->session;
    connection_set_phase(conn, CONNECTION_HELLO);
    size_t have = 0;
    while (have < sizeof s->challenge) {
        ssize_t n = getrandom(s->challenge + have, sizeof s->challenge - have, 0);
        have += n > 0 ? (size_t)n : 0;
    }
    connection_idle_touch(c->table, &l->greeting, conn);
    size_t bytes = line_greeting(l->authenticates, s->challenge, conn->line, sizeof conn->line);
    outbox_put(&s->outbox, conn->line, (uint16_t)bytes);
    ingest_send(c, conn);
}

static void ingest_begin(struct connections *c, struct connection *conn) {
    struct session *s = session_pool_take(&ingest_listener(c, conn)->sessions);
    c->session_count++;
    conn->session = s;
    conn->block = &s->block;
    s->serial = ++c->session_serial;
    if (conn->move_id != 0) { /* another worker has greeted it */
        ingest_do(c, conn, session_begin_moved(s));
        return;
    }
    ingest_greet(c, conn);
    ingest_do(c, conn, session_begin(s));
}

static void ingest_block_received(struct connections *c, struct connection *conn, int result) {
    struct session_input in = {.kind = SESSION_BLOCK_RECEIVED};
    assert(engine_receives_block(conn));
    if (conn->stop) {
        in.kind = SESSION_STOPPED;
        in.reason = conn->reason;
    } else if (result > 0) {
        in.bytes = (uint32_t)result;
        if (conn->phase == CONNECTION_TAIL) {
            conn->active_ns = c->reactor->awake_ns;
            connection_idle_touch(c->table, &ingest_listener(c, conn)->idle, conn);
        }
    } else if (result == -EINTR || result == -EAGAIN || result == -ECANCELED) {
        in.kind = SESSION_BLOCK_AGAIN;
    } else {
        int error = result < 0 ? -result : socket_end_of_stream(conn->fd);
        conn->eof = error == 0;
        in.kind = error == 0 ? SESSION_STREAM_ENDED : SESSION_STREAM_FAILED;
        if (error == 0)
            in.bytes = conn->received_bytes;
        else
            in.error = error;
    }
    ingest_on(c, conn, &in);
}

static void ingest_payload_over(struct connections *c, struct connection *conn) {
    struct session_input in = {.kind = SESSION_LIMIT_REACHED, .bytes = conn->received_bytes};
    if (conn->stop)
        in = (struct session_input){.kind = SESSION_STOPPED, .reason = conn->reason};
    else if (conn->error != 0)
        in = (struct session_input){.kind = SESSION_STREAM_FAILED, .error = conn->error};
    else if (conn->eof)
        in.kind = SESSION_STREAM_ENDED;
    else
        assert(conn->received_bytes == conn->limit_bytes);
    ingest_on(c, conn, &in);
}

static bool ingest_stop(struct connections *c, struct connection *conn) {
    if (conn->phase != CONNECTION_PENDING)
        return false;
    struct session_input in = {.kind = SESSION_STOPPED, .reason = conn->reason};
    ingest_on(c, conn, &in);
    return true;
}

/* --- Responses ------------------------------------------------------------------- */

/* The flow begins, or is resumed. */
static void ingest_admit(struct connections *c, struct connection *conn,
                         const struct admission_response *a, struct session_act act) {
    const struct session *s = conn->session;
    memcpy(conn->stream.id, a->flow, sizeof conn->stream.id);
    conn->base_bytes = conn->received_bytes = conn->stream.stored_bytes =
        conn->stream.durable_bytes = a->base_bytes;
    /* Without checksums the records say 0, which readers take for unknown. */
    conn->stream.crc = c->settings.checksum ? a->crc : 0;
    conn->checksummed = c->settings.checksum && (a->flags & RESPONSE_HAS_CRC) != 0;
    conn->limit_bytes = act.limit_bytes;
    conn->opening.stream_offset = a->base_bytes;
    conn->opening.name = s->pages->name;
    conn->opening.name_bytes = s->name_bytes;
    conn->opening.labels = s->pages->labels;
    conn->opening.labels_bytes = s->labels_bytes;
    conn->active_ns = c->reactor->awake_ns;
    session_pool_clear_pages(conn->session, SESSION_BLOCK_BYTES); /* the hello has been read */
    connection_idle_touch(c->table, &ingest_listener(c, conn)->idle, conn);
    STAT_ADD(c->reactor, flows_resumed, a->base_bytes > 0);
    connection_event(c, conn,
                     (struct event_detail){.kind = EVENT_FLOW_OPENED, .base_bytes = a->base_bytes});
    ingest_send_next(c, conn);
    if (conn->received_bytes == conn->limit_bytes)
        ingest_payload_over(c, conn); /* there is none */
    else
        ingest_do(c, conn, act);
}

/* Nothing of ours is to be under way when its descriptor is given away. */
static void ingest_on_move(struct connections *c, struct connection *conn) {
    struct session *s = conn->session;
    const struct admission_response move = {.kind = RESPONSE_MOVE, .serial = s->serial};
    struct session_input in = {.kind = SESSION_RESPONSE, .response = &move};
    s->moves = s->outbox.step == OUTBOX_SENDING || s->outbox.step == OUTBOX_CUT;
    if (s->moves)
        return;
    if (outbox_failed(&s->outbox))
        in = (struct session_input){.kind = SESSION_STOPPED, .reason = CLOSE_REASON_PEER};
    ingest_on(c, conn, &in);
}

static void ingest_on_response(struct connections *c, struct connection *conn,
                               const struct admission_response *a) {
    if (a->kind == RESPONSE_MOVE) {
        ingest_on_move(c, conn);
        return;
    }
    struct session_input in = {.kind = SESSION_RESPONSE, .response = a};
    if (a->kind == RESPONSE_ADMIT &&
        (storage_error(c->storage) || storage_is_exhausted(c->storage))) {
        in.kind = SESSION_STOPPED;
        in.reason = storage_error(c->storage) ? CLOSE_REASON_NONE : CLOSE_REASON_STORE_FULL;
    }
    struct session_act act = session_on(conn->session, &in);
    if (act.kind == SESSION_START)
        ingest_admit(c, conn, a, act);
    else
        ingest_do(c, conn, act);
}

void ingest_take_responses(struct connections *c) {
    struct admission_response a;
    while (admission_take_response(&c->admission, &a)) {
        assert(a.connection_index < c->table->used_upto);
        struct connection *conn = &c->table->connections[a.connection_index];
        bool late = conn->session == NULL || conn->session->serial != a.serial;
        if (!late && conn->phase == CONNECTION_PENDING) /* else it has ended, as a note reports */
            ingest_on_response(c, conn, &a);
    }
}

void ingest_replace(struct connections *c, uint32_t connection_index, uint64_t serial) {
    if (connection_index >= c->table->used_upto)
        return;
    struct connection *conn = &c->table->connections[connection_index];
    if (conn->session != NULL && conn->session->serial == serial)
        connection_interrupt(c, conn, CLOSE_REASON_REPLACED, false);
}

/* --- Once a turn ------------------------------------------------------------------ */

static uint64_t ingest_end_silent_hellos(struct connections *c, struct listener *l) {
    const struct session_input late = {.kind = SESSION_TIMED_OUT};
    while (l->greeting.head != CONNECTION_NONE) {
        struct connection *conn = &c->table->connections[l->greeting.head];
        uint64_t due_ns = conn->active_ns + l->hello_timeout_ns;
        if (due_ns > c->reactor->awake_ns)
            return due_ns + c->reactor->paused_ns;
        ingest_on(c, conn, &late);
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
        struct connection *conn = &c->table->connections[l->acks_pending.head];
        connection_ack_remove(c->table, &l->acks_pending, conn);
        if (!conn->ended)
            ingest_send_next(c, conn);
    }
    return TIME_NEVER;
}

static uint64_t ingest_end_unread(struct connections *c) {
    struct connection *conn;
    while ((conn = connection_first(c->table, QUEUE_LAST_LINE)) != NULL) {
        if (conn->since_ns + LAST_LINE_NS > c->reactor->now_ns)
            return conn->since_ns + LAST_LINE_NS;
        connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
        shutdown(conn->fd, SHUT_RDWR); /* the send comes back with an error */
    }
    return TIME_NEVER;
}

uint64_t ingest_turn(struct connections *c) {
    requests_turn(c);
    uint64_t next_ns = ingest_end_unread(c);
    for (uint32_t i = 0; i < c->listener_count; i++) {
        next_ns = time_min(next_ns, ingest_end_silent_hellos(c, &c->listeners[i]));
        next_ns = time_min(next_ns, ingest_report_durable(c, &c->listeners[i]));
    }
    return next_ns;
}

/* --- The row of the table ----------------------------------------------------------- */

static bool ingest_sender_crc(const struct connection *conn, uint32_t *out) {
    *out = conn->session->sender_crc;
    return conn->session->has_sender_crc;
}

static void ingest_report_refused(struct connections *c, struct connection *conn) {
    const struct session *s = conn->session;
    if (session_is_admitted(s))
        connection_event_end(c, conn, EVENT_FLOW_REFUSED);
    else if (s->error != SESSION_ERROR_REFUSED) /* else Python reports it */
        connection_event(
            c, conn,
            (struct event_detail){.kind = EVENT_HELLO_FAILED, .hello = {s->error, conn->reason}});
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

/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps of a session: session.h.
 */
#include "connection/ingest/session.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "connection/ingest/answer.h"
#include "base/socket.h"
#include "connection/event.h"
#include "worker.h"

/* A last line that finds no room in the socket for so long is given up. */
#define LAST_LINE_NS 10000000000ull

static struct listener *listener_of(struct worker *w, const struct flow *f) {
    return &w->listeners[f->listener];
}

bool session_give(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    struct session_pool *p = &listener_of(w, f)->sessions;
    if (s->asked && !s->told)
        return false;
    flow_news_remove(&w->flows, &listener_of(w, f)->news, f);
    session_give_pages(s, SESSION_PAGES_BYTES);
    s->in_use = false;
    s->next_free = p->free_head;
    p->free_head = s->index;
    f->session = NULL;
    return true;
}

/* --- Lines to the sender -------------------------------------------------------- */

static void send_rest(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_LINE, f->index);
    /* Only the last line may wait for a sender that does not read. */
    int flags = f->phase == FLOW_ANSWERING ? MSG_WAITALL : MSG_DONTWAIT;
    io_uring_prep_send(sqe, f->fd, s->saying + s->line_sent, (size_t)(s->line_bytes - s->line_sent),
                       MSG_NOSIGNAL | flags);
    f->ops_in_flight++;
    s->sending = true;
}

/* Whether the last line is one that Python has worded. */
static bool is_worded(const struct worker *w, const struct session *s) {
    return s->error == SESSION_REFUSED && w->writer.failed == 0;
}

static bool next_line(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    size_t bytes = 0;
    s->saying = f->line;
    if (s->accepted_due) {
        bytes = answer_accepted(f, listener_of(w, f)->ack_interval_ns, f->line, sizeof f->line);
        s->accepted_due = false;
    } else if (f->phase == FLOW_ANSWERING && !s->last_line && is_worded(w, s)) {
        s->saying = s->pages->text;
        bytes = s->text_bytes;
        s->last_line = true;
    } else if (f->phase == FLOW_ANSWERING && !s->last_line) {
        bytes = answer_last(f, w->writer.failed, f->line, sizeof f->line);
        s->last_line = true;
    } else if (s->admitted && !f->ended && f->durable_bytes > s->told_bytes) {
        bytes = answer_durable(f->durable_bytes, f->line, sizeof f->line);
        s->told_bytes = f->durable_bytes;
        STAT_ADD(&w->reactor, durable_lines, 1);
    }
    s->line_bytes = (uint16_t)bytes;
    s->line_sent = 0;
    return bytes > 0;
}

/* Sends what is to be sent next, if nothing is under way. */
static void say(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    if (s->sending || s->mute || f->phase == FLOW_GONE)
        return;
    if (s->line_sent < s->line_bytes || next_line(w, f))
        send_rest(w, f);
}

void session_line_sent(struct worker *w, struct flow *f, int result) {
    struct session *s = f->session;
    s->sending = false;
    bool full = result == -EAGAIN || result == -EINTR;
    if (result > 0)
        s->line_sent = (uint16_t)(s->line_sent + result);
    else if (!full)
        s->mute = true; /* what ails the connection its receive will tell */
    bool whole = s->line_sent == s->line_bytes;
    if (f->phase == FLOW_ANSWERING) {
        if (s->mute || (whole && s->last_line))
            intake_answered(w, f, s->mute ? -EPIPE : 0);
        else
            say(w, f);
    } else if (!whole && !f->ended) {
        flow_news_add(&w->flows, &listener_of(w, f)->news, f); /* the rest a little later */
    } else if (s->accepted_due) {
        say(w, f);
    }
}

void session_send_last(struct worker *w, struct flow *f) {
    f->phase = FLOW_ANSWERING;
    flow_wait(&w->flows, f, QUEUE_ANSWER, w->reactor.now_ns);
    if (f->session->mute)
        intake_answered(w, f, -EPIPE);
    else
        say(w, f);
}

void session_advanced(struct worker *w, struct flow *f) {
    if (!f->ended)
        flow_news_add(&w->flows, &listener_of(w, f)->news, f);
}

/* --- Questions to Python -------------------------------------------------------- */

static bool session_post(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    struct question q = {
        .kind = s->question,
        .flow_index = f->index,
        .serial = s->serial,
        .listener_index = (int32_t)listener_of(w, f)->index,
        .bytes_count = s->question == NOTE_ENDED ? f->durable_bytes : f->stored_bytes,
        .crc = f->crc,
    };
    bool whole = f->durable_bytes == f->stored_bytes;
    q.flags = (f->checksummed ? QUESTION_HAS_CRC : 0) | (whole ? QUESTION_WHOLE : 0) |
              (f->opened ? QUESTION_STORED : 0) |
              (f->ended && f->state == FLOW_STATE_SEALED ? QUESTION_SEALED : 0);
    memcpy(q.flow, f->id, sizeof q.flow);
    flow_format_peer(f, q.peer, sizeof q.peer);
    memcpy(q.challenge, s->challenge, sizeof q.challenge);
    memcpy(q.block, s->pages->block, sizeof q.block);
    if (!admission_ask(&w->admission, &q))
        return false;
    s->asked = true;
    s->told = s->question == NOTE_ENDED;
    s->question = 0;
    w->reactor.mailbox.event_pending = true; /* its reader takes questions too */
    return true;
}

static struct flow_list *session_unasked(struct worker *w, uint8_t question) {
    return question == QUESTION_HELLO ? &w->unasked_hellos : &w->unasked;
}

/* The flow is in no list linked by `idle` then, so that it can wait in this one. */
static void ask(struct worker *w, struct flow *f, enum question_kind kind) {
    struct flow_list *before = session_unasked(w, (uint8_t)kind);
    f->session->question = (uint8_t)kind;
    if (before->count > 0 || !session_post(w, f))
        flow_idle_touch(&w->flows, before, f);
}

static void session_ask_waiting(struct worker *w, struct flow_list *waiting) {
    while (waiting->head != FLOW_NONE) {
        struct flow *f = &w->flows.flows[waiting->head];
        if (!session_post(w, f))
            return;
        flow_idle_remove(&w->flows, waiting, f);
        if (f->phase == FLOW_GONE)
            intake_gone(w, f);
    }
}

void session_closed(struct worker *w, struct flow *f) {
    if (f->session->asked)
        ask(w, f, NOTE_ENDED);
}

/* --- Hello ---------------------------------------------------------------------- */

static void session_end(struct worker *w, struct flow *f, uint8_t reason, int error) {
    struct listener *l = listener_of(w, f);
    if (f->phase == FLOW_HELLO)
        flow_idle_remove(&w->flows, &l->greeting, f);
    if (f->phase == FLOW_ASKING)
        flow_idle_remove(&w->flows, session_unasked(w, f->session->question), f);
    f->session->question = 0;
    intake_end(w, f, FLOW_STATE_INTERRUPTED, reason, error);
}

static void end_with(struct worker *w, struct flow *f, enum session_error error, uint8_t reason) {
    f->session->error = (uint8_t)error;
    session_end(w, f, reason, 0);
}

void session_begin(struct worker *w, struct flow *f) {
    struct listener *l = listener_of(w, f);
    struct session *s = session_pool_take(&l->sessions);
    f->session = s;
    f->phase = FLOW_HELLO;
    s->serial = ++w->session_serial;
    size_t have = 0;
    while (have < sizeof s->challenge) {
        ssize_t n = getrandom(s->challenge + have, sizeof s->challenge - have, 0);
        have += n > 0 ? (size_t)n : 0;
    }
    flow_idle_touch(&w->flows, &l->greeting, f);
    s->saying = f->line;
    s->line_bytes =
        (uint16_t)answer_greeting(l->authenticates, s->challenge, f->line, sizeof f->line);
    send_rest(w, f);
    w->engine->receive_block(w, f);
}

static void hello_received(struct worker *w, struct flow *f, int result) {
    struct session *s = f->session;
    if (f->stop) {
        session_end(w, f, f->reason, 0);
    } else if (result == 0) {
        session_end(w, f, CLOSE_REASON_PEER, socket_end_of_stream(f->fd));
    } else if (result < 0 && result != -EINTR && result != -EAGAIN) {
        session_end(w, f, engine_close_reason(-result), -result);
    } else {
        s->filled += result > 0 ? (uint32_t)result : 0;
        if (s->filled < SESSION_BLOCK_BYTES) {
            w->engine->receive_block(w, f);
            return;
        }
        flow_idle_remove(&w->flows, &listener_of(w, f)->greeting, f);
        f->phase = FLOW_ASKING;
        ask(w, f, QUESTION_HELLO);
    }
}

/* --- Python's answers ------------------------------------------------------------ */

static void admit(struct worker *w, struct flow *f, const struct answer *a) {
    struct session *s = f->session;
    if (w->writer.failed || w->writer.exhausted) {
        session_end(w, f, w->writer.failed ? CLOSE_REASON_NONE : CLOSE_REASON_STORE_FULL, 0);
        return;
    }
    memcpy(f->id, a->flow, sizeof f->id);
    f->base_bytes = f->received_bytes = f->stored_bytes = f->durable_bytes = a->base_bytes;
    /* Without checksums the records say 0, which readers take for unknown. */
    f->crc = w->settings.checksum ? a->crc : 0;
    f->checksummed = w->settings.checksum && (a->flags & ANSWER_HAS_CRC) != 0;
    f->limit_bytes = a->limit_bytes;
    f->active_ns = w->reactor.awake_ns;
    memcpy(s->pages->name, a->name, a->name_bytes);
    memcpy(s->pages->labels, a->labels, a->labels_bytes);
    s->name_bytes = a->name_bytes;
    s->labels_bytes = a->labels_bytes;
    s->stated = (a->flags & ANSWER_STATED) != 0;
    s->trailer = (a->flags & ANSWER_TRAILER) != 0;
    s->holding = s->trailer && !s->stated;
    if (s->holding && f->limit_bytes != UINT64_MAX)
        f->limit_bytes += SESSION_BLOCK_BYTES;
    s->told_bytes = a->base_bytes;
    s->filled = 0;
    session_give_pages(s, SESSION_BLOCK_BYTES); /* the hello has been read */
    s->admitted = s->accepted_due = true;
    flow_idle_touch(&w->flows, &listener_of(w, f)->idle, f);
    STAT_ADD(&w->reactor, flows_resumed, a->base_bytes > 0);
    flow_event(w, EVENT_FLOW_OPENED, f, 0, 0, a->base_bytes);
    say(w, f);
    if (f->received_bytes == f->limit_bytes)
        session_goes_on(w, f);
    else
        w->engine->start(w, f);
}

static void seal(struct worker *w, struct flow *f, const struct answer *a) {
    f->session->has_sender_crc = (a->flags & ANSWER_HAS_CRC) != 0;
    f->session->sender_crc = a->crc;
    intake_end(w, f, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

static void refuse(struct worker *w, struct flow *f, const struct answer *a) {
    struct session *s = f->session;
    assert(a->text_bytes <= sizeof s->pages->text);
    memcpy(s->pages->text, a->text, a->text_bytes);
    s->text_bytes = a->text_bytes;
    end_with(w, f, SESSION_REFUSED, s->admitted ? CLOSE_REASON_CHECKSUM : CLOSE_REASON_NONE);
}

void session_take_answers(struct worker *w) {
    struct answer a;
    while (admission_take_answer(&w->admission, &a)) {
        assert(a.flow_index < w->flows.used_upto);
        struct flow *f = &w->flows.flows[a.flow_index];
        bool late = f->session == NULL || f->session->serial != a.serial;
        if (late || f->phase != FLOW_ASKING)
            continue; /* it has ended meanwhile, and Python is told so */
        assert((a.kind == ANSWER_SEAL) <= f->session->admitted);
        if (a.kind == ANSWER_ADMIT)
            admit(w, f, &a);
        else if (a.kind == ANSWER_SEAL)
            seal(w, f, &a);
        else
            refuse(w, f, &a);
    }
}

void session_replace(struct worker *w, uint32_t flow_index, uint64_t serial) {
    if (flow_index >= w->flows.used_upto)
        return;
    struct flow *f = &w->flows.flows[flow_index];
    if (f->session != NULL && f->session->serial == serial)
        intake_interrupt(w, f, CLOSE_REASON_REPLACED, false);
}

/* --- Behind the payload ----------------------------------------------------------- */

uint32_t session_hold(struct session *s, const uint8_t *slot, uint32_t bytes) {
    uint32_t held = bytes < SESSION_BLOCK_BYTES ? bytes : SESSION_BLOCK_BYTES;
    memcpy(s->pages->block, slot + bytes - held, held);
    s->filled = held;
    return held;
}

/* How much may follow the payload, and one byte more, by which too much is told.
 * Where bytes are held back, the block is in use and that byte has its end alone. */
static uint32_t tail_bytes_max(const struct session *s) {
    return s->stated && s->trailer ? SESSION_BLOCK_BYTES + 1 : 1;
}

static void receive_tail(struct worker *w, struct flow *f) {
    const struct session *s = f->session;
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    f->phase = FLOW_TAIL;
    if (!s->beyond)
        w->engine->receive_block(w, f);
    else if (s->holding || !s->stated)
        session_end(w, f, CLOSE_REASON_LIMIT, 0);
    else
        end_with(w, f, SESSION_TOO_LONG, CLOSE_REASON_LENGTH);
}

void session_take_beyond(struct flow *f, const uint8_t *data, uint32_t bytes) {
    struct session *s = f->session;
    assert(s != NULL && s->admitted && bytes > 0);
    uint32_t room = s->stated && s->trailer ? SESSION_BLOCK_BYTES - s->filled : 0;
    s->beyond = s->beyond || bytes > room;
    if (s->beyond)
        return;
    memcpy(s->pages->block + s->filled, data, bytes);
    s->filled += bytes;
}

struct session_room session_room(struct session *s) {
    if (s->holding)
        return (struct session_room){s->pages->block + SESSION_BLOCK_BYTES, 1};
    uint32_t most = s->admitted ? tail_bytes_max(s) : SESSION_BLOCK_BYTES;
    assert(s->filled < most);
    return (struct session_room){s->pages->block + s->filled, most - s->filled};
}

static void ask_trailer(struct worker *w, struct flow *f) {
    flow_idle_remove(&w->flows, &listener_of(w, f)->idle, f);
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    f->phase = FLOW_ASKING;
    ask(w, f, QUESTION_TRAILER);
}

/* The sender has half-closed. True: it is not sealed now, or not yet. */
static bool judge_end(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    if (s->holding) /* what was held back was received, but is no payload */
        f->received_bytes -= s->filled;
    if (s->stated && f->received_bytes < f->limit_bytes)
        end_with(w, f, SESSION_TOO_SHORT, CLOSE_REASON_LENGTH);
    else if (!s->trailer)
        return false;
    else if (s->filled < SESSION_BLOCK_BYTES)
        end_with(w, f, SESSION_NO_TRAILER, CLOSE_REASON_CHECKSUM);
    else
        ask_trailer(w, f);
    return true;
}

bool session_goes_on(struct worker *w, struct flow *f) {
    if (f->eof)
        return judge_end(w, f);
    assert(f->received_bytes == f->limit_bytes);
    receive_tail(w, f);
    return true;
}

static void tail_received(struct worker *w, struct flow *f, int result) {
    struct session *s = f->session;
    if (f->stop) {
        session_end(w, f, f->reason, 0);
    } else if (result > 0) {
        f->active_ns = w->reactor.awake_ns;
        flow_idle_touch(&w->flows, &listener_of(w, f)->idle, f);
        s->filled += s->holding ? 0 : (uint32_t)result;
        s->beyond = s->holding || s->filled == tail_bytes_max(s);
        receive_tail(w, f);
    } else if (result == -EINTR || result == -EAGAIN || result == -ECANCELED) {
        receive_tail(w, f);
    } else {
        int error = result < 0 ? -result : socket_end_of_stream(f->fd);
        f->eof = error == 0;
        if (error != 0)
            session_end(w, f, engine_close_reason(error), error);
        else if (!judge_end(w, f))
            intake_end(w, f, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    }
}

void session_received(struct worker *w, struct flow *f, int result) {
    assert(engine_receives_block(f));
    if (f->phase == FLOW_HELLO)
        hello_received(w, f, result);
    else
        tail_received(w, f, result);
}

bool session_stop(struct worker *w, struct flow *f) {
    if (f->phase != FLOW_ASKING)
        return false;
    session_end(w, f, f->reason, 0);
    return true;
}

/* --- Once a turn ------------------------------------------------------------------ */

static uint64_t end_silent_hellos(struct worker *w, struct listener *l) {
    while (l->greeting.head != FLOW_NONE) {
        struct flow *f = &w->flows.flows[l->greeting.head];
        uint64_t due_ns = f->active_ns + l->hello_timeout_ns;
        if (due_ns > w->reactor.awake_ns)
            return due_ns + w->reactor.paused_ns;
        flow_idle_remove(&w->flows, &l->greeting, f);
        f->session->error = SESSION_HELLO_TIMEOUT;
        intake_interrupt(w, f, CLOSE_REASON_IDLE, true);
    }
    return TIME_NEVER;
}

/* All that have something to tell, together: none is told more often than once
 * in ack_interval_s, whenever its bytes became durable. */
static uint64_t tell_news(struct worker *w, struct listener *l) {
    if (l->news.count == 0)
        return TIME_NEVER;
    if (l->news_ns > w->reactor.now_ns)
        return l->news_ns;
    l->news_ns = w->reactor.now_ns + l->ack_interval_ns;
    for (uint32_t left = l->news.count; left > 0; left--) {
        struct flow *f = &w->flows.flows[l->news.head];
        flow_news_remove(&w->flows, &l->news, f);
        if (!f->ended)
            say(w, f);
    }
    return TIME_NEVER;
}

static uint64_t end_unread(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_ANSWER)) != NULL) {
        if (f->since_ns + LAST_LINE_NS > w->reactor.now_ns)
            return f->since_ns + LAST_LINE_NS;
        flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
        shutdown(f->fd, SHUT_RDWR); /* the send comes back with an error */
    }
    return TIME_NEVER;
}

uint64_t session_turn(struct worker *w) {
    session_ask_waiting(w, &w->unasked);
    session_ask_waiting(w, &w->unasked_hellos);
    uint64_t next_ns = end_unread(w);
    for (uint32_t i = 0; i < w->listener_count; i++) {
        next_ns = time_min(next_ns, end_silent_hellos(w, &w->listeners[i]));
        next_ns = time_min(next_ns, tell_news(w, &w->listeners[i]));
    }
    return next_ns;
}

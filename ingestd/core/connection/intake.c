/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections in, answers out: intake.h.
 */
#include "connection/intake.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection/ingest/answer.h"
#include "base/socket.h"
#include "connection/event.h"
#include "format/flow_id.h"
#include "worker.h"

/* After an accept failed for want of descriptors or memory, others may give some back. */
#define ACCEPT_RETRY_NS 100000000ull
/* How long what a sender still sends is dropped, so that our last line reaches
 * it before a reset could. */
#define LINGER_NS 1000000000ull
#define DISCARD_BYTES (1u << 20)
#define TURNED_AWAY_READS_MAX 4
#define DENIED_TOLD_NS 1000000000ull

static void make_id(struct worker *w, uint8_t id[FLOW_ID_BYTES]) {
    flow_id_make(id, w->settings.store_uuid, reactor_unix_ns(&w->reactor) / 1000000,
                 (uint8_t)w->settings.worker_index, w->flow_id_serial++);
}

static void note_peer(struct flow *f, const struct sockaddr_storage *peer) {
    if (peer->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)peer;
        f->peer_family = 4;
        f->peer_port = ntohs(in->sin_port);
        memcpy(f->peer_address, &in->sin_addr, 4);
    } else if (peer->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)peer;
        bool mapped = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
        f->peer_family = mapped ? 4 : 6;
        f->peer_port = ntohs(in6->sin6_port);
        memcpy(f->peer_address, in6->sin6_addr.s6_addr + (mapped ? 12 : 0), mapped ? 4 : 16);
    }
}

static void arm_accept(struct worker *w, struct listener *l) {
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_ACCEPT, (uint32_t)(l - w->listeners));
    l->peer_bytes = sizeof l->peer;
    io_uring_prep_accept(sqe, l->fd, (struct sockaddr *)&l->peer, &l->peer_bytes, SOCK_CLOEXEC);
    l->accepting = true;
}

static void accept_failed(struct worker *w, struct listener *l, int code) {
    /* A peer that left before it was accepted is no failure of ours. */
    if (code == ECANCELED || code == ECONNABORTED || code == EINTR || code == EAGAIN)
        return;
    l->retry_ns = w->reactor.now_ns + ACCEPT_RETRY_NS;
    STAT_ADD(&w->reactor, accept_errors, 1);
    reactor_event(&w->reactor, EVENT_ACCEPT_FAILED, code, (int)l->index, 0);
}

/* One event a second tells of all: a flood of them hides nothing else. */
static void note_denied(struct worker *w, const struct flow *peer, enum denial why) {
    struct denied *denied = &w->listeners[peer->listener].denied[why];
    denied->count++;
    if (w->reactor.now_ns < denied->told_ns)
        return;
    flow_event(w, EVENT_FLOW_DENIED, peer, (int)why, 0, denied->count);
    denied->count = 0;
    denied->told_ns = w->reactor.now_ns + DENIED_TOLD_NS;
}

static bool is_let_in(struct worker *w, struct listener *l, int fd) {
    struct flow peer = {.listener = (uint8_t)(l - w->listeners)};
    note_peer(&peer, &l->peer);
    bool in = networks_hold(l->allow, l->allow_count, peer.peer_family, peer.peer_address);
    if (in)
        return true;
    close(fd);
    STAT_ADD(&w->reactor, flows_denied, 1);
    note_denied(w, &peer, DENIED_NETWORK);
    return false;
}

/* It is told by what the socket takes at once. What has come of it is dropped before the close,
 * which would answer it by a reset, and might overtake the line. */
static void tell_and_close(const struct listener *l, const struct flow *f) {
    char line[FLOW_LINE_BYTES];
    size_t bytes = l->protocol == PROTOCOL_INGEST ? answer_turned_away(f, line, sizeof line)
                                                  : answer_format(f, 0, line, sizeof line);
    if (send(f->fd, line, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes)
        shutdown(f->fd, SHUT_WR);
    for (int i = 0; i < TURNED_AWAY_READS_MAX; i++)
        if (recv(f->fd, NULL, DISCARD_BYTES, MSG_DONTWAIT | MSG_TRUNC) <= 0)
            break;
    close(f->fd);
}

static struct peer peer_of(const struct flow *f) {
    return peers_name(f->listener, f->peer_family, f->peer_address);
}

/* Of connections that stay with this worker: who is handed away is counted where it goes. One
 * whose peer has gone already, and is thus unknown, soon ends by itself. */
static bool is_one_too_many(struct worker *w, const struct listener *l, struct flow *f) {
    if (l->flows_per_peer_max == 0 || f->peer_family == 0)
        return false;
    struct peer peer = peer_of(f);
    f->counted = peers_add(&w->peers, &peer, l->flows_per_peer_max);
    return !f->counted;
}

static void refuse_one_too_many(struct worker *w, const struct listener *l, struct flow *f) {
    f->state = FLOW_STATE_INTERRUPTED;
    f->reason = CLOSE_REASON_LIMIT;
    f->error = EUSERS;
    memset(f->stream.id, 0, sizeof f->stream.id); /* no flow has begun */
    tell_and_close(l, f);
    STAT_ADD(&w->reactor, flows_over_peer_max, 1);
    note_denied(w, f, DENIED_PEER);
    f->fd = -1;
    f->ended = true;
    flow_set_phase(f, FLOW_GONE);
    intake_gone(w, f);
}

/* What the OPEN record says of a connection; a session adds what its hello says. */
static void note_opening(struct flow *f, const struct listener *l) {
    f->opening = (struct frame_open){
        .started_ns = f->started_ns,
        .peer_port = f->peer_port,
        .peer_family = f->peer_family,
        .protocol = (uint8_t)l->protocol,
        .listener = l->name,
        .listener_bytes = (uint16_t)strlen(l->name),
    };
    memcpy(f->opening.peer_address, f->peer_address, sizeof f->opening.peer_address);
}

static void begin(struct worker *w, struct listener *l, int fd, bool adopted) {
    struct flow *f = flow_take(&w->flows);
    assert(f != NULL); /* an accept is armed only while there is room for its flow */
    f->fd = fd;
    f->listener = (uint8_t)(l - w->listeners);
    f->started_ns = reactor_unix_ns(&w->reactor);
    f->active_ns = w->reactor.awake_ns;
    note_peer(f, &l->peer);
    make_id(w, f->stream.id);
    note_opening(f, l);
    f->checksummed = w->settings.checksum;
    f->adopted = adopted;
    l->flow_count++;
    if (!w->engine->take(w, f))
        return; /* the worker that it belongs to counts it, and greets it */
    if (is_one_too_many(w, l, f)) {
        refuse_one_too_many(w, l, f);
        return;
    }
    STAT_ADD(&w->reactor, flows_opened, 1);
    if (l->protocol == PROTOCOL_INGEST) {
        ingest_begin(w, f);
        if (l->stopped) /* its accept was faster than the stop, or another worker's */
            intake_interrupt(w, f, CLOSE_REASON_SHUTDOWN, true);
        return;
    }
    flow_idle_touch(&w->flows, &l->idle, f);
    w->engine->start(w, f);
    flow_event(w, EVENT_FLOW_OPENED, f, 0, 0, 0);
    if (storage_error(&w->storage))
        intake_interrupt(w, f, CLOSE_REASON_NONE, true);
    else if (storage_is_exhausted(&w->storage))
        intake_interrupt(w, f, CLOSE_REASON_STORE_FULL, true);
    else if (l->stopped)
        intake_interrupt(w, f, CLOSE_REASON_SHUTDOWN, true);
}

void intake_accepted(struct worker *w, uint32_t listener, int result) {
    struct listener *l = &w->listeners[listener];
    assert(l->accepting);
    l->accepting = false;
    if (result < 0) {
        accept_failed(w, l, -result);
        return;
    }
    if (l->allow_count == 0 || is_let_in(w, l, result))
        begin(w, l, result, false);
}

static void ask_peer(int fd, struct sockaddr_storage *peer) {
    socklen_t bytes = sizeof *peer;
    *peer = (struct sockaddr_storage){.ss_family = AF_UNSPEC};
    if (getpeername(fd, (struct sockaddr *)peer, &bytes) != 0)
        peer->ss_family = AF_UNSPEC; /* it has gone: unknown */
}

void intake_adopt(struct worker *w, struct listener *l, int fd) {
    struct sockaddr_storage accepting = l->peer; /* an accept may be under way */
    ask_peer(fd, &l->peer);
    begin(w, l, fd, true);
    l->peer = accepting;
}

void intake_turn_away(struct worker *w, struct listener *l, int fd, uint8_t reason) {
    struct flow f = {.fd = fd,
                     .listener = (uint8_t)(l - w->listeners),
                     .state = FLOW_STATE_INTERRUPTED,
                     .reason = reason};
    struct sockaddr_storage peer;
    ask_peer(fd, &peer);
    note_peer(&f, &peer);
    tell_and_close(l, &f);
    STAT_ADD(&w->reactor, flows_refused, 1);
    flow_event(w, EVENT_FLOW_REFUSED, &f, reason, 0, 0);
}

bool intake_hand_away(struct worker *w, struct flow *f, uint32_t owner) {
    if (f->adopted || !flow_event(w, EVENT_FLOW_ELSEWHERE, f, (int)owner, f->fd, 0))
        return false;
    STAT_ADD(&w->reactor, flows_handed_away, 1);
    f->fd = -1;
    f->ended = true;
    flow_set_phase(f, FLOW_GONE); /* its socket now belongs to the other worker */
    intake_gone(w, f);
    return true;
}

void intake_received(struct worker *w, struct flow *f, uint32_t bytes) {
    f->received_bytes += bytes;
    f->active_ns = w->reactor.awake_ns;
    STAT_ADD(&w->reactor, received_bytes, bytes);
    flow_idle_touch(&w->flows, &w->listeners[f->listener].idle, f);
}

/* Closed on the ring, behind every request that names the descriptor: by then no
 * other connection can have got its number. */
static void hang_up(struct worker *w, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_CLOSE, f->index);
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    io_uring_prep_close(sqe, f->fd);
    f->ops_in_flight++;
    f->fd = -1;
    flow_set_phase(f, FLOW_GONE);
}

static void send_answer(struct worker *w, struct flow *f) {
    f->line_bytes = (uint16_t)answer_format(f, storage_error(&w->storage), f->line, sizeof f->line);
    flow_set_phase(f, FLOW_ANSWERING);
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_SEND, f->index);
    io_uring_prep_send(sqe, f->fd, f->line, f->line_bytes, MSG_NOSIGNAL | MSG_WAITALL);
    f->ops_in_flight++;
}

void intake_closed(struct worker *w, struct flow *f) {
    bool stored = f->stream.opened;
    assert(f->ended && f->phase == FLOW_CLOSING);
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    if (f->session != NULL)
        ingest_closed(w, f);
    if (f->state == FLOW_STATE_SEALED) {
        STAT_ADD(&w->reactor, flows_sealed, 1);
        flow_event(w, EVENT_FLOW_SEALED, f, 0, 0, f->stream.durable_bytes);
    } else if (stored) {
        STAT_ADD(&w->reactor, flows_interrupted, 1);
        flow_event(w, EVENT_FLOW_INTERRUPTED, f, f->reason, f->error, f->stream.durable_bytes);
    } else if (f->session != NULL && !session_is_admitted(f->session)) {
        STAT_ADD(&w->reactor, flows_refused, 1);
        if (f->session->error != SESSION_ERROR_REFUSED) /* else Python tells of it */
            flow_event(w, EVENT_HELLO_FAILED, f, f->session->error, f->reason, 0);
    } else {
        STAT_ADD(&w->reactor, flows_refused, 1);
        flow_event(w, EVENT_FLOW_REFUSED, f, f->reason, f->error, 0);
    }
    if (f->reason == CLOSE_REASON_PEER)
        hang_up(w, f);
    else if (f->session != NULL)
        ingest_send_last(w, f);
    else
        send_answer(w, f);
}

/* Its CLOSE record, behind those who waited for room before it; false: no room now. */
static bool add_close(struct worker *w, struct flow *f) {
    struct frame_close c = {
        .state = f->state,
        .reason = f->reason,
        .flags = f->checksummed ? CLOSE_HAS_CRC32C : 0,
    };
    if (f->session != NULL && f->session->has_sender_crc) {
        c.flags |= CLOSE_HAS_SENDER_CRC32C;
        c.sender_crc32c = f->session->sender_crc;
    }
    return !flow_is_behind(&w->flows, f, QUEUE_BLOCKED) &&
           storage_append_close(&w->storage, &f->stream, &c);
}

/* The one place that seals a flow, and only if all that was received of its payload is
 * with batches. Else bytes were given up, by the engine or with a batch that the
 * full store could not take. */
static void intake_seal(const struct worker *w, struct flow *f) {
    bool is_whole = f->stream.stored_bytes == f->received_bytes;
    assert(f->phase == FLOW_CLOSING && f->stream.stored_bytes <= f->received_bytes);
    f->state = is_whole && !storage_error(&w->storage) ? FLOW_STATE_SEALED : FLOW_STATE_INTERRUPTED;
    if (!is_whole)
        f->reason =
            storage_is_exhausted(&w->storage) ? CLOSE_REASON_STORE_FULL : CLOSE_REASON_RECEIVER;
}

bool intake_retry_close(struct worker *w, struct flow *f) {
    assert(f->phase == FLOW_CLOSING);
    if (f->state == FLOW_STATE_SEALED) /* bytes may have been given up since */
        intake_seal(w, f);
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (nothing || w->storage.state == STORAGE_RESERVE_EXHAUSTED) {
        f->state = FLOW_STATE_INTERRUPTED;
        f->reason = CLOSE_REASON_STORE_FULL;
        intake_closed(w, f);
        return true;
    }
    if (!add_close(w, f))
        return false;
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    return true;
}

void intake_unclosed(struct worker *w, struct flow *f) {
    assert(f->phase == FLOW_CLOSING);
    flow_wait(&w->flows, f, QUEUE_BLOCKED, w->reactor.now_ns);
}

void intake_gone(struct worker *w, struct flow *f) {
    assert(f->phase == FLOW_GONE);
    if (f->ops_in_flight > 0 || f->stream.acks_pending > 0)
        return;
    if (f->session != NULL && !ingest_free(w, f))
        return;
    if (f->counted) {
        struct peer peer = peer_of(f);
        peers_remove(&w->peers, &peer);
    }
    w->listeners[f->listener].flow_count--;
    flow_give(&w->flows, f);
}

static void close_unsealed(struct worker *w, struct flow *f) {
    f->state = FLOW_STATE_INTERRUPTED;
    intake_closed(w, f);
}

void intake_end(struct worker *w, struct flow *f, uint8_t state, uint8_t reason, int error) {
    assert(!f->ended && f->slot_offset == UINT64_MAX);
    f->ended = true;
    f->state = FLOW_STATE_INTERRUPTED;
    f->reason = reason;
    f->error = error;
    flow_set_phase(f, FLOW_CLOSING);
    flow_idle_remove(&w->flows, &w->listeners[f->listener].idle, f);
    if (state == FLOW_STATE_SEALED)
        intake_seal(w, f);
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (storage_error(&w->storage) || nothing) {
        intake_closed(w, f);
    } else if (add_close(w, f)) {
        flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    } else {
        flow_keep_waiting(&w->flows, f, QUEUE_BLOCKED, w->reactor.now_ns);
    }
}

void intake_interrupt(struct worker *w, struct flow *f, uint8_t reason, bool drop) {
    if (f->ended || f->stop)
        return;
    f->stop = true;
    f->drop = drop;
    f->reason = reason;
    if (f->session == NULL || !ingest_stop(w, f))
        w->engine->stop(w, f);
}

void intake_interrupt_all(struct worker *w, uint8_t reason, bool drop) {
    for (uint32_t i = 0; i < w->flows.used_upto; i++) {
        struct flow *f = &w->flows.flows[i];
        if (f->phase == FLOW_FREE)
            continue;
        f->drop = f->drop || drop;
        if (f->phase == FLOW_GONE)
            intake_gone(w, f); /* it may have waited for acknowledgements only */
        else if (f->phase == FLOW_CLOSING && storage_error(&w->storage))
            close_unsealed(w, f);
        else
            intake_interrupt(w, f, reason, drop);
    }
}

void intake_refuse_silent(struct worker *w) {
    for (uint32_t i = 0; i < w->flows.used_upto; i++) {
        struct flow *f = &w->flows.flows[i];
        if (f->phase != FLOW_FREE && f->received_bytes == f->base_bytes)
            intake_interrupt(w, f, CLOSE_REASON_SHUTDOWN, true);
    }
}

static void discard(struct worker *w, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_DISCARD, f->index);
    /* TCP drops what it would have copied when asked with MSG_TRUNC: tcp(7). */
    io_uring_prep_recv(sqe, f->fd, NULL, DISCARD_BYTES, MSG_TRUNC);
    f->ops_in_flight++;
}

void intake_answered(struct worker *w, struct flow *f, int result) {
    bool early = !f->eof;
    if (!early || result < 0) {
        hang_up(w, f);
        return;
    }
    shutdown(f->fd, SHUT_WR);
    flow_set_phase(f, FLOW_LINGERING);
    flow_wait(&w->flows, f, QUEUE_LINGER, w->reactor.now_ns);
    discard(w, f);
}

void intake_complete(struct worker *w, enum uring_tag tag, struct flow *f, int result) {
    if (tag == TAG_SEND)
        intake_answered(w, f, result);
    else if (tag == TAG_DISCARD && f->phase == FLOW_LINGERING && result > 0)
        discard(w, f);
    else if (tag == TAG_DISCARD && f->phase == FLOW_LINGERING)
        hang_up(w, f);
}

static uint64_t end_lingering(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_LINGER)) != NULL) {
        if (f->since_ns + LINGER_NS > w->reactor.now_ns)
            return f->since_ns + LINGER_NS;
        flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
        shutdown(f->fd, SHUT_RDWR); /* the discard comes back with 0 */
    }
    return TIME_NEVER;
}

/* How long the flow's sender has been silent. Not at all where it is we who keep it
 * waiting: what it sent waits in its socket, for memory, or for the device. The kernel
 * knows best, as a receive that waits for a whole slot says nothing before that. */
static uint64_t intake_silence_ns(const struct worker *w, const struct flow *f) {
    if (f->phase == FLOW_STARVED || f->phase == FLOW_BLOCKED || f->starved ||
        f->stream.stored_bytes > f->stream.durable_bytes || socket_pending_bytes(f->fd) > 0)
        return 0;
    return time_min(w->reactor.awake_ns - f->active_ns, socket_silence_ns(f->fd));
}

static uint64_t end_idle(struct worker *w, struct listener *l) {
    while (l->idle_timeout_ns != 0 && l->idle.head != FLOW_NONE) {
        struct flow *f = &w->flows.flows[l->idle.head];
        uint64_t due_ns = f->active_ns + l->idle_timeout_ns;
        if (due_ns > w->reactor.awake_ns)
            return due_ns + w->reactor.paused_ns;
        uint64_t silence_ns = intake_silence_ns(w, f);
        if (silence_ns < l->idle_timeout_ns) {
            f->active_ns = w->reactor.awake_ns - silence_ns;
            flow_idle_touch(&w->flows, &l->idle, f);
            continue;
        }
        flow_idle_remove(&w->flows, &l->idle, f);
        intake_interrupt(w, f, CLOSE_REASON_IDLE, false);
    }
    return TIME_NEVER;
}

static uint64_t accept_more(struct worker *w, struct listener *l) {
    bool room = l->flow_count < l->flows_max && w->flows.count < w->flows_at_once_max &&
                w->flows.count + w->listener_count < w->flows.capacity;
    if (l->stopped || l->accepting || !room)
        return TIME_NEVER;
    if (l->retry_ns > w->reactor.now_ns)
        return l->retry_ns;
    arm_accept(w, l);
    return TIME_NEVER;
}

uint64_t intake_turn(struct worker *w) {
    uint64_t next_ns = end_lingering(w);
    handover_turn(w);
    for (uint32_t i = 0; i < w->listener_count; i++) {
        next_ns = time_min(next_ns, end_idle(w, &w->listeners[i]));
        next_ns = time_min(next_ns, accept_more(w, &w->listeners[i]));
    }
    return next_ns;
}

void intake_stop_accepting(struct worker *w) {
    handover_stop(w);
    for (uint32_t i = 0; i < w->listener_count; i++) {
        struct listener *l = &w->listeners[i];
        if (!l->stopped && l->accepting)
            reactor_cancel(&w->reactor, TAG_ACCEPT, i, TAG_ACCEPT_CANCEL);
        l->stopped = true;
    }
}

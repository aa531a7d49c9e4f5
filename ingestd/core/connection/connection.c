/* SPDX-License-Identifier: Apache-2.0
 *
 * How connections end: connection.h.
 */
#include "connection/connection.h"

#include <assert.h>
#include <sys/socket.h>

#include "base/socket.h"
#include "base/trace.h"
#include "connection/event.h"
#include "worker.h"

/* How long what a sender still sends is dropped, so that our last line reaches
 * it before a reset could. */
#define LINGER_NS 1000000000ull

/* Closed on the ring, behind every request that names the descriptor: by then no
 * other connection can have got its number. */
static void connection_hang_up(struct worker *w, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_CLOSE, f->index);
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    io_uring_prep_close(sqe, f->fd);
    f->ops_in_flight++;
    f->fd = -1;
    flow_set_phase(f, FLOW_GONE);
}

void connection_closed(struct worker *w, struct flow *f) {
    bool stored = f->stream.opened;
    assert(f->ended && f->phase == FLOW_CLOSING);
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    f->protocol->report_end(w, f);
    if (f->state == FLOW_STATE_SEALED) {
        STAT_ADD(&w->reactor, flows_sealed, 1);
        flow_event(w, f,
                   (struct event_detail){.kind = EVENT_FLOW_SEALED,
                                         .durable_bytes = f->stream.durable_bytes});
    } else if (stored) {
        STAT_ADD(&w->reactor, flows_interrupted, 1);
        flow_event_end(w, f, EVENT_FLOW_INTERRUPTED);
    } else {
        STAT_ADD(&w->reactor, flows_refused, 1);
        f->protocol->report_refused(w, f);
    }
    if (f->reason == CLOSE_REASON_PEER)
        connection_hang_up(w, f);
    else
        f->protocol->send_last(w, f);
}

/* Its CLOSE record, behind those who waited for room before it; false: no room now. */
static bool connection_add_close(struct worker *w, struct flow *f) {
    struct frame_close c = {
        .state = f->state,
        .reason = f->reason,
        .flags = f->checksummed ? CLOSE_HAS_CRC32C : 0,
    };
    if (flow_is_behind(&w->flows, f, QUEUE_BLOCKED))
        return false;
    if (f->protocol->sender_crc(f, &c.sender_crc32c))
        c.flags |= CLOSE_HAS_SENDER_CRC32C;
    return storage_append_close(&w->storage, &f->stream, &c);
}

/* The one place that seals a flow, and only if all that was received of its payload is
 * with batches. Else bytes were given up, by the engine or with a batch that the
 * full store could not take. */
static void connection_seal(const struct worker *w, struct flow *f) {
    bool is_whole = f->stream.stored_bytes == f->received_bytes;
    assert(f->phase == FLOW_CLOSING && f->stream.stored_bytes <= f->received_bytes);
    f->state = is_whole && !storage_error(&w->storage) ? FLOW_STATE_SEALED : FLOW_STATE_INTERRUPTED;
    if (!is_whole)
        f->reason =
            storage_is_exhausted(&w->storage) ? CLOSE_REASON_STORE_FULL : CLOSE_REASON_RECEIVER;
}

bool connection_retry_close(struct worker *w, struct flow *f) {
    assert(f->phase == FLOW_CLOSING);
    if (f->state == FLOW_STATE_SEALED) /* bytes may have been given up since */
        connection_seal(w, f);
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (nothing || w->storage.state == STORAGE_RESERVE_EXHAUSTED) {
        f->state = FLOW_STATE_INTERRUPTED;
        f->reason = CLOSE_REASON_STORE_FULL;
        connection_closed(w, f);
        return true;
    }
    if (!connection_add_close(w, f))
        return false;
    flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    return true;
}

void connection_acknowledged(struct worker *w, struct flow *f, bool is_closed) {
    assert(f->phase != FLOW_FREE && f->phase != FLOW_NEW);
    assert(f->stream.durable_bytes <= f->stream.stored_bytes);
    if (f->phase == FLOW_GONE)
        connection_try_free(w, f);
    else if (is_closed && f->phase == FLOW_CLOSING)
        connection_closed(w, f);
    else
        f->protocol->advanced(w, f);
}

void connection_close_dropped(struct worker *w, struct flow *f) {
    assert(f->phase == FLOW_CLOSING);
    flow_wait(&w->flows, f, QUEUE_BLOCKED, w->reactor.now_ns);
}

void connection_try_free(struct worker *w, struct flow *f) {
    assert(f->phase == FLOW_GONE);
    if (f->ops_in_flight > 0 || f->stream.acks_pending > 0)
        return;
    if (!f->protocol->release(w, f))
        return;
    if (f->counted) {
        struct peer peer = listener_peer(f);
        peers_remove(&w->peers, &peer);
    }
    w->listeners[f->listener].flow_count--;
    flow_give(&w->flows, f);
}

static void connection_close_unsealed(struct worker *w, struct flow *f) {
    f->state = FLOW_STATE_INTERRUPTED;
    connection_closed(w, f);
}

void connection_end(struct worker *w, struct flow *f, uint8_t state, uint8_t reason, int error) {
    assert(!f->ended && f->slot_offset == UINT64_MAX);
    f->ended = true;
    f->state = FLOW_STATE_INTERRUPTED;
    f->reason = reason;
    f->error = error;
    flow_set_phase(f, FLOW_CLOSING);
    flow_idle_remove(&w->flows, &w->listeners[f->listener].idle, f);
    if (state == FLOW_STATE_SEALED)
        connection_seal(w, f);
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (storage_error(&w->storage) || nothing) {
        connection_closed(w, f);
    } else if (connection_add_close(w, f)) {
        flow_wait(&w->flows, f, QUEUE_NONE, w->reactor.now_ns);
    } else {
        flow_keep_waiting(&w->flows, f, QUEUE_BLOCKED, w->reactor.now_ns);
    }
}

void connection_interrupt(struct worker *w, struct flow *f, uint8_t reason, bool drop) {
    if (f->ended || f->stop)
        return;
    f->stop = true;
    f->drop = drop;
    f->reason = reason;
    if (!f->protocol->stop(w, f))
        w->engine->stop(&w->receiver, f);
}

void connection_interrupt_all(struct worker *w, uint8_t reason, bool drop) {
    for (uint32_t i = 0; i < w->flows.used_upto; i++) {
        struct flow *f = &w->flows.flows[i];
        if (f->phase == FLOW_FREE)
            continue;
        f->drop = f->drop || drop;
        if (f->phase == FLOW_GONE)
            connection_try_free(w, f); /* it may have waited for acknowledgements only */
        else if (f->phase == FLOW_CLOSING && storage_error(&w->storage))
            connection_close_unsealed(w, f);
        else
            connection_interrupt(w, f, reason, drop);
    }
}

void connection_refuse_silent(struct worker *w) {
    for (uint32_t i = 0; i < w->flows.used_upto; i++) {
        struct flow *f = &w->flows.flows[i];
        if (f->phase != FLOW_FREE && f->received_bytes == f->base_bytes)
            connection_interrupt(w, f, CLOSE_REASON_SHUTDOWN, true);
    }
}

static void connection_discard(struct worker *w, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(&w->reactor, TAG_DISCARD, f->index);
    /* TCP drops what it would have copied when asked with MSG_TRUNC: tcp(7). */
    io_uring_prep_recv(sqe, f->fd, NULL, CONNECTION_DISCARD_BYTES, MSG_TRUNC);
    f->ops_in_flight++;
}

void connection_answered(struct worker *w, struct flow *f, int result) {
    bool early = !f->eof;
    trace_receipt(f->stream.id, f->index, result);
    if (!early || result < 0) {
        connection_hang_up(w, f);
        return;
    }
    shutdown(f->fd, SHUT_WR);
    flow_set_phase(f, FLOW_LINGERING);
    flow_wait(&w->flows, f, QUEUE_LINGER, w->reactor.now_ns);
    connection_discard(w, f);
}

void connection_discarded(struct worker *w, struct flow *f, int result) {
    if (f->phase != FLOW_LINGERING)
        return;
    if (result > 0)
        connection_discard(w, f);
    else
        connection_hang_up(w, f);
}

static uint64_t connection_end_lingering(struct worker *w) {
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
static uint64_t connection_silence_ns(const struct worker *w, const struct flow *f) {
    if (f->phase == FLOW_STARVED || f->phase == FLOW_BLOCKED || f->starved ||
        f->stream.stored_bytes > f->stream.durable_bytes || socket_pending_bytes(f->fd) > 0)
        return 0;
    return time_min(w->reactor.awake_ns - f->active_ns, socket_silence_ns(f->fd));
}

static uint64_t connection_end_idle(struct worker *w, struct listener *l) {
    while (l->idle_timeout_ns != 0 && l->idle.head != FLOW_NONE) {
        struct flow *f = &w->flows.flows[l->idle.head];
        uint64_t due_ns = f->active_ns + l->idle_timeout_ns;
        if (due_ns > w->reactor.awake_ns)
            return due_ns + w->reactor.paused_ns;
        uint64_t silence_ns = connection_silence_ns(w, f);
        if (silence_ns < l->idle_timeout_ns) {
            f->active_ns = w->reactor.awake_ns - silence_ns;
            flow_idle_touch(&w->flows, &l->idle, f);
            continue;
        }
        flow_idle_remove(&w->flows, &l->idle, f);
        connection_interrupt(w, f, CLOSE_REASON_IDLE, false);
    }
    return TIME_NEVER;
}

uint64_t connection_turn(struct worker *w) {
    uint64_t next_ns = connection_end_lingering(w);
    for (uint32_t i = 0; i < w->listener_count; i++)
        next_ns = time_min(next_ns, connection_end_idle(w, &w->listeners[i]));
    return next_ns;
}

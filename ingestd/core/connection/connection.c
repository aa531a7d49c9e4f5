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
#include "connection/connections.h"

/* How long what a sender still sends is dropped, so that our last line reaches
 * it before a reset could. */
#define LINGER_NS 1000000000ull

/* Closed on the ring, behind every request that names the descriptor: by then no
 * other connection can have got its number. */
static void connection_hang_up(struct connections *c, struct flow *f) {
    assert(f->ended && f->fd >= 0);
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_CLOSE, f->index);
    flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
    io_uring_prep_close(sqe, f->fd);
    f->ops_in_flight++;
    f->fd = -1;
    flow_set_phase(f, FLOW_GONE);
}

void connection_closed(struct connections *c, struct flow *f) {
    bool stored = f->stream.opened;
    assert(f->ended && f->phase == FLOW_CLOSING);
    flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
    f->protocol->report_end(c, f);
    if (f->state == FLOW_STATE_SEALED) {
        STAT_ADD(c->reactor, flows_sealed, 1);
        flow_event(c, f,
                   (struct event_detail){.kind = EVENT_FLOW_SEALED,
                                         .durable_bytes = f->stream.durable_bytes});
    } else if (stored) {
        STAT_ADD(c->reactor, flows_interrupted, 1);
        flow_event_end(c, f, EVENT_FLOW_INTERRUPTED);
    } else {
        STAT_ADD(c->reactor, flows_refused, 1);
        f->protocol->report_refused(c, f);
    }
    if (f->reason == CLOSE_REASON_PEER)
        connection_hang_up(c, f);
    else
        f->protocol->send_last(c, f);
}

/* Its CLOSE record, behind those who waited for room before it; false: no room now. */
static bool connection_add_close(struct connections *c, struct flow *f) {
    struct frame_close close = {
        .state = f->state,
        .reason = f->reason,
        .flags = f->checksummed ? CLOSE_HAS_CRC32C : 0,
    };
    if (flow_is_behind(c->flows, f, QUEUE_BLOCKED))
        return false;
    if (f->protocol->sender_crc(f, &close.sender_crc32c))
        close.flags |= CLOSE_HAS_SENDER_CRC32C;
    return storage_append_close(c->storage, &f->stream, &close);
}

/* The one place that seals a flow, and only if all that was received of its payload is
 * with batches. Else bytes were dropped, by the engine or with a batch that the full
 * store could not take. */
static void connection_seal(const struct connections *c, struct flow *f) {
    bool is_whole = f->stream.stored_bytes == f->received_bytes;
    assert(f->phase == FLOW_CLOSING && f->stream.stored_bytes <= f->received_bytes);
    f->state = is_whole && !storage_error(c->storage) ? FLOW_STATE_SEALED : FLOW_STATE_INTERRUPTED;
    if (!is_whole)
        f->reason =
            storage_is_exhausted(c->storage) ? CLOSE_REASON_STORE_FULL : CLOSE_REASON_RECEIVER;
}

bool connection_retry_close(struct connections *c, struct flow *f) {
    assert(f->phase == FLOW_CLOSING);
    if (f->state == FLOW_STATE_SEALED) /* bytes may have been dropped since */
        connection_seal(c, f);
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (nothing || c->storage->state == STORAGE_RESERVE_EXHAUSTED) {
        f->state = FLOW_STATE_INTERRUPTED;
        f->reason = CLOSE_REASON_STORE_FULL;
        connection_closed(c, f);
        return true;
    }
    if (!connection_add_close(c, f))
        return false;
    flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
    return true;
}

void connection_acknowledged(struct connections *c, struct flow *f, bool is_closed) {
    assert(f->phase != FLOW_FREE && f->phase != FLOW_NEW);
    assert(f->stream.durable_bytes <= f->stream.stored_bytes);
    if (f->phase == FLOW_GONE)
        connection_try_free(c, f);
    else if (is_closed && f->phase == FLOW_CLOSING)
        connection_closed(c, f);
    else
        f->protocol->advanced(c, f);
}

void connection_close_dropped(struct connections *c, struct flow *f) {
    assert(f->phase == FLOW_CLOSING);
    flow_wait(c->flows, f, QUEUE_BLOCKED, c->reactor->now_ns);
}

void connection_try_free(struct connections *c, struct flow *f) {
    assert(f->phase == FLOW_GONE);
    if (f->ops_in_flight > 0 || f->stream.acks_pending > 0)
        return;
    if (!f->protocol->release(c, f))
        return;
    if (f->counted) {
        struct peer peer = listener_peer(f);
        peers_remove(&c->peers, &peer);
    }
    c->listeners[f->listener].flow_count--;
    flow_give(c->flows, f);
}

static void connection_close_unsealed(struct connections *c, struct flow *f) {
    f->state = FLOW_STATE_INTERRUPTED;
    connection_closed(c, f);
}

void connection_end(struct connections *c, struct flow *f, uint8_t state, uint8_t reason,
                    int error) {
    assert(!f->ended && f->slot_offset == UINT64_MAX);
    f->ended = true;
    f->state = FLOW_STATE_INTERRUPTED;
    f->reason = reason;
    f->error = error;
    flow_set_phase(f, FLOW_CLOSING);
    flow_idle_remove(c->flows, &c->listeners[f->listener].idle, f);
    if (state == FLOW_STATE_SEALED)
        connection_seal(c, f);
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (storage_error(c->storage) || nothing) {
        connection_closed(c, f);
    } else if (connection_add_close(c, f)) {
        flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
    } else {
        flow_keep_waiting(c->flows, f, QUEUE_BLOCKED, c->reactor->now_ns);
    }
}

void connection_interrupt(struct connections *c, struct flow *f, uint8_t reason, bool drop) {
    if (f->ended || f->stop)
        return;
    f->stop = true;
    f->drop = drop;
    f->reason = reason;
    if (!f->protocol->stop(c, f))
        c->engine->stop(c->receiver, f);
}

void connection_interrupt_all(struct connections *c, uint8_t reason, bool drop) {
    for (uint32_t i = 0; i < c->flows->used_upto; i++) {
        struct flow *f = &c->flows->flows[i];
        if (f->phase == FLOW_FREE)
            continue;
        f->drop = f->drop || drop;
        if (f->phase == FLOW_GONE)
            connection_try_free(c, f); /* it may have waited for acknowledgements only */
        else if (f->phase == FLOW_CLOSING && storage_error(c->storage))
            connection_close_unsealed(c, f);
        else
            connection_interrupt(c, f, reason, drop);
    }
}

void connection_refuse_silent(struct connections *c) {
    for (uint32_t i = 0; i < c->flows->used_upto; i++) {
        struct flow *f = &c->flows->flows[i];
        if (f->phase != FLOW_FREE && f->received_bytes == f->base_bytes)
            connection_interrupt(c, f, CLOSE_REASON_SHUTDOWN, true);
    }
}

static void connection_discard(struct connections *c, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_DISCARD, f->index);
    /* With MSG_TRUNC, TCP drops what it would have copied: tcp(7). */
    io_uring_prep_recv(sqe, f->fd, NULL, CONNECTION_DISCARD_BYTES, MSG_TRUNC);
    f->ops_in_flight++;
}

void connection_answered(struct connections *c, struct flow *f, int result) {
    assert(f->ended && f->phase == FLOW_ANSWERING);
    bool early = !f->eof;
    trace_receipt(f->stream.id, f->index, result);
    if (!early || result < 0) {
        connection_hang_up(c, f);
        return;
    }
    shutdown(f->fd, SHUT_WR);
    flow_set_phase(f, FLOW_LINGERING);
    flow_wait(c->flows, f, QUEUE_LINGER, c->reactor->now_ns);
    connection_discard(c, f);
}

void connection_discarded(struct connections *c, struct flow *f, int result) {
    if (f->phase != FLOW_LINGERING)
        return;
    if (result > 0)
        connection_discard(c, f);
    else
        connection_hang_up(c, f);
}

static uint64_t connection_end_lingering(struct connections *c) {
    struct flow *f;
    while ((f = flow_first(c->flows, QUEUE_LINGER)) != NULL) {
        if (f->since_ns + LINGER_NS > c->reactor->now_ns)
            return f->since_ns + LINGER_NS;
        flow_wait(c->flows, f, QUEUE_NONE, c->reactor->now_ns);
        shutdown(f->fd, SHUT_RDWR); /* the discard comes back with 0 */
    }
    return TIME_NEVER;
}

/* How long the flow's sender has been silent. Not at all where it is we who keep it
 * waiting: what it sent waits in its socket, for memory, or for the device. The kernel
 * knows best, as a receive that waits for a whole slot says nothing before that. */
static uint64_t connection_silence_ns(const struct connections *c, const struct flow *f) {
    if (f->phase == FLOW_STARVED || f->phase == FLOW_BLOCKED || f->starved ||
        f->stream.stored_bytes > f->stream.durable_bytes || socket_pending_bytes(f->fd) > 0)
        return 0;
    return time_min(c->reactor->awake_ns - f->active_ns, socket_silence_ns(f->fd));
}

static uint64_t connection_end_idle(struct connections *c, struct listener *l) {
    while (l->idle_timeout_ns != 0 && l->idle.head != FLOW_NONE) {
        struct flow *f = &c->flows->flows[l->idle.head];
        uint64_t due_ns = f->active_ns + l->idle_timeout_ns;
        if (due_ns > c->reactor->awake_ns)
            return due_ns + c->reactor->paused_ns;
        uint64_t silence_ns = connection_silence_ns(c, f);
        if (silence_ns < l->idle_timeout_ns) {
            f->active_ns = c->reactor->awake_ns - silence_ns;
            flow_idle_touch(c->flows, &l->idle, f);
            continue;
        }
        flow_idle_remove(c->flows, &l->idle, f);
        connection_interrupt(c, f, CLOSE_REASON_IDLE, false);
    }
    return TIME_NEVER;
}

uint64_t connection_turn(struct connections *c) {
    uint64_t next_ns = connection_end_lingering(c);
    for (uint32_t i = 0; i < c->listener_count; i++)
        next_ns = time_min(next_ns, connection_end_idle(c, &c->listeners[i]));
    return next_ns;
}

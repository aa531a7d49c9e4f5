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
static void connection_hang_up(struct connections *c, struct connection *conn) {
    assert(conn->ended && conn->fd >= 0);
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_CLOSE, conn->index);
    connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
    io_uring_prep_close(sqe, conn->fd);
    conn->ops_in_flight++;
    conn->fd = -1;
    connection_set_phase(conn, CONNECTION_GONE);
}

void connection_closed(struct connections *c, struct connection *conn) {
    bool stored = conn->stream.opened;
    assert(conn->ended && conn->phase == CONNECTION_CLOSING);
    connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
    conn->protocol->report_end(c, conn);
    if (conn->state == FLOW_STATE_SEALED) {
        STAT_ADD(c->reactor, flows_sealed, 1);
        connection_event(c, conn,
                         (struct event_detail){.kind = EVENT_FLOW_SEALED,
                                               .seal = {conn->stream.durable_bytes,
                                                        conn->stream.crc, conn->checksummed}});
    } else if (stored) {
        STAT_ADD(c->reactor, flows_interrupted, 1);
        connection_event_end(c, conn, EVENT_FLOW_INTERRUPTED);
    } else {
        bool is_empty = conn->reason == CLOSE_REASON_EMPTY;
        STAT_ADD(c->reactor, flows_empty, is_empty);
        STAT_ADD(c->reactor, flows_refused, !is_empty);
        conn->protocol->report_refused(c, conn);
    }
    if (conn->reason == CLOSE_REASON_PEER)
        connection_hang_up(c, conn);
    else
        conn->protocol->send_last(c, conn);
}

/* Its CLOSE record, behind those who waited for room before it; false: no room now. */
static bool connection_add_close(struct connections *c, struct connection *conn) {
    struct frame_close close = {
        .state = conn->state,
        .reason = conn->reason,
        .flags = conn->checksummed ? CLOSE_HAS_CRC32C : 0,
    };
    if (connection_is_behind(c->table, conn, QUEUE_BLOCKED))
        return false;
    if (conn->protocol->sender_crc(conn, &close.sender_crc32c))
        close.flags |= CLOSE_HAS_SENDER_CRC32C;
    return storage_append_close(c->storage, &conn->stream, &close);
}

/* The one place that seals a flow, and only if all that was received of its payload is
 * with batches. Else bytes were dropped, by the engine or with a batch that the full
 * store could not take. */
static void connection_seal(const struct connections *c, struct connection *conn) {
    bool is_whole = conn->stream.stored_bytes == conn->received_bytes;
    assert(conn->phase == CONNECTION_CLOSING && conn->stream.stored_bytes <= conn->received_bytes);
    bool is_sealed = is_whole && !storage_error(c->storage);
    conn->state = is_sealed ? FLOW_STATE_SEALED : FLOW_STATE_INTERRUPTED;
    if (!is_whole)
        conn->reason =
            storage_is_exhausted(c->storage) ? CLOSE_REASON_STORE_FULL : CLOSE_REASON_RECEIVER;
}

bool connection_retry_close(struct connections *c, struct connection *conn) {
    assert(conn->phase == CONNECTION_CLOSING);
    if (conn->state == FLOW_STATE_SEALED) /* bytes may have been dropped since */
        connection_seal(c, conn);
    bool nothing = conn->state == FLOW_STATE_INTERRUPTED && !conn->stream.opened;
    if (nothing || c->storage->state == STORAGE_RESERVE_EXHAUSTED) {
        conn->state = FLOW_STATE_INTERRUPTED;
        conn->reason = CLOSE_REASON_STORE_FULL;
        connection_closed(c, conn);
        return true;
    }
    if (!connection_add_close(c, conn))
        return false;
    connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
    return true;
}

void connection_acknowledged(struct connections *c, struct connection *conn, bool is_closed) {
    assert(conn->phase != CONNECTION_FREE && conn->phase != CONNECTION_NEW);
    assert(conn->stream.durable_bytes <= conn->stream.stored_bytes);
    if (conn->phase == CONNECTION_GONE)
        connection_try_free(c, conn);
    else if (is_closed && conn->phase == CONNECTION_CLOSING)
        connection_closed(c, conn);
    else
        conn->protocol->advanced(c, conn);
}

void connection_close_dropped(struct connections *c, struct connection *conn) {
    assert(conn->phase == CONNECTION_CLOSING);
    connection_wait(c->table, conn, QUEUE_BLOCKED, c->reactor->now_ns);
}

void connection_try_free(struct connections *c, struct connection *conn) {
    assert(conn->phase == CONNECTION_GONE);
    if (conn->ops_in_flight > 0 || conn->stream.acks_pending > 0)
        return;
    if (!conn->protocol->release(c, conn))
        return;
    if (conn->counted) {
        struct peer peer = listener_peer(conn);
        peers_remove(&c->peers, &peer);
    }
    listener_count_connection(&c->listeners[conn->listener], -1);
    c->accepts_ns = 0;
    connection_table_put(c->table, conn);
}

static void connection_close_unsealed(struct connections *c, struct connection *conn) {
    conn->state = FLOW_STATE_INTERRUPTED;
    connection_closed(c, conn);
}

void connection_end(struct connections *c, struct connection *conn, uint8_t state, uint8_t reason,
                    int error) {
    assert(!conn->ended && engine_has_nothing(conn));
    conn->ended = true;
    conn->state = FLOW_STATE_INTERRUPTED;
    conn->reason = reason;
    conn->error = error;
    connection_set_phase(conn, CONNECTION_CLOSING);
    connection_idle_remove(c->table, &c->listeners[conn->listener].idle, conn);
    if (state == FLOW_STATE_SEALED)
        connection_seal(c, conn);
    bool nothing = conn->state == FLOW_STATE_INTERRUPTED && !conn->stream.opened;
    if (storage_error(c->storage) || nothing) {
        connection_closed(c, conn);
    } else if (connection_add_close(c, conn)) {
        connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
    } else {
        connection_keep_waiting(c->table, conn, QUEUE_BLOCKED, c->reactor->now_ns);
    }
}

void connection_interrupt(struct connections *c, struct connection *conn, uint8_t reason,
                          bool drop) {
    if (conn->ended || conn->stop)
        return;
    conn->stop = true;
    conn->drop = drop;
    conn->reason = reason;
    if (!conn->protocol->stop(c, conn))
        c->engine->stop(c->receiver, conn);
}

void connection_interrupt_all(struct connections *c, uint8_t reason, bool drop) {
    for (uint32_t i = 0; i < c->table->used_upto; i++) {
        struct connection *conn = &c->table->connections[i];
        if (conn->phase == CONNECTION_FREE)
            continue;
        conn->drop = conn->drop || drop;
        if (conn->phase == CONNECTION_GONE)
            connection_try_free(c, conn); /* it may have waited for acknowledgements only */
        else if (conn->phase == CONNECTION_CLOSING && storage_error(c->storage))
            connection_close_unsealed(c, conn);
        else
            connection_interrupt(c, conn, reason, drop);
    }
}

void connection_refuse_silent(struct connections *c) {
    for (uint32_t i = 0; i < c->table->used_upto; i++) {
        struct connection *conn = &c->table->connections[i];
        if (conn->phase != CONNECTION_FREE && conn->received_bytes == conn->base_bytes)
            connection_interrupt(c, conn, CLOSE_REASON_SHUTDOWN, true);
    }
}

static void connection_discard(struct connections *c, struct connection *conn) {
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_DISCARD, conn->index);
    /* With MSG_TRUNC, TCP drops what it would have copied: tcp(7). */
    io_uring_prep_recv(sqe, conn->fd, NULL, CONNECTION_DISCARD_BYTES, MSG_TRUNC);
    conn->ops_in_flight++;
}

void connection_last_line_sent(struct connections *c, struct connection *conn, int result) {
    assert(conn->ended && conn->phase == CONNECTION_LAST_LINE);
    bool early = !conn->eof;
    trace_receipt(conn->stream.id, conn->index, result);
    if (!early || result < 0) {
        connection_hang_up(c, conn);
        return;
    }
    shutdown(conn->fd, SHUT_WR);
    connection_set_phase(conn, CONNECTION_LINGERING);
    connection_wait(c->table, conn, QUEUE_LINGER, c->reactor->now_ns);
    connection_discard(c, conn);
}

void connection_discarded(struct connections *c, struct connection *conn, int result) {
    if (conn->phase != CONNECTION_LINGERING)
        return;
    if (result > 0)
        connection_discard(c, conn);
    else
        connection_hang_up(c, conn);
}

static uint64_t connection_end_lingering(struct connections *c) {
    struct connection *conn;
    while ((conn = connection_first(c->table, QUEUE_LINGER)) != NULL) {
        if (conn->since_ns + LINGER_NS > c->reactor->now_ns)
            return conn->since_ns + LINGER_NS;
        connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
        shutdown(conn->fd, SHUT_RDWR); /* the discard comes back with 0 */
    }
    return TIME_NEVER;
}

/* How long its sender has been silent. Not at all where it is we who keep it
 * waiting: what it sent waits in its socket, for memory, or for the device. The kernel
 * knows best, as a receive that waits for a whole slot says nothing before that. */
static uint64_t connection_silence_ns(const struct connections *c, const struct connection *conn) {
    if (conn->phase == CONNECTION_STARVED || conn->phase == CONNECTION_BLOCKED || conn->starved ||
        conn->stream.stored_bytes > conn->stream.durable_bytes ||
        socket_pending_bytes(conn->fd) > 0)
        return 0;
    return time_min(c->reactor->awake_ns - conn->active_ns, socket_silence_ns(conn->fd));
}

static uint64_t connection_end_idle(struct connections *c, struct listener *l) {
    while (l->idle_timeout_ns != 0 && l->idle.head != CONNECTION_NONE) {
        struct connection *conn = &c->table->connections[l->idle.head];
        uint64_t due_ns = conn->active_ns + l->idle_timeout_ns;
        if (due_ns > c->reactor->awake_ns)
            return due_ns + c->reactor->paused_ns;
        uint64_t silence_ns = connection_silence_ns(c, conn);
        if (silence_ns < l->idle_timeout_ns) {
            conn->active_ns = c->reactor->awake_ns - silence_ns;
            connection_idle_touch(c->table, &l->idle, conn);
            continue;
        }
        connection_idle_remove(c->table, &l->idle, conn);
        connection_interrupt(c, conn, CLOSE_REASON_IDLE, false);
    }
    return TIME_NEVER;
}

uint64_t connection_turn(struct connections *c) {
    uint64_t next_ns = connection_end_lingering(c);
    for (uint32_t i = 0; i < c->listener_count; i++)
        next_ns = time_min(next_ns, connection_end_idle(c, &c->listeners[i]));
    return next_ns;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `recv`: the kernel copies from the socket into a slot of the area.
 *
 * Works on every kernel and NIC. A connection without data holds no memory: it is
 * polled. With data it borrows a slot sized to what waits in its socket and
 * receives into it contiguously, so that no copy in user space is ever needed;
 * a connection that fills slots gets larger ones and receives that wait for a whole
 * slot (MSG_WAITALL), which age ends. Owned by the worker's thread. Invariants:
 *  - A connection has at most one slot, and one receive or poll under way.
 *  - A slot is with a connection, with a batch, or free; with both while a batch had room
 *    for its first part only.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/socket.h"
#include "receive/engine.h"

/* A slot's offset is a multiple of SLOT_BYTES_MIN: its order fits below. */
#define HOLD_ORDER_MASK (SLOT_BYTES_MIN - 1ull)
static_assert(BUDDY_ORDERS_MAX <= SLOT_BYTES_MIN, "order fits into a hold");

static int recv_open(struct receiver *r) {
    (void)r; /* the area is registered by the worker for its writes; no more is needed */
    return 0;
}

static void recv_arm_poll(struct receiver *r, struct connection *conn) {
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, TAG_POLL, conn->index);
    io_uring_prep_poll_add(sqe, conn->fd, POLLIN | POLLRDHUP);
    conn->ops_in_flight++;
    conn->recv.polled = true;
}

static void recv_arm_receive(struct receiver *r, struct connection *conn) {
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, TAG_RECEIVE, conn->index);
    uint64_t room = buddy_slot_bytes(conn->recv.slot_order) - conn->recv.slot_filled;
    if (room > conn->limit_bytes - conn->received_bytes)
        room = conn->limit_bytes - conn->received_bytes;
    assert(conn->recv.slot_offset != UINT64_MAX && room > 0);
    io_uring_prep_recv(sqe, conn->fd,
                       r->area->base + conn->recv.slot_offset + conn->recv.slot_filled, room,
                       conn->recv.bulk ? MSG_WAITALL : 0);
    conn->ops_in_flight++;
    connection_set_phase(conn, CONNECTION_RECEIVING);
    if (conn->queue != QUEUE_DIRTY)
        connection_wait(r->table, conn, QUEUE_ARMED, r->reactor->now_ns);
}

/* Half the area divided by the connections that receive: large slots for few connections,
 * small ones for many, and always some left for the writes. */
static uint32_t recv_order_max(const struct receiver *r) {
    uint64_t receiving =
        r->table->waiting[QUEUE_DIRTY].count + r->table->waiting[QUEUE_ARMED].count;
    uint64_t share = r->area->slots_bytes / (2 * (receiving + 1));
    uint32_t order = buddy_order(&r->area->slots, share);
    return order > 0 && buddy_slot_bytes(order) > share ? order - 1 : order;
}

static bool recv_take_slot(struct receiver *r, struct connection *conn, uint32_t order) {
    uint32_t most = recv_order_max(r);
    conn->recv.slot_order = order < most ? order : most;
    conn->recv.slot_filled = 0;
    conn->recv.slot_offset = buddy_take(&r->area->slots, conn->recv.slot_order);
    if (conn->recv.slot_offset == UINT64_MAX)
        return false;
    STAT_ADD(r->reactor, area_receiving_bytes, buddy_slot_bytes(conn->recv.slot_order));
    return true;
}

static void recv_slot_left(struct receiver *r, struct connection *conn) {
    STAT_ADD(r->reactor, area_receiving_bytes, -buddy_slot_bytes(conn->recv.slot_order));
    conn->recv.slot_offset = UINT64_MAX;
    conn->recv.slot_filled = conn->recv.slot_copied = conn->recv.slot_taken = 0;
}

static void recv_release_slot(struct receiver *r, struct connection *conn) {
    if (conn->recv.slot_offset == UINT64_MAX)
        return;
    if (!buddy_release(&r->area->slots, conn->recv.slot_offset, conn->recv.slot_order))
        STAT_ADD(r->reactor, area_writing_bytes, buddy_slot_bytes(conn->recv.slot_order));
    recv_slot_left(r, conn);
}

static void recv_release(struct receiver *r, uint64_t hold) {
    uint32_t order = (uint32_t)(hold & HOLD_ORDER_MASK);
    if (buddy_release(&r->area->slots, hold & ~HOLD_ORDER_MASK, order))
        STAT_ADD(r->reactor, area_writing_bytes, -buddy_slot_bytes(order));
}

/* A batch took the first part of what is left in the slot, up to a page. The rest
 * goes to another one: both read from the slot. */
static void recv_slot_taken_in_part(struct receiver *r, struct connection *conn, uint32_t bytes) {
    buddy_share(&r->area->slots, conn->recv.slot_offset);
    conn->recv.slot_taken += bytes;
    conn->recv.slot_copied -= bytes < conn->recv.slot_copied ? bytes : conn->recv.slot_copied;
}

/* Hands the slot's bytes to batches, and the slot with them; false when some must
 * wait. Where the last ones may be a trailer, they stay behind, and are copied to
 * the front of the next slot. */
static bool recv_deliver(struct receiver *r, struct connection *conn) {
    uint64_t slot_bytes = buddy_slot_bytes(conn->recv.slot_order);
    uint32_t end = conn->recv.slot_filled;
    if (engine_is_holding(conn))
        end -= receive_block_hold(conn->block, r->area->base + conn->recv.slot_offset, end);
    if (end == 0) {
        recv_release_slot(r, conn);
        return true;
    }
    for (;;) {
        const struct batch_piece piece = {
            .data = r->area->base + conn->recv.slot_offset + conn->recv.slot_taken,
            .bytes = end - conn->recv.slot_taken,
            .slack = (uint32_t)(slot_bytes - end),
            .copied_bytes = conn->recv.slot_copied,
            .copied_for = BOUNCE_TRAILER,
            .hold = conn->recv.slot_offset | conn->recv.slot_order,
        };
        uint32_t taken = engine_append(r, conn, &piece);
        if (taken == piece.bytes)
            break;
        if (taken == 0)
            return false;
        recv_slot_taken_in_part(r, conn, taken);
    }
    STAT_ADD(r->reactor, area_writing_bytes, slot_bytes);
    recv_slot_left(r, conn);
    return true;
}

static void recv_put_held_back(struct receiver *r, struct connection *conn) {
    struct receive_block *s = conn->block;
    memcpy(r->area->base + conn->recv.slot_offset, s->memory, s->filled);
    conn->recv.slot_filled = conn->recv.slot_copied = s->filled;
    s->filled = 0;
}

/* Continues to receive: into what is left of the slot, or into a new one, sized to
 * what waits in the socket. */
static void recv_receive(struct receiver *r, struct connection *conn) {
    if (conn->recv.slot_offset == UINT64_MAX) {
        uint32_t order = conn->recv.slot_order + 1; /* it filled the last one: more is to come */
        if (!conn->recv.bulk) {
            uint32_t pending = socket_pending_bytes(conn->fd);
            if (engine_is_holding(conn))
                pending += conn->block->filled;
            order = buddy_order(&r->area->slots, pending);
        }
        if (connection_is_behind(r->table, conn, QUEUE_STARVED) ||
            !recv_take_slot(r, conn, order)) {
            connection_set_phase(conn, CONNECTION_STARVED);
            connection_keep_waiting(r->table, conn, QUEUE_STARVED, r->reactor->now_ns);
            return;
        }
        if (engine_is_holding(conn))
            recv_put_held_back(r, conn);
    }
    recv_arm_receive(r, conn);
}

/* The one place that decides what a connection does next, given what it has. */
static void recv_advance(struct receiver *r, struct connection *conn) {
    bool over = conn->eof || conn->error || conn->stop || conn->received_bytes == conn->limit_bytes;
    bool full = conn->recv.slot_offset != UINT64_MAX &&
                conn->recv.slot_filled == buddy_slot_bytes(conn->recv.slot_order);
    bool none = conn->recv.slot_filled == 0;
    if (!none && !conn->drop && (over || full || conn->flush_due) && !recv_deliver(r, conn)) {
        connection_set_phase(conn, CONNECTION_BLOCKED);
        connection_keep_waiting(r->table, conn, QUEUE_BLOCKED, r->reactor->now_ns);
        return;
    }
    if (over) {
        recv_release_slot(r, conn);
        engine_report(r, conn, REPORT_OVER, 0);
        return;
    }
    conn->recv.bulk = full;
    conn->flush_due = false;
    if (conn->recv.bulk) {
        connection_wait(r->table, conn, QUEUE_NONE, r->reactor->now_ns);
        recv_receive(r, conn);
        return;
    }
    if (conn->recv.slot_filled == 0) {
        recv_release_slot(r, conn);
        connection_wait(r->table, conn, QUEUE_NONE, r->reactor->now_ns);
    } else if (conn->queue != QUEUE_DIRTY) {
        connection_wait(r->table, conn, QUEUE_DIRTY, r->reactor->now_ns);
    }
    connection_set_phase(conn, CONNECTION_POLLING);
    if (!conn->recv.polled)
        recv_arm_poll(r, conn);
}

static void recv_received(struct receiver *r, struct connection *conn, int result) {
    conn->cancelling = false;
    if (result > 0) {
        conn->recv.slot_filled += (uint32_t)result;
        STAT_ADD(r->reactor, kernel_copied_bytes, result);
        engine_received(r, conn, (uint32_t)result);
    } else if (result == 0) {
        conn->error = socket_end_of_stream(conn->fd);
        conn->eof = conn->error == 0;
    } else if (result != -ECANCELED && result != -EINTR && result != -EAGAIN) {
        conn->error = -result;
    }
    recv_advance(r, conn);
}

static void recv_complete(struct receiver *r, enum uring_tag tag, struct connection *conn,
                          const struct io_uring_cqe *cqe) {
    if (tag == TAG_RECEIVE) {
        recv_received(r, conn, cqe->res);
    } else if (tag == TAG_POLL) {
        conn->recv.polled = false;
        /* In another phase it says nothing new: that phase ends in a poll. */
        if (conn->phase == CONNECTION_POLLING)
            recv_receive(r, conn);
    } else if (tag == TAG_BLOCK) {
        engine_report(r, conn, REPORT_BLOCK, cqe->res);
    }
}

static void recv_cancel_receive(struct receiver *r, struct connection *conn) {
    if (!conn->cancelling)
        engine_cancel(r, conn, TAG_RECEIVE);
    conn->cancelling = true;
}

static void recv_stop(struct receiver *r, struct connection *conn) {
    assert(conn->stop && !conn->ended);
    if (engine_receives_block(conn)) {
        engine_cancel(r, conn, TAG_BLOCK);
        return;
    }
    if (conn->phase == CONNECTION_RECEIVING) {
        recv_cancel_receive(r, conn);
        return;
    }
    if (conn->recv.polled)
        engine_cancel(r, conn, TAG_POLL);
    recv_advance(r, conn);
}

/* What has waited for flush_interval goes to a batch, full or not. */
static uint64_t recv_flush_aged(struct receiver *r, enum connection_queue queue) {
    struct connection *conn;
    while ((conn = connection_first(r->table, queue)) != NULL) {
        uint64_t due_ns = conn->since_ns + r->storage->settings.flush_interval_ns;
        if (due_ns > r->reactor->now_ns)
            return due_ns;
        connection_wait(r->table, conn, QUEUE_NONE, r->reactor->now_ns);
        conn->flush_due = true;
        if (conn->phase == CONNECTION_RECEIVING)
            recv_cancel_receive(r, conn);
        else
            recv_advance(r, conn);
    }
    return TIME_NEVER;
}

static void recv_serve_starved(struct receiver *r) {
    struct connection *conn;
    while ((conn = connection_first(r->table, QUEUE_STARVED)) != NULL) {
        recv_receive(r, conn);
        if (conn->phase == CONNECTION_STARVED)
            return;
    }
}

static uint64_t recv_turn(struct receiver *r) {
    recv_serve_starved(r);
    STAT_SET(r->reactor, area_free_bytes, r->area->slots.free_bytes);
    uint64_t dirty_ns = recv_flush_aged(r, QUEUE_DIRTY);
    uint64_t armed_ns = recv_flush_aged(r, QUEUE_ARMED);
    return time_min(dirty_ns, armed_ns);
}

static struct engine_owner recv_owner(struct receiver *r, const struct connection *conn) {
    (void)r; /* any worker can read any socket */
    (void)conn;
    return (struct engine_owner){0};
}

static void recv_take(struct receiver *r, struct connection *conn) {
    (void)r;
    (void)conn;
}

static void recv_start(struct receiver *r, struct connection *conn) {
    connection_set_phase(conn, CONNECTION_POLLING);
    recv_arm_poll(r, conn);
}

static void recv_receive_block(struct receiver *r, struct connection *conn) {
    struct receive_room room = receive_block_room(conn->block);
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, TAG_BLOCK, conn->index);
    io_uring_prep_recv(sqe, conn->fd, room.at, room.bytes, MSG_WAITALL);
    conn->ops_in_flight++;
}

static void recv_close(struct receiver *r) {
    (void)r;
}

const struct engine engine_recv = {
    .name = "recv",
    .open = recv_open,
    .owner = recv_owner,
    .take = recv_take,
    .start = recv_start,
    .receive_block = recv_receive_block,
    .complete = recv_complete,
    .resume = recv_advance,
    .turn = recv_turn,
    .stop = recv_stop,
    .release = recv_release,
    .close = recv_close,
};

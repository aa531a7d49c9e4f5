/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `recv`: the kernel copies from the socket into a slot of the area.
 *
 * Works on every kernel and NIC. A flow without data holds no memory: it is
 * polled. With data it borrows a slot sized to what waits in its socket and
 * receives into it contiguously, so that no copy in user space is ever needed;
 * a flow that fills slots gets larger ones and receives that wait for a whole
 * slot (MSG_WAITALL), which age ends. Owned by the worker's thread. Invariants:
 *  - A flow has at most one slot, and one receive or poll under way.
 *  - A slot is with a flow, with a batch, or free; with both while a batch had room
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

static void recv_arm_poll(struct receiver *r, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, TAG_POLL, f->index);
    io_uring_prep_poll_add(sqe, f->fd, POLLIN | POLLRDHUP);
    f->ops_in_flight++;
    f->polled = true;
}

static void recv_arm_receive(struct receiver *r, struct flow *f) {
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, TAG_RECEIVE, f->index);
    uint64_t room = buddy_slot_bytes(f->slot_order) - f->slot_filled;
    if (room > f->limit_bytes - f->received_bytes)
        room = f->limit_bytes - f->received_bytes;
    assert(f->slot_offset != UINT64_MAX && room > 0);
    io_uring_prep_recv(sqe, f->fd, r->area->base + f->slot_offset + f->slot_filled, room,
                       f->bulk ? MSG_WAITALL : 0);
    f->ops_in_flight++;
    flow_set_phase(f, FLOW_RECEIVING);
    if (f->queue != QUEUE_DIRTY)
        flow_wait(r->flows, f, QUEUE_ARMED, r->reactor->now_ns);
}

/* Half the area divided by the flows that receive: large slots for few flows,
 * small ones for many, and always some left for the writes. */
static uint32_t recv_order_max(const struct receiver *r) {
    uint64_t receiving =
        r->flows->waiting[QUEUE_DIRTY].count + r->flows->waiting[QUEUE_ARMED].count;
    uint64_t share = r->area->slots_bytes / (2 * (receiving + 1));
    uint32_t order = buddy_order(&r->area->slots, share);
    return order > 0 && buddy_slot_bytes(order) > share ? order - 1 : order;
}

static bool recv_take_slot(struct receiver *r, struct flow *f, uint32_t order) {
    uint32_t most = recv_order_max(r);
    f->slot_order = order < most ? order : most;
    f->slot_filled = 0;
    f->slot_offset = buddy_take(&r->area->slots, f->slot_order);
    if (f->slot_offset == UINT64_MAX)
        return false;
    STAT_ADD(r->reactor, area_receiving_bytes, buddy_slot_bytes(f->slot_order));
    return true;
}

static void recv_slot_left_flow(struct receiver *r, struct flow *f) {
    STAT_ADD(r->reactor, area_receiving_bytes, -buddy_slot_bytes(f->slot_order));
    f->slot_offset = UINT64_MAX;
    f->slot_filled = f->slot_copied = f->slot_taken = 0;
}

static void recv_give_slot(struct receiver *r, struct flow *f) {
    if (f->slot_offset == UINT64_MAX)
        return;
    if (!buddy_give(&r->area->slots, f->slot_offset, f->slot_order))
        STAT_ADD(r->reactor, area_writing_bytes, buddy_slot_bytes(f->slot_order));
    recv_slot_left_flow(r, f);
}

static void recv_release(struct receiver *r, uint64_t hold) {
    uint32_t order = (uint32_t)(hold & HOLD_ORDER_MASK);
    if (buddy_give(&r->area->slots, hold & ~HOLD_ORDER_MASK, order))
        STAT_ADD(r->reactor, area_writing_bytes, -buddy_slot_bytes(order));
}

/* A batch took the first part of what is left in the slot, up to a page. The rest
 * goes to another one: both read from the slot. */
static void recv_slot_taken_in_part(struct receiver *r, struct flow *f, uint32_t bytes) {
    buddy_share(&r->area->slots, f->slot_offset);
    f->slot_taken += bytes;
    f->slot_copied -= bytes < f->slot_copied ? bytes : f->slot_copied;
}

/* Hands the slot's bytes to batches, and the slot with them; false when some must
 * wait. Where the last ones may be a trailer, they stay behind, and are copied to
 * the front of the next slot. */
static bool recv_deliver(struct receiver *r, struct flow *f) {
    uint64_t slot_bytes = buddy_slot_bytes(f->slot_order);
    uint32_t end = f->slot_filled;
    if (engine_is_holding(f))
        end -= receive_block_hold(f->block, r->area->base + f->slot_offset, end);
    if (end == 0) {
        recv_give_slot(r, f);
        return true;
    }
    for (;;) {
        const struct batch_piece piece = {
            .data = r->area->base + f->slot_offset + f->slot_taken,
            .bytes = end - f->slot_taken,
            .slack = (uint32_t)(slot_bytes - end),
            .copied_bytes = f->slot_copied,
            .copied_for = BOUNCE_TRAILER,
            .hold = f->slot_offset | f->slot_order,
        };
        uint32_t taken = engine_append(r, f, &piece);
        if (taken == piece.bytes)
            break;
        if (taken == 0)
            return false;
        recv_slot_taken_in_part(r, f, taken);
    }
    STAT_ADD(r->reactor, area_writing_bytes, slot_bytes);
    recv_slot_left_flow(r, f);
    return true;
}

static void recv_put_held_back(struct receiver *r, struct flow *f) {
    struct receive_block *s = f->block;
    memcpy(r->area->base + f->slot_offset, s->memory, s->filled);
    f->slot_filled = f->slot_copied = s->filled;
    s->filled = 0;
}

/* Continues to receive: into what is left of the slot, or into a new one, sized to
 * what waits in the socket. */
static void recv_receive(struct receiver *r, struct flow *f) {
    if (f->slot_offset == UINT64_MAX) {
        uint32_t order = f->slot_order + 1; /* it filled the last one: more is to come */
        if (!f->bulk) {
            uint32_t pending = socket_pending_bytes(f->fd);
            if (engine_is_holding(f))
                pending += f->block->filled;
            order = buddy_order(&r->area->slots, pending);
        }
        if (flow_is_behind(r->flows, f, QUEUE_STARVED) || !recv_take_slot(r, f, order)) {
            flow_set_phase(f, FLOW_STARVED);
            flow_keep_waiting(r->flows, f, QUEUE_STARVED, r->reactor->now_ns);
            return;
        }
        if (engine_is_holding(f))
            recv_put_held_back(r, f);
    }
    recv_arm_receive(r, f);
}

/* The one place that decides what a flow does next, given what it has. */
static void recv_advance(struct receiver *r, struct flow *f) {
    bool over = f->eof || f->error || f->stop || f->received_bytes == f->limit_bytes;
    bool full = f->slot_offset != UINT64_MAX && f->slot_filled == buddy_slot_bytes(f->slot_order);
    bool none = f->slot_filled == 0;
    if (!none && !f->drop && (over || full || f->flush_due) && !recv_deliver(r, f)) {
        flow_set_phase(f, FLOW_BLOCKED);
        flow_keep_waiting(r->flows, f, QUEUE_BLOCKED, r->reactor->now_ns);
        return;
    }
    if (over) {
        recv_give_slot(r, f);
        engine_report(r, f, REPORT_OVER, 0);
        return;
    }
    f->bulk = full;
    f->flush_due = false;
    if (f->bulk) {
        flow_wait(r->flows, f, QUEUE_NONE, r->reactor->now_ns);
        recv_receive(r, f);
        return;
    }
    if (f->slot_filled == 0) {
        recv_give_slot(r, f);
        flow_wait(r->flows, f, QUEUE_NONE, r->reactor->now_ns);
    } else if (f->queue != QUEUE_DIRTY) {
        flow_wait(r->flows, f, QUEUE_DIRTY, r->reactor->now_ns);
    }
    flow_set_phase(f, FLOW_POLLING);
    if (!f->polled)
        recv_arm_poll(r, f);
}

static void recv_received(struct receiver *r, struct flow *f, int result) {
    f->cancelling = false;
    if (result > 0) {
        f->slot_filled += (uint32_t)result;
        STAT_ADD(r->reactor, kernel_copied_bytes, result);
        engine_received(r, f, (uint32_t)result);
    } else if (result == 0) {
        f->error = socket_end_of_stream(f->fd);
        f->eof = f->error == 0;
    } else if (result != -ECANCELED && result != -EINTR && result != -EAGAIN) {
        f->error = -result;
    }
    recv_advance(r, f);
}

static void recv_complete(struct receiver *r, enum uring_tag tag, struct flow *f,
                          const struct io_uring_cqe *cqe) {
    if (tag == TAG_RECEIVE) {
        recv_received(r, f, cqe->res);
    } else if (tag == TAG_POLL) {
        f->polled = false;
        /* In another phase it says nothing new: that phase ends in a poll. */
        if (f->phase == FLOW_POLLING)
            recv_receive(r, f);
    } else if (tag == TAG_BLOCK) {
        engine_report(r, f, REPORT_BLOCK, cqe->res);
    }
}

static void recv_cancel_receive(struct receiver *r, struct flow *f) {
    if (!f->cancelling)
        engine_cancel(r, f, TAG_RECEIVE);
    f->cancelling = true;
}

static void recv_stop(struct receiver *r, struct flow *f) {
    assert(f->stop && !f->ended);
    if (engine_receives_block(f)) {
        engine_cancel(r, f, TAG_BLOCK);
        return;
    }
    if (f->phase == FLOW_RECEIVING) {
        recv_cancel_receive(r, f);
        return;
    }
    if (f->polled)
        engine_cancel(r, f, TAG_POLL);
    recv_advance(r, f);
}

/* What has waited for flush_interval goes to a batch, full or not. */
static uint64_t recv_flush_aged(struct receiver *r, enum flow_queue queue) {
    struct flow *f;
    while ((f = flow_first(r->flows, queue)) != NULL) {
        uint64_t due_ns = f->since_ns + r->storage->settings.flush_interval_ns;
        if (due_ns > r->reactor->now_ns)
            return due_ns;
        flow_wait(r->flows, f, QUEUE_NONE, r->reactor->now_ns);
        f->flush_due = true;
        if (f->phase == FLOW_RECEIVING)
            recv_cancel_receive(r, f);
        else
            recv_advance(r, f);
    }
    return TIME_NEVER;
}

static void recv_serve_starved(struct receiver *r) {
    struct flow *f;
    while ((f = flow_first(r->flows, QUEUE_STARVED)) != NULL) {
        recv_receive(r, f);
        if (f->phase == FLOW_STARVED)
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

static struct engine_owner recv_owner(struct receiver *r, const struct flow *f) {
    (void)r; /* any worker can read any socket */
    (void)f;
    return (struct engine_owner){0};
}

static void recv_take(struct receiver *r, struct flow *f) {
    (void)r;
    (void)f;
}

static void recv_start(struct receiver *r, struct flow *f) {
    flow_set_phase(f, FLOW_POLLING);
    recv_arm_poll(r, f);
}

static void recv_receive_block(struct receiver *r, struct flow *f) {
    struct receive_room room = receive_block_room(f->block);
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, TAG_BLOCK, f->index);
    io_uring_prep_recv(sqe, f->fd, room.at, room.bytes, MSG_WAITALL);
    f->ops_in_flight++;
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

/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx`: the NIC puts payload into chunks of the area; batches are
 * written from where it lies, and a chunk goes back when its writes are done.
 *
 * One multishot RECV_ZC per flow. A flow whose fragments find no batch is
 * paused (its receive is cancelled), so that the TCP window closes. With
 * interface 0 the kernel's device-less mode runs the same code and copies.
 * Owned by the worker's thread; invariants are in engine_zcrx.h.
 */
#include "engine_zcrx.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker.h"
#include "zcrx_open.h"

/* Per chunk: how many fragments can be out at once, on average. Small packets
 * that share a page make many; contiguous ones are merged while they wait. */
#define FRAGMENTS_PER_CHUNK 4u
#define RELIEF_SLOT_BYTES_MAX 65536u
#define RECEIVE_BUFFER_BYTES_MIN 32768u
#define RECEIVE_BUFFER_BYTES_MAX (4u << 20)
#define RECEIVE_BUFFER_FLOWS_MIN 16u
#define RELIEF_ORDER_SHIFT 56
#define RELIEF_SLOTS_MIN 4u
#define STARVED_RETRY_NS 1000000ull

uint64_t zcrx_relief_bytes(uint64_t area_bytes) {
    uint64_t slots = area_bytes / 8 / RELIEF_SLOT_BYTES_MAX;
    return (slots > RELIEF_SLOTS_MIN ? slots : RELIEF_SLOTS_MIN) * RELIEF_SLOT_BYTES_MAX;
}

/* SO_RCVBUF is doubled by the kernel, and bounded by net.core.rmem_max unless forced, which wants
 * the CAP_NET_ADMIN that a queue wants as well: socket(7). */
static void set_receive_buffer(int fd, uint64_t bytes) {
    int value = (int)(bytes / 2);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &value, sizeof value) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, sizeof value);
}

/* Data that waits in sockets occupies chunks: all receive buffers together are
 * kept near half of the area. */
static uint64_t receive_buffer_bytes(const struct worker *w) {
    uint32_t flows =
        w->flows.count > RECEIVE_BUFFER_FLOWS_MIN ? w->flows.count : RECEIVE_BUFFER_FLOWS_MIN;
    uint64_t bytes = time_min(w->area.slots_bytes / 2 / flows, RECEIVE_BUFFER_BYTES_MAX);
    return bytes > RECEIVE_BUFFER_BYTES_MIN ? bytes : RECEIVE_BUFFER_BYTES_MIN;
}

/* A connection's window can never become larger than its listener's buffer was
 * when it came (the scale is agreed on in the first packet). So listeners have
 * what flows shall have, but for the time when no more flows can be accepted:
 * what comes then waits, and holds chunks that nobody reads. A shorter backlog
 * would not help: the kernel would answer by SYN cookies, which turn the data
 * of a connection that finds no place into a reset. */
static void set_listeners(struct worker *w, enum zcrx_listeners wanted) {
    uint64_t bytes =
        wanted == ZCRX_LISTENERS_FULL ? RECEIVE_BUFFER_BYTES_MIN : receive_buffer_bytes(w);
    for (uint32_t i = 0; i < w->listener_count; i++)
        set_receive_buffer(w->listeners[i].fd, bytes);
    w->zcrx.listeners = wanted;
}

static void keep_listeners(struct worker *w) {
    enum zcrx_listeners wanted =
        w->flows.count >= w->flows_at_once_max ? ZCRX_LISTENERS_FULL : ZCRX_LISTENERS_OPEN;
    if (wanted != w->zcrx.listeners)
        set_listeners(w, wanted);
}

/* What lies in sockets, also in TCP's out-of-order queue, occupies chunks: more
 * flows than half of the area can bear at their least receive buffer are not
 * accepted. */
static void bound_flows(struct worker *w) {
    uint64_t least = w->zcrx.rx_buf_len > RECEIVE_BUFFER_BYTES_MIN ? w->zcrx.rx_buf_len
                                                                   : RECEIVE_BUFFER_BYTES_MIN;
    uint64_t flows = w->area.slots_bytes / 2 / least;
    w->flows_at_once_max = flows > 1 ? (uint32_t)flows : 1;
}

static int zcrx_open(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    int code = zcrx_open_queue(w);
    if (code < 0)
        return code;
    z->fragment_count = z->chunk_count * FRAGMENTS_PER_CHUNK;
    z->fragments = calloc(z->fragment_count, sizeof *z->fragments);
    uint64_t relief_bytes = zcrx_relief_bytes(w->area.slots_bytes);
    z->relief_base = area_own(&w->area, relief_bytes);
    bool out_of_memory = z->fragments == NULL ||
                         refill_init(&z->refill, z->chunk_count, zcrx_chunk_shift(z)) < 0 ||
                         buddy_init(&z->relief, relief_bytes, RELIEF_SLOT_BYTES_MAX) < 0;
    if (out_of_memory)
        return fault_set(&w->fault, ENOMEM, "calloc", "account of the area's chunks");
    for (uint32_t i = 0; i < z->fragment_count; i++)
        z->fragments[i].next = i + 1 < z->fragment_count ? i + 1 : FLOW_NONE;
    uint32_t holds_max = z->chunk_count / 8 > 4 ? z->chunk_count / 8 : 4;
    w->batches.holds_max = holds_max < BATCH_HOLDS_MAX ? holds_max : BATCH_HOLDS_MAX;
    uint32_t writes_max = z->chunk_count / 2 / w->batches.holds_max;
    if (writes_max > 1 && writes_max - 1 < w->settings.writes_in_flight_max)
        w->settings.writes_in_flight_max = writes_max - 1;
    STAT_SET(w, rx_buf_len, z->rx_buf_len);
    bound_flows(w);
    return 0;
}

static void zcrx_close(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    if (z->region != NULL)
        munmap(z->region, z->region_bytes);
    refill_destroy(&z->refill);
    buddy_destroy(&z->relief);
    free(z->fragments);
    memset(z, 0, sizeof *z);
}

static void arm(struct worker *w, struct flow *f) {
    struct io_uring_sqe *sqe = worker_sqe(w);
    io_uring_prep_rw(URING_OP_RECV_ZC, sqe, f->fd, NULL, 0, 0);
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->file_index = w->zcrx.id; /* shares its place with zcrx_ifq_idx */
    sqe->user_data = uring_tag(TAG_RECEIVE, f->index);
    f->ops_in_flight++;
    f->armed = true;
    f->phase = FLOW_RECEIVING;
}

static bool is_copied(uint64_t hold) {
    return (hold & BATCH_HOLD_COPIED) != 0;
}

static uint32_t relief_order(uint64_t hold) {
    return (uint32_t)(hold >> RELIEF_ORDER_SHIFT) & 0x7f;
}

static uint64_t relief_slot(uint64_t hold) {
    return hold & ((1ull << RELIEF_ORDER_SHIFT) - 1);
}

static void zcrx_release(struct worker *w, uint64_t hold) {
    if (is_copied(hold)) {
        buddy_give(&w->zcrx.relief, relief_slot(hold), relief_order(hold));
        return;
    }
    refill_return(&w->zcrx.refill, hold);
}

static uint8_t *data_of(struct worker *w, uint64_t hold) {
    if (is_copied(hold))
        return w->zcrx.relief_base + relief_slot(hold);
    return w->area.base + hold;
}

/* Hands bytes to batches until all are taken; returns how many were. A fragment
 * that two batches share has two holders. */
static uint32_t hand_over(struct worker *w, struct flow *f, uint64_t hold, uint32_t bytes) {
    bool copied = is_copied(hold);
    /* A relief slot is ours to its end; behind a fragment may lie another one. */
    uint32_t slack = copied ? (uint32_t)buddy_slot_bytes(relief_order(hold)) - bytes : 0;
    uint32_t done = 0;
    while (done < bytes) {
        uint64_t rest = hold + done;
        uint32_t taken =
            batch_add(w, f, data_of(w, rest), bytes - done, slack, copied ? hold : rest);
        if (taken == 0)
            break;
        assert(!copied || taken == bytes);
        done += taken;
        if (done < bytes)
            refill_share(&w->zcrx.refill, rest);
    }
    return done;
}

static struct zcrx_fragment *fragment_at(struct worker *w, uint32_t index) {
    assert(index < w->zcrx.fragment_count);
    return &w->zcrx.fragments[index];
}

/* Puts what no batch took at the end of the flow's list; false when the table
 * is used up. */
static bool append_pending(struct worker *w, struct flow *f, uint64_t hold, uint32_t bytes) {
    struct zcrx *z = &w->zcrx;
    uint32_t index = z->fragment_free;
    if (index == FLOW_NONE)
        return false;
    struct zcrx_fragment *n = fragment_at(w, index);
    z->fragment_free = n->next;
    *n = (struct zcrx_fragment){.offset = hold, .bytes = bytes, .next = FLOW_NONE};
    if (f->fragment_tail == FLOW_NONE)
        f->fragment_head = index;
    else
        fragment_at(w, f->fragment_tail)->next = index;
    f->fragment_tail = index;
    z->fragments_pending++;
    return true;
}

/* No list has the fragment any more. */
static void free_fragment(struct worker *w, uint32_t index) {
    struct zcrx *z = &w->zcrx;
    fragment_at(w, index)->next = z->fragment_free;
    z->fragment_free = index;
    z->fragments_pending--;
}

static void pop_pending(struct worker *w, struct flow *f) {
    uint32_t index = f->fragment_head;
    f->fragment_head = fragment_at(w, index)->next;
    if (f->fragment_head == FLOW_NONE)
        f->fragment_tail = FLOW_NONE;
    free_fragment(w, index);
}

/* Gives the flow's pending fragments to batches, or up. True when none is left. */
static bool settle_pending(struct worker *w, struct flow *f) {
    while (f->fragment_head != FLOW_NONE) {
        struct zcrx_fragment *n = fragment_at(w, f->fragment_head);
        if (f->drop) {
            zcrx_release(w, n->offset);
        } else {
            uint32_t taken = hand_over(w, f, n->offset, n->bytes);
            n->offset += taken;
            n->bytes -= taken;
            if (n->bytes > 0)
                return false;
        }
        pop_pending(w, f);
    }
    return true;
}

static bool chunks_are_short(const struct worker *w) {
    return w->zcrx.refill.chunks_lent > w->zcrx.chunk_count / 4 * 3;
}

/* The one place that decides what a flow does next, given what it has. */
static void advance(struct worker *w, struct flow *f) {
    bool over = f->eof || f->error || f->stop;
    if (!settle_pending(w, f)) {
        if (f->armed && !f->cancelling) {
            engine_cancel(w, f, TAG_RECEIVE);
            f->cancelling = true;
        }
        f->phase = FLOW_BLOCKED;
        flow_wait(&w->flows, f, QUEUE_BLOCKED, w->now_ns);
        return;
    }
    flow_wait(&w->flows, f, QUEUE_NONE, w->now_ns);
    if (over && !f->armed) {
        engine_finish(w, f);
    } else if (f->armed) {
        f->phase = FLOW_RECEIVING;
    } else if (f->starved) {
        f->phase = FLOW_STARVED; /* the kernel found no chunk: when some are back */
        flow_wait(&w->flows, f, QUEUE_STARVED, w->now_ns);
    } else {
        arm(w, f);
    }
}

static void delivered(struct worker *w, struct flow *f, uint64_t offset, uint32_t bytes) {
    uint32_t taken = 0;
    refill_delivered(&w->zcrx.refill, offset);
    intake_received(w, f, bytes);
    if (f->drop) {
        refill_return(&w->zcrx.refill, offset);
        return;
    }
    if (f->fragment_head == FLOW_NONE)
        taken = hand_over(w, f, offset, bytes);
    if (taken == bytes)
        return;
    if (!append_pending(w, f, offset + taken, bytes - taken)) {
        /* Far more and smaller fragments than the area is made for. */
        refill_return(&w->zcrx.refill, offset + taken);
        f->error = ENOBUFS;
        f->drop = true;
    }
    if (f->phase == FLOW_RECEIVING)
        advance(w, f);
}

/* The multishot receive has ended; result says why. */
static void ended(struct worker *w, struct flow *f, int result) {
    f->armed = false;
    f->cancelling = false;
    if (result == 0) {
        f->error = engine_end_of_stream(f);
        f->eof = f->error == 0;
    } else if (result == -ENOMEM) {
        f->starved = true; /* the copy path found no chunk */
    } else if (result < 0 && result != -ECANCELED && result != -ENOSPC && result != -EINTR) {
        f->error = -result;
    }
    if (f->phase == FLOW_RECEIVING)
        advance(w, f);
}

static void zcrx_complete(struct worker *w, enum uring_tag tag, struct flow *f,
                          const struct io_uring_cqe *cqe) {
    if (tag != TAG_RECEIVE)
        return; /* what a cancel found, its receive tells */
    if (cqe->res > 0) {
        const struct abi_zcrx_completion *more = (const void *)(cqe + 1);
        delivered(w, f, more->offset & ABI_ZCRX_OFFSET_MASK, (uint32_t)cqe->res);
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        ended(w, f, cqe->res > 0 ? -ENOSPC : cqe->res);
}

static void zcrx_stop(struct worker *w, struct flow *f) {
    assert(f->stop && !f->ended);
    if (f->armed && !f->cancelling) {
        engine_cancel(w, f, TAG_RECEIVE);
        f->cancelling = true;
    }
    if (!f->armed || f->phase == FLOW_BLOCKED)
        advance(w, f);
}

/* Which rx queue the connection came by: ours, another worker's, or one that
 * is not set up for zero copy. Returns whether the flow stays here. */
static bool is_ours(struct worker *w, struct flow *f) {
    struct zcrx *z = &w->zcrx;
    unsigned napi = 0;
    socklen_t bytes = sizeof napi;
    getsockopt(f->fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &napi, &bytes);
    if (z->napi_own == 0 || napi == z->napi_own)
        return true;
    for (uint32_t i = 0; i < z->napi_other_count; i++) {
        if (z->napi_others[i] == napi)
            return !intake_hand_away(w, f, z->napi_owners[i]);
    }
    STAT_ADD(w, flows_by_copy, 1);
    worker_event(w, EVENT_FLOW_BY_COPY, f, (int)napi, 0, 0);
    return true;
}

void zcrx_event(struct worker *w, uint32_t type) {
    if (type == ABI_ZCRX_EVENT_ALLOC_FAIL)
        STAT_ADD(w, alloc_failures, 1);
    batch_hurry(w);
    zcrx_arm_event(w, type);
}

static bool zcrx_start(struct worker *w, struct flow *f) {
    if (!is_ours(w, f))
        return false;
    set_receive_buffer(f->fd, receive_buffer_bytes(w));
    arm(w, f);
    return true;
}

/* Bytes of the fragments from index on that one relief slot can take together. */
static uint32_t run_bytes(struct worker *w, uint32_t index) {
    uint64_t most = time_min(RELIEF_SLOT_BYTES_MAX, w->batches.payload_bytes_max);
    uint32_t bytes = 0;
    while (index != FLOW_NONE) {
        const struct zcrx_fragment *n = fragment_at(w, index);
        if (is_copied(n->offset) || bytes + n->bytes > most)
            break;
        bytes += n->bytes;
        index = n->next;
    }
    return bytes;
}

/* Copies the run of fragments that begins at index into a slot, and makes one
 * pending fragment of it. Returns the index of the one behind. */
static uint32_t copy_run(struct worker *w, struct flow *f, uint32_t index, uint64_t slot,
                         uint32_t order, uint32_t bytes) {
    struct zcrx *z = &w->zcrx;
    struct zcrx_fragment *first = fragment_at(w, index);
    uint32_t done = 0, next = index;
    while (done < bytes) {
        uint32_t at = next;
        struct zcrx_fragment *n = fragment_at(w, at);
        memcpy(z->relief_base + slot + done, w->area.base + n->offset, n->bytes);
        refill_return(&z->refill, n->offset);
        done += n->bytes;
        next = n->next;
        if (at != index)
            free_fragment(w, at);
    }
    assert(done == bytes);
    first->offset = slot | BATCH_HOLD_COPIED | (uint64_t)order << RELIEF_ORDER_SHIFT;
    first->bytes = bytes;
    first->next = next;
    if (next == FLOW_NONE)
        f->fragment_tail = index;
    return next;
}

/* Copies what a flow has waiting into relief slots, as long as there are some
 * and chunks are short, and gives the chunks back. */
static void copy_out(struct worker *w, struct flow *f) {
    struct zcrx *z = &w->zcrx;
    uint32_t index = f->fragment_head;
    while (index != FLOW_NONE && chunks_are_short(w)) {
        uint32_t bytes = run_bytes(w, index);
        if (bytes == 0) {
            index = fragment_at(w, index)->next; /* copied already, or too large for a slot */
            continue;
        }
        uint32_t order = buddy_order(&z->relief, bytes);
        uint64_t slot = buddy_take(&z->relief, order);
        if (slot == UINT64_MAX)
            return;
        index = copy_run(w, f, index, slot, order, bytes);
    }
}

/* The relief valve: TCP's out-of-order queue holds chunks too, and with none
 * left for a retransmission it would hold them for ever. */
static void relieve(struct worker *w) {
    if (w->zcrx.refill.chunks_lent > w->zcrx.chunk_count / 2)
        batch_hurry(w);
    uint32_t index = w->flows.waiting[QUEUE_BLOCKED].head;
    while (chunks_are_short(w) && index != FLOW_NONE) {
        struct flow *f = &w->flows.flows[index];
        if (f->phase == FLOW_BLOCKED)
            copy_out(w, f);
        index = f->wait.next;
    }
}

/* Chunks come back by our writes, but also when sockets are read or closed, of
 * which nobody tells: so starved flows also try again after a while. */
static uint64_t serve_starved(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_STARVED)) != NULL) {
        if (f->since_ns + STARVED_RETRY_NS > w->now_ns)
            return f->since_ns + STARVED_RETRY_NS;
        f->starved = false;
        advance(w, f);
    }
    return TIME_NEVER;
}

static uint64_t zcrx_turn(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    engine_serve_blocked(w, advance);
    relieve(w);
    keep_listeners(w);
    uint32_t fresh = refill_publish(&z->refill);
    if (fresh > 0 && w->settings.interface_index == 0)
        zcrx_flush_refill(w);
    uint64_t next_ns = serve_starved(w);
    if (z->kernel_stats != NULL) {
        uint64_t bytes = __atomic_load_n(&z->kernel_stats->copy_bytes, __ATOMIC_RELAXED);
        STAT_SET(w, kernel_copied_bytes, bytes);
    }
    uint64_t lent_bytes = (uint64_t)z->refill.chunks_lent * z->rx_buf_len;
    STAT_SET(w, chunks_lent, z->refill.chunks_lent);
    STAT_SET(w, area_writing_bytes, lent_bytes);
    STAT_SET(w, area_free_bytes, w->area.slots_bytes - lent_bytes);
    return next_ns;
}

const struct engine engine_zcrx = {
    .name = "zcrx",
    .open = zcrx_open,
    .start = zcrx_start,
    .complete = zcrx_complete,
    .turn = zcrx_turn,
    .stop = zcrx_stop,
    .release = zcrx_release,
    .close = zcrx_close,
};

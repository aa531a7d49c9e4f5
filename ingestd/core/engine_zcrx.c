/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx`: the NIC puts payload into chunks of the area; batches are
 * written from where it lies, and a chunk goes back when its writes are done.
 *
 * One multishot RECV_ZC per flow. A flow whose fragments find no batch is
 * paused (its receive is cancelled), so that the TCP window closes. A receive is
 * bounded where the payload, or a block of protocol ingest, has a length: at its
 * bound it ends as at the end of the stream, and the count of bytes tells which.
 * With interface 0 the kernel's device-less mode runs the same code and copies.
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
#include "zcrx_block.h"
#include "zcrx_open.h"
#include "zcrx_pending.h"

#define RECEIVE_BUFFER_BYTES_MIN 32768u
#define RECEIVE_BUFFER_BYTES_MAX (4u << 20)
#define RECEIVE_BUFFER_FLOWS_MIN 16u
#define STARVED_RETRY_NS 1000000ull
/* Of one receive; sqe->len has 32 bits. A longer flow is received by several. */
#define RECEIVE_BYTES_MAX (1u << 30)

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
    if (zcrx_pending_open(w) < 0 ||
        refill_init(&z->refill, z->chunk_count, zcrx_chunk_shift(z)) < 0)
        return fault_set(&w->fault, ENOMEM, "calloc", "account of the area's chunks");
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
    zcrx_pending_close(w);
    memset(z, 0, sizeof *z);
}

/* bytes_max 0: without a bound. */
static void arm_as(struct worker *w, struct flow *f, enum uring_tag tag, uint32_t bytes_max) {
    struct io_uring_sqe *sqe = worker_sqe(w);
    io_uring_prep_rw(URING_OP_RECV_ZC, sqe, f->fd, NULL, bytes_max, 0);
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->file_index = w->zcrx.id; /* shares its place with zcrx_ifq_idx */
    sqe->user_data = uring_tag(tag, f->index);
    f->ops_in_flight++;
    f->armed = true;
}

static void arm(struct worker *w, struct flow *f) {
    uint64_t left = f->limit_bytes - f->received_bytes;
    bool bounded = f->limit_bytes != UINT64_MAX;
    assert(left > 0);
    uint32_t bytes_max = bounded ? (uint32_t)time_min(left, RECEIVE_BYTES_MAX) : 0;
    f->bound_bytes = bounded ? f->received_bytes + bytes_max : UINT64_MAX;
    arm_as(w, f, TAG_RECEIVE, bytes_max);
    f->phase = FLOW_RECEIVING;
}

static void zcrx_receive_block(struct worker *w, struct flow *f) {
    assert(!f->armed && f->fragment_head == FLOW_NONE);
    arm_as(w, f, TAG_BLOCK, session_room(f->session).bytes);
}

/* The kernel found no chunk: to be tried again when some may be back. */
static void starve(struct worker *w, struct flow *f) {
    f->starved = true;
    flow_wait(&w->flows, f, QUEUE_STARVED, w->now_ns);
}

/* The one place that decides what a flow does next, given what it has. */
static void zcrx_advance(struct worker *w, struct flow *f) {
    bool over = f->eof || f->error || f->stop || f->received_bytes == f->limit_bytes;
    bool held = session_holds_back(f) && !f->drop;
    bool all = over || f->starved || f->flush_due;
    if (!(held ? zcrx_settle_held(w, f, all) : zcrx_settle(w, f))) {
        if (f->armed && !f->cancelling) {
            engine_cancel(w, f, TAG_RECEIVE);
            f->cancelling = true;
        }
        f->phase = FLOW_BLOCKED;
        flow_wait(&w->flows, f, QUEUE_BLOCKED, w->now_ns);
        return;
    }
    flow_wait(&w->flows, f, f->fragment_head != FLOW_NONE ? QUEUE_DIRTY : QUEUE_NONE, w->now_ns);
    f->flush_due = false;
    if (over && !f->armed) {
        f->starved = false;
        engine_finish(w, f);
    } else if (f->armed) {
        f->phase = FLOW_RECEIVING;
    } else if (f->starved) {
        f->phase = FLOW_STARVED;
        starve(w, f);
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
    if (f->fragment_head == FLOW_NONE && !session_holds_back(f))
        taken = zcrx_hand_over(w, f, offset, bytes);
    if (taken == bytes)
        return;
    if (!zcrx_append(w, f, offset + taken, bytes - taken)) {
        /* Far more and smaller fragments than the area is made for. */
        refill_return(&w->zcrx.refill, offset + taken);
        f->error = ENOBUFS;
        f->drop = true;
    }
    if (f->phase == FLOW_RECEIVING)
        zcrx_advance(w, f);
}

/* The multishot receive has ended; result says why. */
static void ended(struct worker *w, struct flow *f, int result) {
    f->armed = false;
    f->cancelling = false;
    if (result == 0 && f->received_bytes < f->bound_bytes) {
        f->error = engine_end_of_stream(f);
        f->eof = f->error == 0;
    } else if (result == -ENOMEM) {
        f->starved = true; /* the copy path found no chunk */
    } else if (result < 0 && result != -ECANCELED && result != -ENOSPC && result != -EINTR) {
        f->error = -result;
    }
    if (f->phase == FLOW_RECEIVING)
        zcrx_advance(w, f);
}

static void block_complete(struct worker *w, struct flow *f, const struct io_uring_cqe *cqe) {
    if (cqe->res > 0) {
        const struct abi_zcrx_completion *more = (const void *)(cqe + 1);
        zcrx_block_delivered(w, f, more->offset & ABI_ZCRX_OFFSET_MASK, (uint32_t)cqe->res);
    }
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    f->armed = false;
    f->cancelling = false;
    if (!zcrx_block_ended(w, f, cqe->res > 0 ? -ENOSPC : cqe->res))
        starve(w, f);
}

static void zcrx_complete(struct worker *w, enum uring_tag tag, struct flow *f,
                          const struct io_uring_cqe *cqe) {
    if (tag != TAG_RECEIVE) {
        if (tag == TAG_BLOCK)
            block_complete(w, f, cqe);
        return; /* what a cancel found, its receive tells */
    }
    if (cqe->res > 0) {
        const struct abi_zcrx_completion *more = (const void *)(cqe + 1);
        delivered(w, f, more->offset & ABI_ZCRX_OFFSET_MASK, (uint32_t)cqe->res);
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        ended(w, f, cqe->res > 0 ? -ENOSPC : cqe->res);
}

static void stop_starved_block(struct worker *w, struct flow *f) {
    f->starved = false;
    flow_wait(&w->flows, f, QUEUE_NONE, w->now_ns);
    session_received(w, f, -ECANCELED);
}

static void zcrx_stop(struct worker *w, struct flow *f) {
    assert(f->stop && !f->ended);
    bool block = engine_receives_block(f);
    if (f->armed && !f->cancelling) {
        engine_cancel(w, f, block ? TAG_BLOCK : TAG_RECEIVE);
        f->cancelling = true;
    }
    if (block && !f->armed)
        stop_starved_block(w, f);
    else if (!block && (!f->armed || f->phase == FLOW_BLOCKED))
        zcrx_advance(w, f);
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

static bool zcrx_take(struct worker *w, struct flow *f) {
    if (!is_ours(w, f))
        return false;
    set_receive_buffer(f->fd, receive_buffer_bytes(w));
    return true;
}

/* Chunks come back by our writes, but also when sockets are read or closed, of
 * which nobody tells: so starved flows also try again after a while. */
static uint64_t serve_starved(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_STARVED)) != NULL) {
        if (f->since_ns + STARVED_RETRY_NS > w->now_ns)
            return f->since_ns + STARVED_RETRY_NS;
        f->starved = false;
        flow_wait(&w->flows, f, QUEUE_NONE, w->now_ns);
        if (engine_receives_block(f))
            zcrx_receive_block(w, f);
        else
            zcrx_advance(w, f);
    }
    return TIME_NEVER;
}

/* What is held back leaves the area when it is old: a flow may be silent for long. */
static uint64_t flush_held(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_DIRTY)) != NULL) {
        uint64_t due_ns = f->since_ns + w->settings.flush_interval_ns;
        if (due_ns > w->now_ns && !zcrx_chunks_are_short(w))
            return due_ns;
        f->flush_due = true;
        zcrx_advance(w, f);
    }
    return TIME_NEVER;
}

static uint64_t zcrx_turn(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    engine_serve_blocked(w, zcrx_advance);
    zcrx_relieve(w);
    uint64_t next_ns = flush_held(w);
    keep_listeners(w);
    uint32_t fresh = refill_publish(&z->refill);
    if (fresh > 0 && w->settings.interface_index == 0)
        zcrx_flush_refill(w);
    next_ns = time_min(next_ns, serve_starved(w));
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
    .take = zcrx_take,
    .start = arm,
    .receive_block = zcrx_receive_block,
    .complete = zcrx_complete,
    .turn = zcrx_turn,
    .stop = zcrx_stop,
    .release = zcrx_let_go,
    .close = zcrx_close,
};

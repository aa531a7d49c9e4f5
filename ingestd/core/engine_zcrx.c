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
#include <netinet/in.h>
#include <netinet/tcp.h>
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
/* Of a connection that waits: two packets of 1448 bytes, each on a page of its own. */
#define WAITING_BUFFER_BYTES 8192u
/* tcp(7); no bound: the kernel takes what the window's scale admits. */
#define WINDOW_CLAMP_BYTES (1 << 30)
#define STARVED_RETRY_NS 1000000ull
/* Of one receive; sqe->len has 32 bits. A longer flow is received by several. */
#define RECEIVE_BYTES_MAX (1u << 30)

/* --- What sockets may hold of the area -------------------------------------------- */

/* SO_RCVBUF is doubled by the kernel, and bounded by net.core.rmem_max unless forced, which wants
 * the CAP_NET_ADMIN that a queue wants as well: socket(7). */
static void set_receive_buffer(int fd, uint64_t bytes) {
    int value = (int)(bytes / 2);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &value, sizeof value) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, sizeof value);
}

static void unbind_window(int fd) {
    int clamp = WINDOW_CLAMP_BYTES;
    setsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &clamp, sizeof clamp);
}

/* Connections that wait to be accepted have their listener's buffer, and what they have sent
 * holds chunks that nobody reads: it is kept to two packets each. More than that their windows do
 * not admit, so that nothing is dropped, and they go on the moment they are read.
 * The scale of a window is agreed on in the first packet and goes by the listener's buffer if that
 * is locked, by net.ipv4.tcp_rmem if not: so it is unlocked (SO_BUF_LOCK, Linux 5.14), and windows
 * can become large later. Newer kernels (7.3) bound the window as well when the buffer is set. */
static void set_listeners(struct worker *w) {
    int unlocked = 0;
    for (uint32_t i = 0; i < w->listener_count; i++) {
        int fd = w->listeners[i].fd;
        set_receive_buffer(fd, WAITING_BUFFER_BYTES);
        setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
        unbind_window(fd);
    }
    w->zcrx.listeners_set = true;
}

/* All receive buffers together are kept within half of the area. */
static uint64_t receive_buffer_bytes(const struct worker *w) {
    uint64_t bytes = w->area.slots_bytes / 2 / w->zcrx.buffers_for;
    bytes = time_min(bytes, RECEIVE_BUFFER_BYTES_MAX);
    return bytes > RECEIVE_BUFFER_BYTES_MIN ? bytes : RECEIVE_BUFFER_BYTES_MIN;
}

static void set_flow_buffer(const struct worker *w, const struct flow *f) {
    set_receive_buffer(f->fd, receive_buffer_bytes(w));
    unbind_window(f->fd);
}

/* Flows share half of the area: when their number has doubled, each gets half of what it had, and
 * more again when few are left. */
static void fit_buffers(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    uint32_t before = z->buffers_for;
    if (before == 0)
        z->buffers_for = RECEIVE_BUFFER_FLOWS_MIN;
    while (z->buffers_for < w->flows.count)
        z->buffers_for *= 2;
    while (z->buffers_for > RECEIVE_BUFFER_FLOWS_MIN && w->flows.count < z->buffers_for / 4)
        z->buffers_for /= 2;
    if (before == 0 || before == z->buffers_for)
        return;
    for (uint32_t i = 0; i < w->flows.used_upto; i++) {
        const struct flow *f = &w->flows.flows[i];
        if (f->phase != FLOW_FREE && !f->ended)
            set_flow_buffer(w, f);
    }
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
    z->probes = 1;
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
    w->zcrx.receives_run = true;
    f->phase = FLOW_RECEIVING;
}

/* Received is only as long as the table of fragments has room for all that may still come: what the
 * completion queue brings until the turn sees that it is low, and what it holds once more when
 * the kernel has taken the cancels. A completion brings one fragment, and the queue is never read
 * further than it is long. */
static bool table_is_low(const struct worker *w) {
    uint64_t coming = 2ull * w->ring.cq.ring_entries;
    return w->zcrx.fragment_count - w->zcrx.fragments_pending < coming;
}

/* The kernel found no chunk, or the table has no room: to be tried again when there may be some.
 * Who got nothing when its turn had come keeps its place. */
static void starve(struct worker *w, struct flow *f) {
    f->starved = true;
    if (f->starved_ns == 0) {
        flow_wait(&w->flows, f, QUEUE_STARVED, w->now_ns);
        return;
    }
    w->zcrx.probes = 1;
    flow_wait_in_order(&w->flows, f, QUEUE_STARVED, f->starved_ns);
}

static void zcrx_start(struct worker *w, struct flow *f) {
    if (!table_is_low(w)) {
        arm(w, f);
        return;
    }
    f->phase = FLOW_STARVED;
    starve(w, f);
}

/* Its completions so far still come. */
static void zcrx_pause(struct worker *w, struct flow *f, enum uring_tag tag) {
    if (!f->armed || f->cancelling)
        return;
    engine_cancel(w, f, tag);
    f->cancelling = true;
}

static void zcrx_receive_block(struct worker *w, struct flow *f) {
    assert(!f->armed && f->fragment_head == FLOW_NONE);
    arm_as(w, f, TAG_BLOCK, session_room(f->session).bytes);
}

/* The one place that decides what a flow does next, given what it has. */
static void zcrx_advance(struct worker *w, struct flow *f) {
    bool over = f->eof || f->error || f->stop || f->received_bytes == f->limit_bytes;
    bool held = session_holds_back(f) && !f->drop;
    bool all = over || f->starved || f->flush_due;
    if (!(held ? zcrx_settle_held(w, f, all) : zcrx_settle(w, f))) {
        zcrx_pause(w, f, TAG_RECEIVE);
        f->phase = FLOW_BLOCKED;
        flow_keep_waiting(&w->flows, f, QUEUE_BLOCKED, w->now_ns);
        return;
    }
    f->flush_due = false;
    if (over && !f->armed) {
        f->starved = false;
        engine_finish(w, f); /* its CLOSE record may still wait, at the place that it has */
        return;
    }
    flow_wait(&w->flows, f, f->fragment_head != FLOW_NONE ? QUEUE_DIRTY : QUEUE_NONE, w->now_ns);
    if (f->armed) {
        f->phase = FLOW_RECEIVING;
    } else if (f->starved) {
        f->phase = FLOW_STARVED;
        starve(w, f);
    } else {
        zcrx_start(w, f);
    }
}

/* Payload that has come: to a batch, or to the flow's list. */
static void zcrx_take_payload(struct worker *w, struct flow *f, uint64_t offset, uint32_t bytes) {
    uint32_t taken = 0;
    if (f->fragment_head == FLOW_NONE && !session_holds_back(f))
        taken = zcrx_hand_over(w, f, offset, bytes);
    if (taken == bytes)
        return;
    if (!zcrx_append(w, f, offset + taken, bytes - taken)) {
        /* More fragments than the table is made for: the flow has lost bytes, and ends. */
        refill_return(&w->zcrx.refill, offset + taken);
        f->error = ENOBUFS;
        f->drop = true;
        zcrx_pause(w, f, TAG_RECEIVE);
    }
    if (f->phase == FLOW_RECEIVING)
        zcrx_advance(w, f);
}

static void delivered(struct worker *w, struct flow *f, uint64_t offset, uint32_t bytes) {
    assert(f->received_bytes <= f->limit_bytes);
    uint32_t payload = (uint32_t)time_min(bytes, f->limit_bytes - f->received_bytes);
    refill_delivered(&w->zcrx.refill, offset);
    f->starved_ns = 0;
    if (payload < bytes) { /* kernels before 7.3.3 may go beyond the bound */
        session_take_beyond(f, w->area.base + offset + payload, bytes - payload);
        zcrx_pause(w, f, TAG_RECEIVE);
    }
    intake_received(w, f, payload);
    if (f->drop || payload == 0)
        refill_return(&w->zcrx.refill, offset);
    else
        zcrx_take_payload(w, f, offset, payload);
}

/* The multishot receive has ended; result says why. */
static void ended(struct worker *w, struct flow *f, int result) {
    f->armed = false;
    f->cancelling = false;
    if (f->error != 0) {
        /* What it has lost nothing makes good, how ever the stream ends. */
    } else if (result == 0 && f->received_bytes < f->bound_bytes) {
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
        f->starved_ns = 0;
        if (f->error != 0 || f->session->beyond)
            zcrx_pause(w, f, TAG_BLOCK);
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
    zcrx_pause(w, f, block ? TAG_BLOCK : TAG_RECEIVE);
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
    fit_buffers(w);
    set_flow_buffer(w, f);
    return true;
}

static void zcrx_serve(struct worker *w, struct flow *f) {
    f->starved = false;
    f->starved_ns = f->since_ns;
    flow_wait(&w->flows, f, QUEUE_NONE, w->now_ns);
    if (engine_receives_block(f))
        zcrx_receive_block(w, f);
    else
        zcrx_advance(w, f);
}

/* Starved flows are served in their order, as many as chunks came back. Of chunks that come back
 * as sockets are read or closed nobody tells: so some try once in a while, more each time that
 * none of them went away with nothing.
 * What comes by copy takes chunks from the area's free list alone: those in the refill ring, which
 * only the NIC's queue reads when it wants some itself, are moved there. */
static uint64_t serve_starved(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    uint32_t waiting = w->flows.waiting[QUEUE_STARVED].count;
    uint32_t count = refill_lying(&z->refill);
    if (count > 0 && (waiting > 0 || w->settings.interface_index == 0))
        zcrx_flush_refill(w);
    if (waiting == 0 || table_is_low(w)) /* a batch that is written wakes the loop */
        return TIME_NEVER;
    if (w->now_ns >= z->probe_ns) {
        count += z->probes;
        z->probes = z->probes < waiting ? z->probes * 2 : waiting;
        z->probe_ns = w->now_ns + STARVED_RETRY_NS;
    }
    for (count = (uint32_t)time_min(count, waiting); count > 0; count--)
        zcrx_serve(w, flow_first(&w->flows, QUEUE_STARVED));
    return flow_first(&w->flows, QUEUE_STARVED) != NULL ? z->probe_ns : TIME_NEVER;
}

/* What is being received finds no room in the table: every receive pauses, until there is room.
 * There may have been some between two turns that found it low: what was armed then pauses too. */
static void keep_table(struct worker *w) {
    bool low = table_is_low(w);
    if (w->zcrx.table_low && !low) {
        w->zcrx.probes = w->flows.capacity;
        w->zcrx.probe_ns = 0;
    }
    for (uint32_t i = 0; low && w->zcrx.receives_run && i < w->flows.used_upto; i++) {
        struct flow *f = &w->flows.flows[i];
        if (f->phase != FLOW_RECEIVING || !f->armed)
            continue;
        f->starved = true;
        zcrx_pause(w, f, TAG_RECEIVE);
    }
    if (low)
        w->zcrx.receives_run = false;
    w->zcrx.table_low = low;
}

/* What is held back leaves the area when it is old: a flow may be silent for long. */
static uint64_t flush_held(struct worker *w) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_DIRTY)) != NULL) {
        uint64_t due_ns = f->since_ns + w->settings.flush_interval_ns;
        if (due_ns > w->now_ns && !zcrx_chunks_are_short(w) && !table_is_low(w))
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
    if (!z->listeners_set)
        set_listeners(w);
    fit_buffers(w);
    keep_table(w);
    refill_publish(&z->refill);
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
    .start = zcrx_start,
    .receive_block = zcrx_receive_block,
    .complete = zcrx_complete,
    .turn = zcrx_turn,
    .stop = zcrx_stop,
    .release = zcrx_let_go,
    .close = zcrx_close,
};

/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx`: the NIC puts payload into chunks of the area; batches are
 * written from where it lies, and a chunk goes back when its writes are done.
 *
 * One multishot RECV_ZC per connection. A connection whose fragments find no batch is
 * paused (its receive is cancelled), so that the TCP window closes. A receive is
 * bounded where the payload, or a block of protocol ingest, has a length: at its
 * bound it ends as at the end of the stream; the count of bytes distinguishes the two.
 * With interface 0 the kernel's device-less mode runs the same code and copies.
 * Owned by the worker's thread; invariants are in zcrx.h.
 */
#include "receive/zcrx/zcrx.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/socket.h"
#include "receive/engine.h"
#include "receive/zcrx/control.h"
#include "receive/zcrx/register.h"
#include "receive/zcrx/pending.h"

#define RECEIVE_BUFFER_BYTES_MIN 32768u
#define RECEIVE_BUFFER_BYTES_MAX (4u << 20)
#define RECEIVE_BUFFER_FLOWS_MIN 16u
/* Of a connection that waits: two packets of 1448 bytes, each on a page of its own. */
#define WAITING_BUFFER_BYTES 8192u
#define STARVED_RETRY_NS 1000000ull
/* Of one receive; sqe->len has 32 bits. A longer connection is received by several. */
#define RECEIVE_BYTES_MAX (1u << 30)

/* --- What sockets may hold of the area -------------------------------------------- */

/* Connections that wait to be accepted have their listener's buffer, and what they have sent
 * holds chunks that nobody reads: it is kept to two packets each. More than that their windows do
 * not admit, so that nothing is dropped, and they continue as soon as they are read.
 * The scale of a window is agreed on in the first packet and goes by the listener's buffer if that
 * is locked, by net.ipv4.tcp_rmem if not: so it is unlocked, and windows
 * can become large later. Newer kernels (7.3) bound the window as well when the buffer is set. */
static void zcrx_set_listeners(struct receiver *r) {
    for (uint32_t i = 0; i < r->listener_count; i++) {
        int fd = r->listener_fds[i];
        socket_set_receive_buffer(fd, WAITING_BUFFER_BYTES);
        socket_unlock_receive_buffer(fd);
        socket_unbind_window(fd);
    }
    r->zcrx.listeners_set = true;
}

/* All receive buffers together are kept within half of the area. */
static uint64_t zcrx_receive_buffer_bytes(const struct receiver *r) {
    uint64_t bytes = r->area->slots_bytes / 2 / r->zcrx.buffers_for;
    bytes = time_min(bytes, RECEIVE_BUFFER_BYTES_MAX);
    return bytes > RECEIVE_BUFFER_BYTES_MIN ? bytes : RECEIVE_BUFFER_BYTES_MIN;
}

static void zcrx_set_buffer(const struct receiver *r, const struct connection *conn) {
    socket_set_receive_buffer(conn->fd, zcrx_receive_buffer_bytes(r));
    socket_unbind_window(conn->fd);
}

/* Connections share half of the area: when their number has doubled, each gets half of what it had,
 * and more again when few are left. */
static void zcrx_fit_buffers(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    uint32_t before = z->buffers_for;
    if (before == 0)
        z->buffers_for = RECEIVE_BUFFER_FLOWS_MIN;
    while (z->buffers_for < r->table->count)
        z->buffers_for *= 2;
    while (z->buffers_for > RECEIVE_BUFFER_FLOWS_MIN && r->table->count < z->buffers_for / 4)
        z->buffers_for /= 2;
    if (before == 0 || before == z->buffers_for)
        return;
    for (uint32_t i = 0; i < r->table->used_upto; i++) {
        const struct connection *conn = &r->table->connections[i];
        if (conn->phase != CONNECTION_FREE && !conn->ended)
            zcrx_set_buffer(r, conn);
    }
}

/* What lies in sockets, also in TCP's out-of-order queue, occupies chunks: more
 * connections than half of the area can bear at their least receive buffer are not
 * accepted. */
static void zcrx_bound_connections(struct receiver *r) {
    uint64_t least = r->zcrx.rx_buf_len > RECEIVE_BUFFER_BYTES_MIN ? r->zcrx.rx_buf_len
                                                                   : RECEIVE_BUFFER_BYTES_MIN;
    uint64_t connections = r->area->slots_bytes / 2 / least;
    r->connections_at_once_max = connections > 1 ? (uint32_t)connections : 1;
}

static int zcrx_open(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    int code = zcrx_open_queue(r);
    if (code < 0)
        return code;
    if (zcrx_pending_open(r) < 0 ||
        refill_init(&z->refill, z->chunk_count, zcrx_chunk_shift(z)) < 0)
        return fault_set(&r->reactor->fault, ENOMEM, "calloc", "account of the area's chunks");
    uint32_t holds_max = z->chunk_count / 8 > 4 ? z->chunk_count / 8 : 4;
    holds_max = holds_max < BATCH_HOLDS_MAX ? holds_max : BATCH_HOLDS_MAX;
    uint32_t writes_max = z->chunk_count / 2 / holds_max;
    storage_bound(r->storage, holds_max, writes_max > 1 ? writes_max - 1 : UINT32_MAX);
    STAT_SET(r->reactor, rx_buf_len, z->rx_buf_len);
    z->probes = 1;
    zcrx_bound_connections(r);
    return 0;
}

static void zcrx_close(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    if (z->region != NULL)
        munmap(z->region, z->region_bytes);
    refill_destroy(&z->refill);
    zcrx_pending_close(r);
    memset(z, 0, sizeof *z);
}

/* bytes_max 0: without a bound. */
static void zcrx_arm_as(struct receiver *r, struct connection *conn, enum uring_tag tag,
                        uint32_t bytes_max) {
    struct io_uring_sqe *sqe = reactor_sqe(r->reactor, tag, conn->index);
    io_uring_prep_rw(URING_OP_RECV_ZC, sqe, conn->fd, NULL, bytes_max, 0);
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->file_index = r->zcrx.id; /* shares its place with zcrx_ifq_idx */
    conn->ops_in_flight++;
    conn->zcrx.armed = true;
}

static void zcrx_arm(struct receiver *r, struct connection *conn) {
    uint64_t left = conn->limit_bytes - conn->received_bytes;
    bool bounded = conn->limit_bytes != UINT64_MAX;
    assert(left > 0);
    uint32_t bytes_max = bounded ? (uint32_t)time_min(left, RECEIVE_BYTES_MAX) : 0;
    conn->zcrx.bound_bytes = bounded ? conn->received_bytes + bytes_max : UINT64_MAX;
    zcrx_arm_as(r, conn, TAG_RECEIVE, bytes_max);
    r->zcrx.receives_run = true;
    connection_set_phase(conn, CONNECTION_RECEIVING);
}

/* Received is only as long as the table of fragments has room for all that may still come: what the
 * completion queue brings until the turn sees that it is low, and what it holds once more when
 * the kernel has taken the cancels. A completion brings one fragment, and the queue is never read
 * further than it is long. */
static bool zcrx_table_is_low(const struct receiver *r) {
    uint64_t coming = 2ull * r->reactor->ring.cq.ring_entries;
    return r->zcrx.fragment_count - r->zcrx.fragments_pending < coming;
}

/* The kernel found no chunk, or the table has no room: to be tried again when there may be some.
 * Who got nothing when its turn had come keeps its place. */
static void zcrx_starve(struct receiver *r, struct connection *conn) {
    conn->starved = true;
    if (conn->zcrx.starved_ns == 0) {
        connection_wait(r->table, conn, QUEUE_STARVED, r->reactor->now_ns);
        return;
    }
    r->zcrx.probes = 1;
    connection_wait_in_order(r->table, conn, QUEUE_STARVED, conn->zcrx.starved_ns);
}

static void zcrx_start(struct receiver *r, struct connection *conn) {
    if (!zcrx_table_is_low(r)) {
        zcrx_arm(r, conn);
        return;
    }
    connection_set_phase(conn, CONNECTION_STARVED);
    zcrx_starve(r, conn);
}

/* Its completions so far still come. */
static void zcrx_pause(struct receiver *r, struct connection *conn, enum uring_tag tag) {
    if (!conn->zcrx.armed || conn->cancelling)
        return;
    engine_cancel(r, conn, tag);
    conn->cancelling = true;
}

static void zcrx_receive_block(struct receiver *r, struct connection *conn) {
    assert(!conn->zcrx.armed && conn->zcrx.fragment_head == ZCRX_FRAGMENT_NONE);
    zcrx_arm_as(r, conn, TAG_BLOCK, receive_block_room(conn->block).bytes);
}

/* The one place that decides what a connection does next, given what it has. */
static void zcrx_advance(struct receiver *r, struct connection *conn) {
    bool over = conn->eof || conn->error || conn->stop || conn->received_bytes == conn->limit_bytes;
    bool held = engine_is_holding(conn) && !conn->drop;
    bool all = over || conn->starved || conn->flush_due;
    if (!(held ? zcrx_settle_held(r, conn, all) : zcrx_settle(r, conn))) {
        zcrx_pause(r, conn, TAG_RECEIVE);
        connection_set_phase(conn, CONNECTION_BLOCKED);
        connection_keep_waiting(r->table, conn, QUEUE_BLOCKED, r->reactor->now_ns);
        return;
    }
    conn->flush_due = false;
    if (over && !conn->zcrx.armed) {
        conn->starved = false;
        engine_report(r, conn, REPORT_OVER,
                      0); /* its CLOSE record may still wait, at the place that it has */
        return;
    }
    connection_wait(r->table, conn,
                    conn->zcrx.fragment_head != ZCRX_FRAGMENT_NONE ? QUEUE_DIRTY : QUEUE_NONE,
                    r->reactor->now_ns);
    if (conn->zcrx.armed) {
        connection_set_phase(conn, CONNECTION_RECEIVING);
    } else if (conn->starved) {
        connection_set_phase(conn, CONNECTION_STARVED);
        zcrx_starve(r, conn);
    } else {
        zcrx_start(r, conn);
    }
}

/* Payload that has come: to a batch, or to the connection's list. */
static void zcrx_take_payload(struct receiver *r, struct connection *conn, uint64_t offset,
                              uint32_t bytes) {
    uint32_t taken = 0;
    if (conn->zcrx.fragment_head == ZCRX_FRAGMENT_NONE && !engine_is_holding(conn))
        taken = zcrx_hand_over(r, conn, offset, bytes);
    if (taken == bytes)
        return;
    if (!zcrx_append(r, conn, offset + taken, bytes - taken)) {
        /* More fragments than the table is made for: the connection has lost bytes, and ends. */
        refill_return(&r->zcrx.refill, offset + taken);
        conn->error = ENOBUFS;
        conn->drop = true;
        zcrx_pause(r, conn, TAG_RECEIVE);
    }
    if (conn->phase == CONNECTION_RECEIVING)
        zcrx_advance(r, conn);
}

static void zcrx_delivered(struct receiver *r, struct connection *conn, uint64_t offset,
                           uint32_t bytes) {
    assert(conn->received_bytes <= conn->limit_bytes);
    uint32_t payload = (uint32_t)time_min(bytes, conn->limit_bytes - conn->received_bytes);
    refill_delivered(&r->zcrx.refill, offset);
    conn->zcrx.starved_ns = 0;
    if (payload < bytes) { /* kernels before 7.3.3 may go beyond the bound */
        receive_block_take_overrun(conn->block, r->area->base + offset + payload, bytes - payload);
        zcrx_pause(r, conn, TAG_RECEIVE);
    }
    engine_received(r, conn, payload);
    if (conn->drop || payload == 0)
        refill_return(&r->zcrx.refill, offset);
    else
        zcrx_take_payload(r, conn, offset, payload);
}

/* The multishot receive has ended; result says why. */
static void zcrx_ended(struct receiver *r, struct connection *conn, int result) {
    conn->zcrx.armed = false;
    conn->cancelling = false;
    if (conn->error != 0) {
        /* What it has lost nothing makes good, how ever the stream ends. */
    } else if (result == 0 && conn->received_bytes < conn->zcrx.bound_bytes) {
        conn->error = socket_end_of_stream(conn->fd);
        conn->eof = conn->error == 0;
    } else if (result == -ENOMEM) {
        conn->starved = true; /* the copy path found no chunk */
    } else if (result < 0 && result != -ECANCELED && result != -ENOSPC && result != -EINTR) {
        conn->error = -result;
    }
    if (conn->phase == CONNECTION_RECEIVING)
        zcrx_advance(r, conn);
}

static void zcrx_block_complete(struct receiver *r, struct connection *conn,
                                const struct io_uring_cqe *cqe) {
    if (cqe->res > 0) {
        const struct abi_zcrx_completion *more = (const void *)(cqe + 1);
        zcrx_block_delivered(r, conn, more->offset & ABI_ZCRX_OFFSET_MASK, (uint32_t)cqe->res);
        conn->zcrx.starved_ns = 0;
        if (conn->error != 0 || conn->block->overrun)
            zcrx_pause(r, conn, TAG_BLOCK);
    }
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    conn->zcrx.armed = false;
    conn->cancelling = false;
    if (!zcrx_block_ended(r, conn, cqe->res > 0 ? -ENOSPC : cqe->res))
        zcrx_starve(r, conn);
}

/* A cancel found nothing. Mostly its receive has ended, and said so before; but one that was
 * armed just now, and for which data came meanwhile, is for a moment where no cancel finds it
 * (io_queue_async(), io_uring/io_uring.c, Linux 6.15). */
static void zcrx_pause_again(struct receiver *r, struct connection *conn) {
    if (!conn->zcrx.armed || !conn->cancelling)
        return;
    conn->cancelling = false;
    zcrx_pause(r, conn, engine_receives_block(conn) ? TAG_BLOCK : TAG_RECEIVE);
}

static void zcrx_complete(struct receiver *r, enum uring_tag tag, struct connection *conn,
                          const struct io_uring_cqe *cqe) {
    if (tag != TAG_RECEIVE) {
        if (tag == TAG_BLOCK)
            zcrx_block_complete(r, conn, cqe);
        else if (cqe->res < 0)
            zcrx_pause_again(r, conn);
        return;
    }
    if (cqe->res > 0) {
        const struct abi_zcrx_completion *more = (const void *)(cqe + 1);
        zcrx_delivered(r, conn, more->offset & ABI_ZCRX_OFFSET_MASK, (uint32_t)cqe->res);
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        zcrx_ended(r, conn, cqe->res > 0 ? -ENOSPC : cqe->res);
}

static void zcrx_stop_starved_block(struct receiver *r, struct connection *conn) {
    conn->starved = false;
    connection_wait(r->table, conn, QUEUE_NONE, r->reactor->now_ns);
    engine_report(r, conn, REPORT_BLOCK, -ECANCELED);
}

static void zcrx_stop(struct receiver *r, struct connection *conn) {
    assert(conn->stop && !conn->ended);
    bool block = engine_receives_block(conn);
    zcrx_pause(r, conn, block ? TAG_BLOCK : TAG_RECEIVE);
    if (block && !conn->zcrx.armed)
        zcrx_stop_starved_block(r, conn);
    else if (!block && (!conn->zcrx.armed || conn->phase == CONNECTION_BLOCKED))
        zcrx_advance(r, conn);
}

/* By which rx queue the connection arrived: ours, another worker's, or one that
 * is not set up for zero copy. */
static struct engine_owner zcrx_owner(struct receiver *r, const struct connection *conn) {
    const struct zcrx *z = &r->zcrx;
    uint32_t napi_id = socket_napi_id(conn->fd);
    if (z->napi_own == 0 || napi_id == z->napi_own)
        return (struct engine_owner){0};
    for (uint32_t i = 0; i < z->napi_other_count; i++) {
        if (z->napi_others[i] == napi_id)
            return (struct engine_owner){.is_elsewhere = true, .worker_index = z->napi_owners[i]};
    }
    STAT_ADD(r->reactor, flows_by_copy, 1);
    return (struct engine_owner){.napi_id = napi_id};
}

void zcrx_event(struct receiver *r, uint32_t type) {
    if (type == ABI_ZCRX_EVENT_ALLOC_FAIL)
        STAT_ADD(r->reactor, alloc_failures, 1);
    storage_request_flush(r->storage);
    zcrx_arm_event(r, type);
}

static void zcrx_take(struct receiver *r, struct connection *conn) {
    zcrx_fit_buffers(r);
    zcrx_set_buffer(r, conn);
}

static void zcrx_serve(struct receiver *r, struct connection *conn) {
    conn->starved = false;
    conn->zcrx.starved_ns = conn->since_ns;
    connection_wait(r->table, conn, QUEUE_NONE, r->reactor->now_ns);
    if (engine_receives_block(conn))
        zcrx_receive_block(r, conn);
    else
        zcrx_advance(r, conn);
}

/* Starved connections are served in their order, as many as chunks came back. Chunks that come back
 * as sockets are read or closed are not reported: so some connections try once in a while, more
 * each time that all of those found one. What comes by copy takes chunks from the area's free list
 * alone: those in the refill ring, which only the NIC's queue reads when it wants some itself, are
 * moved there. */
static uint64_t zcrx_serve_starved(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    uint32_t waiting = r->table->waiting[QUEUE_STARVED].count;
    uint32_t count = refill_lying(&z->refill);
    if (count > 0 && (waiting > 0 || r->settings.interface_index == 0))
        zcrx_flush_refill(r);
    if (waiting == 0 || zcrx_table_is_low(r)) /* a batch that is written wakes the loop */
        return TIME_NEVER;
    if (r->reactor->now_ns >= z->probe_ns) {
        count += z->probes;
        z->probes = z->probes < waiting ? z->probes * 2 : waiting;
        z->probe_ns = r->reactor->now_ns + STARVED_RETRY_NS;
    }
    for (count = (uint32_t)time_min(count, waiting); count > 0; count--)
        zcrx_serve(r, connection_first(r->table, QUEUE_STARVED));
    return connection_first(r->table, QUEUE_STARVED) != NULL ? z->probe_ns : TIME_NEVER;
}

/* What is being received finds no room in the table: every receive pauses, until there is room.
 * There may have been some between two turns that found it low: what was armed then pauses too. */
static void zcrx_keep_table(struct receiver *r) {
    bool low = zcrx_table_is_low(r);
    if (r->zcrx.table_low && !low) {
        r->zcrx.probes = r->table->capacity;
        r->zcrx.probe_ns = 0;
    }
    for (uint32_t i = 0; low && r->zcrx.receives_run && i < r->table->used_upto; i++) {
        struct connection *conn = &r->table->connections[i];
        if (conn->phase != CONNECTION_RECEIVING || !conn->zcrx.armed)
            continue;
        conn->starved = true;
        zcrx_pause(r, conn, TAG_RECEIVE);
    }
    if (low)
        r->zcrx.receives_run = false;
    r->zcrx.table_low = low;
}

/* What is held back leaves the area when it is old: a connection may be silent for long. */
static uint64_t zcrx_flush_held(struct receiver *r) {
    struct connection *conn;
    while ((conn = connection_first(r->table, QUEUE_DIRTY)) != NULL) {
        uint64_t due_ns = conn->since_ns + r->storage->settings.flush_interval_ns;
        if (due_ns > r->reactor->now_ns && !zcrx_chunks_are_short(r) && !zcrx_table_is_low(r))
            return due_ns;
        conn->flush_due = true;
        zcrx_advance(r, conn);
    }
    return TIME_NEVER;
}

static uint64_t zcrx_turn(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    zcrx_relieve(r);
    uint64_t next_ns = zcrx_flush_held(r);
    if (!z->listeners_set)
        zcrx_set_listeners(r);
    zcrx_fit_buffers(r);
    zcrx_keep_table(r);
    refill_publish(&z->refill);
    next_ns = time_min(next_ns, zcrx_serve_starved(r));
    if (z->kernel_stats != NULL) {
        uint64_t bytes = __atomic_load_n(&z->kernel_stats->copy_bytes, __ATOMIC_RELAXED);
        STAT_SET(r->reactor, kernel_copied_bytes, bytes);
    }
    uint64_t lent_bytes = (uint64_t)z->refill.chunks_lent * z->rx_buf_len;
    STAT_SET(r->reactor, chunks_lent, z->refill.chunks_lent);
    STAT_SET(r->reactor, area_writing_bytes, lent_bytes);
    STAT_SET(r->reactor, area_free_bytes, r->area->slots_bytes - lent_bytes);
    return next_ns;
}

const struct engine engine_zcrx = {
    .name = "zcrx",
    .open = zcrx_open,
    .owner = zcrx_owner,
    .take = zcrx_take,
    .start = zcrx_start,
    .receive_block = zcrx_receive_block,
    .complete = zcrx_complete,
    .resume = zcrx_advance,
    .turn = zcrx_turn,
    .stop = zcrx_stop,
    .release = zcrx_release,
    .close = zcrx_close,
};

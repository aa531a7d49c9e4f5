/* SPDX-License-Identifier: Apache-2.0
 *
 * The stage of zcrx_stage.h: the kernel, the NIC and the senders.
 */
#include "zcrx_stage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

#define PATTERN_PERIOD 65521u
/* Small, so that fragments are cut at a batch's end; what was copied out fits into one whole. */
#define BATCH_BYTES_MAX 100000u
#define STEPS_MAX 4000000u
#define TURN_NS 100000u
#define DAY_NS 86400000000000ull

struct stage stage;

uint8_t stage_pattern(uint32_t flow, uint64_t offset) {
    return (uint8_t)((offset + flow * 16381u) % PATTERN_PERIOD * 167u % 251u + 1);
}

void stage_wrong(const char *what) {
    if (stage.wrong == NULL)
        stage.wrong = what;
}

static uint64_t chunk_bytes(void) {
    return 1ull << stage.shape.chunk_shift;
}

/* What the sender sends before it half-closes; what it may send by now. */
static uint64_t stream_bytes(const struct stage_sender *s) {
    return s->head_bytes + s->sent_bytes + s->tail_bytes;
}

static uint64_t may_send_bytes(const struct stage_sender *s) {
    uint64_t most = s->waits && !s->accepted ? s->head_bytes : stream_bytes(s);
    return stage.shape.silent_at != 0 ? time_min(most, stage.shape.silent_at) : most;
}

static void *pages(size_t bytes) {
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory == NULL)
        abort();
    memset(memory, 0, bytes);
    return memory;
}

/* ---- The kernel and the NIC. ---- */

static bool take_chunk(uint32_t *chunk) {
    if (stage.posted_count == 0)
        return false;
    uint32_t at = stage.posted_first;
    if (!stage.shape.in_order) {
        at = (at + random_below(stage.posted_count)) % STAGE_CHUNKS_MAX;
        uint32_t first = stage.posted[stage.posted_first];
        stage.posted[stage.posted_first] = stage.posted[at];
        stage.posted[at] = first;
    }
    *chunk = stage.posted[stage.posted_first];
    stage.posted_first = (stage.posted_first + 1) % STAGE_CHUNKS_MAX;
    stage.posted_count--;
    return true;
}

static void post_chunk(uint32_t chunk) {
    /* Whoever still reads from it shall see that it is another's now. */
    memset(stage.w->area.base + ((uint64_t)chunk << stage.shape.chunk_shift), 0, chunk_bytes());
    stage.posted[(stage.posted_first + stage.posted_count++) % STAGE_CHUNKS_MAX] = chunk;
}

static void drop_reference(uint32_t chunk) {
    if (chunk >= stage.shape.chunk_count || stage.references[chunk] == 0)
        stage_wrong("a fragment came back that was not out");
    else if (--stage.references[chunk] == 0)
        post_chunk(chunk);
}

void stage_take_refill_entries(uint32_t most) {
    for (; most > 0 && stage.head != stage.tail; most--) {
        uint64_t offset = stage.entries[stage.head++ % 64].offset & ABI_ZCRX_OFFSET_MASK;
        drop_reference((uint32_t)(offset >> stage.shape.chunk_shift));
    }
}

/* The NIC's own hold on the chunk that it is filling. */
static void leave_chunk(struct stage_sender *s) {
    if (s->current_chunk != UINT32_MAX)
        drop_reference(s->current_chunk);
    s->current_chunk = UINT32_MAX;
}

static void lay_fragment(uint32_t flow, uint32_t bytes, bool merge) {
    struct stage_sender *s = &stage.senders[flow];
    bool is_behind_another = s->current_used > 0; /* a fragment never spans two chunks */
    uint64_t offset = ((uint64_t)s->current_chunk << stage.shape.chunk_shift) + s->current_used;
    for (uint32_t i = 0; i < bytes; i++)
        stage.w->area.base[offset + i] = stage_pattern(flow, s->laid + i);
    s->laid += bytes;
    s->current_used += bytes;
    struct stage_fragment *last = &s->queued[(s->first + s->count - 1) % STAGE_QUEUED_MAX];
    if (merge && is_behind_another && s->count > 0 && last->offset + last->bytes == offset) {
        last->bytes += bytes;
        return;
    }
    s->queued[(s->first + s->count++) % STAGE_QUEUED_MAX] = (struct stage_fragment){offset, bytes};
    stage.references[s->current_chunk]++;
}

/* A packet comes, if the NIC has chunks for it; else the sender tries again later. */
static void receive_packet(uint32_t flow) {
    const struct stage_shape *t = &stage.shape;
    struct stage_sender *s = &stage.senders[flow];
    uint64_t left = may_send_bytes(s) - s->laid;
    uint32_t bytes = t->packet_bytes;
    if (t->odd_of != 0 && random_below(t->odd_of) == 0)
        bytes = 1 + random_below(t->packet_bytes);
    bytes = (uint32_t)time_min(bytes, left);
    bool merge = t->merged_max > 1 && random_below(t->merged_max) != 0;
    if (s->count > 64) /* the socket's buffer is full */
        return;
    if (!t->shares_chunks)
        leave_chunk(s);
    while (bytes > 0) {
        if (s->current_chunk == UINT32_MAX || s->current_used == chunk_bytes()) {
            leave_chunk(s);
            if (!take_chunk(&s->current_chunk)) {
                s->current_chunk = UINT32_MAX;
                return; /* what has come of the packet counts: it was cut there */
            }
            s->current_used = 0;
            stage.references[s->current_chunk]++;
        }
        uint32_t part = (uint32_t)time_min(bytes, chunk_bytes() - s->current_used);
        lay_fragment(flow, part, merge);
        bytes -= part;
    }
    /* A chunk that no packet may share is left at once, so that it can come back. */
    if (!t->shares_chunks || s->laid == may_send_bytes(s))
        leave_chunk(s);
}

static uint32_t holders_of(uint64_t offset) {
    uint64_t chunk = offset >> stage.shape.chunk_shift;
    return stage.w->receiver.zcrx.refill.outstanding[chunk] +
           stage.w->receiver.zcrx.refill.shared[chunk];
}

static void note_held(const struct connection *conn) {
    uint32_t count = 0;
    for (uint32_t i = conn->zcrx.fragment_head; i != ZCRX_FRAGMENT_NONE;
         i = stage.w->receiver.zcrx.fragments[i].next)
        count++;
    if (conn->phase == CONNECTION_RECEIVING && count > stage.held_count_max)
        stage.held_count_max = count;
}

static void complete(struct connection *conn, int result, uint32_t flags, uint64_t offset) {
    struct {
        struct io_uring_cqe cqe;
        struct abi_zcrx_completion more;
    } c = {.cqe = {.res = result, .flags = flags}, .more = {.offset = offset}};
    if (!(flags & IORING_CQE_F_MORE)) {
        conn->ops_in_flight--;
        stage.senders[conn->index].cancelled = false;
    }
    bool is_fresh = conn->block == NULL || conn->block->chunk_bytes == 0;
    uint32_t holders = holders_of(offset);
    bool block = stage.senders[conn->index].tag == TAG_BLOCK;
    engine_zcrx.complete(&stage.w->receiver, stage.senders[conn->index].tag, conn, &c.cqe);
    connection_take_reports(&stage.w->connections);
    if (block && holders_of(offset) != holders)
        stage_wrong("a block's bytes keep a chunk");
    if (result == -ENOMEM && is_fresh && conn->zcrx.armed)
        stage_wrong("a receive that found no chunk is tried again at once");
    note_held(conn);
    stage_submit();
}

/* Reported at some time, also when the receive has ended and another one is armed. */
static void tell_missed_cancel(struct connection *conn) {
    const struct io_uring_cqe c = {.res = -ENOENT};
    stage.senders[conn->index].cancel_missed = false;
    engine_zcrx.complete(&stage.w->receiver, TAG_CANCEL, conn, &c);
    stage_submit();
}

static void deliver(struct connection *conn) {
    static const int troubles[] = {-ENOSPC, -ENOMEM, -ENOSPC, -EINTR};
    struct stage_sender *s = &stage.senders[conn->index];
    const struct stage_shape *t = &stage.shape;
    if (s->cancel_missed && !s->over && random_below(3) == 0)
        tell_missed_cancel(conn);
    if (!conn->zcrx.armed ||
        (t->turn_completions_max != 0 && stage.turn_completions == t->turn_completions_max))
        return;
    stage.turn_completions++;
    bool submitted = t->turn_completions_max != 0 && s->cancelled_ns < stage.w->reactor.now_ns;
    if (s->cancelled && (submitted || random_below(3) == 0)) {
        complete(conn, -ECANCELED, 0, 0);
        return;
    }
    bool trouble = stage.shape.trouble_of != 0 && random_below(stage.shape.trouble_of) == 0;
    stage.ended_early_count += trouble;
    if (s->bound_bytes == 0) { /* just like the end of the stream */
        complete(conn, 0, 0, 0);
        return;
    }
    if (s->count == 0) {
        if (s->laid == stream_bytes(s))
            complete(conn, 0, 0, 0);
        else if (t->by_copy && stage.posted_count == 0)
            complete(conn, -ENOMEM, 0, 0);
        else if (trouble)
            complete(conn, troubles[random_below(4)], 0, 0);
        return;
    }
    struct stage_fragment next = s->queued[s->first];
    bool keeps_to_it = !t->ignores_bounds || s->tag == TAG_BLOCK;
    if (next.bytes > s->bound_bytes &&
        keeps_to_it) { /* the rest stays in the socket, on the same chunk */
        next.bytes = (uint32_t)s->bound_bytes;
        s->queued[s->first].offset += next.bytes;
        s->queued[s->first].bytes -= next.bytes;
        stage.references[next.offset >> stage.shape.chunk_shift]++;
    } else {
        s->first = (s->first + 1) % STAGE_QUEUED_MAX;
        s->count--;
    }
    if (s->bound_bytes != UINT64_MAX)
        s->bound_bytes -= time_min(s->bound_bytes, next.bytes);
    s->delivered += next.bytes;
    /* A completion that says "no more" may bring bytes as well. */
    complete(conn, (int)next.bytes, trouble ? 0 : IORING_CQE_F_MORE, next.offset);
}

/* A write is complete: its bytes lie as they lay, and its memory comes back. */
static void complete_batch(struct stage_batch *b) {
    for (uint32_t i = 0; i < b->piece_count; i++)
        stage_check_bytes(&b->pieces[i], "memory changed under a write");
    for (uint32_t i = 0; i < b->piece_count; i++)
        if (b->pieces[i].hold != STAGE_NO_HOLD)
            engine_zcrx.release(&stage.w->receiver, b->pieces[i].hold);
    b->under_way = false;
    b->piece_count = 0;
}

void stage_seed(void) {
    random_seed();
}

static uint32_t or_else(uint32_t value, uint32_t otherwise) {
    return value != 0 ? value : otherwise;
}

static struct stage_shape completed(struct stage_shape shape) {
    shape.chunk_shift = or_else(shape.chunk_shift, 12);
    shape.chunk_count = or_else(shape.chunk_count, 256);
    shape.flows_count = or_else(shape.flows_count, 4);
    shape.stream_bytes = or_else(shape.stream_bytes, 614400);
    shape.slow_of = or_else(shape.slow_of, 20);
    shape.turn_of = or_else(shape.turn_of, 4);
    shape.mem_align = or_else(shape.mem_align, 4);
    shape.block_bytes = or_else(shape.block_bytes, 4096);
    shape.hello_timeout_ns = shape.hello_timeout_ns != 0 ? shape.hello_timeout_ns : DAY_NS;
    shape.flush_interval_ns = shape.flush_interval_ns != 0 ? shape.flush_interval_ns : DAY_NS;
    return shape;
}

static void open_listener(struct worker *w) {
    struct listener *l = &w->connections.listeners[w->connections.listener_count++];
    l->fd = -1;
    l->protocol = &protocol_ingest;
    l->hello_timeout_ns = stage.shape.hello_timeout_ns;
    l->idle = l->greeting = l->acks_pending = w->connections.admission_backlog =
        w->connections.hello_backlog = CONNECTION_LIST_EMPTY;
    admission_open(&w->connections.admission);
    if (session_pool_init(&l->sessions, STAGE_FLOWS_MAX) != 0)
        abort();
}

static void open_flow(uint32_t i) {
    const struct stage_shape *shape = &stage.shape;
    struct stage_sender *s = &stage.senders[i];
    struct connection *conn = stage.flows[i] = connection_table_take(&stage.w->table);
    conn->fd = -1;
    s->current_chunk = UINT32_MAX;
    s->payload_bytes = s->sent_bytes = shape->stream_bytes + i;
    engine_zcrx.take(&stage.w->receiver, conn);
    conn->idle_list = &stage.w->connections.listeners[0].idle;
    conn->protocol = &stage_protocol_raw;
    if (shape->ingest) {
        enum stage_kind kind = (shape->first_kind + (shape->one_kind ? 0 : i)) % STAGE_KINDS_COUNT;
        s->stated = kind == STAGE_TRAILER || kind == STAGE_STATED;
        s->trailer = kind == STAGE_TRAILER || kind == STAGE_HELD_TRAILER;
        s->sent_bytes += s->stated ? (uint64_t)shape->excess_bytes : 0;
        s->head_bytes = SESSION_BLOCK_BYTES;
        s->tail_bytes = s->trailer ? SESSION_BLOCK_BYTES : 0;
        s->base_bytes = random_below(2) * 1000003ull;
        s->waits = random_below(2) != 0 || shape->ignores_bounds;
        conn->protocol = &protocol_ingest;
        conn->protocol->begin(&stage.w->connections, conn);
    } else {
        engine_zcrx.start(&stage.w->receiver, conn);
    }
    stage_submit();
}

/* The table is made for less than what comes. */
static void cut_table(struct worker *w) {
    struct zcrx *z = &w->receiver.zcrx;
    if (stage.shape.table_count > z->fragment_count)
        abort();
    z->fragment_count = stage.shape.table_count;
    z->fragments[z->fragment_count - 1].next = ZCRX_FRAGMENT_NONE;
}

void stage_open(const struct stage_shape *wanted) {
    memset(&stage, 0, sizeof stage);
    stage.shape = completed(*wanted);
    const struct stage_shape *shape = &stage.shape;
    stage.profile = (struct plan_profile){.mem_align = shape->mem_align,
                                          .block_bytes = shape->block_bytes,
                                          .iovecs_max = STAGE_IOVECS,
                                          .batch_bytes_max = BATCH_BYTES_MAX,
                                          .copy_below = PLAN_GATHER_BYTES_MIN};
    struct worker *w = stage.w = pages(sizeof *w);
    w->area.slots_bytes = (uint64_t)shape->chunk_count << shape->chunk_shift;
    w->area.base = pages(w->area.slots_bytes);
    w->area.own_bytes = zcrx_relief_bytes(w->area.slots_bytes);
    w->area.own = pages(w->area.own_bytes);
    w->storage.settings.writes_in_flight_max = STAGE_BATCHES;
    w->receiver.settings.interface_index = 1;
    w->storage.settings.flush_interval_ns = shape->flush_interval_ns;
    w->storage.batches.payload_bytes_max = STAGE_PAYLOAD_BYTES_MAX;
    w->engine = &engine_zcrx;
    receiver_init(&w->receiver, &w->reactor, &w->area, &w->storage, &w->table);
    connections_init(&w->connections, &w->receiver, &engine_zcrx);
    w->reactor.now_ns = w->reactor.awake_ns = 1;
    w->reactor.ring.cq.ring_entries = shape->turn_completions_max;
    if (connection_table_init(&w->table, STAGE_FLOWS_MAX) != 0 ||
        engine_zcrx.open(&w->receiver) != 0)
        abort();
    if (shape->table_count != 0)
        cut_table(w);
    for (uint32_t i = 0; i < STAGE_BATCHES; i++) {
        stage.batches[i].header = pages(STAGE_HEADER_BYTES);
        stage.batches[i].bounce = pages(STAGE_BOUNCE_BYTES);
    }
    for (uint32_t i = 0; i < shape->chunk_count; i++)
        post_chunk(i);
    open_listener(w);
    for (uint32_t i = 0; i < shape->flows_count; i++)
        open_flow(i);
}

/* The flow has ended: what its socket has is freed with it. */
static void close_socket(struct stage_sender *s) {
    leave_chunk(s);
    for (; s->count > 0; s->count--) {
        drop_reference((uint32_t)(s->queued[s->first].offset >> stage.shape.chunk_shift));
        s->first = (s->first + 1) % STAGE_QUEUED_MAX;
    }
}

static void end_some_flow(uint32_t i) {
    if (stage.shape.stop_of == 0 || random_below(stage.shape.stop_of) != 0)
        return;
    stage.senders[i].stopped = true;
    struct connection *conn = stage.flows[i];
    connection_interrupt(&stage.w->connections, conn, CLOSE_REASON_SHUTDOWN, random_below(2) != 0);
    connection_take_reports(&stage.w->connections);
    bool is_cancelled = stage.senders[i].cancelled || stage.senders[i].cancel_missed;
    if (!conn->ended && !is_cancelled && conn->phase != CONNECTION_BLOCKED)
        stage_wrong("a flow that is to end waits for nothing");
    stage_submit();
}

static void turn(void) {
    stage.w->reactor.awake_ns = stage.w->reactor.now_ns += TURN_NS;
    stage.turn_completions = 0;
    connection_serve_blocked(&stage.w->connections);
    engine_zcrx.turn(&stage.w->receiver);
    connection_take_reports(&stage.w->connections);
    stage.table_low_count += stage.w->receiver.zcrx.table_low;
    stage_submit();
    if (stage.shape.ingest && random_below(4) == 0)
        stage_answer();
    ingest_turn(&stage.w->connections);
    connection_take_reports(&stage.w->connections);
    stage_submit();
}

static bool is_over(void) {
    for (uint32_t i = 0; i < stage.shape.flows_count; i++)
        if (!stage.senders[i].over)
            return false;
    for (uint32_t i = 0; i < STAGE_BATCHES; i++)
        if (stage.batches[i].under_way || stage.batches[i].piece_count > 0)
            return false;
    if (stage.shape.by_copy)
        stage_take_refill_entries(UINT32_MAX);
    return stage.posted_count == stage.shape.chunk_count;
}

bool stage_steps(uint32_t steps) {
    for (uint32_t step = 0; step < steps && stage.wrong == NULL; step++) {
        uint32_t i = random_below(stage.shape.flows_count);
        if (stage.senders[i].over)
            close_socket(&stage.senders[i]);
        else if (stage.senders[i].laid < may_send_bytes(&stage.senders[i]))
            receive_packet(i);
        end_some_flow(i);
        if (!stage.senders[i].over)
            deliver(stage.flows[random_below(2) ? i : random_below(stage.shape.flows_count)]);
        if (random_below(stage.shape.slow_of) == 0) {
            struct stage_batch *b = &stage.batches[random_below(STAGE_BATCHES)];
            if (b->under_way)
                complete_batch(b);
        }
        if (!stage.shape.by_copy)
            stage_take_refill_entries(random_below(32));
        if (random_below(stage.shape.turn_of) == 0)
            turn();
        if (random_below(50) == 0)
            storage_request_flush(&stage.w->storage); /* the open batch is old */
        if (step % 16 == 0 && is_over())
            return true;
    }
    return false;
}

bool stage_run(void) {
    return stage_steps(STEPS_MAX);
}

void stage_close(void) {
    engine_zcrx.close(&stage.w->receiver);
    connection_table_deinit(&stage.w->table);
    session_pool_deinit(&stage.w->connections.listeners[0].sessions);
    admission_close(&stage.w->connections.admission);
    free(stage.w->area.base);
    free(stage.w->area.own);
    for (uint32_t i = 0; i < STAGE_BATCHES; i++) {
        free(stage.batches[i].header);
        free(stage.batches[i].bounce);
    }
    free(stage.w);
}

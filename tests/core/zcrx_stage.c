/* SPDX-License-Identifier: Apache-2.0
 *
 * The stage of zcrx_stage.h, and the functions of the worker that the engine calls.
 */
#include "zcrx_stage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "zcrx_open.h"

#define PATTERN_PERIOD 65521u
#define HEADER_BYTES 65536u
#define BOUNCE_BYTES 1048576u
/* Small, so that fragments are cut at a batch's end; what was copied out fits into one whole. */
#define BATCH_BYTES_MAX 100000u
#define PAYLOAD_BYTES_MAX 65536u
#define STEPS_MAX 4000000u
#define TURN_NS 100000u

struct stage stage;

static uint8_t pattern(uint32_t flow, uint64_t offset) {
    return (uint8_t)((offset + flow * 16381u) % PATTERN_PERIOD * 167u % 251u + 1);
}

static void wrong(const char *what) {
    if (stage.wrong == NULL)
        stage.wrong = what;
}

static uint64_t chunk_bytes(void) {
    return 1ull << stage.shape.chunk_shift;
}

static uint64_t stream_bytes(uint32_t flow) {
    return stage.shape.stream_bytes + flow;
}

static void *pages(size_t bytes) {
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory == NULL)
        abort();
    memset(memory, 0, bytes);
    return memory;
}

/* ---- What the engine calls. ---- */

struct io_uring_sqe *worker_sqe(struct worker *w) {
    static struct io_uring_sqe sqe;
    (void)w;
    memset(&sqe, 0, sizeof sqe);
    stage.armed_count++;
    return &sqe;
}

bool worker_event(struct worker *w, enum event_kind kind, const struct flow *f, int code,
                  int detail, uint64_t bytes_count) {
    (void)w, (void)kind, (void)f, (void)code, (void)detail, (void)bytes_count;
    return true;
}

void intake_received(struct worker *w, struct flow *f, uint32_t bytes) {
    (void)w;
    f->received_bytes += bytes;
}

bool intake_hand_away(struct worker *w, struct flow *f, uint32_t owner) {
    (void)w, (void)f, (void)owner;
    abort();
}

int engine_end_of_stream(const struct flow *f) {
    (void)f;
    return 0;
}

void engine_cancel(struct worker *w, struct flow *f, enum uring_tag tag) {
    (void)w, (void)tag;
    stage.senders[f->index].cancelled = true;
}

void engine_finish(struct worker *w, struct flow *f) {
    struct stage_sender *s = &stage.senders[f->index];
    flow_wait(&w->flows, f, QUEUE_NONE, w->now_ns);
    if (s->over || f->error || s->handed != stream_bytes(f->index))
        wrong("a flow ended too early, twice, or with an error");
    s->over = true;
    f->phase = FLOW_GONE;
}

void engine_serve_blocked(struct worker *w, void (*advance)(struct worker *w, struct flow *f)) {
    struct flow *f;
    while ((f = flow_first(&w->flows, QUEUE_BLOCKED)) != NULL) {
        flow_wait(&w->flows, f, QUEUE_NONE, w->now_ns);
        advance(w, f);
        if (f->phase == FLOW_BLOCKED)
            return;
    }
}

int zcrx_open_queue(struct worker *w) {
    struct zcrx *z = &w->zcrx;
    z->rx_buf_len = (uint32_t)chunk_bytes();
    z->chunk_count = stage.shape.chunk_count;
    z->refill.head = &stage.head;
    z->refill.tail = &stage.tail;
    z->refill.entries = stage.entries;
    z->refill.entry_count = sizeof stage.entries / sizeof stage.entries[0];
    return 0;
}

uint32_t zcrx_chunk_shift(const struct zcrx *z) {
    (void)z;
    return stage.shape.chunk_shift;
}

int zcrx_flush_refill(struct worker *w) {
    (void)w;
    return 0;
}

int zcrx_arm_event(struct worker *w, uint32_t type) {
    (void)w, (void)type;
    return 0;
}

uint8_t *area_own(struct area *a, uint64_t bytes) {
    uint8_t *memory = a->own + a->own_used;
    a->own_used += (bytes + 4095) / 4096 * 4096;
    if (a->own_used > a->own_bytes)
        abort();
    return memory;
}

void batch_hurry(struct worker *w) {
    (void)w;
    if (stage.open != NULL && stage.open->piece_count > 0) {
        stage.open->under_way = true;
        stage.open = NULL;
    }
}

static bool open_batch(void) {
    for (uint32_t i = 0; stage.open == NULL && i < STAGE_BATCHES; i++) {
        struct stage_batch *b = &stage.batches[i];
        if (b->under_way)
            continue;
        plan_begin(&b->plan, b->iov, STAGE_IOVECS, b->header, HEADER_BYTES, b->bounce, BOUNCE_BYTES,
                   false);
        b->piece_count = 0;
        stage.open = b;
    }
    return stage.open != NULL;
}

static void check_bytes(const struct stage_piece *piece, const char *what) {
    for (uint32_t i = 0; i < piece->bytes; i++)
        if (piece->data[i] != pattern(piece->flow, piece->stream_offset + i)) {
            wrong(what);
            return;
        }
}

uint32_t batch_add(struct worker *w, struct flow *f, uint8_t *data, uint32_t bytes, uint32_t slack,
                   uint64_t hold) {
    struct stage_sender *s = &stage.senders[f->index];
    if (!open_batch()) {
        stage.blocked_count++;
        return 0;
    }
    struct stage_batch *b = stage.open;
    struct plan_fragment fragment = {
        .flow = f->id, .stream_offset = s->handed, .data = data, .bytes = bytes, .slack = slack};
    bool whole = (hold & BATCH_HOLD_COPIED) != 0;
    uint32_t taken = 0;
    if (b->piece_count < w->batches.holds_max && b->piece_count < STAGE_PIECES_MAX &&
        (!whole || b->plan.payload_end + bytes <= PAYLOAD_BYTES_MAX))
        taken = plan_add(&b->plan, &stage.profile, &fragment);
    if (taken == 0) {
        if (b->piece_count == 0)
            wrong("an empty batch takes nothing");
        batch_hurry(w);
        return batch_add(w, f, data, bytes, slack, hold);
    }
    b->pieces[b->piece_count++] = (struct stage_piece){data, s->handed, hold, taken, f->index};
    check_bytes(&b->pieces[b->piece_count - 1], "other bytes are handed over than were laid");
    stage.pressure_bytes += whole ? taken : 0;
    s->handed += taken;
    return taken;
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
        wrong("a fragment came back that was not out");
    else if (--stage.references[chunk] == 0)
        post_chunk(chunk);
}

static void take_refill_entries(void) {
    for (uint32_t most = random_below(32); most > 0 && stage.head != stage.tail; most--) {
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
        stage.w->area.base[offset + i] = pattern(flow, s->laid + i);
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
    uint64_t left = stream_bytes(flow) - s->laid;
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
    if (!t->shares_chunks || s->laid == stream_bytes(flow))
        leave_chunk(s);
}

static void complete(struct flow *f, int result, uint32_t flags, uint64_t offset) {
    struct {
        struct io_uring_cqe cqe;
        struct abi_zcrx_completion more;
    } c = {.cqe = {.res = result, .flags = flags}, .more = {.offset = offset}};
    if (!(flags & IORING_CQE_F_MORE)) {
        f->ops_in_flight--;
        stage.senders[f->index].cancelled = false;
    }
    engine_zcrx.complete(stage.w, TAG_RECEIVE, f, &c.cqe);
}

static void deliver(struct flow *f) {
    static const int troubles[] = {-ENOSPC, -ENOMEM, -ENOSPC, -EINTR};
    struct stage_sender *s = &stage.senders[f->index];
    if (!f->armed)
        return;
    if (s->cancelled && random_below(3) == 0) {
        complete(f, -ECANCELED, 0, 0);
        return;
    }
    bool trouble = stage.shape.trouble_of != 0 && random_below(stage.shape.trouble_of) == 0;
    stage.ended_early_count += trouble;
    if (s->count == 0) {
        if (s->laid == stream_bytes(f->index))
            complete(f, 0, 0, 0);
        else if (trouble)
            complete(f, troubles[random_below(4)], 0, 0);
        return;
    }
    struct stage_fragment next = s->queued[s->first];
    s->first = (s->first + 1) % STAGE_QUEUED_MAX;
    s->count--;
    s->delivered += next.bytes;
    /* A completion that says "no more" may bring bytes as well. */
    complete(f, (int)next.bytes, trouble ? 0 : IORING_CQE_F_MORE, next.offset);
}

/* A write is complete: its bytes lie as they lay, and its memory comes back. */
static void complete_batch(struct stage_batch *b) {
    for (uint32_t i = 0; i < b->piece_count; i++)
        check_bytes(&b->pieces[i], "memory changed under a write");
    for (uint32_t i = 0; i < b->piece_count; i++)
        engine_zcrx.release(stage.w, b->pieces[i].hold);
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
    shape.mem_align = or_else(shape.mem_align, 4);
    shape.block_bytes = or_else(shape.block_bytes, 4096);
    return shape;
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
    w->settings.writes_in_flight_max = STAGE_BATCHES;
    w->settings.interface_index = 1;
    w->batches.payload_bytes_max = PAYLOAD_BYTES_MAX;
    w->now_ns = 1;
    if (flow_table_init(&w->flows, STAGE_FLOWS_MAX) != 0 || engine_zcrx.open(w) != 0)
        abort();
    for (uint32_t i = 0; i < STAGE_BATCHES; i++) {
        stage.batches[i].header = pages(HEADER_BYTES);
        stage.batches[i].bounce = pages(BOUNCE_BYTES);
    }
    for (uint32_t i = 0; i < shape->chunk_count; i++)
        post_chunk(i);
    for (uint32_t i = 0; i < shape->flows_count; i++) {
        stage.flows[i] = flow_take(&w->flows);
        stage.flows[i]->fd = -1;
        stage.senders[i].current_chunk = UINT32_MAX;
        engine_zcrx.start(w, stage.flows[i]);
    }
}

static bool is_over(void) {
    for (uint32_t i = 0; i < stage.shape.flows_count; i++)
        if (!stage.senders[i].over)
            return false;
    for (uint32_t i = 0; i < STAGE_BATCHES; i++)
        if (stage.batches[i].under_way || stage.batches[i].piece_count > 0)
            return false;
    return stage.posted_count == stage.shape.chunk_count;
}

bool stage_run(void) {
    for (uint32_t step = 0; step < STEPS_MAX && stage.wrong == NULL; step++) {
        uint32_t i = random_below(stage.shape.flows_count);
        if (stage.senders[i].laid < stream_bytes(i))
            receive_packet(i);
        if (!stage.senders[i].over)
            deliver(stage.flows[random_below(2) ? i : random_below(stage.shape.flows_count)]);
        if (random_below(stage.shape.slow_of) == 0) {
            struct stage_batch *b = &stage.batches[random_below(STAGE_BATCHES)];
            if (b->under_way)
                complete_batch(b);
        }
        take_refill_entries();
        if (random_below(4) == 0) {
            stage.w->now_ns += TURN_NS;
            engine_zcrx.turn(stage.w);
        }
        if (random_below(50) == 0)
            batch_hurry(stage.w); /* the open batch is old */
        if (step % 16 == 0 && is_over())
            return true;
    }
    return false;
}

void stage_close(void) {
    engine_zcrx.close(stage.w);
    flow_table_destroy(&stage.w->flows);
    free(stage.w->area.base);
    free(stage.w->area.own);
    for (uint32_t i = 0; i < STAGE_BATCHES; i++) {
        free(stage.batches[i].header);
        free(stage.batches[i].bounce);
    }
    free(stage.w);
}

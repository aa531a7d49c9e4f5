/* SPDX-License-Identifier: Apache-2.0
 *
 * A stage for the write path: storage is the core's own; senders, the
 * engine, the kernel and the disk are played here. What the core asks of the disk, and what it
 * tells senders, goes to standard output as a trace, from which tests/support/crash_disk.py makes
 * what a power failure could have left at any moment.
 *
 *   crash_stage SEED GENERATION CHECKSUM BLOCK_BYTES UUID SEGMENT...   one life of a store
 *   crash_stage bytes                                                  what all flows are made of
 *
 * Invariants: all that is random follows from SEED. Writes complete in any order, some in part or
 * only when tried again; memory that a write has released is overwritten at once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connection/ingest/lines.h"
#include "crash_stage.h"
#include "random.h"

#define SEGMENT_BYTES SEGMENT_BYTES_MIN
#define SEGMENTS_MAX 16u
#define SLOTS_MAX 12u
#define PIECE_BYTES_MAX 40000u
#define STREAM_BYTES_MAX 400000u
#define PERIOD 65521u
#define STEPS_MAX 200000u
#define MS 1000000u

/* Memory that a fragment lies in; batches may hold it several times. */
struct piece {
    uint8_t *memory;
    uint32_t size, holds;
    bool handed; /* nothing more of it is to be handed over */
};

struct sender {
    struct flow *flow; /* or NULL */
    uint32_t number;
    uint32_t start; /* in the common bytes */
    uint64_t stream_bytes;
    struct piece *piece; /* what waits for a batch, or NULL */
    uint32_t piece_at, piece_left;
    bool broken; /* it ends without its end being reached */
    bool close_due;
};

static struct {
    struct worker *w;
    struct sender senders[SLOTS_MAX];
    uint32_t numbers[SLOTS_MAX]; /* of each place in the flow table: its last sender's */
    uint32_t slots_count, started_count, flows_count;
    uint32_t segments[SEGMENTS_MAX], segments_count, segments_granted, grants_wanted;
    uint64_t sleeps_until_ns; /* the loop, where nothing wakes it */
    uint64_t generation;
    uint64_t told[SLOTS_MAX]; /* durable bytes in the trace */
    uint32_t stream_bytes_max;
} stage;

static uint8_t common[PERIOD];

void die(const char *what) {
    fprintf(stderr, "crash_stage: %s\n", what);
    exit(1);
}

void *pages(uint64_t bytes) {
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory == NULL)
        die("no memory");
    return memory;
}

void trace(enum trace_kind kind, uint32_t id, uint64_t a, uint64_t b, const void *data,
           uint64_t bytes) {
    struct trace t = {.kind = kind, .id = id, .a = a, .b = b, .bytes = bytes};
    if (fwrite(&t, sizeof t, 1, stdout) != 1 || (bytes && fwrite(data, bytes, 1, stdout) != 1))
        die("the trace cannot be written");
}

static void make_common(void) {
    uint64_t kept = random_state;
    random_state = 1;
    for (uint32_t i = 0; i < PERIOD; i++)
        common[i] = (uint8_t)random_next();
    random_state = kept;
}

static struct sender *sender_of(const struct flow *f) {
    for (uint32_t i = 0; i < stage.slots_count; i++)
        if (stage.senders[i].flow == f)
            return &stage.senders[i];
    die("a flow of nobody");
    return NULL;
}

/* Where the store failed in the same turn its flow is gone already, and yet it is written. */
void note_placed(const struct batch *b) {
    for (uint32_t i = 0; i < b->touch_count; i++) {
        uint32_t number = stage.numbers[b->touches[i].stream->owner];
        trace(TRACE_PLACED, number, b->touches[i].end_offset, 0, NULL, 0);
    }
}

/* ---- What the core calls. ---- */

uint64_t reactor_unix_ns(const struct reactor *r) {
    return 1700000000000000000u + r->now_ns;
}

bool reactor_event(struct reactor *r, struct event_detail detail) {
    (void)r, (void)detail;
    return true;
}

void histogram_add(struct histogram *h, uint64_t value_ns) {
    (void)h, (void)value_ns;
}

void histogram_add_bytes(struct histogram *h, uint64_t bytes_count) {
    (void)h, (void)bytes_count;
}

void mailbox_want_grant(struct mailbox *m) {
    (void)m;
    stage.grants_wanted++;
}

/* Each in memory of its own, so that AddressSanitizer sees where one ends. */
uint8_t *area_own(struct area *a, uint64_t bytes) {
    (void)a;
    return pages(bytes);
}

static void let_go(struct piece *p) {
    if (p->holds > 0 || !p->handed)
        return;
    memset(p->memory, 0xdd, p->size);
    free(p->memory);
    free(p);
}

static void release(uint64_t hold) {
    struct piece *p = (struct piece *)(uintptr_t)hold;
    p->holds--;
    let_go(p);
}

static void drop_piece(struct sender *s) {
    if (s->piece == NULL)
        return;
    s->piece->handed = true;
    let_go(s->piece);
    s->piece = NULL;
}

static void flow_gone(struct worker *w, struct flow *f) {
    if (f->stream.acks_pending > 0)
        return;
    sender_of(f)->flow = NULL;
    flow_give(&w->flows, f);
}

static void tell(struct sender *s) {
    uint64_t *told = &stage.told[s - stage.senders];
    if (s->flow->stream.durable_bytes != *told)
        trace(TRACE_DURABLE, s->number, s->flow->stream.durable_bytes, 0, NULL, 0);
    *told = s->flow->stream.durable_bytes;
}

static void flow_closed(struct worker *w, struct flow *f) {
    struct sender *s = sender_of(f);
    size_t bytes = line_of_raw(f, storage_error(&w->storage), f->line, sizeof f->line);
    tell(s);
    trace(TRACE_ANSWER, s->number, 0, 0, f->line, bytes);
    flow_set_phase(f, FLOW_GONE);
    flow_gone(w, f);
}

static void end_flow(struct sender *s, uint8_t state, uint8_t reason) {
    drop_piece(s);
    s->flow->state = state;
    s->flow->reason = reason;
    flow_set_phase(s->flow, FLOW_CLOSING);
    s->flow->ended = true;
    s->close_due = true;
}

static void interrupt_all(struct worker *w, uint8_t reason) {
    for (uint32_t i = 0; i < stage.slots_count; i++) {
        struct sender *s = &stage.senders[i];
        if (s->flow != NULL && s->flow->phase == FLOW_GONE)
            flow_gone(w, s->flow); /* it may have waited for acknowledgements only */
        if (s->flow == NULL)
            continue;
        if (s->flow->phase != FLOW_CLOSING)
            end_flow(s, FLOW_STATE_INTERRUPTED, reason);
        if (storage_error(&w->storage)) {
            s->flow->state = FLOW_STATE_INTERRUPTED;
            flow_closed(w, s->flow);
        }
    }
}

/* ---- Senders and engine. ---- */

static void start_flow(struct sender *s) {
    struct worker *w = stage.w;
    struct flow *f = flow_take(&w->flows);
    *s = (struct sender){.flow = f, .number = stage.started_count++};
    stage.numbers[f->index] = s->number;
    /* The same seed in another store or generation: the same places, other flows and bytes. */
    const uint8_t *uuid = w->storage.settings.store_uuid;
    s->start =
        (random_below(PERIOD) + uuid[0] * 257u + (uint32_t)stage.generation * 7919u) % PERIOD;
    s->stream_bytes = random_below(8) == 0 ? random_below(3) : random_below(stage.stream_bytes_max);
    s->broken = random_below(8) == 0;
    for (int i = 0; i < 16; i++)
        f->stream.id[i] = (uint8_t)(random_next() ^ uuid[i] ^ stage.generation);
    flow_set_phase(f, FLOW_RECEIVING);
    f->checksummed = w->storage.settings.checksum;
    f->opening = (struct frame_open){
        .started_ns = reactor_unix_ns(&w->reactor),
        .protocol = 1,
        .listener = "stage",
        .listener_bytes = 5,
    };
    stage.told[s - stage.senders] = 0;
    trace(TRACE_FLOW, s->number, s->start, 0, f->stream.id, 16);
}

/* A fragment comes; it may begin anywhere, as with zero copy, or on a page. */
static void receive(struct sender *s) {
    uint64_t left = s->stream_bytes - s->flow->received_bytes;
    uint32_t bytes = 1 + random_below(random_below(3) ? 5000 : PIECE_BYTES_MAX);
    bytes = (uint32_t)time_min(bytes, left);
    uint32_t at = random_below(2) ? 0 : random_below(4096);
    struct piece *p = calloc(1, sizeof *p);
    if (p == NULL)
        die("no memory");
    p->size = (at + bytes + 4095) / 4096 * 4096;
    p->memory = pages(p->size);
    for (uint32_t i = 0; i < bytes; i++)
        p->memory[at + i] = common[(s->start + s->flow->received_bytes + i) % PERIOD];
    s->flow->received_bytes += bytes;
    s->piece = p;
    s->piece_at = at;
    s->piece_left = bytes;
}

static void hand_over(struct sender *s) {
    struct piece *p = s->piece;
    uint32_t slack = random_below(2) ? p->size - s->piece_at - s->piece_left : 0;
    p->holds++;
    const struct batch_piece piece = {
        .data = p->memory + s->piece_at,
        .bytes = s->piece_left,
        .slack = slack,
        .hold = (uint64_t)(uintptr_t)p,
    };
    uint32_t taken = storage_append(&stage.w->storage, &s->flow->stream, &piece);
    p->holds -= taken == 0;
    s->piece_at += taken;
    s->piece_left -= taken;
    if (s->piece_left == 0)
        drop_piece(s);
}

static void try_close(struct sender *s) {
    struct worker *w = stage.w;
    struct flow *f = s->flow;
    if (f->state == FLOW_STATE_SEALED && f->stream.stored_bytes != f->received_bytes) {
        f->state = FLOW_STATE_INTERRUPTED; /* a full store gave its last bytes up */
        f->reason = CLOSE_REASON_STORE_FULL;
    }
    bool nothing = f->state == FLOW_STATE_INTERRUPTED && !f->stream.opened;
    if (nothing || w->storage.state == STORAGE_RESERVE_EXHAUSTED || storage_error(&w->storage)) {
        f->state = FLOW_STATE_INTERRUPTED;
        s->close_due = false;
        flow_closed(w, f);
    } else {
        const struct frame_close c = {
            .state = f->state,
            .reason = f->reason,
            .flags = f->checksummed ? CLOSE_HAS_CRC32C : 0,
        };
        s->close_due = !storage_append_close(&w->storage, &f->stream, &c);
    }
}

static bool store_is_over(void) {
    const struct storage *s = &stage.w->storage;
    return storage_error(s) != 0 || storage_is_exhausted(s);
}

static void stage_advance(struct sender *s) {
    bool over = stage.started_count >= stage.flows_count || store_is_over();
    if (s->flow == NULL && !over)
        start_flow(s);
    if (s->flow == NULL || s->flow->phase == FLOW_GONE)
        return;
    struct flow *f = s->flow;
    if (f->phase == FLOW_CLOSING) {
        if (s->close_due)
            try_close(s);
        return;
    }
    bool at_end = f->received_bytes == s->stream_bytes;
    if (s->piece == NULL && !at_end)
        receive(s);
    if (s->piece != NULL)
        hand_over(s);
    if (s->flow == NULL || f->phase == FLOW_CLOSING || s->piece != NULL)
        return;
    if (s->broken && random_below(20) == 0)
        end_flow(s, FLOW_STATE_INTERRUPTED, CLOSE_REASON_IDLE);
    else if (f->received_bytes == s->stream_bytes)
        end_flow(s, FLOW_STATE_SEALED, CLOSE_REASON_NONE);
}

/* ---- The rest of the worker. ---- */

static void grant_some(void) {
    while (stage.grants_wanted > 0 && random_below(2)) {
        stage.sleeps_until_ns = 0;
        if (stage.segments_granted == stage.segments_count) {
            storage_note_full(&stage.w->storage);
            return;
        }
        uint32_t index = stage.segments[stage.segments_granted++];
        storage_grant(&stage.w->storage, index, stage.generation << 32 | stage.segments_granted);
        stage.grants_wanted--;
    }
}

static void acknowledge(struct worker *w, const struct storage_news *n) {
    struct flow *f = &w->flows.flows[n->stream->owner];
    if (f->phase == FLOW_GONE)
        flow_gone(w, f);
    else if (n->kind == NEWS_CLOSED && f->phase == FLOW_CLOSING)
        flow_closed(w, f);
}

void take_news(void) {
    struct worker *w = stage.w;
    struct storage_news n;
    while (storage_next_news(&w->storage, &n)) {
        if (n.kind == NEWS_DURABLE || n.kind == NEWS_CLOSED)
            acknowledge(w, &n);
        else if (n.kind == NEWS_UNDONE)
            sender_of(&w->flows.flows[n.stream->owner])->close_due = true;
        else if (n.kind == NEWS_FULL)
            interrupt_all(w, CLOSE_REASON_STORE_FULL);
        else if (n.kind == NEWS_FAILED)
            interrupt_all(w, CLOSE_REASON_NONE);
        for (uint32_t i = 0; n.kind == NEWS_RELEASED && i < n.hold_count; i++)
            release(n.holds[i]);
    }
}

/* The loop sleeps until something completes, or is granted, or the time has come that the turn
 * before named. What could have gone on before that waits for nothing. */
static void check_sleep(void) {
    struct worker *w = stage.w;
    const struct batch *waits = w->storage.batches.open;
    bool sleeps = w->reactor.now_ns < stage.sleeps_until_ns && waits != NULL && waits->full;
    storage_place(&w->storage);
    if (sleeps && w->storage.batches.open != waits)
        die("a batch that had its place slept on");
}

static void turn(void) {
    struct worker *w = stage.w;
    check_sleep();
    for (uint32_t i = 0; i < stage.slots_count; i++)
        if (random_below(2))
            stage_advance(&stage.senders[random_below(stage.slots_count)]);
    if (random_below(50) == 0)
        storage_request_flush(&w->storage);
    bool over = store_is_over() || stage.started_count == stage.flows_count;
    storage_finish(&w->storage, over && w->flows.count == 0);
    stage.sleeps_until_ns = storage_turn(&w->storage);
    take_news();
    for (uint32_t i = 0; i < stage.slots_count; i++)
        if (stage.senders[i].flow != NULL)
            tell(&stage.senders[i]);
    kernel_submit();
}

static bool run(void) {
    struct worker *w = stage.w;
    for (uint32_t step = 0; step < STEPS_MAX; step++) {
        w->reactor.now_ns += random_below(MS);
        if (kernel_complete_some() > 0)
            stage.sleeps_until_ns = 0;
        grant_some();
        turn();
        if (storage_is_finished(&w->storage) && kernel.operations_count == 0)
            return true;
    }
    return false;
}

static uint32_t one_of(const uint32_t *values, uint32_t count) {
    return values[random_below(count)];
}
#define ONE_OF(...)                                                                                \
    one_of((const uint32_t[]){__VA_ARGS__}, sizeof((uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void choose_shape(struct worker *w, uint32_t block_bytes) {
    struct storage_settings *s = &w->storage.settings;
    s->segments_offset = SEGMENTS_OFFSET;
    s->segment_bytes = SEGMENT_BYTES;
    s->block_bytes = block_bytes;
    s->write_align = ONE_OF(512, 4096);
    s->writes_in_flight_max = 1 + random_below(8);
    s->flush_interval_ns = ONE_OF(MS / 10, 5 * MS, 50 * MS);
    s->commit_interval_ns = ONE_OF(MS, 20 * MS, 200 * MS);
    storage_init(&w->storage, s);
    struct batch_pool *p = &w->storage.batches;
    p->payload_bytes_max = ONE_OF(4096, 16384, 65536);
    p->header_bytes_max = segment_header_bytes_max(SEGMENT_BYTES, block_bytes);
    p->holds_max = ONE_OF(4, BATCH_HOLDS_MAX);
    p->profile = (struct plan_profile){
        .mem_align = ONE_OF(2, 4, 512, 4096),
        .block_bytes = block_bytes,
        .virt_mask = random_below(4) ? 0 : 4095,
        .iovecs_max = ONE_OF(BATCH_IOVECS_MIN, 32, BATCH_IOVECS_MAX),
        .batch_bytes_max = (uint32_t)p->payload_bytes_max + 2 * BATCH_HEADER_BYTES_MAX,
        .copy_below = random_below(2) ? 0 : PLAN_GATHER_BYTES_MIN,
    };
    p->bounce_bytes = plan_bounce_bytes_min(&p->profile) + ONE_OF(0, 65536);
    stage.slots_count = 1 + random_below(SLOTS_MAX);
    stage.flows_count = 1 + random_below(random_below(8) ? 12 : 60);
    kernel.slow_of = ONE_OF(1, 3, 10);
    stage.stream_bytes_max =
        ONE_OF(500, 5000, 20000, 60000, random_below(4) ? 2000 : STREAM_BYTES_MAX);
    kernel.trouble_of = random_below(3) ? 0 : 20;
    kernel.flush_fails = random_below(20) == 0;
}

static void open_worker(uint32_t block_bytes) {
    struct worker *w = stage.w;
    choose_shape(w, block_bytes);
    w->reactor.now_ns = 1;
    const struct batch_pool *p = &w->storage.batches;
    if (!plan_profile_is_usable(&p->profile, p->header_bytes_max, BATCH_IOVECS_MAX))
        die("the profile is not usable");
    if (flow_table_init(&w->flows, SLOTS_MAX) != 0 ||
        storage_open(&w->storage, &w->reactor, &w->area) != 0)
        die("no memory");
    stage.grants_wanted = SEGMENTS_READY_MAX;
}

static void read_uuid(const char *text, uint8_t uuid[16]) {
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            die("the UUID is 32 hexadecimal digits");
        uuid[i] = (uint8_t)byte;
    }
}

int main(int argc, char **argv) {
    make_common();
    if (argc == 2)
        return fwrite(common, PERIOD, 1, stdout) != 1;
    if (argc < 7 || argc - 6 > (int)SEGMENTS_MAX)
        die("usage: SEED GENERATION CHECKSUM BLOCK_BYTES UUID SEGMENT...");
    random_state = strtoull(argv[1], NULL, 0);
    stage.generation = strtoull(argv[2], NULL, 0);
    stage.w = calloc(1, sizeof *stage.w);
    if (stage.w == NULL)
        die("no memory");
    kernel.w = stage.w;
    stage.w->storage.settings.checksum = strcmp(argv[3], "crc32c") == 0;
    read_uuid(argv[5], stage.w->storage.settings.store_uuid);
    for (int i = 6; i < argc; i++)
        stage.segments[stage.segments_count++] = (uint32_t)strtoul(argv[i], NULL, 0);
    open_worker((uint32_t)strtoul(argv[4], NULL, 0));
    if (!run())
        die("nothing moves any more");
    if (storage_error(&stage.w->storage) == 0) {
        trace(TRACE_FLUSH, kernel.operation_id, 0, 0, NULL, 0);
        trace(TRACE_FLUSHED, kernel.operation_id, 0, 0, NULL, 0);
        trace(TRACE_ENDED, 0, 0, 0, NULL, 0);
    }
    fflush(stdout);
    _exit(0); /* what a life held is given back with its process */
}

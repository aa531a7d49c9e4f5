/* SPDX-License-Identifier: Apache-2.0
 *
 * What the per-fragment path costs without a kernel: made-up completions go
 * through the chunk account and the planner, and their chunks back through the
 * refill ring, of which this program plays the kernel's side.
 *
 *   plan_bench --list                  the scenarios, one a line
 *   plan_bench SCENARIO FRAGMENTS      one line of JSON
 *
 * A fragment here is all of: read a completion, note the chunk lent, find the
 * flow, plan_add, and (per batch) plan_finish, give the chunks back and show
 * them to the kernel, plan_begin.
 */
#include "storage/plan.h"
#include "receive/zcrx/refill.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE PLAN_PAGE_BYTES
#define AREA_BYTES (64u * 1024u * 1024u)
#define COMPLETIONS_COUNT (AREA_BYTES / PAGE)
#define HEADER_BYTES 65536u
#define BOUNCE_BYTES (1024u * 1024u)
#define IOVECS_MAX 1024u
#define FLOWS_COUNT 16u

/* Every completion takes a page of the area, or follows the one before it. */
enum layout { LAYOUT_PAGES, LAYOUT_SHUFFLED, LAYOUT_PACKED };

struct scenario {
    const char *name;
    uint32_t fragment_bytes;
    enum layout layout;
    uint32_t mem_align;
    uint32_t block_bytes;
    uint32_t copy_below;
    uint32_t flows_count; /* flows that take turns, one fragment each */
    bool checksum;
};

static const struct scenario scenarios[] = {
    {"4096-pages-M4-L512", 4096, LAYOUT_PAGES, 4, 512, 0, 1, false},
    {"4096-pages-M4-L4096", 4096, LAYOUT_PAGES, 4, 4096, 0, 1, false},
    {"4096-shuffled-M4-L4096", 4096, LAYOUT_SHUFFLED, 4, 4096, 0, 1, false},
    {"4096-16flows-M4-L4096", 4096, LAYOUT_PAGES, 4, 4096, 0, FLOWS_COUNT, false},
    {"4096-pages-M512-L4096", 4096, LAYOUT_PAGES, 512, 4096, 0, 1, false},
    {"4096-pages-M4-L4096-crc", 4096, LAYOUT_PAGES, 4, 4096, 0, 1, true},
    {"1448-pages-M4-L512", 1448, LAYOUT_PAGES, 4, 512, 0, 1, false},
    {"1448-pages-M4-L4096", 1448, LAYOUT_PAGES, 4, 4096, 0, 1, false},
    {"1448-packed-M4-L4096", 1448, LAYOUT_PACKED, 4, 4096, 0, 1, false},
    {"1448-pages-M512-L4096", 1448, LAYOUT_PAGES, 512, 4096, 0, 1, false},
    {"1448-packed-M512-L4096", 1448, LAYOUT_PACKED, 512, 4096, 0, 1, false},
    {"1448-pages-M512-copied", 1448, LAYOUT_PAGES, 512, 4096, 2048, 1, false},
    {"1448-pages-M4-L4096-crc", 1448, LAYOUT_PAGES, 4, 4096, 0, 1, true},
};
#define SCENARIOS_COUNT (sizeof(scenarios) / sizeof(scenarios[0]))

struct completion {
    uint32_t flow;
    uint32_t bytes;
    uint64_t area_offset;
};

struct flow {
    uint8_t id[16];
    uint64_t stream_offset;
    uint32_t crc;
};

struct bench {
    struct plan_profile profile;
    bool checksum;
    uint8_t *area;
    uint8_t *header;
    uint8_t *bounce;
    struct completion *completions;
    struct refill refill;
    uint32_t refill_head, refill_tail;
    uint32_t *chunks; /* of the batch at hand */
    uint32_t chunks_count;
    struct flow flows[FLOWS_COUNT];
    struct iovec iov[IOVECS_MAX];
    struct plan_batch batch;
    uint64_t batches, iovecs, records, payload_bytes, direct_bytes, padding_bytes, bounced_bytes;
};

static void *zeroed_pages(size_t bytes) {
    void *memory = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (memory == NULL) {
        fputs("plan_bench: no memory\n", stderr);
        exit(1);
    }
    memset(memory, 0, bytes);
    return memory;
}

static void make_completions(struct bench *b, const struct scenario *s) {
    for (uint32_t i = 0; i < COMPLETIONS_COUNT; i++) {
        const uint32_t step = s->layout == LAYOUT_PACKED ? s->fragment_bytes : PAGE;
        b->completions[i] = (struct completion){.flow = i % s->flows_count,
                                                .bytes = s->fragment_bytes,
                                                .area_offset = (uint64_t)i * step};
    }
    uint64_t state = 1; /* always the same order: runs are to be compared */
    for (uint32_t i = COMPLETIONS_COUNT - 1; s->layout == LAYOUT_SHUFFLED && i > 0; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const uint32_t other = (uint32_t)((state >> 33) % (i + 1));
        const struct completion kept = b->completions[i];
        b->completions[i] = b->completions[other];
        b->completions[other] = kept;
    }
}

static void begin(struct bench *b) {
    plan_begin(&b->batch, b->iov, IOVECS_MAX, b->header, HEADER_BYTES, b->bounce, BOUNCE_BYTES,
               b->checksum);
    b->chunks_count = 0;
}

static void finish_and_release(struct bench *b) {
    static const uint8_t store_uuid[16];
    struct frame_batch info = {.store_uuid = store_uuid, .batch_index = (uint32_t)b->batches};
    plan_finish(&b->batch, &b->profile, &info);
    for (uint32_t i = 0; i < b->chunks_count; i++)
        refill_return(&b->refill, b->completions[b->chunks[i]].area_offset);
    refill_publish(&b->refill);
    b->refill_head = b->refill_tail; /* the kernel takes them all */
    b->batches++;
    b->iovecs += b->batch.iov_count;
    b->records += b->batch.frame.record_count;
    b->payload_bytes += b->batch.frame.payload_bytes;
    b->direct_bytes += b->batch.direct_bytes;
    b->padding_bytes += b->batch.padding_bytes;
    for (int reason = 0; reason < BOUNCE_REASONS_COUNT; reason++)
        b->bounced_bytes += b->batch.bounced_bytes[reason];
    begin(b);
}

/* What is timed, and what callgrind counts. */
__attribute__((noinline)) void bench_loop(struct bench *b, uint64_t fragments_count) {
    for (uint64_t i = 0; i < fragments_count; i++) {
        const uint32_t index = (uint32_t)(i % COMPLETIONS_COUNT);
        const struct completion *c = &b->completions[index];
        refill_delivered(&b->refill, c->area_offset);
        struct flow *flow = &b->flows[c->flow];
        struct plan_fragment f = {.flow = flow->id,
                                  .stream_offset = flow->stream_offset,
                                  .data = b->area + c->area_offset,
                                  .bytes = c->bytes,
                                  .crc = flow->crc};
        while (plan_add(&b->batch, &b->profile, &f) == 0 || f.bytes != 0)
            finish_and_release(b);
        b->chunks[b->chunks_count++] = index;
        flow->stream_offset = f.stream_offset;
        flow->crc = f.crc;
    }
    finish_and_release(b);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void run(const struct scenario *s, uint64_t fragments_count) {
    struct bench *b = zeroed_pages(sizeof(*b));
    b->profile = (struct plan_profile){.mem_align = s->mem_align,
                                       .block_bytes = s->block_bytes,
                                       .iovecs_max = IOVECS_MAX,
                                       .batch_bytes_max = 1024 * 1024,
                                       .copy_below = s->copy_below};
    b->checksum = s->checksum;
    b->area = zeroed_pages(AREA_BYTES);
    b->header = zeroed_pages(HEADER_BYTES);
    b->bounce = zeroed_pages(BOUNCE_BYTES);
    b->completions = zeroed_pages(COMPLETIONS_COUNT * sizeof(*b->completions));
    if (refill_init(&b->refill, COMPLETIONS_COUNT, 12) < 0)
        exit(1);
    b->refill.head = &b->refill_head;
    b->refill.tail = &b->refill_tail;
    b->refill.entries = zeroed_pages(COMPLETIONS_COUNT * sizeof(*b->refill.entries));
    b->refill.entry_count = COMPLETIONS_COUNT;
    b->chunks = zeroed_pages(COMPLETIONS_COUNT * sizeof(*b->chunks));
    for (uint32_t i = 0; i < FLOWS_COUNT; i++)
        memset(b->flows[i].id, (int)i + 1, sizeof(b->flows[i].id));
    make_completions(b, s);
    begin(b);
    const uint64_t begin_ns = now_ns();
    bench_loop(b, fragments_count);
    const uint64_t spent_ns = now_ns() - begin_ns;
    printf("{\"scenario\": \"%s\", \"fragments\": %llu, \"ns_per_fragment\": %.3f, "
           "\"batches\": %llu, \"iovecs\": %llu, \"records\": %llu, \"payload_bytes\": %llu, "
           "\"direct_bytes\": %llu, \"bounced_bytes\": %llu, \"padding_bytes\": %llu}\n",
           s->name, (unsigned long long)fragments_count, (double)spent_ns / (double)fragments_count,
           (unsigned long long)b->batches, (unsigned long long)b->iovecs,
           (unsigned long long)b->records, (unsigned long long)b->payload_bytes,
           (unsigned long long)b->direct_bytes, (unsigned long long)b->bounced_bytes,
           (unsigned long long)b->padding_bytes);
}

int main(int argc, char **argv) {
    for (size_t i = 0; argc == 2 && strcmp(argv[1], "--list") == 0 && i < SCENARIOS_COUNT; i++)
        puts(scenarios[i].name);
    if (argc == 2)
        return 0;
    const long long fragments_count = argc == 3 ? atoll(argv[2]) : 0;
    for (size_t i = 0; fragments_count > 0 && i < SCENARIOS_COUNT; i++) {
        if (strcmp(argv[1], scenarios[i].name) == 0) {
            run(&scenarios[i], (uint64_t)fragments_count);
            return 0;
        }
    }
    fputs("usage: plan_bench --list | SCENARIO FRAGMENTS\n", stderr);
    return 2;
}

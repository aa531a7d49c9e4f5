/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner on fragments of any shape, for any device: profile, sizes, places and flows follow
 * from a seed, which is printed. The model reads each batch back, byte by byte, and says of each
 * fragment what must be direct and what copied for which reason; it ends the program where that
 * is not so.
 */
#include "plan_model.h"

#include <stdlib.h>

#include "harness.h"
#include "random.h"

#define PAGE PLAN_PAGE_BYTES
#define HISTORIES_COUNT 3000u
#define PIECES_MAX 25u
#define REPEATS_SMALL_MAX 200u
#define REPEATS_LARGE_MAX 8u
#define RECORD_OF 16u /* pieces; one of so many is followed by a record */

static uint32_t one_of(const uint32_t *values, uint32_t count) {
    return values[random_below(count)];
}

#define ONE_OF(...)                                                                                \
    one_of((const uint32_t[]){__VA_ARGS__},                                                        \
           (uint32_t)(sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t)))

static struct plan_profile random_profile(void) {
    return (struct plan_profile){
        .mem_align = ONE_OF(1, 2, 4, 512, 4096),
        .block_bytes = ONE_OF(512, 4096, 16384),
        .virt_mask = ONE_OF(0, 0, 511, 4095),
        .iovecs_max = ONE_OF(PLAN_IOVECS_MIN, 5, 16, MODEL_IOVECS_MAX),
        .batch_bytes_max = ONE_OF(65536 + 8192 * random_below(256), 131072, 200000, 1u << 20),
        .copy_below = ONE_OF(0, 64, 512, 5000),
    };
}

/* A run of fragments alike: how large, where they begin, and whose they are. */
struct piece {
    uint32_t count, bytes, slack, flow, place, shift;
    bool in_turn;
};

static struct piece random_piece(void) {
    struct piece p = {
        .flow = random_below(MODEL_FLOWS_COUNT),
        .in_turn = random_below(2) != 0,
        .place = random_below(3),
        .shift = random_below(2) ? random_below(PAGE) : 4 * random_below(PAGE / 4),
        .slack = ONE_OF(0, 0, PAGE, random_below(600)),
    };
    if (random_below(2)) {
        p.bytes = random_below(2) ? 1 + random_below(600) : 4 * (1 + random_below(150));
        p.count = 1 + random_below(random_below(2) ? 3 : REPEATS_SMALL_MAX);
    } else {
        p.bytes = ONE_OF(1 + random_below(70000), 1448, PAGE, 8948, 65536, PAGE - 1, PAGE + 1, 512,
                         PAGE * (1 + random_below(17)), 512 * (1 + random_below(16)));
        p.count = 1 + random_below(random_below(2) ? 3 : REPEATS_LARGE_MAX);
    }
    return p;
}

/* Behind the last one, on a page, or beside one. */
static uint32_t offset_of(const struct plan_model *m, const struct piece *p) {
    const uint32_t page = (m->arena_used + PAGE - 1) / PAGE * PAGE;
    return p->place == 0 ? m->arena_used : p->place == 1 ? page : page + p->shift;
}

/* A fragment, in as many batches as it takes. */
static void feed_one(struct plan_model *m, const struct piece *p, uint32_t flow) {
    uint32_t left = p->bytes, offset = offset_of(m, p);
    if (offset + left + p->slack > MODEL_ARENA_BYTES) {
        model_finish(m);
        offset = offset_of(m, p);
    }
    while (left != 0) {
        const bool was_empty = plan_is_empty(&m->batch);
        const uint32_t taken = model_add(m, flow, offset, left, p->slack);
        if (taken == 0 && was_empty)
            model_fail("an empty batch took nothing of %u bytes", left);
        left -= taken;
        offset += taken;
        m->arena_used = offset + (left == 0 ? p->slack : 0);
        if (left != 0) {
            model_finish(m);
            offset %= PAGE; /* all memory is free again */
        }
    }
}

static void add_record(struct plan_model *m, uint32_t flow) {
    const uint32_t record_bytes = sizeof(struct record_close);
    const struct frame_close c = {.stream_bytes = 1, .state = FLOW_STATE_SEALED};
    if (!plan_has_record_room(&m->batch, &m->profile, record_bytes))
        model_finish(m);
    if (!plan_has_record_room(&m->batch, &m->profile, record_bytes) ||
        frame_add_close(&m->batch.frame, m->flows[flow].id, &c) != 0)
        model_fail("an empty batch has no room for a record");
}

static void history(void) {
    static struct plan_model m;
    struct plan_profile profile;
    uint32_t header_capacity;
    do {
        profile = random_profile();
        header_capacity = ONE_OF(65536, 16384);
    } while (!plan_profile_is_usable(&profile, header_capacity, MODEL_IOVECS_MAX));
    const uint32_t bounce_bytes =
        plan_bounce_bytes_min(&profile) + ONE_OF(0, PAGE * random_below(8), 131072);
    model_setup(&m, &profile, header_capacity, bounce_bytes, random_below(2) != 0);
    for (uint32_t i = 1 + random_below(PIECES_MAX); i > 0; i--) {
        const struct piece p = random_piece();
        for (uint32_t k = 0; k < p.count; k++)
            feed_one(&m, &p, (p.flow + (p.in_turn ? k : 0)) % MODEL_FLOWS_COUNT);
        if (random_below(RECORD_OF) == 0)
            add_record(&m, p.flow);
    }
    model_finish(&m);
    model_teardown(&m);
}

static void any_fragments_are_read_back(void) {
    for (uint32_t i = 0; i < HISTORIES_COUNT; i++)
        history();
}

/* Where address and length are multiples of M, whatever the rest. */
static void clean_fragments_are_never_copied(void) {
    static struct plan_model m;
    for (uint32_t i = 0; i < HISTORIES_COUNT / 4; i++) {
        struct plan_profile profile = random_profile();
        profile.virt_mask = profile.copy_below = 0;
        if (!plan_profile_is_usable(&profile, 65536, MODEL_IOVECS_MAX))
            continue;
        model_setup(&m, &profile, 65536, plan_bounce_bytes_min(&profile), false);
        for (uint32_t count = 1 + random_below(60); count > 0; count--)
            model_feed(&m, random_below(MODEL_FLOWS_COUNT),
                       profile.mem_align * (1 + random_below(17)), PAGE, 0);
        model_finish(&m);
        for (int reason = 0; reason < BOUNCE_REASONS_COUNT; reason++)
            CHECK_EQUAL(m.bounced_bytes[reason], 0);
        model_teardown(&m);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(any_fragments_are_read_back),
        TEST(clean_fragments_are_never_copied),
    };
    random_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

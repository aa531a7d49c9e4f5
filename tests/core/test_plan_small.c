/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner: pieces shorter than copy_below. Every batch is also read back by the
 * model, byte by byte.
 */
#include "plan_model.h"

#include <stdlib.h>

#include "harness.h"

#define PAGE PLAN_PAGE_BYTES

static struct plan_model *setup(uint32_t mem_align, uint32_t copy_below) {
    const struct plan_profile p = {.mem_align = mem_align,
                                   .block_bytes = PAGE,
                                   .iovecs_max = 1024,
                                   .batch_bytes_max = 1u << 20,
                                   .copy_below = copy_below};
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, &p, 16 * PAGE, 64 * PAGE, true);
    return m;
}

static void teardown(struct plan_model *m) {
    model_finish(m);
    model_teardown(m);
    free(m);
}

static void small_pieces_are_copied(void) {
    struct plan_model *m = setup(4, 512);
    CHECK_EQUAL(model_add(m, 0, 0, 508, 0), 508);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_SMALL], 508);
    CHECK_EQUAL(model_add(m, 0, PAGE, 512, 0), 512);
    CHECK_EQUAL(m->batch.direct_bytes, 512);
    /* It lies right behind the last direct piece: no iovec, no reason to copy. */
    CHECK_EQUAL(model_add(m, 0, PAGE + 512, 8, 0), 8);
    CHECK_EQUAL(m->batch.direct_bytes, 520);
    CHECK_EQUAL(m->batch.iov_count, 3);
    CHECK_EQUAL(model_add(m, 0, PAGE + 520, 9, 0), 9);
    CHECK_EQUAL(m->batch.direct_bytes, 528);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 1);
    teardown(m);
}

/* Engine recv: each piece begins on a page, with slack behind it. */
static void small_pieces_in_slots_share_a_page(void) {
    struct plan_model *m = setup(PAGE, PAGE / 2);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQUAL(model_add(m, i % 2, i * PAGE, 100, PAGE - 100), 100);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_SMALL], 800);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 0);
    CHECK_EQUAL(m->batch.payload_end, 800);
    CHECK_EQUAL(m->batch.iov_count, 2);
    /* From half an edge on it is padded where it lies. */
    CHECK_EQUAL(model_add(m, 0, 8 * PAGE, PAGE / 2, PAGE / 2), PAGE / 2);
    CHECK_EQUAL(m->batch.direct_bytes, PAGE / 2);
    CHECK_EQUAL(m->batch.padding_bytes, (PAGE - 800) + PAGE / 2);
    /* Without room for padding behind it the end is a tail, as in any other piece. */
    CHECK_EQUAL(model_add(m, 1, 16 * PAGE, 100, 0), 100);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 100);
    teardown(m);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(small_pieces_are_copied),
        TEST(small_pieces_in_slots_share_a_page),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

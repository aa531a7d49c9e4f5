/* SPDX-License-Identifier: Apache-2.0
 *
 * Slots of the area: never two lent at once in one place, all back at the end.
 */
#include "memory/buddy.h"

#include <string.h>

#include "harness.h"
#include "random.h"

#define TOTAL_BYTES (64u << 20)
#define SLOT_BYTES_MAX (1u << 20)
#define STEPS 200000

static uint8_t owner[TOTAL_BYTES / SLOT_BYTES_MIN];

static void mark(uint64_t offset, uint32_t order, uint8_t from, uint8_t to) {
    for (uint64_t i = 0; i < buddy_slot_bytes(order) / SLOT_BYTES_MIN; i++) {
        CHECK_EQUAL(owner[offset / SLOT_BYTES_MIN + i], from);
        owner[offset / SLOT_BYTES_MIN + i] = to;
    }
}

static void slots_are_exclusive_and_come_back(void) {
    static struct {
        uint64_t offset;
        uint32_t order;
    } lent[TOTAL_BYTES / SLOT_BYTES_MIN];
    uint32_t count = 0;
    uint64_t lent_bytes = 0;
    struct buddy b = {0};
    memset(owner, 0, sizeof owner);
    CHECK_EQUAL(buddy_init(&b, TOTAL_BYTES, SLOT_BYTES_MAX), 0);
    for (int step = 0; step < STEPS; step++) {
        if (random_below(100) < 55) {
            uint32_t order = random_below(b.order_max + 1);
            uint64_t offset = buddy_take(&b, order);
            if (offset == UINT64_MAX)
                continue;
            CHECK_EQUAL(offset % buddy_slot_bytes(order), 0);
            mark(offset, order, 0, 1);
            lent[count].offset = offset;
            lent[count++].order = order;
            lent_bytes += buddy_slot_bytes(order);
        } else if (count > 0) {
            uint32_t i = random_below(count);
            mark(lent[i].offset, lent[i].order, 1, 0);
            buddy_release(&b, lent[i].offset, lent[i].order);
            lent_bytes -= buddy_slot_bytes(lent[i].order);
            lent[i] = lent[--count];
        }
        CHECK_EQUAL(b.free_bytes + lent_bytes, TOTAL_BYTES);
    }
    while (count > 0) {
        count--;
        buddy_release(&b, lent[count].offset, lent[count].order);
    }
    /* All merged: the whole area can be lent in its largest slots again. */
    for (uint32_t i = 0; i < TOTAL_BYTES / SLOT_BYTES_MAX; i++)
        CHECK(buddy_take(&b, b.order_max) != UINT64_MAX);
    CHECK_EQUAL(buddy_take(&b, 0), UINT64_MAX);
    CHECK_EQUAL(b.free_bytes, 0);
    buddy_destroy(&b);
}

static void shared_slot_is_free_when_all_have_given_it_back(void) {
    struct buddy b = {0};
    CHECK_EQUAL(buddy_init(&b, TOTAL_BYTES, SLOT_BYTES_MAX), 0);
    uint64_t offset = buddy_take(&b, 1);
    buddy_share(&b, offset);
    buddy_share(&b, offset);
    CHECK(!buddy_release(&b, offset, 1));
    CHECK(!buddy_release(&b, offset, 1));
    CHECK_EQUAL(b.free_bytes, TOTAL_BYTES - buddy_slot_bytes(1));
    CHECK(buddy_release(&b, offset, 1));
    CHECK_EQUAL(b.free_bytes, TOTAL_BYTES);
    buddy_destroy(&b);
}

static void order_is_the_smallest_that_holds(void) {
    struct buddy b = {0};
    buddy_init(&b, TOTAL_BYTES, SLOT_BYTES_MAX);
    CHECK_EQUAL(buddy_order(&b, 0), 0);
    CHECK_EQUAL(buddy_order(&b, SLOT_BYTES_MIN), 0);
    CHECK_EQUAL(buddy_order(&b, SLOT_BYTES_MIN + 1), 1);
    CHECK_EQUAL(buddy_slot_bytes(buddy_order(&b, SLOT_BYTES_MAX)), SLOT_BYTES_MAX);
    CHECK_EQUAL(buddy_slot_bytes(buddy_order(&b, 10ull * SLOT_BYTES_MAX)), SLOT_BYTES_MAX);
    buddy_destroy(&b);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(slots_are_exclusive_and_come_back),
        TEST(shared_slot_is_free_when_all_have_given_it_back),
        TEST(order_is_the_smallest_that_holds),
    };
    random_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

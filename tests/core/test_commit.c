/* SPDX-License-Identifier: Apache-2.0
 *
 * Group commit against a model that remembers what each flush covered.
 */
#include "storage/commit.h"

#include <string.h>

#include "harness.h"
#include "random.h"

#define INTERVAL_NS 1000

static void nothing_to_flush_at_first(void) {
    struct commit c;
    commit_init(&c);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), UINT64_MAX);
    uint64_t item = commit_begin(&c);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), UINT64_MAX);
    commit_written(&c, item, 70);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), 70 + INTERVAL_NS);
}

static void a_wait_makes_it_due_once_written(void) {
    struct commit c;
    commit_init(&c);
    uint64_t first = commit_begin(&c), second = commit_begin(&c);
    commit_want(&c, second);
    commit_written(&c, first, 5);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), 5 + INTERVAL_NS); /* first is not waited for */
    commit_written(&c, second, 6);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), 0);
    CHECK_EQUAL(commit_flush(&c), 2);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), UINT64_MAX); /* one flush at a time */
    commit_done(&c, 9);
    CHECK_EQUAL(c.committed_upto, 2);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), UINT64_MAX);
}

static void a_flush_covers_only_what_was_written_in_order(void) {
    struct commit c;
    commit_init(&c);
    uint64_t items[3] = {commit_begin(&c), commit_begin(&c), commit_begin(&c)};
    commit_written(&c, items[0], 1);
    commit_written(&c, items[2], 2); /* a hole at items[1] */
    CHECK_EQUAL(commit_flush(&c), 1);
    commit_written(&c, items[1], 3); /* while the flush is under way */
    commit_done(&c, 4);
    CHECK_EQUAL(c.committed_upto, 1);
    CHECK_EQUAL(c.written_upto, 3);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), 4 + INTERVAL_NS);
}

static void waits_behind_a_flush_are_not_forgotten(void) {
    struct commit c;
    commit_init(&c);
    uint64_t first = commit_begin(&c);
    commit_want(&c, first);
    commit_written(&c, first, 1);
    commit_flush(&c);
    uint64_t second = commit_begin(&c);
    commit_want(&c, second);
    commit_written(&c, second, 2);
    commit_done(&c, 3);
    CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), 0);
    CHECK_EQUAL(commit_flush(&c), 2);
}

/* Random completions, waits and flushes: a model keeps what was really written
 * when each flush began. */
static void random_orders_keep_the_promise(void) {
    static bool written[100000];
    uint64_t outstanding[COMMIT_WINDOW], now_ns = 1, wanted_max = 0;
    uint32_t count = 0;
    struct commit c;
    commit_init(&c);
    memset(written, 0, sizeof written);
    while (c.next_item < 90000) {
        now_ns += random_below(50);
        uint32_t dice = random_below(100);
        if (dice < 45 && commit_has_room(&c) && count < COMMIT_WINDOW) {
            outstanding[count++] = commit_begin(&c);
        } else if (dice < 88 && count > 0) {
            uint32_t i = random_below(count);
            written[outstanding[i]] = true;
            commit_written(&c, outstanding[i], now_ns);
            outstanding[i] = outstanding[--count];
        } else if (dice < 92 && c.next_item > c.committed_upto) {
            uint64_t span = c.next_item - c.committed_upto;
            uint64_t item = c.committed_upto + random_below((uint32_t)span);
            commit_want(&c, item);
            wanted_max = item + 1 > wanted_max ? item + 1 : wanted_max;
        } else if (c.flushing) {
            commit_done(&c, now_ns);
        } else if (commit_due_ns(&c, INTERVAL_NS) <= now_ns) {
            uint64_t upto = commit_flush(&c);
            for (uint64_t i = c.committed_upto; i < upto; i++)
                CHECK(written[i]);
        }
        CHECK(c.committed_upto <= c.flushing_upto && c.flushing_upto <= c.written_upto &&
              c.written_upto <= c.next_item);
        /* Whoever waits for a written item is not left to the interval. */
        if (!c.flushing && wanted_max > c.committed_upto && c.written_upto >= wanted_max)
            CHECK_EQUAL(commit_due_ns(&c, INTERVAL_NS), 0);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(nothing_to_flush_at_first),
        TEST(a_wait_makes_it_due_once_written),
        TEST(a_flush_covers_only_what_was_written_in_order),
        TEST(waits_behind_a_flush_are_not_forgotten),
        TEST(random_orders_keep_the_promise),
    };
    random_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The refill ring, with the test in the kernel's part: it delivers fragments
 * from chunks that it has, several per chunk, and takes entries when it likes.
 */
#include "receive/zcrx/refill.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "random.h"

#define CHUNKS 64
#define SHIFT 12
#define ENTRIES 16
#define FRAGMENTS_MAX 1024
#define TOKEN (3ull << 48)

static uint32_t head, tail;
static struct abi_zcrx_refill_entry entries[ENTRIES];
static uint32_t references[CHUNKS]; /* as the kernel counts them */

struct holder {
    uint64_t offset;
};

static struct refill opened(void) {
    struct refill r = {0};
    memset(references, 0, sizeof references);
    head = tail = 0;
    CHECK_EQUAL(refill_init(&r, CHUNKS, SHIFT), 0);
    r.head = &head;
    r.tail = &tail;
    r.entries = entries;
    r.entry_count = ENTRIES;
    r.token = TOKEN;
    return r;
}

static void deliver(struct refill *r, uint64_t offset) {
    references[offset >> SHIFT]++;
    refill_delivered(r, offset);
}

/* The kernel drops one reference for each entry, whatever place in the chunk it names. */
static void kernel_takes(uint32_t most) {
    while (most-- > 0 && head != tail) {
        const struct abi_zcrx_refill_entry *e = &entries[head % ENTRIES];
        uint64_t chunk = (e->offset & ABI_ZCRX_OFFSET_MASK) >> SHIFT;
        CHECK_EQUAL(e->offset & ~ABI_ZCRX_OFFSET_MASK, TOKEN);
        CHECK(chunk < CHUNKS && references[chunk] > 0);
        references[chunk]--;
        head++;
    }
}

static void a_shared_fragment_is_given_back_once(void) {
    struct refill r = opened();
    deliver(&r, 5 << SHIFT);
    refill_share(&r, (5 << SHIFT) + 100);
    refill_return(&r, 5 << SHIFT);
    CHECK_EQUAL(refill_publish(&r), 0);
    CHECK_EQUAL(r.chunks_lent, 1);
    refill_return(&r, (5 << SHIFT) + 100);
    CHECK_EQUAL(refill_publish(&r), 1);
    CHECK_EQUAL(r.chunks_lent, 0);
    refill_destroy(&r);
}

static void what_does_not_fit_waits(void) {
    struct refill r = opened();
    for (uint64_t i = 0; i < CHUNKS; i++)
        deliver(&r, i << SHIFT);
    for (uint64_t i = 0; i < CHUNKS; i++)
        refill_return(&r, i << SHIFT);
    CHECK_EQUAL(refill_publish(&r), ENTRIES);
    CHECK_EQUAL(refill_publish(&r), 0);
    uint32_t shown = ENTRIES;
    while (shown < CHUNKS) {
        kernel_takes(5);
        shown += refill_publish(&r);
    }
    kernel_takes(ENTRIES);
    for (int i = 0; i < CHUNKS; i++)
        CHECK_EQUAL(references[i], 0);
    refill_destroy(&r);
}

static void every_fragment_comes_back_exactly_once(void) {
    static struct holder holders[2 * FRAGMENTS_MAX];
    struct refill r = opened();
    uint32_t count = 0;
    for (int step = 0; step < 300000; step++) {
        uint32_t dice = random_below(100);
        if (dice < 40 && r.fragments_lent < FRAGMENTS_MAX && count < FRAGMENTS_MAX) {
            /* Packets share pages: any chunk may deliver again while it is lent. */
            uint64_t offset = (uint64_t)random_below(CHUNKS) << SHIFT | random_below(4096);
            deliver(&r, offset);
            holders[count++].offset = offset;
            if (random_below(5) == 0) {
                refill_share(&r, offset);
                holders[count++].offset = offset;
            }
        } else if (dice < 85 && count > 0) {
            uint32_t i = random_below(count);
            refill_return(&r, holders[i].offset);
            holders[i] = holders[--count];
        } else if (dice < 92) {
            refill_publish(&r);
        } else {
            kernel_takes(random_below(ENTRIES));
        }
    }
    while (count > 0)
        refill_return(&r, holders[--count].offset);
    CHECK_EQUAL(r.fragments_lent, 0);
    CHECK_EQUAL(r.chunks_lent, 0);
    while (refill_publish(&r) > 0 || head != tail)
        kernel_takes(ENTRIES);
    for (int i = 0; i < CHUNKS; i++)
        CHECK_EQUAL(references[i], 0);
    refill_destroy(&r);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(a_shared_fragment_is_given_back_once),
        TEST(what_does_not_fit_waits),
        TEST(every_fragment_comes_back_exactly_once),
    };
    random_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

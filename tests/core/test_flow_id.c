/* SPDX-License-Identifier: Apache-2.0
 *
 * Ids that the daemon makes: where each part lies, and that none is made twice.
 */
#include "format/flow_id.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"

static const uint8_t STORE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* tests/unit/daemon/admission/test_marked_ids.py has the same two, and takes them for marked. */
static void the_layout_is_fixed(void) {
    static const uint8_t low[16] = {0x01, 0x93, 0x68, 0xf4, 0x2c, 0x00, 0x70, 0x00,
                                    0x80, 0x00, 0x00, 0x00, 0x52, 0xf7, 0x36, 0x50};
    static const uint8_t high[16] = {0x01, 0x93, 0x68, 0xf4, 0x2c, 0x00, 0x7f, 0xff,
                                     0xbf, 0xff, 0xff, 0xff, 0x5a, 0x4e, 0x9e, 0xa1};
    uint8_t id[FLOW_ID_BYTES];
    flow_id_make(id, STORE, 0x019368f42c00, 0, 0);
    CHECK(memcmp(id, low, sizeof id) == 0);
    flow_id_make(id, STORE, 0x019368f42c00, 255, UINT64_MAX);
    CHECK(memcmp(id, high, sizeof id) == 0);
}

static int compare(const void *a, const void *b) {
    return memcmp(a, b, FLOW_ID_BYTES);
}

/* All in one millisecond: two workers, and a serial number that goes round. */
static void none_is_made_twice(void) {
    enum { COUNT = 20000 };
    uint8_t (*ids)[FLOW_ID_BYTES] = calloc(2 * COUNT, sizeof *ids);
    for (uint64_t i = 0; i < COUNT; i++) {
        flow_id_make(ids[2 * i], STORE, 1, 0, UINT64_MAX - COUNT / 2 + i);
        flow_id_make(ids[2 * i + 1], STORE, 1, 1, UINT64_MAX - COUNT / 2 + i);
    }
    qsort(ids, 2 * COUNT, sizeof *ids, compare);
    for (uint64_t i = 1; i < 2 * COUNT; i++)
        CHECK(memcmp(ids[i - 1], ids[i], FLOW_ID_BYTES) != 0);
    free(ids);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(the_layout_is_fixed),
        TEST(none_is_made_twice),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

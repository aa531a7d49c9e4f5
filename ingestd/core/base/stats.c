/* SPDX-License-Identifier: Apache-2.0
 *
 * The histograms of stats.h.
 */
#include "base/stats.h"

static void stats_count_in(struct histogram *h, uint32_t bucket) {
    __atomic_store_n(&h->counts[bucket], h->counts[bucket] + 1, __ATOMIC_RELAXED);
}

void histogram_add(struct histogram *h, uint64_t value_ns) {
    static const uint64_t bounds[HISTOGRAM_BUCKETS_COUNT] = {HISTOGRAM_BOUNDS_NS_LIST};
    uint32_t bucket = 0;
    while (bucket < HISTOGRAM_BUCKETS_COUNT && value_ns > bounds[bucket])
        bucket++;
    stats_count_in(h, bucket);
}

void histogram_add_bytes(struct histogram *h, uint64_t bytes_count) {
    uint32_t bucket = 0;
    while (bucket < HISTOGRAM_BUCKETS_COUNT && bytes_count > HISTOGRAM_BYTES_MIN << bucket)
        bucket++;
    stats_count_in(h, bucket);
}

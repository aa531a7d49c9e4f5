/* SPDX-License-Identifier: Apache-2.0
 *
 * Seeded random numbers for the C tests (SplitMix64); the seed is printed, and
 * taken from INGESTD_TEST_SEED where that is set, so that a failure repeats.
 */
#ifndef INGESTD_TESTS_RANDOM_H
#define INGESTD_TESTS_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t random_state;

static inline void random_seed(void) {
    const char *given = getenv("INGESTD_TEST_SEED");
    random_state = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 1000003u;
    printf("INGESTD_TEST_SEED=%llu\n", (unsigned long long)random_state);
}

static inline uint64_t random_next(void) {
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint32_t random_below(uint32_t limit) {
    return (uint32_t)(random_next() % limit);
}

#endif

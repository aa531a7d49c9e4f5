/* SPDX-License-Identifier: Apache-2.0
 *
 * A very small test harness: TEST functions, CHECK conditions, one line a test,
 * and "N passed, N failed" at the end. A failed CHECK does not stop its test.
 */
#ifndef INGESTD_TESTS_HARNESS_H
#define INGESTD_TESTS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

static bool harness_test_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                       \
            harness_test_failed = true;                                                            \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(left, right)                                                                   \
    do {                                                                                           \
        const uint64_t left_value = (uint64_t)(left);                                              \
        const uint64_t right_value = (uint64_t)(right);                                            \
        if (left_value != right_value) {                                                           \
            printf("%s:%d: %s is %llu, not %s = %llu\n", __FILE__, __LINE__, #left,                \
                   (unsigned long long)left_value, #right, (unsigned long long)right_value);       \
            harness_test_failed = true;                                                            \
        }                                                                                          \
    } while (0)

struct harness_test {
    const char *name;
    void (*run)(void);
};

#define TEST(function) {#function, function}

static int harness_run(const struct harness_test *tests, size_t count) {
    unsigned passed = 0, failed = 0;
    for (size_t i = 0; i < count; i++) {
        harness_test_failed = false;
        tests[i].run();
        printf("%s %s\n", harness_test_failed ? "FAILED" : "ok    ", tests[i].name);
        passed += !harness_test_failed;
        failed += harness_test_failed;
        fflush(stdout);
    }
    printf("%u passed, %u failed\n", passed, failed);
    return failed != 0;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * A test program is a list of cases. Each case runs in a child process of its own, so that
 * whatever it registered with the kernel is gone before the next one, and one that crashes or
 * hangs is one failed case.
 */
#ifndef VM_CHECK_H
#define VM_CHECK_H

#include <stddef.h>

struct check_case {
    const char *name;
    void (*run)(const void *argument);
    const void *argument;
};

/* Runs the cases, prints a line each and "N passed, N failed[, N skipped]"; returns main's exit
 * code. */
int check_run(const char *program, const struct check_case *cases, size_t count);

/* Ends the case as failed. */
__attribute__((noreturn, format(printf, 3, 4))) void check_fail(const char *file, int line,
                                                                const char *format, ...);

/* Ends the case as one that this kernel cannot carry. */
__attribute__((noreturn)) void check_skip(const char *reason);

/* Ends the case as failed unless the condition holds; the rest says what was found. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            check_fail(__FILE__, __LINE__, __VA_ARGS__);                                           \
    } while (0)

/* For calls of the C library that cannot fail unless the test set-up is broken. */
#define CHECK_CALL(call) CHECK((call) >= 0, "%s: %m", #call)

/* Both sides are 0 or -errno; a difference is printed as errno names. */
#define CHECK_ERROR(found, expected, what)                                                         \
    do {                                                                                           \
        long found_ = (found), expected_ = (expected);                                             \
        CHECK(found_ == expected_, "%s gives %s, expected %s", (what), check_error_name(found_),   \
              check_error_name(expected_));                                                        \
    } while (0)

/* "OK" for 0 and above, else the name of -errno. */
const char *check_error_name(long result);

#endif

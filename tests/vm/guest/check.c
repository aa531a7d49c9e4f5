/* SPDX-License-Identifier: Apache-2.0
 *
 * Runner of test cases: see check.h. A case that takes longer than CASE_SECONDS_MAX is ended by
 * its own alarm signal and counts as failed.
 */
#define _GNU_SOURCE
#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CASE_SECONDS_MAX 900 /* of a machine without KVM, on a busy host */
#define EXIT_SKIPPED 77

void check_fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    printf("    %s:%d: ", file, line);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

const char *check_error_name(long result) {
    const char *name = result >= 0 ? "OK" : strerrorname_np((int)-result);
    return name ? name : "an unknown error";
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void check_skip(const char *reason) {
    printf("    %s\n", reason);
    fflush(stdout);
    _exit(EXIT_SKIPPED);
}

enum outcome { PASSED, FAILED, SKIPPED, OUTCOMES_COUNT };

static enum outcome outcome_of(int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return PASSED;
    return WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED ? SKIPPED : FAILED;
}

static enum outcome run_case(const struct check_case *test) {
    static const char *const words[OUTCOMES_COUNT] = {"ok  ", "FAIL", "skip"};
    double began_s = seconds_now();
    enum outcome outcome;
    int status;
    pid_t child;

    fflush(stdout);
    child = fork();
    CHECK_CALL(child);
    if (child == 0) {
        alarm(CASE_SECONDS_MAX);
        test->run(test->argument);
        fflush(stdout);
        _exit(0);
    }
    CHECK_CALL(waitpid(child, &status, 0));
    outcome = outcome_of(status);
    printf("%s %s (%.1f s)", words[outcome], test->name, seconds_now() - began_s);
    if (WIFSIGNALED(status))
        printf(": ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    printf("\n");
    fflush(stdout);
    return outcome;
}

int check_run(const char *program, const struct check_case *cases, size_t count) {
    size_t counts[OUTCOMES_COUNT] = {0};

    CHECK(count > 0, "%s has no cases", program);
    for (size_t index = 0; index < count; index++)
        counts[run_case(&cases[index])]++;
    printf("%s: %zu passed, %zu failed", program, counts[PASSED], counts[FAILED]);
    if (counts[SKIPPED])
        printf(", %zu skipped", counts[SKIPPED]);
    printf("\n");
    fflush(stdout);
    return counts[FAILED] ? 1 : 0;
}

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

#define CASE_SECONDS_MAX 90

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

static int run_case(const struct check_case *test) {
    int status;
    pid_t child;
    double began_s = seconds_now();

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
    int failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    printf("%s %s (%.1f s)", failed ? "FAIL" : "ok  ", test->name, seconds_now() - began_s);
    if (WIFSIGNALED(status))
        printf(": ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    printf("\n");
    fflush(stdout);
    return failed;
}

int check_run(const char *program, const struct check_case *cases, size_t count) {
    size_t failed = 0;

    CHECK(count > 0, "%s has no cases", program);
    for (size_t index = 0; index < count; index++)
        failed += (size_t)run_case(&cases[index]);
    printf("%s: %zu passed, %zu failed\n", program, count - failed, failed);
    fflush(stdout);
    return failed ? 1 : 0;
}

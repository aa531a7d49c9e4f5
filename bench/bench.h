/* SPDX-License-Identifier: Apache-2.0
 *
 * What the benchmark's C programs share: clocks, CPU times, and a way to end.
 * Single-threaded; any failure ends the program with one sentence on stderr.
 */
#ifndef INGESTD_BENCH_H
#define INGESTD_BENCH_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* Ends the program: a benchmark that met an error has no figure to show. */
__attribute__((noreturn)) static inline void die(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, strerror(code));
    exit(1);
}

static inline int64_t check(int64_t result, const char *what) {
    if (result < 0)
        die(what, errno);
    return result;
}

static inline void *check_memory(void *p, const char *what) {
    if (p == NULL)
        die(what, ENOMEM);
    return p;
}

static inline uint64_t clock_monotonic_ns(void) {
    struct timespec t;
    check(clock_gettime(CLOCK_MONOTONIC, &t), "clock_gettime");
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

struct cpu_times {
    double user_s;
    double sys_s;
};

static inline struct cpu_times cpu_times(void) {
    struct rusage u;
    check(getrusage(RUSAGE_SELF, &u), "getrusage");
    return (struct cpu_times){
        .user_s = (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec * 1e-6,
        .sys_s = (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec * 1e-6,
    };
}

/* A decimal number of an option, within bounds. */
static inline uint64_t parse_count(const char *text, uint64_t least, uint64_t most) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0 || *text == '\0' || *end != '\0' || value < least || value > most)
        die(text, ERANGE);
    return value;
}

#endif

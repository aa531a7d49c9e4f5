/* SPDX-License-Identifier: Apache-2.0
 *
 * Chance, the trace and its hash, and the end of a simulation that has found something.
 */
#include "sim.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINES_KEPT 60u
#define LINE_BYTES 160u

static uint64_t random_state, hash = 0xcbf29ce484222325u;
static char lines[LINES_KEPT][LINE_BYTES];
static uint64_t lines_count;
static FILE *whole;

uint64_t sim_random(void) {
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint32_t sim_below(uint32_t limit) {
    return (uint32_t)(sim_random() % limit);
}

bool sim_one_of(uint32_t count) {
    return !sim.shape.is_plain && count != 0 && sim_below(count) == 0;
}

uint64_t sim_time_below(uint64_t limit_ns) {
    return sim_random() % limit_ns;
}

void sim_log(const char *format, ...) {
    char *line = lines[lines_count++ % LINES_KEPT];
    int head = snprintf(line, LINE_BYTES, "%llu %llu.%06llu ", (unsigned long long)sim.step,
                        (unsigned long long)(sim.now_ns / SECOND),
                        (unsigned long long)(sim.now_ns % SECOND / US));
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + head, LINE_BYTES - (size_t)head, format, arguments);
    va_end(arguments);
    for (const char *at = line; *at != 0; at++)
        hash = (hash ^ (uint8_t)*at) * 0x100000001b3u;
    if (whole != NULL)
        fprintf(whole, "%s\n", line);
}

uint64_t sim_hash(void) {
    return hash;
}

/* Also from a signal that an assertion of the core raises: the process is at its end. */
static void show_tail(void) {
    uint64_t first = lines_count > LINES_KEPT ? lines_count - LINES_KEPT : 0;
    fflush(stdout);
    for (uint64_t i = first; i < lines_count; i++)
        fprintf(stderr, "%s\n", lines[i % LINES_KEPT]);
    fprintf(stderr, "simulator: seed %llu, step %llu\n", (unsigned long long)sim.seed,
            (unsigned long long)sim.step);
    fflush(stderr);
    if (whole != NULL)
        fflush(whole);
}

static void on_signal(int number) {
    show_tail();
    signal(number, SIG_DFL);
    raise(number);
}

void sim_fail(const char *format, ...) {
    va_list arguments;
    signal(SIGABRT, SIG_DFL);
    show_tail();
    fprintf(stderr, "simulator: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    fflush(stderr);
    _exit(3);
}

void sim_trace_open(const char *path) {
    random_state = sim.seed;
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    signal(SIGFPE, on_signal);
    if (path != NULL && (whole = fopen(path, "w")) == NULL)
        sim_fail("%s cannot be written", path);
}

uint32_t sim_crc32c(uint32_t crc, const void *data, size_t bytes) {
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0);
            table[i] = value;
        }
    const uint8_t *at = data;
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++)
        crc = crc >> 8 ^ table[(crc ^ at[i]) & 255];
    return ~crc;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Receipts on devices that keep a diary or break: dm-log-writes writes down every write, flush and
 * receipt in the order in which they reached the device; dm-flakey fails or drops what is written.
 * Here is only the load: the host judges what was acknowledged, by the log and by a journal of
 * lines that begin with '@' on JOURNAL_FD. See README.md for what is claimed of each.
 */
#include "check.h"
#include "mapper.h"
#include "net.h"
#include "trial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOGGED "logged"
#define FLAKY "flaky"
#define JOURNAL_FD 3 /* run_crash.sh opens it, programs inherit it */
#define JOURNAL "-J 3"
#define PARAMETERS_BYTES 256
#define POLL_US 5000
#define AWAIT_SECONDS 600
#define SECOND_US 1000000
#define FLAKY_ROUNDS 3u
#define KIB 1024u

/* Small batches and hasty flushes: many moments at which a crash makes a difference. */
#define SERVER "-w 256 -a 8192 -t 10 -T 40 -R 10000"
#define ZCRX "-i zc0 -q 2"
#define RECV "-e -i none"

static unsigned fresh_seed(void) {
    return (unsigned)getpid() % 4093 * 4096 + 3072;
}

static void set_table(const char *name, const char *target, uint64_t sectors,
                      const char *parameters) {
    CHECK_ERROR(mapper_load(name, target, sectors, parameters), 0, parameters);
}

/* Makes a mapped device and gives its path. */
static void make(const char *name, const char *target, const char *device, const char *parameters,
                 char path[MAPPER_PATH_BYTES]) {
    uint64_t sectors;

    CHECK_ERROR(mapper_sectors(device, &sectors), 0, device);
    CHECK_ERROR(mapper_create(name, path), 0, name);
    set_table(name, target, sectors, parameters);
    CHECK_ERROR(mapper_suspend(name, false), 0, name);
}

static void format(const struct disk *disk, const char *path) {
    struct program p = {0};

    trial_launch(&p, "-f %s -F %u -A %u", path, disk->segment_bytes, disk->mem_align);
    CHECK(trial_wait(&p) == 0, "%s cannot be formatted", path);
}

/* Without a cache that may lose writes the kernel keeps flushes to itself, and nothing would be
 * tested. */
static void check_cache_is_volatile(const char *path) {
    net_command("grep -q 'write back' /sys/block/%s/queue/write_cache", strrchr(path, '/') + 1);
}

static void await_value(const struct program *server, const char *name, uint64_t value) {
    for (int tries = 0; tries < AWAIT_SECONDS * (SECOND_US / POLL_US); tries++) {
        if (trial_value_now(server, name) >= value)
            return;
        usleep(POLL_US);
    }
    check_fail(__FILE__, __LINE__, "the server's %s is only %llu", name,
               (unsigned long long)trial_value_now(server, name));
}

static void run_log_begins(const void *argument) {
    (void)argument;
    const struct disk *disk = trial_disk(LOGGED);
    const char *log = getenv("VM_DISK_LOG");
    char parameters[PARAMETERS_BYTES], path[MAPPER_PATH_BYTES];

    CHECK(log, "VM_DISK_LOG is not set");
    snprintf(parameters, sizeof(parameters), "%s %s", trial_device(disk), log);
    make(LOGGED, "log-writes", trial_device(disk), parameters, path);
    check_cache_is_volatile(path);
    format(disk, path);
    CHECK_ERROR(mapper_message(LOGGED, "mark formatted"), 0, "a mark");
}

static void run_log_ends(const void *argument) {
    (void)argument;
    CHECK_ERROR(mapper_remove(LOGGED), 0, "removing the log");
}

struct load {
    const char *engine;
    int mtu;
    bool checksum, is_killed;
};

/* Flows of many lengths, so that receipts are due at many moments. */
static const struct lane {
    unsigned flows, bytes, step;
} lanes[] = {{16, 1, 1511}, {6, 40001, 30011}, {2, 300001, 100003}};

#define LANES (sizeof(lanes) / sizeof(lanes[0]))

static void run_logged(const void *argument) {
    const struct load *t = argument;
    const struct disk *disk = trial_disk(LOGGED);
    struct program server, senders[LANES], endless;
    char path[MAPPER_PATH_BYTES];

    net_reset();
    net_set_mtu(t->mtu);
    CHECK_ERROR(mapper_path(LOGGED, path), 0, LOGGED);
    /* Without a probe: the log ends at the first write that its own disk refuses. */
    trial_serve(&server, "-f %s %s " SERVER " -c %d -A %u", path, t->engine, t->checksum,
                disk->mem_align);
    for (size_t index = 0; index < LANES; index++)
        trial_send(&senders[index], disk, NET_ADDRESS,
                   "-p %d -n %u -b %u -s %u -S %zu -c %d -M " LOGGED " " JOURNAL, NET_STEERED_PORT,
                   lanes[index].flows, lanes[index].bytes, lanes[index].step,
                   fresh_seed() + index * 64, t->checksum);
    for (size_t index = 0; index < LANES; index++)
        trial_join(&senders[index]);
    if (!t->is_killed) {
        trial_stop(&server);
        return;
    }
    trial_send(&endless, disk, NET_ADDRESS, "-p %d -n 2 -e -S %u -M " LOGGED " " JOURNAL,
               NET_STEERED_PORT, fresh_seed() + 512);
    await_value(&server, "received_bytes", trial_value_now(&server, "received_bytes") + 512 * KIB);
    trial_kill(&server);
    trial_join(&endless);
}

static void whole(const struct disk *disk) {
    char parameters[PARAMETERS_BYTES];
    uint64_t sectors;

    CHECK_ERROR(mapper_sectors(trial_device(disk), &sectors), 0, FLAKY);
    snprintf(parameters, sizeof(parameters), "%s 0", trial_device(disk));
    CHECK_ERROR(mapper_suspend(FLAKY, true), 0, "suspending");
    set_table(FLAKY, "linear", sectors, parameters);
    CHECK_ERROR(mapper_suspend(FLAKY, false), 0, "resuming");
}

/* From here on, for ever: up for 0 seconds, down for 1. */
static void broken(const struct disk *disk, const char *feature) {
    char parameters[PARAMETERS_BYTES];
    uint64_t sectors;

    CHECK_ERROR(mapper_sectors(trial_device(disk), &sectors), 0, FLAKY);
    snprintf(parameters, sizeof(parameters), "%s 0 0 1 1 %s", trial_device(disk), feature);
    CHECK_ERROR(mapper_suspend(FLAKY, true), 0, "suspending");
    set_table(FLAKY, "flakey", sectors, parameters);
    CHECK_ERROR(mapper_suspend(FLAKY, false), 0, "resuming");
}

static void run_flaky_begins(const void *argument) {
    (void)argument;
    const struct disk *disk = trial_disk(FLAKY);
    char parameters[PARAMETERS_BYTES], path[MAPPER_PATH_BYTES];

    snprintf(parameters, sizeof(parameters), "%s 0", trial_device(disk));
    make(FLAKY, "linear", trial_device(disk), parameters, path);
    check_cache_is_volatile(path);
    format(disk, path);
}

/* A server on the flaky device, and senders whose flows end one after the other. */
struct scene {
    const struct disk *disk;
    struct program server, ending, endless;
};

static void open_scene(struct scene *s, const struct load *t, unsigned round) {
    const unsigned seed = fresh_seed() + round * 256;
    char path[MAPPER_PATH_BYTES];

    net_reset();
    s->disk = trial_disk(FLAKY);
    CHECK_ERROR(mapper_path(FLAKY, path), 0, FLAKY);
    trial_serve(&s->server, "-f %s %s " SERVER " -c %d", path, t->engine, t->checksum);
    trial_send(&s->ending, s->disk, NET_ADDRESS,
               "-p %d -n 60 -b 1001 -s 3001 -l -S %u -c %d " JOURNAL, NET_STEERED_PORT, seed,
               t->checksum);
    trial_send(&s->endless, s->disk, NET_ADDRESS, "-p %d -n 2 -e -S %u " JOURNAL, NET_STEERED_PORT,
               seed + 128);
    await_value(&s->server, "flows_sealed", 1 + round * 12);
}

static void close_scene(struct scene *s) {
    trial_join(&s->ending);
    trial_join(&s->endless);
    printf("    %llu flows with a receipt, %llu without\n",
           (unsigned long long)trial_value(&s->ending, "sealed"),
           (unsigned long long)trial_value(&s->ending, "ended"));
    whole(s->disk);
}

/* The device fails honestly: whatever is acknowledged, at whatever time, must hold. */
static void run_failing_writes(const void *argument) {
    struct scene s;

    for (unsigned round = 0; round < FLAKY_ROUNDS; round++) {
        open_scene(&s, argument, round);
        broken(s.disk, "error_writes");
        close_scene(&s);
        trial_stop(&s.server);
        CHECK(trial_value(&s.server, "store_errno") != 0, "the failing device was not noticed");
    }
}

/* The device lies, also about flushes: only what was acknowledged before can hold. The server is
 * gone before it is honest again. */
static void run_dropped_writes(const void *argument) {
    struct scene s;

    for (unsigned round = 0; round < FLAKY_ROUNDS; round++) {
        open_scene(&s, argument, round);
        dprintf(JOURNAL_FD, "@lies " FLAKY "\n");
        broken(s.disk, "drop_writes");
        usleep(SECOND_US / 2);
        trial_kill(&s.server);
        close_scene(&s);
        dprintf(JOURNAL_FD, "@honest " FLAKY "\n");
    }
}

static void run_whole_again(const void *argument) {
    struct program server, sender;
    char path[MAPPER_PATH_BYTES];

    net_reset();
    CHECK_ERROR(mapper_path(FLAKY, path), 0, FLAKY);
    trial_serve(&server, "-f %s %s " SERVER, path, (const char *)argument);
    trial_send(&sender, trial_disk(FLAKY), NET_ADDRESS, "-p %d -n 8 -b 50001 -S %u " JOURNAL,
               NET_STEERED_PORT, fresh_seed());
    trial_join(&sender);
    trial_stop(&server);
    CHECK_ERROR(mapper_remove(FLAKY), 0, "removing the flaky device");
}

#define LOAD(text, function, ...)                                                                  \
    {                                                                                              \
        text, function, &(const struct load) {                                                     \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct check_case cases[] = {
    {"a log of all writes begins", run_log_begins, NULL},
    LOAD("logged: zcrx, checksums", run_logged, .engine = ZCRX, .mtu = NET_MTU_PAGE,
         .checksum = true),
    LOAD("logged: zcrx, no checksums", run_logged, .engine = ZCRX, .mtu = NET_MTU_JUMBO),
    LOAD("logged: zcrx, no checksums, kill -9", run_logged, .engine = ZCRX, .mtu = NET_MTU_PAGE,
         .is_killed = true),
    LOAD("logged: recv, checksums, kill -9", run_logged, .engine = RECV, .mtu = NET_MTU_ETHERNET,
         .checksum = true, .is_killed = true),
    LOAD("logged: recv, no checksums", run_logged, .engine = RECV, .mtu = NET_MTU_JUMBO),
    LOAD("logged: zcrx, checksums, kill -9", run_logged, .engine = ZCRX, .mtu = NET_MTU_JUMBO,
         .checksum = true, .is_killed = true),
    {"the log ends", run_log_ends, NULL},
    {"a flaky device begins", run_flaky_begins, NULL},
    LOAD("writes fail: zcrx, no checksums", run_failing_writes, .engine = ZCRX),
    LOAD("writes fail: recv, checksums", run_failing_writes, .engine = RECV, .checksum = true),
    LOAD("writes are dropped: zcrx, checksums", run_dropped_writes, .engine = ZCRX,
         .checksum = true),
    LOAD("writes are dropped: recv, no checksums", run_dropped_writes, .engine = RECV),
    {"the flaky device is whole again", run_whole_again, ZCRX},
};

int main(void) {
    return check_run("crash", cases, sizeof(cases) / sizeof(cases[0]));
}

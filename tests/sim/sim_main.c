/* SPDX-License-Identifier: Apache-2.0
 *
 * One life of a store: what it is like follows from the seed; how it ends, and what power failing
 * leaves at moments of it, the driver looks at (driver.py), in step with this program:
 *
 *   argv: SEED STEPS IMAGE [TRACE]      stdin: GENERATION UUID BLOCK_BYTES CHECKSUM SEQUENCES_USED,
 *   a line of free segments, a line for each stream that goes on, "."
 *   stdout: "check WHY STEP" or "end WHY STEP", a line for each stream, "."; then "go" is awaited.
 *   WHY is "kill" where only this program is to die: IMAGE.unflushed has what is not flushed. The
 *   same is there at "remove live STEP": flows are removed while this program runs. What was
 * written lies in IMAGE.written then, and "free SEGMENT..." and "removed STREAM..." precede "go".
 */
#include "sim.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define KILLED_FIRST_OF 8u /* driver.py tells the documents */
#define IMAGES_MAX 4u

struct sim sim;
static char unflushed_path[512], written_path[512];

/* --- Calls that are nobody else's --------------------------------------------------------- */

int sim_clock_gettime(clockid_t clock, struct timespec *t) {
    uint64_t ns = sim.now_ns;
    if (clock == CLOCK_REALTIME)
        ns = (uint64_t)(1790000000ll * (int64_t)SECOND + (int64_t)ns + sim.wall_delta_ns);
    t->tv_sec = (time_t)(ns / SECOND);
    t->tv_nsec = (long)(ns % SECOND);
    return 0;
}

int sim_nanosleep(const struct timespec *t, struct timespec *left) {
    (void)left;
    sim.now_ns += (uint64_t)t->tv_sec * SECOND + (uint64_t)t->tv_nsec;
    return 0;
}

ssize_t sim_getrandom(void *out, size_t bytes, unsigned flags) {
    (void)flags;
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)out)[i] = (uint8_t)sim_random();
    return (ssize_t)bytes;
}

void *sim_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fd == FD_RING)
        return nic_map(bytes);
    return mmap(at, bytes, protection, flags, fd, offset);
}

int sim_munmap(void *at, size_t bytes) {
    return nic_is_mapped(at) ? 0 : munmap(at, bytes);
}

long sim_syscall(long number, ...) {
    va_list arguments;
    va_start(arguments, number);
    (void)va_arg(arguments, int);
    unsigned operation = va_arg(arguments, unsigned);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    int code = number == SYS_io_uring_register ? nic_register(operation, argument) : -ENOSYS;
    errno = code < 0 ? -code : 0;
    return code < 0 ? -1 : code;
}

/* --- What the life is like ------------------------------------------------------------------- */

static uint32_t one_of(const uint32_t *values, uint32_t count) {
    return values[sim_below(count)];
}

#define ONE_OF(...)                                                                                \
    one_of((const uint32_t[]){__VA_ARGS__},                                                        \
           (uint32_t)(sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t)))

static void choose_device(struct shape *p) {
    p->mem_align = ONE_OF(2, 4, 512, 4096);
    p->write_align = ONE_OF(512, 4096);
    p->virt_mask = ONE_OF(0, 4095);
    p->iovecs_max = ONE_OF(5, 16, 127, 1024);
    if (sim_one_of(3)) { /* as NVMe has it */
        p->mem_align = 4;
        p->write_align = 512;
        p->virt_mask = 4095;
    }
    p->is_file = sim_one_of(3);
    p->write_bytes_max = ONE_OF(65536, 131072, 1048576);
    p->writes_in_flight_max = ONE_OF(1, 2, 4, 16);
    p->write_trouble_of = ONE_OF(0, 0, 30, 8);
    p->flush_failure_of = ONE_OF(0, 0, 0, 0, 40);
    p->slow_disk_of = ONE_OF(0, 20, 3);
    p->disk_dies = sim_one_of(20);
    p->file_goes = p->is_file && sim_one_of(2);
}

static void choose_memory(struct shape *p) {
    p->engine = sim_below(2);
    p->interface_index = sim_below(2);
    p->area_bytes = (uint64_t)ONE_OF(4, 8, 16, 32) * 131072;
    p->rx_buf_len = p->engine == 1 ? ONE_OF(0, 0, 4096, 16384, 65536) : 0;
    /* A NIC, or a kernel, that has no large buffers gives small ones. */
    p->chunk_bytes = p->rx_buf_len > 4096 && sim_below(4) ? p->rx_buf_len : 4096;
    p->area_bytes *= p->chunk_bytes / 4096;
    p->is_queue_owned = sim_below(2) != 0;
    p->flows_max = ONE_OF(4, 8, 24);
    p->sq_entries = ONE_OF(8, 64, 4096);
    p->cq_entries = ONE_OF(64, 256, 8192);
    p->refill_entries = ONE_OF(8, 64, 4096);
    p->senders_max = 1 + sim_below(12);
    p->payload_max = ONE_OF(20000, 200000, 600000);
    p->receive_buffer_bytes = ONE_OF(8192, 65536, 262144);
    p->keeps_bounds = sim_below(2) != 0;
    p->small_packets = sim_one_of(3);
    p->missed_cancel_of = ONE_OF(0, 0, 8, 2);
}

static void choose_times(struct shape *p) {
    p->flush_interval_ns = ONE_OF(1, 20, 100, 1000) * MS;
    p->commit_interval_ns = ONE_OF(0, 5, 100, 1000) * MS;
    p->idle_timeout_ns = ONE_OF(0, 1, 5, 30) * SECOND;
    p->hello_timeout_ns = ONE_OF(1, 10) * SECOND;
    p->ack_interval_ns = ONE_OF(0, 1, 100, 1000) * MS;
    p->reset_of = ONE_OF(0, 10, 4);
    p->pause_of = ONE_OF(0, 0, 500);
    p->wall_jump_of = ONE_OF(0, 300);
    p->refused_submit_of = ONE_OF(0, 0, 300);
    p->accept_failure_of = ONE_OF(0, 0, 10);
    p->receive_end_of = ONE_OF(0, 100, 10);
    p->late_answer_of = ONE_OF(0, 8, 3);
    p->late_grant_of = ONE_OF(0, 3, 20);
    p->command_of = ONE_OF(0, 200, 40);
    p->removal_of = ONE_OF(0, 0, 400, 100);
    for (uint32_t i = 0; i < LISTENERS_COUNT; i++) {
        p->allow[i] = ONE_OF(0, 0, 0, 1, 2, 3);
        p->per_peer[i] = ONE_OF(0, 0, 1, 3);
    }
    p->check_of = ONE_OF(20, 60, 400);
}

/* Many short flows at once, on a device that is behind: batches gather what they can. */
static void choose_crowd(struct shape *p) {
    p->senders_max = p->flows_max = 24;
    p->payload_max = ONE_OF(3000, 12000, 40000);
    p->slow_disk_of = 1;
    p->writes_in_flight_max = ONE_OF(1, 2);
    p->write_align = 512;
    p->late_answer_of = 0;
    p->is_crowd = true;
    if (sim_below(2)) { /* by recv to NVMe: many slots to a batch, that end beside a boundary */
        p->engine = p->rx_buf_len = 0;
        p->virt_mask = 4095;
        p->mem_align = 4;
        p->payload_max = 40000;
    }
}

/* A store that is soon full; of many short flows some have just ended then. */
static void choose_small_store(struct shape *p) {
    bool is_crowded = sim_below(2) != 0;
    if (is_crowded)
        choose_crowd(p);
    if (sim.segments_count > 1)
        sim.segments_count = is_crowded ? 1 : 1 + sim_below(2);
    p->payload_max = is_crowded ? 150000 : 600000;
    p->write_trouble_of = p->late_answer_of = p->flush_failure_of = 0;
    p->disk_dies = false;
    p->slow_disk_of = ONE_OF(1, 3, 20);
    p->is_full = true;
}

/* Many tiny fragments on few chunks: there may be more than the worker has room for. */
static void choose_fragments(struct shape *p) {
    p->engine = 1;
    p->rx_buf_len = p->chunk_bytes = 65536;
    p->area_bytes = 2u << 20;
    p->tiny_packets = true;
    p->senders_max = p->flows_max = 24;
    p->payload_max = 40000;
    p->cq_entries = ONE_OF(16, 64);
    p->refill_entries = ONE_OF(8, 64);
    p->slow_disk_of = ONE_OF(1, 3);
    p->writes_in_flight_max = ONE_OF(1, 2);
    p->is_table_known = sim_below(2) != 0;
    p->missed_cancel_of = p->is_table_known ? 0 : ONE_OF(0, 0, 2);
    p->fragment_entries_max = p->is_table_known ? ONE_OF(0, 4, 4, 24, 24) : 24;
}

/* For make bench-core: 64 raw flows at once, on one device that is quick, and no faults. */
static void choose_plain(struct shape *p) {
    *p = (struct shape){
        .is_plain = true,
        .engine = p->engine,
        .interface_index = 1,
        .checksum = p->checksum,
        .chunk_bytes = 4096,
        .keeps_bounds = true,
        .mem_align = 4,
        .write_align = p->block_bytes,
        .iovecs_max = 1024,
        .block_bytes = p->block_bytes,
        .area_bytes = 16u << 20,
        .write_bytes_max = 1u << 20,
        .writes_in_flight_max = 16,
        .flows_max = 64,
        .flush_interval_ns = 20 * MS,
        .commit_interval_ns = 100 * MS,
        .hello_timeout_ns = 10 * SECOND,
        .ack_interval_ns = 100 * MS,
        .sq_entries = 4096,
        .cq_entries = 8192,
        .refill_entries = 4096,
        .senders_max = 64,
        .payload_max = 1000003,
        .receive_buffer_bytes = 262144,
    };
}

static uint64_t environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL && *text != 0 ? strtoull(text, NULL, 0) : otherwise;
}

/* --- The driver ---------------------------------------------------------------------------- */

/* What was removed: segments are free that had been used, and streams are gone. */
static void take_removed(char *line) {
    bool is_free = strncmp(line, "free", 4) == 0;
    strtok(line, " \n");
    for (char *at = strtok(NULL, " \n"); at != NULL; at = strtok(NULL, " \n")) {
        uint32_t number = (uint32_t)strtoul(at, NULL, 10);
        if (!is_free)
            streams[number].is_removed = true;
        else if (sim.segments_count < SEGMENTS_COUNT_MAX)
            sim.segments[sim.segments_count++] = number;
    }
}

static void report(const char *what, const char *why) {
    char line[512];
    printf("%s %s %llu\n", what, why, (unsigned long long)sim.step);
    streams_report(stdout);
    printf(".\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "go\n") != 0) {
        if (strncmp(line, "free", 4) != 0 && strncmp(line, "removed", 7) != 0)
            sim_fail("the store that is left at this moment is not what was promised");
        take_removed(line);
    }
}

/* Of one moment several images: what power failing leaves is one or the other. */
void sim_check_point(const char *why) {
    for (uint32_t count = 1 + sim_below(IMAGES_MAX); count > 0; count--) {
        bool is_kill = sim_one_of(KILLED_FIRST_OF);
        if (is_kill)
            disk_dump(unflushed_path);
        else
            disk_lose_power();
        report("check", is_kill ? "kill" : why);
    }
}

/* Python removes flows; the worker knows of that only by the segments that it is granted. */
void sim_removal_point(void) {
    disk_dump(unflushed_path);
    report("remove", "live");
    disk_take(written_path);
}

static void read_life(void) {
    char line[512], uuid[40];
    unsigned long long generation;
    unsigned block_bytes, checksum, sequences_used;
    if (fgets(line, sizeof line, stdin) == NULL ||
        sscanf(line, "%llu %32s %u %u %u", &generation, uuid, &block_bytes, &checksum,
               &sequences_used) != 5)
        sim_fail("stdin has no life");
    sim.generation = generation;
    sim.sequences_used = sequences_used;
    sim.shape.block_bytes = block_bytes;
    sim.shape.checksum = checksum != 0;
    for (int i = 0; i < 16; i++) {
        char digits[3] = {uuid[2 * i], uuid[2 * i + 1], 0};
        sim.uuid[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    if (fgets(line, sizeof line, stdin) == NULL)
        sim_fail("stdin has no segments");
    for (char *at = strtok(line, " \n"); at != NULL; at = strtok(NULL, " \n"))
        sim.segments[sim.segments_count++] = (uint32_t)strtoul(at, NULL, 10);
    while (fgets(line, sizeof line, stdin) != NULL && line[0] != '.')
        stream_carry(line);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    sim.seed = strtoull(argv[1], NULL, 0);
    sim_trace_open(argc > 4 ? argv[4] : NULL);
    sim.now_ns = SECOND + sim_below(1000000000);
    choose_device(&sim.shape);
    choose_memory(&sim.shape);
    choose_times(&sim.shape);
    read_life();
    if (sim_one_of(4))
        choose_fragments(&sim.shape);
    else if (sim_one_of(3))
        choose_crowd(&sim.shape);
    else if (sim_one_of(2))
        choose_small_store(&sim.shape);
    if (sim_below(2)) /* a footer has many parts */
        sim.shape.part_record_bytes = ONE_OF(1, 500, 4000);
    sim.shape.engine = (uint32_t)environment("SIM_ENGINE", sim.shape.engine);
    sim.shape.check_of *= (uint32_t)environment("SIM_IMAGES_OF", 1);
    sim.shape.removal_of *= (uint32_t)environment("SIM_IMAGES_OF", 1);
    sim.shape.steps_max = strtoull(argv[2], NULL, 0);
    if (!sim.shape.is_full && sim_one_of(3))
        sim.shape.steps_max = 1 + sim_random() % sim.shape.steps_max;
    if (sim_one_of(sim.shape.is_full ? 4 : 2))
        sim.shape.crash_step = 1 + sim_random() % sim.shape.steps_max;
    else
        sim.shape.crash_step = NEVER;
    sim.shape.drain_step = sim_one_of(4) ? 1 + sim_random() % sim.shape.steps_max : NEVER;
    if (environment("SIM_PLAIN", 0) != 0) {
        choose_plain(&sim.shape);
        sim.shape.steps_max = sim.shape.crash_step = sim.shape.drain_step = NEVER;
    }
    streams_open();
    disk_open(argv[3]);
    snprintf(unflushed_path, sizeof unflushed_path, "%s.unflushed", argv[3]);
    snprintf(written_path, sizeof written_path, "%s.written", argv[3]);
    border_open();
    int code = border_run();
    senders_listen();
    if (sim.power_off) {
        disk_lose_power();
    } else {
        if (code == 0 && !border_has_ended_well())
            sim_fail("the worker has ended, and has something yet");
        if (code < 0 && !sim.store_failed)
            sim_fail("the worker has ended by itself: %d", code);
        disk_show();
    }
    border_close();
    nic_close();
    report("end", sim.power_off ? "crash" : code < 0 || sim.store_failed ? "failed" : "drain");
    printf("hash %016llx\n", (unsigned long long)sim_hash());
    if (sim.shape.is_plain)
        printf("plain %llu %llu %llu\n", (unsigned long long)sim.step,
               (unsigned long long)sim.receives_count, (unsigned long long)sim.received_bytes);
    disk_forget();
    return 0;
}

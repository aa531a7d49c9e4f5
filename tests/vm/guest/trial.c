/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs, their output and the accounts of trial.h.
 */
#define _GNU_SOURCE
#include "trial.h"
#include "check.h"
#include "net.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORDS_MAX 64
#define COMMAND_BYTES_MAX 512
#define OUTPUT_BYTES_MAX (64u << 10)
#define NAME_BYTES_MAX 64
#define READY_SECONDS 600 /* of a machine without KVM, on a busy host */
#define POLL_US 20000
#define HUGEPAGES_SECONDS 600
#define SERVER_HUGEPAGES 30 /* more than one with an area of 32 MiB takes */

#define KIB 1024u
#define MIB (1024u * KIB)

/* README.md says where these facts come from: test_direct_io finds them by other means. */
static const struct disk disks[] = {
    {"nvme512", "VM_DISK_NVME512", 4 * MIB, 4, 0, false},
    {"nvme4k", "VM_DISK_NVME4K", 4 * MIB, 4, 0, false},
    {"virtio", "VM_DISK_VIRTIO", 4 * MIB, 512, 0, false},
    {"null512", "VM_NULL512", 2 * MIB, 2, 0, false},
    {"null4k", "VM_NULL4K", 2 * MIB, 2, 0, false},
    {"nullvb", "VM_NULLVB", 2 * MIB, 512, 0, false}, /* the kernel splits writes at L = 512 */
    {"loop", "VM_LOOP", 2 * MIB, 512, 0, false},
    {"ram", "VM_RAM", 2 * MIB, 512, 0, true},
    {"faults", "VM_DISK_FAULTS", 4 * MIB, 4, 0, false},
    {"crowds", "VM_DISK_CROWDS", 4 * MIB, 4, 0, false},
    {"spare", "VM_DISK_SPARE", 2 * MIB, 4, 0, false},
    {"logged", "VM_DISK_LOGGED", 1 * MIB, 512, 0, false}, /* seen through dm-log-writes */
    {"flaky", "VM_DISK_FLAKY", 2 * MIB, 4, 0, false},
};

const struct disk *trial_disk(const char *label) {
    for (size_t index = 0; index < sizeof(disks) / sizeof(disks[0]); index++)
        if (strcmp(disks[index].label, label) == 0)
            return &disks[index];
    check_fail(__FILE__, __LINE__, "there is no disk %s", label);
}

const char *trial_device(const struct disk *disk) {
    const char *path = getenv(disk->variable);

    CHECK(path, "%s is not set", disk->variable);
    return path;
}

static void split(char *command, char **words) {
    int count = 0;

    for (char *word = strtok(command, " "); word; word = strtok(NULL, " ")) {
        CHECK(count < WORDS_MAX - 1, "too many words");
        words[count++] = word;
    }
    words[count] = NULL;
}

/* Runs $VM_PROGRAMS/<command>, its output into a file of its own. */
static void start(struct program *p, char *command, bool in_peer) {
    static unsigned number;
    char path[COMMAND_BYTES_MAX], *words[WORDS_MAX];
    const char *programs = getenv("VM_PROGRAMS");

    CHECK(programs, "VM_PROGRAMS is not set");
    snprintf(p->output, sizeof(p->output), "/tmp/trial.%d.%u", getpid(), number++);
    split(command, words);
    snprintf(path, sizeof(path), "%s/%s", programs, words[0]);
    p->pid = fork();
    CHECK_CALL(p->pid);
    if (p->pid != 0)
        return;
    prctl(PR_SET_PDEATHSIG, in_peer ? SIGTERM : SIGKILL); /* senders note their flows first */
    int output = open(p->output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int peer = in_peer ? open("/run/netns/peer", O_RDONLY | O_CLOEXEC) : -1;
    if (in_peer && setns(peer, CLONE_NEWNET) < 0)
        check_fail(__FILE__, __LINE__, "entering the peer's namespace: %m");
    if (dup2(output, 1) < 0 || dup2(output, 2) < 0 || execv(path, words) < 0)
        check_fail(__FILE__, __LINE__, "%s: %m", path);
}

static const char *output_of(const struct program *p) {
    static char text[OUTPUT_BYTES_MAX];
    int fd = open(p->output, O_RDONLY | O_CLOEXEC);
    ssize_t bytes = 0;

    if (fd >= 0) {
        off_t end = lseek(fd, 0, SEEK_END);
        lseek(fd, end > (off_t)sizeof(text) - 1 ? end - (off_t)sizeof(text) + 1 : 0, SEEK_SET);
        bytes = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    text[bytes > 0 ? bytes : 0] = 0;
    return text;
}

static bool has_ended(const struct program *p) {
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid != 0;
}

/* The last line of the output that begins so, or NULL. */
static const char *last_line(const char *text, const char *begin) {
    const char *found = NULL;
    size_t bytes = strlen(begin);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += line[0] == '\n';
        if (strncmp(line, begin, bytes) == 0)
            found = line;
    }
    return found;
}

static time_t seconds_now(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

bool trial_says(const struct program *p, const char *line, unsigned seconds) {
    time_t deadline = seconds_now() + seconds;

    for (;;) {
        bool ended = has_ended(p); /* asked for first: what it said last is then there */
        if (last_line(output_of(p), line))
            return true;
        if (ended || seconds_now() > deadline)
            return false;
        usleep(POLL_US);
    }
}

#define FORMAT_COMMAND(command, prefix, format)                                                    \
    do {                                                                                           \
        va_list arguments_;                                                                        \
        size_t used_ = (size_t)snprintf(command, sizeof(command), "%s ", prefix);                  \
        va_start(arguments_, format);                                                              \
        vsnprintf(command + used_, sizeof(command) - used_, format, arguments_);                   \
        va_end(arguments_);                                                                        \
    } while (0)

/* What is printed when senders fail. */
static struct program last_server;

void trial_launch(struct program *p, const char *format, ...) {
    char command[COMMAND_BYTES_MAX];

    FORMAT_COMMAND(command, "serve", format);
    start(p, command, false);
    last_server = *p;
}

void trial_serve(struct program *p, const char *format, ...) {
    char command[COMMAND_BYTES_MAX];

    FORMAT_COMMAND(command, "serve", format);
    start(p, command, false);
    last_server = *p;
    CHECK(trial_says(p, "ready", READY_SECONDS), "the server is not ready:\n%s", output_of(p));
}

void trial_send(struct program *p, const struct disk *disk, const char *address, const char *format,
                ...) {
    char command[COMMAND_BYTES_MAX], prefix[COMMAND_BYTES_MAX / 2];
    const char *manifest = getenv("VM_MANIFEST");

    CHECK(manifest, "VM_MANIFEST is not set");
    snprintf(prefix, sizeof(prefix), "send -m %s -N %s -a %s", manifest, disk->label, address);
    FORMAT_COMMAND(command, prefix, format);
    start(p, command, strcmp(address, NET_LOOPBACK) != 0);
}

static int wait_for(struct program *p) {
    int status;

    CHECK_CALL(waitpid(p->pid, &status, 0));
    p->pid = 0;
    return status;
}

int trial_wait(struct program *p) {
    int status = wait_for(p);

    CHECK(WIFEXITED(status), "a program ends with status %#x:\n%s", status, output_of(p));
    return WEXITSTATUS(status);
}

void trial_join(struct program *p) {
    int status = wait_for(p);

    if (status == 0)
        return;
    printf("the senders end with status %#x:\n%s\n", status, output_of(p));
    if (last_server.pid != 0 && !has_ended(&last_server)) {
        kill(last_server.pid, SIGUSR1); /* its counters, as it is with them */
        trial_says(&last_server, "end", READY_SECONDS);
    }
    check_fail(__FILE__, __LINE__, "the senders failed; the server says:\n%s",
               output_of(&last_server));
}

struct nic_counters trial_nic(void) {
    struct nic_counters sum = {0};

    for (unsigned queue = 1; queue <= 3; queue++) {
        sum.frags += net_counter(queue, "frags");
        sum.niov_frags += net_counter(queue, "niov_frags");
        sum.drops += net_counter(queue, "drops");
        sum.alloc_fail += net_counter(queue, "alloc_fail");
    }
    return sum;
}

/* Behind it the queues are ordinary ones again, for what a sender repeats as well. */
static struct nic_counters nic_when_stopped;

void trial_stop(struct program *p) {
    nic_when_stopped = trial_nic();
    CHECK_CALL(kill(p->pid, SIGTERM));
    int status = wait_for(p);
    CHECK(status == 0, "the server ends with status %#x:\n%s", status, output_of(p));
    CHECK(last_line(output_of(p), "end"), "the server printed no counters:\n%s", output_of(p));
}

void trial_kill(struct program *p) {
    CHECK_CALL(kill(p->pid, SIGKILL));
    wait_for(p);
}

uint64_t trial_value(const struct program *p, const char *name) {
    char begin[NAME_BYTES_MAX];

    snprintf(begin, sizeof(begin), "%s=", name);
    const char *line = last_line(output_of(p), begin);
    CHECK(line, "no counter %s in:\n%s", name, output_of(p));
    return strtoull(line + strlen(begin), NULL, 10);
}

static unsigned reports_of(const struct program *p) {
    unsigned count = 0;

    for (const char *at = output_of(p); (at = strstr(at, "\nend\n")); at++)
        count++;
    return count;
}

uint64_t trial_value_now(const struct program *p, const char *name) {
    unsigned before = reports_of(p);
    time_t deadline = seconds_now() + READY_SECONDS;

    CHECK_CALL(kill(p->pid, SIGUSR1));
    while (reports_of(p) == before) {
        CHECK(!has_ended(p) && seconds_now() < deadline, "the server is mute:\n%s", output_of(p));
        usleep(POLL_US);
    }
    return trial_value(p, name);
}

/* Two sides of an account, with what they are when they differ. */
static void check_equal(const struct program *p, const char *name, uint64_t found,
                        const char *other, uint64_t wanted) {
    CHECK(found == wanted, "%s %" PRIu64 ", %s %" PRIu64 ":\n%s", name, found, other, wanted,
          output_of(p));
}

static void check_path(const struct program *p, const struct nic_counters *before,
                       enum trial_path path) {
    /* A server that drains receives after it was asked to stop. */
    struct nic_counters then = path == PATH_OUTLIVED ? trial_nic() : nic_when_stopped;
    uint64_t frags = then.frags - before->frags, niov = then.niov_frags - before->niov_frags;
    uint64_t copied = trial_value(p, "kernel_copied_bytes");

    if (path == PATH_SOCKET) {
        check_equal(p, "fragments in net_iov", niov, "expected", 0);
        return;
    }
    if (path == PATH_COPY) {
        check_equal(p, "fragments in net_iov", niov, "expected", 0);
        CHECK(copied > 0, "the kernel tells of no copy:\n%s", output_of(p));
        return;
    }
    if (path != PATH_OUTLIVED)
        check_equal(p, "fragments in net_iov", niov, "fragments", frags);
    check_equal(p, "bytes copied by the kernel", copied, "expected", 0);
    CHECK(niov > 0 && (path == PATH_IMPERFECT || niov >= trial_value(p, "seen_fragments")),
          "the NIC filled %" PRIu64 " fragments:\n%s", niov, output_of(p));
}

void trial_check_returned(const struct program *p) {
    check_equal(p, "free bytes of the area", trial_value(p, "area_free_bytes"), "all",
                trial_value(p, "area_bytes"));
    check_equal(p, "chunks lent", trial_value(p, "chunks_lent"), "expected", 0);
    check_equal(p, "fragments lent", trial_value(p, "fragments_lent"), "expected", 0);
    check_equal(p, "fragments pending", trial_value(p, "fragments_pending"), "expected", 0);
}

void trial_check_accounts(const struct program *p, const struct nic_counters *before,
                          enum trial_path path) {
    uint64_t received = trial_value(p, "received_bytes");

    check_equal(p, "bytes seen", trial_value(p, "seen_bytes"), "received", received);
    check_equal(p, "durable", trial_value(p, "durable_bytes"), "received", received);
    check_equal(p, "written", trial_value(p, "written_bytes"), "payload, padding, headers",
                received + trial_value(p, "padding_bytes") + trial_value(p, "header_bytes"));
    trial_check_returned(p);
    check_equal(p, "errno of the store", trial_value(p, "store_errno"), "expected", 0);
    check_equal(p, "write retries", trial_value(p, "write_retries"), "expected", 0);
    check_path(p, before, path);
}

void trial_check_bounces(const struct program *p) {
    uint64_t head = trial_value(p, "bounced_head_bytes");
    uint64_t tail = trial_value(p, "bounced_tail_bytes");
    uint64_t boundary = trial_value(p, "bounced_boundary_bytes");
    uint64_t small = trial_value(p, "bounced_small_bytes");
    uint64_t due_small = trial_value(p, "due_small");

    check_equal(p, "bounced heads", head, "due", trial_value(p, "due_head"));
    check_equal(p, "bounced tails", tail, "due", trial_value(p, "due_tail"));
    check_equal(p, "bounced for the boundary", boundary, "due", trial_value(p, "due_boundary"));
    CHECK(small >= due_small && small <= due_small + trial_value(p, "due_small_maybe"),
          "bounced as small %" PRIu64 ", due %" PRIu64 ":\n%s", small, due_small, output_of(p));
    check_equal(p, "bounced under pressure", trial_value(p, "bounced_pressure_bytes"), "expected",
                0);
}

void trial_check_sum(const struct program *p) {
    static const char *const reasons[] = {"head", "tail", "small", "boundary", "pressure"};
    uint64_t copied = 0;

    for (size_t index = 0; index < sizeof(reasons) / sizeof(reasons[0]); index++) {
        char name[NAME_BYTES_MAX];
        snprintf(name, sizeof(name), "bounced_%s_bytes", reasons[index]);
        copied += trial_value(p, name);
    }
    check_equal(p, "direct and bounced", trial_value(p, "direct_bytes") + copied, "received",
                trial_value(p, "received_bytes"));
    CHECK(copied <= trial_value(p, "received_bytes"), "more was copied than came:\n%s",
          output_of(p));
}

void trial_report(const struct program *p) {
    printf("    %" PRIu64 " bytes in %" PRIu64 " fragments of %" PRIu64 " to %" PRIu64
           ", direct %" PRIu64 ", copied: head %" PRIu64 " tail %" PRIu64 " small %" PRIu64
           " boundary %" PRIu64 " pressure %" PRIu64 ", %" PRIu64 " batches, at most %" PRIu64
           " chunks lent\n",
           trial_value(p, "received_bytes"), trial_value(p, "seen_fragments"),
           trial_value(p, "seen_shortest"), trial_value(p, "seen_longest"),
           trial_value(p, "direct_bytes"), trial_value(p, "bounced_head_bytes"),
           trial_value(p, "bounced_tail_bytes"), trial_value(p, "bounced_small_bytes"),
           trial_value(p, "bounced_boundary_bytes"), trial_value(p, "bounced_pressure_bytes"),
           trial_value(p, "batches"), trial_value(p, "seen_lent_max"));
}

static unsigned meminfo(const char *name) {
    char line[NAME_BYTES_MAX * 2];
    unsigned value = 0;
    FILE *file = fopen("/proc/meminfo", "r");

    CHECK(file, "/proc/meminfo: %m");
    while (fgets(line, sizeof(line), file))
        if (strncmp(line, name, strlen(name)) == 0)
            value = (unsigned)strtoul(line + strlen(name), NULL, 10);
    fclose(file);
    return value;
}

void trial_await_hugepages(void) {
    time_t deadline = seconds_now() + HUGEPAGES_SECONDS;

    while (meminfo("HugePages_Free:") < SERVER_HUGEPAGES) {
        CHECK(seconds_now() < deadline, "somebody keeps hugepages");
        usleep(POLL_US);
    }
}

void trial_format(const struct disk *disk) {
    struct program p;

    trial_launch(&p, "-f %s -F %u", trial_device(disk), disk->segment_bytes);
    int status = wait_for(&p);
    CHECK(status == 0, "formatting %s: status %#x:\n%s", disk->label, status, output_of(&p));
    check_equal(&p, disk->label, trial_value(&p, "mem_align"), "has M", disk->mem_align);
    check_equal(&p, disk->label, trial_value(&p, "virt_mask"), "has V", disk->virt_mask);
    check_equal(&p, disk->label, trial_value(&p, "shapes_lied") > 0, "lies", disk->lies);
}

int trial_run(const char *program, const struct check_case *cases, size_t count) {
    struct check_case *chosen = calloc(count, sizeof(*chosen));
    const char *only = getenv("VM_ONLY");
    size_t chosen_count = 0;

    CHECK(chosen, "no memory");
    for (size_t index = 0; index < count; index++)
        if (!only || index == 0 || strstr(cases[index].name, only))
            chosen[chosen_count++] = cases[index];
    return check_run(program, chosen, chosen_count);
}

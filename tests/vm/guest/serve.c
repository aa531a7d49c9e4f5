/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon without Python, which is fifteen times slower in the machine: workers of the core on
 * one store, one per rx queue, with what the daemon does for them: segments, hand-over of
 * connections, drain. The core is that of the package, but for the functions of observe.h.
 *
 *   -f DEVICE              the store; -F BYTES formats it, with segments of that size, and ends
 *   -i INTERFACE|none      none: the kernel's device-less mode
 *   -e                     the engine is recv, not zcrx
 *   -q QUEUE[,QUEUE...]    one worker each
 *   -p PORT                listens there on all addresses
 *   -a KIB -b BYTES        area per worker (32768), rx_buf_len to ask for (0: a page)
 *   -c 0|1                 CRC32C of the payload (1)
 *   -w KIB -d COUNT        bytes per write (1024), writes in flight (8)
 *   -t MS -T MS            flush interval (50), commit interval (200)
 *   -n FLOWS               flows per worker at once (2048)
 *   -R MS                  how long a queue that is held is asked for again (0)
 *   -r ENTRIES             of the refill ring (4096)
 *   -D MS                  how long a drain lets flows continue (5000)
 *   -G SEGMENTS            the store is full after so many
 *   -C ENTRIES             size of the completion queue, to make it overflow
 *   -x                     no relief valve
 *   -X                     workers do not learn each other's queues
 *   -A BYTES -V BYTES      pieces are multiples of this and, with -V, meet only at multiples of
 * that; the device is not probed
 *
 * Without -A the device's profile is what the core's probe finds. Prints "ready" when all listen.
 * SIGUSR1: prints the counters and continues; SIGTERM: drains, prints them, ends. Exit codes: 0, 2
 * for wrong use, 3 when the core gave up, with a line "fault ERRNO CALL: OBJECT".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "inspect.h"
#include "napi.h"
#include "observe.h"
#include "storage/probe.h"
#include "store.h"
#include "worker.h"

#define WORKERS_MAX 8
#define DRAIN_MS 5000
#define TICK_MS 100
#define MS_NS 1000000ull
#define EVENT_KINDS 16
#define IOVECS_ASSUMED 64

struct member {
    struct worker *worker;
    pthread_t thread;
    sem_t may_run;
    bool over, failed;
};

struct server {
    struct store store;
    struct worker_settings settings;
    const char *device;
    uint64_t format_segment_bytes;
    uint64_t drain_ns;
    uint32_t grants_left;
    uint16_t port;
    bool no_napi;
    uint32_t queues[WORKERS_MAX];
    struct member members[WORKERS_MAX];
    uint32_t count;
    sem_t set_up;
    bool full_told, draining;
    int signals;
    uint64_t events[EVENT_KINDS];
};

static struct server server;

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list arguments;

    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(2);
}

static void parse_queues(struct server *s, char *text) {
    for (char *word = strtok(text, ","); word; word = strtok(NULL, ",")) {
        if (s->count == WORKERS_MAX)
            die("at most %d queues", WORKERS_MAX);
        s->queues[s->count++] = (uint32_t)atoi(word);
    }
}

static void parse_interface(struct server *s, const char *name) {
    if (strcmp(name, "none") == 0)
        return;
    s->settings.interface_index = if_nametoindex(name);
    if (s->settings.interface_index == 0)
        die("there is no interface %s", name);
}

static bool parse_profile(struct worker_settings *w, int option, uint32_t value) {
    if (option == 'A')
        w->mem_align = value;
    else if (option == 'V')
        w->virt_mask = value - 1;
    else
        return false;
    return true;
}

static void parse_option(struct server *s, int option, char *text) {
    struct worker_settings *w = &s->settings;
    uint64_t value = text ? strtoull(text, NULL, 0) : 0;

    switch (option) {
    case 'f':
        s->device = text;
        break;
    case 'F':
        s->format_segment_bytes = value;
        break;
    case 'i':
        parse_interface(s, text);
        break;
    case 'e':
        w->engine = ENGINE_RECV;
        break;
    case 'q':
        parse_queues(s, text);
        break;
    case 'p':
        s->port = (uint16_t)value;
        break;
    case 'a':
        w->area_bytes = value << 10;
        break;
    case 'b':
        w->rx_buf_len = (uint32_t)value;
        break;
    case 'c':
        w->checksum = value != 0;
        break;
    case 'w':
        w->write_bytes_max = (uint32_t)value << 10;
        break;
    case 'd':
        w->writes_in_flight_max = (uint32_t)value;
        break;
    case 't':
        w->flush_interval_ns = value * MS_NS;
        break;
    case 'T':
        w->commit_interval_ns = value * MS_NS;
        break;
    case 'n':
        w->flows_max = (uint32_t)value;
        break;
    case 'R':
        w->queue_retry_ns = value * MS_NS;
        break;
    case 'r':
        w->refill_entries = (uint32_t)value;
        break;
    case 'D':
        s->drain_ns = value * MS_NS;
        break;
    case 'G':
        s->grants_left = (uint32_t)value;
        break;
    case 'X':
        s->no_napi = true;
        break;
    default:
        if (!parse_profile(w, option, (uint32_t)value) && !observe_option(option, value))
            die("usage: see the head of serve.c");
    }
}

static void parse(struct server *s, int count, char **words) {
    int option;

    s->settings = (struct worker_settings){
        .cpu = -1,
        .area_bytes = 32u << 20,
        .write_bytes_max = 1u << 20,
        .writes_in_flight_max = 8,
        .flows_max = 2048,
        .flush_interval_ns = 50 * MS_NS,
        .commit_interval_ns = 200 * MS_NS,
        .checksum = true,
        .engine = ENGINE_ZCRX,
        .iovecs_max = IOVECS_ASSUMED,
        .refill_entries = 4096,
    };
    s->port = 7001;
    s->drain_ns = DRAIN_MS * MS_NS;
    s->grants_left = UINT32_MAX;
    while ((option = getopt(count, words, "f:F:i:eq:p:a:b:c:w:d:t:T:n:R:r:D:G:C:A:V:xX")) > 0)
        parse_option(s, option, optarg);
    if (!s->device)
        die("serve wants -f DEVICE");
    if (s->count == 0)
        s->queues[s->count++] = 0;
}

/* Opens the store and finds out what its device takes. */
static void open_store(struct server *s) {
    struct worker_settings *w = &s->settings;
    struct probe_profile profile;
    struct fault fault = {0};
    uint32_t said_align;

    store_open(&s->store, s->device, s->format_segment_bytes);
    w->store_fd = s->store.fd;
    memcpy(w->store_uuid, s->store.super.store_uuid, sizeof(w->store_uuid));
    w->segments_offset = s->store.super.segments_offset;
    w->segment_bytes = s->store.super.segment_bytes;
    w->block_bytes = s->store.super.block_bytes;
    if (direct_io_alignment(w->store_fd, &said_align, &w->write_align) < 0)
        die("%s does not tell its alignment", s->device);
    if (w->mem_align != 0)
        return;
    if (probe_device(w->store_fd, w->write_align, &profile, &fault) < 0)
        die("%s: probe: %s: %s", s->device, fault.call, strerror(fault.code));
    w->mem_align = profile.mem_align;
    w->virt_mask = profile.virt_mask;
    w->iovecs_max = profile.iovecs_max;
    printf("mem_align=%u\nvirt_mask=%u\nwrite_align=%u\niovecs_max=%u\nshapes_lied=%u\n",
           profile.mem_align, profile.virt_mask, w->write_align, profile.iovecs_max,
           profile.shapes_lied);
}

static void tell_fault(const struct member *m, int code) {
    printf("fault %s %s: %s\n", strerrorname_np(-code), m->worker->reactor.fault.call,
           m->worker->reactor.fault.object);
}

static void *run_member(void *argument) {
    struct member *m = argument;
    int code = worker_setup(m->worker);

    m->failed = code < 0;
    if (code < 0)
        tell_fault(m, code);
    sem_post(&server.set_up);
    if (code < 0)
        return NULL;
    sem_wait(&m->may_run);
    code = worker_run(m->worker);
    m->failed = code < 0;
    if (code < 0)
        tell_fault(m, code);
    __atomic_store_n(&m->over, true, __ATOMIC_RELEASE);
    kill(getpid(), SIGCHLD); /* wakes the loop of main */
    return NULL;
}

static int listen_on(uint16_t port) {
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int on = 1, fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        bind(fd, (struct sockaddr *)&name, sizeof(name)) < 0)
        die("binding to port %u: %m", port);
    return fd;
}

static void begin_members(struct server *s) {
    for (uint32_t index = 0; index < s->count; index++) {
        struct member *m = &s->members[index];
        s->settings.worker_index = index;
        s->settings.rx_queue = s->queues[index];
        m->worker = worker_create(&s->settings);
        if (!m->worker)
            die("no memory for a worker");
        sem_init(&m->may_run, 0, 0);
        pthread_create(&m->thread, NULL, run_member, m);
    }
    for (uint32_t index = 0; index < s->count; index++)
        sem_wait(&s->set_up);
}

/* As the daemon does it: read when every queue is taken over, set before any worker runs. */
static void tell_napi_ids(struct server *s) {
    uint32_t ids[WORKERS_MAX];

    if (s->settings.interface_index == 0 || s->no_napi)
        return;
    for (uint32_t index = 0; index < s->count; index++) {
        ids[index] = napi_of_queue(s->settings.interface_index, s->queues[index]);
        if (ids[index] == 0)
            die("the driver does not tell the NAPI id of queue %u", s->queues[index]);
    }
    for (uint32_t index = 0; index < s->count; index++) {
        struct zcrx *z = &s->members[index].worker->receiver.zcrx;
        z->napi_own = ids[index];
        for (uint32_t other = 0; other < s->count; other++) {
            if (other == index)
                continue;
            z->napi_owners[z->napi_other_count] = other;
            z->napi_others[z->napi_other_count++] = ids[other];
        }
    }
}

/* Whether all workers are set up. */
static bool run_members(struct server *s) {
    for (uint32_t index = 0; index < s->count; index++)
        if (s->members[index].failed)
            return false;
    tell_napi_ids(s);
    for (uint32_t index = 0; index < s->count; index++) {
        struct member *m = &s->members[index];
        int fd = listen_on(s->port);
        if (listen(fd, 4096) < 0)
            die("listening: %m");
        struct listener_settings listener = {
            .fd = fd,
            .protocol = PROTOCOL_RAW,
            .flows_max = s->settings.flows_max,
            .name = "main",
        };
        if (worker_add_listener(m->worker, &listener) < 0)
            die("the listener was not taken");
        sem_post(&m->may_run);
    }
    printf("ready\n");
    return true;
}

static void post(struct server *s, uint32_t member, struct command c) {
    int code = mailbox_post(&s->members[member].worker->reactor.mailbox, c);

    if (code < 0)
        die("a worker's mailbox: %s", strerror(-code));
}

static void grant(struct server *s, uint32_t member) {
    struct mailbox *mailbox = &s->members[member].worker->reactor.mailbox;
    uint32_t index;
    uint64_t sequence;

    while (mailbox_grants_wanted(mailbox) > 0) {
        if (s->grants_left > 0 && store_take(&s->store, &index, &sequence)) {
            s->grants_left--;
            post(s, member,
                 (struct command){.kind = COMMAND_GRANT_SEGMENT, .segment = {index, sequence}});
            continue;
        }
        if (!s->full_told)
            post(s, member, (struct command){.kind = COMMAND_STORE_FULL});
        s->full_told = true;
        return;
    }
}

static void read_events(struct server *s, uint32_t member) {
    struct event e;

    while (mailbox_read(&s->members[member].worker->reactor.mailbox, &e)) {
        s->events[e.detail.kind % EVENT_KINDS]++;
        switch (e.detail.kind) {
        case EVENT_FLOW_ELSEWHERE:
            post(s, e.detail.elsewhere.worker_index,
                 (struct command){.kind = COMMAND_ADOPT,
                                  .adopt = {e.detail.elsewhere.fd, (uint32_t)e.listener_index}});
            break;
        case EVENT_FLOW_INTERRUPTED:
        case EVENT_STORE_FAILED:
        case EVENT_STORE_FULL:
        case EVENT_WRITE_RETRIED:
        case EVENT_ACCEPT_FAILED:
            printf("event %u %s\n", e.detail.kind, e.peer);
            break;
        default:
            break;
        }
    }
}

static void print_refill(const struct server *s) {
    uint64_t fragments = 0, waiting = 0, pending = 0;

    for (uint32_t index = 0; index < s->count; index++) {
        const struct zcrx *z = &s->members[index].worker->receiver.zcrx;
        fragments += z->refill.fragments_lent;
        waiting += z->refill.waiting_tail - z->refill.waiting_head;
        pending += z->fragments_pending;
    }
    printf("fragments_lent=%" PRIu64 "\nentries_waiting=%" PRIu64 "\nfragments_pending=%" PRIu64
           "\n",
           fragments, waiting, pending);
}

/* Sums over all workers. Those of fields without a lock may be apart while workers run. */
static void print_counters(const struct server *s) {
    for (int stat = 0; stat < STATS_COUNT; stat++) {
        uint64_t sum = 0;
        for (uint32_t index = 0; index < s->count; index++)
            sum += stats_value(s->members[index].worker, stat);
        printf("%s=%" PRIu64 "\n", stats_name(stat), sum);
    }
    print_refill(s);
    for (unsigned kind = 0; kind < EVENT_KINDS; kind++)
        printf("events_%u=%" PRIu64 "\n", kind, s->events[kind]);
    observe_print(stdout);
    printf("end\n");
}

static void obey_signals(struct server *s) {
    struct signalfd_siginfo info;

    while (read(s->signals, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGUSR1)
            print_counters(s);
        if (info.ssi_signo != SIGTERM || s->draining)
            continue;
        s->draining = true;
        for (uint32_t index = 0; index < s->count; index++)
            post(s, index, (struct command){.kind = COMMAND_DRAIN, .timeout_ns = s->drain_ns});
    }
}

static bool all_over(const struct server *s) {
    bool over = true;

    for (uint32_t index = 0; index < s->count; index++)
        over = over && __atomic_load_n(&s->members[index].over, __ATOMIC_ACQUIRE);
    return over;
}

static void serve(struct server *s) {
    struct pollfd polled[WORKERS_MAX + 1] = {{.fd = s->signals, .events = POLLIN}};

    while (!all_over(s)) {
        for (uint32_t index = 0; index < s->count; index++) {
            uint64_t news;
            struct mailbox *mailbox = &s->members[index].worker->reactor.mailbox;
            polled[index + 1] = (struct pollfd){.fd = mailbox->event_fd, .events = POLLIN};
            if (poll(&polled[index + 1], 1, 0) == 1 && read(mailbox->event_fd, &news, 8) < 0)
                die("reading a worker's eventfd: %m");
            grant(s, index);
            read_events(s, index);
        }
        obey_signals(s);
        poll(polled, s->count + 1, TICK_MS);
    }
}

static int end_members(struct server *s) {
    bool failed = false;

    for (uint32_t index = 0; index < s->count; index++) {
        read_events(s, index);
        pthread_join(s->members[index].thread, NULL);
        failed = failed || s->members[index].failed;
    }
    print_counters(s);
    for (uint32_t index = 0; index < s->count; index++)
        worker_destroy(s->members[index].worker);
    return failed ? 3 : 0;
}

int main(int count, char **words) {
    struct server *s = &server;
    sigset_t ours;

    setvbuf(stdout, NULL, _IOLBF, 0);
    parse(s, count, words);
    sigemptyset(&ours);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGUSR1);
    sigaddset(&ours, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ours, NULL);
    s->signals = signalfd(-1, &ours, SFD_NONBLOCK | SFD_CLOEXEC);
    sem_init(&s->set_up, 0, 0);
    open_store(s);
    if (s->format_segment_bytes != 0)
        return 0;
    begin_members(s);
    if (!run_members(s))
        exit(3); /* a thread that failed has said why */
    serve(s);
    return end_members(s);
}

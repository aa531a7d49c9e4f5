/* SPDX-License-Identifier: Apache-2.0
 *
 * The benchmark's sender: N flows of B bytes each over TCP from one process.
 *
 * It sends pages of one prepared memory file by sendfile, so that its own cost
 * stays far below the receiver's: nothing is made or copied per byte. It is the
 * same for every receiver. Optionally it first opens connections that stay
 * silent. Then it prints a line, waits for a line on stdin, and starts.
 * Having sent a flow it half-closes it and reads what the receiver answers until
 * the connection ends: a receiver that closes only when the bytes are on stable
 * media is thereby timed until they are. Prints one JSON object; answers that
 * are JSON objects are in it as they came.
 *
 * With --copy it sends from its own memory instead: the packets then have pages that nothing
 * else maps, which TCP_ZEROCOPY_RECEIVE needs.
 *
 *   sender --port P [--host H] [--flows N] [--flow-bytes B] [--idle M]
 *          [--congestion NAME] [--copy]
 */
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#define FLOWS_MAX 60000u
#define SOURCE_BYTES (1u << 20)
#define ANSWER_BYTES 512u
#define EVENTS_MAX 256
#define FILES_BESIDE 64u

struct flow {
    int fd; /* -1 once it has ended */
    int error;
    uint64_t bytes_left;
    off_t source_offset;
    uint32_t answer_bytes;
    char answer[ANSWER_BYTES];
};

struct sender {
    const char *host;
    const char *port;
    const char *congestion; /* NULL: the system's */
    uint32_t flow_count;
    uint32_t idle_count;
    uint64_t flow_bytes;
    bool is_copying;
    struct sockaddr_storage address;
    socklen_t address_bytes;
    int source;
    uint8_t *copy_source; /* where is_copying */
    int epoll;
    struct flow *flows;
    int *idle;
};

static void parse(struct sender *s, int argc, char **argv) {
    static const struct option options[] = {
        {"host", required_argument, NULL, 'h'},  {"port", required_argument, NULL, 'p'},
        {"flows", required_argument, NULL, 'n'}, {"flow-bytes", required_argument, NULL, 'b'},
        {"idle", required_argument, NULL, 'i'},  {"congestion", required_argument, NULL, 'c'},
        {"copy", no_argument, NULL, 'y'},        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'h':
            s->host = optarg;
            break;
        case 'p':
            s->port = optarg;
            break;
        case 'n':
            s->flow_count = (uint32_t)parse_count(optarg, 0, FLOWS_MAX);
            break;
        case 'b':
            s->flow_bytes = parse_count(optarg, 0, INT64_MAX);
            break;
        case 'i':
            s->idle_count = (uint32_t)parse_count(optarg, 0, FLOWS_MAX);
            break;
        case 'c':
            s->congestion = optarg;
            break;
        case 'y':
            s->is_copying = true;
            break;
        default:
            exit(2);
        }
    }
    if (s->port == NULL || optind != argc)
        die("sender: --port is needed, and nothing but options", EINVAL);
}

static void resolve(struct sender *s) {
    struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
    };
    struct addrinfo *found;
    int code = getaddrinfo(s->host, s->port, &hints, &found);
    if (code != 0) {
        fprintf(stderr, "%s:%s: %s\n", s->host, s->port, gai_strerror(code));
        exit(1);
    }
    memcpy(&s->address, found->ai_addr, found->ai_addrlen);
    s->address_bytes = found->ai_addrlen;
    freeaddrinfo(found);
}

/* Random bytes, so that nothing below can make them smaller. */
static void make_source(struct sender *s) {
    uint8_t *bytes = check_memory(malloc(SOURCE_BYTES), "malloc");
    size_t have = 0;
    while (have < SOURCE_BYTES)
        have += (size_t)check(getrandom(bytes + have, SOURCE_BYTES - have, 0), "getrandom");
    s->source = (int)check(memfd_create("source", MFD_CLOEXEC), "memfd_create");
    if (check(write(s->source, bytes, SOURCE_BYTES), "write to memory file") != SOURCE_BYTES)
        die("write to memory file", ENOSPC);
    if (s->is_copying)
        s->copy_source = bytes;
    else
        free(bytes);
}

static void allow_files(uint64_t count) {
    struct rlimit limit;
    check(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    if (limit.rlim_cur >= count)
        return;
    limit.rlim_cur = count;
    if (limit.rlim_max < count)
        limit.rlim_max = count;
    check(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit of open files");
}

static int open_connection(const struct sender *s) {
    int fd = (int)check(socket(s->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    if (s->congestion != NULL)
        check(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, s->congestion,
                         (socklen_t)strlen(s->congestion)),
              "setsockopt TCP_CONGESTION");
    check(connect(fd, (const struct sockaddr *)&s->address, s->address_bytes), "connect");
    return fd;
}

static void open_idle(struct sender *s) {
    for (uint32_t i = 0; i < s->idle_count; i++)
        s->idle[i] = open_connection(s);
}

/* How many of the silent connections the receiver has kept. */
static uint32_t count_idle(const struct sender *s) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->idle_count; i++) {
        char byte;
        ssize_t n = recv(s->idle[i], &byte, 1, MSG_DONTWAIT | MSG_PEEK);
        count += n < 0 && errno == EAGAIN;
    }
    return count;
}

static void open_flows(struct sender *s) {
    for (uint32_t i = 0; i < s->flow_count; i++) {
        struct flow *f = &s->flows[i];
        struct epoll_event event = {.events = EPOLLOUT, .data.u32 = i};
        f->fd = open_connection(s);
        f->bytes_left = s->flow_bytes;
        check(fcntl(f->fd, F_SETFL, O_NONBLOCK), "fcntl O_NONBLOCK");
        check(epoll_ctl(s->epoll, EPOLL_CTL_ADD, f->fd, &event), "epoll_ctl");
    }
}

static void end_flow(struct flow *f, int error) {
    f->error = error;
    close(f->fd);
    f->fd = -1;
}

static void half_close(struct sender *s, struct flow *f) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)(f - s->flows)};
    if (shutdown(f->fd, SHUT_WR) < 0) {
        end_flow(f, errno);
        return;
    }
    check(epoll_ctl(s->epoll, EPOLL_CTL_MOD, f->fd, &event), "epoll_ctl");
}

static void send_some(struct sender *s, struct flow *f) {
    uint64_t most = SOURCE_BYTES - (uint64_t)f->source_offset;
    ssize_t sent = 0;
    uint64_t bytes = f->bytes_left < most ? f->bytes_left : most;
    if (bytes > 0 && s->is_copying) {
        sent = send(f->fd, s->copy_source + f->source_offset, bytes, 0);
        f->source_offset += sent > 0 ? sent : 0;
    } else if (bytes > 0) {
        sent = sendfile(f->fd, s->source, &f->source_offset, bytes);
    }
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (sent < 0) {
        end_flow(f, errno);
        return;
    }
    f->source_offset %= SOURCE_BYTES;
    f->bytes_left -= (uint64_t)sent;
    if (f->bytes_left == 0)
        half_close(s, f);
}

static void take_answer(struct flow *f) {
    char *at = f->answer + f->answer_bytes;
    ssize_t n = recv(f->fd, at, ANSWER_BYTES - 1 - f->answer_bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0)
        end_flow(f, n < 0 ? errno : 0);
    else
        f->answer_bytes += (uint32_t)n;
}

static void run(struct sender *s) {
    struct epoll_event events[EVENTS_MAX];
    uint32_t open_count = s->flow_count;
    while (open_count > 0) {
        int count = epoll_wait(s->epoll, events, EVENTS_MAX, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait", errno);
        for (int i = 0; i < count; i++) {
            struct flow *f = &s->flows[events[i].data.u32];
            if (events[i].events & EPOLLOUT)
                send_some(s, f);
            else
                take_answer(f);
            open_count -= f->fd < 0;
        }
    }
}

static void report(const struct sender *s, uint64_t started_ns, uint64_t ended_ns,
                   struct cpu_times before) {
    struct cpu_times after = cpu_times();
    uint64_t sent = 0;
    uint32_t failed_count = 0;
    for (uint32_t i = 0; i < s->flow_count; i++) {
        sent += s->flow_bytes - s->flows[i].bytes_left;
        failed_count += s->flows[i].error != 0;
    }
    printf("{\"flows\": %u, \"flows_failed\": %u, \"bytes\": %llu, \"seconds\": %.6f, "
           "\"started_ns\": %llu, \"user_s\": %.6f, \"sys_s\": %.6f, \"idle_kept\": %u, "
           "\"answers\": [",
           s->flow_count, failed_count, (unsigned long long)sent,
           (double)(ended_ns - started_ns) * 1e-9, (unsigned long long)started_ns,
           after.user_s - before.user_s, after.sys_s - before.sys_s, count_idle(s));
    const char *comma = "";
    for (uint32_t i = 0; i < s->flow_count; i++) {
        const struct flow *f = &s->flows[i];
        if (f->answer_bytes == 0 || f->answer[0] != '{')
            continue;
        printf("%s%.*s", comma, (int)f->answer_bytes, f->answer);
        comma = ", ";
    }
    printf("]}\n");
}

int main(int argc, char **argv) {
    struct sender s = {.host = "127.0.0.1", .flow_count = 1, .flow_bytes = 1u << 30};
    signal(SIGPIPE, SIG_IGN);
    parse(&s, argc, argv);
    resolve(&s);
    make_source(&s);
    allow_files((uint64_t)s.flow_count + s.idle_count + FILES_BESIDE);
    s.flows = check_memory(calloc(s.flow_count + 1, sizeof *s.flows), "calloc");
    s.idle = check_memory(calloc(s.idle_count + 1, sizeof *s.idle), "calloc");
    s.epoll = (int)check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    open_idle(&s);
    printf("{\"idle\": %u}\n", s.idle_count);
    fflush(stdout);
    if (getchar() == EOF)
        return 1; /* whoever started it has gone */
    struct cpu_times before = cpu_times();
    uint64_t started_ns = clock_monotonic_ns();
    open_flows(&s);
    run(&s);
    report(&s, started_ns, clock_monotonic_ns(), before);
    return 0;
}

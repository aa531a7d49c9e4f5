/* SPDX-License-Identifier: Apache-2.0
 *
 * Short flows and slow ones, and the plainest server that short ones can have.
 *
 *   small flows --port P --count N [--at-once K]   N flows of 100 bytes, K at a time, each up
 *                                                  to the end of its answer
 *   small slow --port P --count N [--seconds S]    N flows at once, 100 bytes of each every 50 ms
 *   small server                                   accepts, reads to the end, answers, closes, one
 *                                                  connection after the other; prints its port
 *
 * flows and slow print one JSON object. Single-threaded; flows come from many addresses of
 * 127.0.0.0/8, as the ports of one do not last.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#define FLOW_BYTES 100u
#define FLOWS_MAX 20000u
#define SOURCES_COUNT 64u
#define EVENTS_MAX 256
#define SLOW_INTERVAL_NS 50000000ull
#define BACKLOG 4096

static const char payload[FLOW_BYTES] = "a hundred bytes of a flow, and zeros";

struct options {
    uint16_t port;
    uint64_t count, at_once, seconds;
};

static struct options parse(int argc, char **argv) {
    struct options o = {.count = 1000, .at_once = 64, .seconds = 5};
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--port") == 0)
            o.port = (uint16_t)parse_count(argv[i + 1], 1, 65535);
        else if (strcmp(argv[i], "--count") == 0)
            o.count = parse_count(argv[i + 1], 1, 10000000);
        else if (strcmp(argv[i], "--at-once") == 0)
            o.at_once = parse_count(argv[i + 1], 1, FLOWS_MAX);
        else if (strcmp(argv[i], "--seconds") == 0)
            o.seconds = parse_count(argv[i + 1], 1, 3600);
        else
            die(argv[i], EINVAL);
    }
    return o;
}

static int open_connection(uint16_t port, uint64_t number) {
    const int one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(number % SOURCES_COUNT));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = (int)check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    check(setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one), "setsockopt");
    check(bind(fd, (void *)&from, sizeof from), "bind");
    check(connect(fd, (void *)&to, sizeof to), "connect");
    return fd;
}

static void begin_flow(int epoll, uint16_t port, uint64_t number) {
    int fd = open_connection(port, number);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (check(send(fd, payload, sizeof payload, 0), "send") != (int64_t)sizeof payload)
        die("send", ENOBUFS);
    check(shutdown(fd, SHUT_WR), "shutdown");
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

/* True once the connection is over; its answer must say that the bytes are safe. */
static bool take_answer(int fd) {
    char answer[512];
    ssize_t bytes = check(recv(fd, answer, sizeof answer - 1, MSG_DONTWAIT), "recv");
    answer[bytes] = 0;
    if (bytes > 0 && strstr(answer, "\"durable\": true") == NULL)
        die(answer, EPROTO);
    return bytes == 0;
}

static void run_flows(const struct options *o) {
    struct epoll_event events[EVENTS_MAX];
    uint64_t begun = 0, ended = 0, begun_ns = clock_monotonic_ns();
    int epoll = (int)check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    while (begun < o->at_once && begun < o->count)
        begin_flow(epoll, o->port, begun++);
    while (ended < o->count) {
        int count = (int)check(epoll_wait(epoll, events, EVENTS_MAX, -1), "epoll_wait");
        for (int i = 0; i < count; i++) {
            if (!take_answer(events[i].data.fd))
                continue;
            close(events[i].data.fd);
            ended++;
            if (begun < o->count)
                begin_flow(epoll, o->port, begun++);
        }
    }
    double seconds = (double)(clock_monotonic_ns() - begun_ns) * 1e-9;
    printf("{\"flows\": %llu, \"seconds\": %.6f}\n", (unsigned long long)o->count, seconds);
}

static void sleep_until(uint64_t ns) {
    struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        continue;
}

static void run_slow(const struct options *o) {
    int *fds = check_memory(calloc(o->count, sizeof *fds), "calloc");
    uint64_t bytes = 0, begun_ns, next_ns;
    for (uint64_t i = 0; i < o->count; i++)
        fds[i] = open_connection(o->port, i);
    begun_ns = next_ns = clock_monotonic_ns();
    while (clock_monotonic_ns() < begun_ns + o->seconds * 1000000000ull) {
        for (uint64_t i = 0; i < o->count; i++)
            bytes += (uint64_t)check(send(fds[i], payload, sizeof payload, 0), "send");
        next_ns += SLOW_INTERVAL_NS;
        sleep_until(next_ns);
    }
    for (uint64_t i = 0; i < o->count; i++)
        check(shutdown(fds[i], SHUT_WR), "shutdown");
    for (uint64_t i = 0; i < o->count; i++) {
        char answer[512];
        while (check(recv(fds[i], answer, sizeof answer, 0), "recv") > 0)
            continue;
        close(fds[i]);
    }
    free(fds);
    printf("{\"bytes\": %llu}\n", (unsigned long long)bytes);
}

static void run_server(void) {
    static const char line[] = "{\"bytes\": 100, \"durable\": true, \"state\": \"nowhere\"}\n";
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t bytes = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = (int)check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    check(bind(listener, (void *)&at, sizeof at), "bind");
    check(listen(listener, BACKLOG), "listen");
    check(getsockname(listener, (void *)&at, &bytes), "getsockname");
    printf("%u\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        char data[4096];
        int fd = (int)check(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "accept4");
        while (check(recv(fd, data, sizeof data, 0), "recv") > 0)
            continue;
        check(send(fd, line, sizeof line - 1, MSG_NOSIGNAL), "send");
        close(fd);
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    if (argc < 2)
        die("small: flows, slow or server", EINVAL);
    struct options o = parse(argc, argv);
    check(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    files.rlim_cur = files.rlim_max;
    check(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
    if (strcmp(argv[1], "flows") == 0)
        run_flows(&o);
    else if (strcmp(argv[1], "slow") == 0)
        run_slow(&o);
    else
        run_server();
    return 0;
}

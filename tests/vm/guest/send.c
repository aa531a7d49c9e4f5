/* SPDX-License-Identifier: Apache-2.0
 *
 * A crowd of senders in one process: N flows at once over the protocol raw, of known content and
 * odd sizes. Checks each receipt for state, bytes and check sum.
 *
 *   -a ADDRESS -p PORT     whom to send to
 *   -n FLOWS -b BYTES      flow i has BYTES + i * STEP bytes (-s STEP, 1)
 *   -S SEED                flow i has the content of SEED + i
 *   -c 0|1                 whether receipts are to bear a check sum (1)
 *   -r BYTES               reset the connection after so many bytes
 *   -e                     never end: until killed, or the other side goes
 *   -l                     a flow may end without a receipt
 *   -m FILE -N STORE       append a line per flow: STORE FLOW SEED BYTES STATE PORT
 *   -t SECONDS             fail after so long (720)
 *   -J FD                  a journal: writes a line there, at once, when a connection stands and
 *                          when its receipt has come: "@begun STORE SEED BYTES PORT" and
 *                          "@receipt STORE FLOW SEED BYTES PORT"
 *   -M NAME                a device of dm-log-writes: each receipt puts a mark into its log, which
 *                          is the flow's id
 *
 * Prints flows=, sealed=, bytes=, ended= (connections that went without a receipt) and
 * window_scale=, the least that a connection was offered: windows have at most 64 KiB << scale.
 * Exit code 0 when all went as it should: sealed with the right receipt, or reset; of flows that
 * never end, and with nobody there to answer, nothing is expected.
 */
#define _GNU_SOURCE
#include "content.h"
#include "mapper.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_BYTES_MAX 512
#define FLOWS_MAX 4096u
#define EVENTS_PER_TURN 64
#define COMPLAINTS_MAX 8u

struct options {
    const char *address, *manifest, *store, *marked;
    int journal;
    uint16_t port;
    unsigned flows, step, seconds;
    uint64_t bytes, seed, reset_after;
    bool checksummed, endless, may_lose;
};

struct flow {
    int fd;
    bool over, announced;
    uint16_t local_port;
    uint32_t crc;
    uint64_t seed, bytes, sent;
    size_t answer_bytes;
    char answer[ANSWER_BYTES_MAX];
};

struct crowd {
    struct options options;
    int epoll;
    FILE *manifest;
    unsigned open, sealed, ended, wrong, window_scale;
    uint64_t bytes_sealed;
    struct flow flows[FLOWS_MAX];
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list arguments;

    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(2);
}

static void parse(struct options *o, int count, char **words) {
    int option;

    *o = (struct options){
        .flows = 1, .step = 1, .seconds = 720, .seed = 1, .checksummed = true, .journal = -1};
    while ((option = getopt(count, words, "a:p:n:b:s:S:c:r:elm:N:t:J:M:")) > 0) {
        switch (option) {
        case 'a':
            o->address = optarg;
            break;
        case 'p':
            o->port = (uint16_t)atoi(optarg);
            break;
        case 'n':
            o->flows = (unsigned)atoi(optarg);
            break;
        case 'b':
            o->bytes = strtoull(optarg, NULL, 0);
            break;
        case 's':
            o->step = (unsigned)atoi(optarg);
            break;
        case 'S':
            o->seed = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            o->checksummed = atoi(optarg) != 0;
            break;
        case 'r':
            o->reset_after = strtoull(optarg, NULL, 0);
            break;
        case 'e':
            o->endless = true;
            break;
        case 'l':
            o->may_lose = true;
            break;
        case 'm':
            o->manifest = optarg;
            break;
        case 'N':
            o->store = optarg;
            break;
        case 't':
            o->seconds = (unsigned)atoi(optarg);
            break;
        case 'J':
            o->journal = atoi(optarg);
            break;
        case 'M':
            o->marked = optarg;
            break;
        default:
            die("usage: see the head of send.c");
        }
    }
    if (!o->address || !o->port || !o->flows || o->flows > FLOWS_MAX)
        die("send wants -a, -p and 1 to %u flows", FLOWS_MAX);
}

static socklen_t name_of(const struct options *o, struct sockaddr_storage *name) {
    struct sockaddr_in *four = (void *)name;
    struct sockaddr_in6 *six = (void *)name;

    memset(name, 0, sizeof(*name));
    if (inet_pton(AF_INET, o->address, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(o->port);
        return sizeof(*four);
    }
    if (inet_pton(AF_INET6, o->address, &six->sin6_addr) != 1)
        die("%s is no address", o->address);
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(o->port);
    return sizeof(*six);
}

static void begin(struct crowd *c, unsigned index) {
    struct flow *f = &c->flows[index];
    struct epoll_event wanted = {.events = EPOLLOUT, .data.u32 = index};
    struct sockaddr_storage name;
    socklen_t bytes = name_of(&c->options, &name);

    f->seed = c->options.seed + index;
    f->bytes = c->options.endless ? UINT64_MAX : c->options.bytes + index * c->options.step;
    if (c->options.reset_after)
        f->bytes = c->options.reset_after;
    f->fd = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (f->fd < 0)
        die("socket: %m");
    if (connect(f->fd, (const struct sockaddr *)&name, bytes) < 0 && errno != EINPROGRESS)
        die("connecting to %s port %u: %m", c->options.address, c->options.port);
    if (epoll_ctl(c->epoll, EPOLL_CTL_ADD, f->fd, &wanted) < 0)
        die("epoll_ctl: %m");
    c->open++;
}

static void note(struct crowd *c, const struct flow *f, const char *id, const char *state) {
    if (c->manifest)
        fprintf(c->manifest, "%s %s %" PRIu64 " %" PRIu64 " %s %u\n", c->options.store, id, f->seed,
                f->sent, state, f->local_port);
}

static void close_flow(struct crowd *c, struct flow *f) {
    close(f->fd);
    f->over = true;
    c->open--;
}

static void complain(struct crowd *c, const struct flow *f, const char *what) {
    if (c->wrong++ < COMPLAINTS_MAX)
        printf("wrong: flow of seed %" PRIu64 " after %" PRIu64 " of %" PRIu64 " bytes: %s: %s\n",
               f->seed, f->sent, f->bytes, what, f->answer);
}

/* The flow's id as the answer has it, or "-". */
static const char *told_id(const struct flow *f, char id[37]) {
    bool told = sscanf(f->answer, "{\"flow\": \"%36[0-9a-f-]\"", id) == 1 && strlen(id) == 36;

    return told ? id : "-";
}

/* The connection went without a receipt. */
static void lost(struct crowd *c, struct flow *f, const char *why) {
    char id[37];

    note(c, f, told_id(f, id), "lost");
    c->ended++;
    if (!c->options.endless && !c->options.may_lose)
        complain(c, f, why);
    close_flow(c, f);
}

static bool answers(const struct flow *f, const char *format, ...) {
    char wanted[ANSWER_BYTES_MAX];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(wanted, sizeof(wanted), format, arguments);
    va_end(arguments);
    return strstr(f->answer, wanted) != NULL;
}

static void check_receipt(struct crowd *c, struct flow *f) {
    char buffer[37];
    const char *id = told_id(f, buffer);
    bool right = id == buffer && f->answer[f->answer_bytes - 1] == '\n' &&
                 answers(f, "\"bytes\": %" PRIu64 ",", f->sent) &&
                 answers(f, "\"durable\": true") && answers(f, "\"state\": \"sealed\"");
    if (right && c->options.checksummed)
        right = answers(f, "\"checksum\": \"crc32c:%08" PRIx32 "\"", f->crc);
    else if (right)
        right = answers(f, "\"checksum\": null");
    if (!right && c->options.may_lose && !answers(f, "\"state\": \"sealed\"")) {
        note(c, f, id, "lost");
        c->ended++;
        return;
    }
    if (!right) {
        note(c, f, id, "lost");
        complain(c, f, "not the receipt that is due");
        return;
    }
    c->sealed++;
    c->bytes_sealed += f->sent;
    note(c, f, id, "sealed");
}

/* Reports a receipt the moment it is there: the machine may be gone the next. */
static void announce(const struct crowd *c, struct flow *f) {
    const struct options *o = &c->options;
    char id[37], mark[64];

    if (f->announced || told_id(f, id) != id || !answers(f, "\"durable\": true") ||
        !answers(f, "\"state\": \"sealed\"") || f->answer[f->answer_bytes - 1] != '\n')
        return;
    f->announced = true;
    if (o->journal >= 0)
        dprintf(o->journal, "@receipt %s %s %" PRIu64 " %" PRIu64 " %u\n", o->store, id, f->seed,
                f->sent, f->local_port);
    if (!o->marked)
        return;
    snprintf(mark, sizeof(mark), "mark %s", id);
    int code = mapper_message(o->marked, mark);
    if (code < 0)
        die("a mark into the log of %s: %s", o->marked, strerror(-code));
}

static void receive(struct crowd *c, struct flow *f) {
    ssize_t got = recv(f->fd, f->answer + f->answer_bytes, sizeof(f->answer) - 1 - f->answer_bytes,
                       MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got > 0) {
        f->answer_bytes += (size_t)got;
        announce(c, f);
        return;
    }
    if (got < 0 || f->answer_bytes == 0 || f->sent < f->bytes) {
        lost(c, f, got < 0 ? strerror(errno) : "closed too early");
        return;
    }
    check_receipt(c, f);
    close_flow(c, f);
}

/* All but the end goes with MSG_MORE, so that only a flow's last packet has an odd size. */
static bool push(struct flow *f) {
    uint64_t left = f->bytes - f->sent;
    size_t bytes = left < CONTENT_PIECE_BYTES ? (size_t)left : CONTENT_PIECE_BYTES;
    const uint8_t *data = content_at(f->seed, f->sent);
    int more = bytes < left ? MSG_MORE : 0;
    ssize_t sent = send(f->fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL | more);

    if (sent < 0)
        return errno == EAGAIN;
    f->crc = content_crc32c(f->crc, data, (size_t)sent);
    f->sent += (uint64_t)sent;
    return true;
}

static void reset(struct crowd *c, struct flow *f) {
    struct linger linger = {.l_onoff = 1};

    setsockopt(f->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    note(c, f, "-", "reset");
    close_flow(c, f);
}

static void learn_connection(struct crowd *c, struct flow *f) {
    struct sockaddr_in6 name = {0};
    struct tcp_info info = {0};
    socklen_t bytes = sizeof(name), info_bytes = sizeof(info);

    /* The port lies at the same place in both families' addresses. */
    if (getsockname(f->fd, (struct sockaddr *)&name, &bytes) == 0)
        f->local_port = ntohs(name.sin6_port);
    if (getsockopt(f->fd, IPPROTO_TCP, TCP_INFO, &info, &info_bytes) == 0 &&
        info.tcpi_snd_wscale < c->window_scale)
        c->window_scale = info.tcpi_snd_wscale;
    if (f->local_port != 0 && c->options.journal >= 0)
        dprintf(c->options.journal, "@begun %s %" PRIu64 " %" PRIu64 " %u\n", c->options.store,
                f->seed, f->bytes, f->local_port);
}

static void send_advance(struct crowd *c, unsigned index, uint32_t events) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = index};
    struct flow *f = &c->flows[index];

    if (f->over)
        return;
    if (f->local_port == 0)
        learn_connection(c, f);
    if (f->sent == f->bytes || events & (EPOLLERR | EPOLLHUP)) {
        receive(c, f);
        return;
    }
    if (!push(f)) {
        lost(c, f, strerror(errno));
    } else if (f->sent == f->bytes && c->options.reset_after) {
        reset(c, f);
    } else if (f->sent == f->bytes) {
        shutdown(f->fd, SHUT_WR);
        epoll_ctl(c->epoll, EPOLL_CTL_MOD, f->fd, &wanted);
    }
}

static time_t seconds_now(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static volatile sig_atomic_t ended;

static void send_end(int signal) {
    ended = signal;
}

static void run(struct crowd *c) {
    struct epoll_event events[EVENTS_PER_TURN];
    time_t deadline = seconds_now() + c->options.seconds;

    signal(SIGTERM, send_end); /* what is under way is still noted */
    while (c->open > 0 && seconds_now() < deadline && !ended) {
        int count = epoll_wait(c->epoll, events, EVENTS_PER_TURN, 1000);
        for (int index = 0; index < count; index++)
            send_advance(c, events[index].data.u32, events[index].events);
    }
    for (unsigned index = 0; index < c->options.flows; index++)
        if (!c->flows[index].over)
            lost(c, &c->flows[index], "out of time");
}

int main(int count, char **words) {
    static struct crowd c = {.window_scale = UINT8_MAX};

    setvbuf(stdout, NULL, _IOLBF, 0);
    parse(&c.options, count, words);
    c.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (c.options.manifest && !(c.manifest = fopen(c.options.manifest, "a")))
        die("%s: %m", c.options.manifest);
    for (unsigned index = 0; index < c.options.flows; index++)
        begin(&c, index);
    run(&c);
    if (c.manifest && fclose(c.manifest) != 0)
        die("%s: %m", c.options.manifest);
    printf("flows=%u\nsealed=%u\nbytes=%" PRIu64 "\nended=%u\nwrong=%u\nwindow_scale=%u\n",
           c.options.flows, c.sealed, c.bytes_sealed, c.ended, c.wrong, c.window_scale);
    return c.wrong != 0;
}

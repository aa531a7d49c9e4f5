/* SPDX-License-Identifier: Apache-2.0
 *
 * One way from a TCP flow to a file with O_DIRECT, for `make compare`; see way.h.
 *
 * Listens, takes one connection, lets the way run to the stream's end, flushes, closes the
 * connection (by which the sender learns that all is durable) and prints one JSON object.
 * CPU times count from the connection on. Exit codes: 0; 1 a failure; 3 the kernel refuses
 * this way here, and stderr says why.
 *
 *   ways --way NAME --port P --file PATH
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../bench.h"
#include "way.h"

#define PORT_MAX 65535u
#define EXIT_REFUSED 3
#define HUGEPAGE_BYTES (2ull << 20)

struct way {
    const char *name;
    way_run run;
    bool is_buffered; /* through the page cache: O_DIRECT is not to be had */
};

static const struct way WAYS[] = {
    {"discard", way_discard, false},
    {"epoll", way_epoll, false},
    {"uring-multishot", way_multishot, false},
    {"uring-incremental", way_incremental, false},
    {"splice", way_splice, true},
    {"splice-direct", way_splice_direct, false},
    {"tcp-zerocopy", way_tcp_zerocopy, false},
};

struct options {
    const struct way *way;
    uint16_t port;
    const char *path;
};

static const struct way *find_way(const char *name) {
    for (size_t i = 0; i < sizeof WAYS / sizeof WAYS[0]; i++)
        if (strcmp(WAYS[i].name, name) == 0)
            return &WAYS[i];
    die(name, EINVAL);
}

static struct options parse(int argc, char **argv) {
    static const struct option known[] = {
        {"way", required_argument, NULL, 'w'},
        {"port", required_argument, NULL, 'p'},
        {"file", required_argument, NULL, 'f'},
        {NULL, 0, NULL, 0},
    };
    struct options o = {0};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == 'w')
            o.way = find_way(optarg);
        else if (option == 'p')
            o.port = (uint16_t)parse_count(optarg, 1, PORT_MAX);
        else if (option == 'f')
            o.path = optarg;
        else
            exit(2);
    }
    if (o.way == NULL || o.port == 0 || o.path == NULL || optind != argc)
        die("ways: --way, --port and --file are needed", EINVAL);
    return o;
}

uint8_t *way_memory(uint64_t bytes) {
    bytes = (bytes + HUGEPAGE_BYTES - 1) / HUGEPAGE_BYTES * HUGEPAGE_BYTES;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap", errno);
    /* Advice before the first touch, or the pages are small ones already. */
    check(madvise(p, bytes, MADV_HUGEPAGE), "madvise");
    memset(p, 0, bytes);
    return p;
}

void way_write(struct way_job *job, uint8_t *data, uint32_t bytes) {
    uint32_t whole = way_whole_blocks(bytes);
    if (whole > bytes)
        memset(data + bytes, 0, whole - bytes);
    int64_t written = check(pwrite(job->file, data, whole, (off_t)job->file_offset), "pwrite");
    if (written != whole)
        die("pwrite", EIO);
    job->file_offset += whole;
}

static int accept_one(uint16_t port) {
    int one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int listener = (int)check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    check(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "setsockopt");
    check(bind(listener, (const struct sockaddr *)&address, sizeof address), "bind");
    check(listen(listener, 1), "listen");
    int connection = (int)check(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "accept");
    close(listener);
    return connection;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    struct way_job job = {0};
    int direct = o.way->is_buffered ? 0 : O_DIRECT;
    job.file = (int)check(open(o.path, O_WRONLY | O_CREAT | O_CLOEXEC | direct, 0600), o.path);
    job.connection = accept_one(o.port);
    struct cpu_times before = cpu_times();
    if (!o.way->run(&job)) {
        fprintf(stderr, "%s is refused here: %s\n", o.way->name, strerror(errno));
        return EXIT_REFUSED;
    }
    check(fdatasync(job.file), "fdatasync");
    struct cpu_times after = cpu_times();
    printf("{\"bytes\": %llu, \"user_s\": %.6f, \"sys_s\": %.6f, \"user_copied\": %llu, "
           "\"kernel_copied\": %llu}\n",
           (unsigned long long)job.received_bytes, after.user_s - before.user_s,
           after.sys_s - before.sys_s, (unsigned long long)job.user_copied,
           (unsigned long long)job.kernel_copied);
    fflush(stdout);
    close(job.connection);
    return 0;
}

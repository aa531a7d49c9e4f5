/* SPDX-License-Identifier: Apache-2.0
 *
 * The upper bound that ingestd is measured against: TCP flows into registered
 * slots, slots to a file by O_DIRECT WRITE_FIXED, one flush at the end. No
 * framing, no index, no checksum, no acknowledgement on the way, no metrics:
 * what it writes cannot be told apart again. Nothing that ingestd does for the
 * user is in it; what it does itself it does as ingestd does.
 *
 * Accepts N connections, serves them in one thread to their ends, flushes, closes
 * them (which is how the sender learns of it) and prints one JSON object; CPU
 * times count from the first connection on.
 *
 * Invariants: a slot is free, or with one flow, or under one write. A flow has at
 * most one slot and one receive under way; without a slot it stands in line.
 *
 *   upper_bound --port P --file PATH [--flows N] [--slot-bytes B] [--slots K]
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <liburing.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#define PORT_MAX 65535u
#define FLOWS_MAX 16384u
#define SLOTS_MAX 65536u
#define SLOT_BYTES_MAX (64u << 20)
#define BLOCK_BYTES 4096u
#define HUGEPAGE_BYTES (2ull << 20)
#define RING_ENTRIES 4096u
#define BACKLOG 4096
#define FILES_BESIDE 64u
#define NONE UINT32_MAX

enum tag { TAG_ACCEPT, TAG_RECEIVE, TAG_WRITE };

struct flow {
    int fd;
    bool ended;
    uint32_t slot; /* NONE: it stands in line for one */
};

struct slot {
    uint32_t filled_bytes;
    uint32_t write_bytes;
};

struct receiver {
    uint16_t port;
    const char *path;
    uint32_t flow_count, slot_count, slot_bytes;
    struct io_uring ring;
    int listener;
    uint8_t *area;
    uint64_t area_bytes;
    struct flow *flows;
    struct slot *slots;
    uint32_t *free_slots; /* a stack: the slot used last is the warmest */
    uint32_t free_count;
    uint32_t *line; /* flows that wait for a slot: a ring of flow_count entries */
    uint64_t line_head, line_tail;
    uint32_t accepted_count, ended_count, writes_in_flight;
    uint64_t file_offset, received_bytes, completions;
    uint64_t started_ns;
    struct cpu_times started_cpu;
};

static void parse(struct receiver *r, int argc, char **argv) {
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},  {"file", required_argument, NULL, 'f'},
        {"flows", required_argument, NULL, 'n'}, {"slot-bytes", required_argument, NULL, 'b'},
        {"slots", required_argument, NULL, 'k'}, {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'p':
            r->port = (uint16_t)parse_count(optarg, 1, PORT_MAX);
            break;
        case 'f':
            r->path = optarg;
            break;
        case 'n':
            r->flow_count = (uint32_t)parse_count(optarg, 1, FLOWS_MAX);
            break;
        case 'b':
            r->slot_bytes = (uint32_t)parse_count(optarg, BLOCK_BYTES, SLOT_BYTES_MAX);
            break;
        case 'k':
            r->slot_count = (uint32_t)parse_count(optarg, 1, SLOTS_MAX);
            break;
        default:
            exit(2);
        }
    }
    if (r->port == 0 || r->path == NULL || r->slot_bytes % BLOCK_BYTES != 0 || optind != argc)
        die("upper_bound: --port and --file are needed, slots of whole blocks", EINVAL);
}

static void open_area(struct receiver *r) {
    uint64_t bytes = (uint64_t)r->slot_count * r->slot_bytes;
    r->area_bytes = (bytes + HUGEPAGE_BYTES - 1) / HUGEPAGE_BYTES * HUGEPAGE_BYTES;
    r->area = mmap(NULL, r->area_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->area == MAP_FAILED)
        die("mmap of the area", errno);
    /* Advice before the first touch, or the pages are small ones already. */
    check(madvise(r->area, r->area_bytes, MADV_HUGEPAGE), "madvise of the area");
    memset(r->area, 0, r->area_bytes);
    r->free_slots = check_memory(calloc(r->slot_count, sizeof *r->free_slots), "calloc");
    r->slots = check_memory(calloc(r->slot_count, sizeof *r->slots), "calloc");
    for (uint32_t i = 0; i < r->slot_count; i++)
        r->free_slots[r->free_count++] = r->slot_count - 1 - i;
}

static void open_ring(struct receiver *r) {
    struct io_uring_params p = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
        .cq_entries = 8 * RING_ENTRIES,
    };
    int file = (int)check(open(r->path, O_WRONLY | O_DIRECT | O_CREAT | O_CLOEXEC, 0600), r->path);
    int code = io_uring_queue_init_params(RING_ENTRIES, &r->ring, &p);
    if (code < 0)
        die("io_uring_queue_init", -code);
    struct iovec all = {r->area, r->area_bytes};
    code = io_uring_register_buffers(&r->ring, &all, 1);
    if (code < 0)
        die("io_uring_register_buffers", -code);
    code = io_uring_register_files(&r->ring, &file, 1);
    if (code < 0)
        die("io_uring_register_files", -code);
    close(file); /* the ring keeps it */
}

static void open_listener(struct receiver *r) {
    int one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(r->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct rlimit files;
    check(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    if (files.rlim_cur < r->flow_count + FILES_BESIDE) {
        files.rlim_cur = r->flow_count + FILES_BESIDE;
        check(setrlimit(RLIMIT_NOFILE, &files), "setrlimit of open files");
    }
    r->listener = (int)check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    check(setsockopt(r->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "setsockopt");
    check(bind(r->listener, (const struct sockaddr *)&address, sizeof address), "bind");
    check(listen(r->listener, BACKLOG), "listen");
}

static struct io_uring_sqe *new_sqe(struct receiver *r) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
    if (sqe != NULL)
        return sqe;
    int code = io_uring_submit(&r->ring);
    sqe = io_uring_get_sqe(&r->ring);
    if (code < 0 || sqe == NULL)
        die("io_uring_submit", code < 0 ? -code : EBUSY);
    return sqe;
}

/* After prep, which clears it in some versions of liburing. */
static void tag_sqe(struct io_uring_sqe *sqe, enum tag tag, uint32_t index) {
    sqe->user_data = (uint64_t)tag << 32 | index;
}

static uint8_t *slot_memory(const struct receiver *r, uint32_t slot) {
    return r->area + (uint64_t)slot * r->slot_bytes;
}

static void accept_one(struct receiver *r) {
    struct io_uring_sqe *sqe = new_sqe(r);
    io_uring_prep_accept(sqe, r->listener, NULL, NULL, SOCK_CLOEXEC);
    tag_sqe(sqe, TAG_ACCEPT, 0);
}

/* Receives into what is left of the flow's slot; without a slot it stands in line. */
static void receive(struct receiver *r, uint32_t index) {
    struct flow *f = &r->flows[index];
    if (f->slot == NONE && r->free_count == 0) {
        r->line[r->line_tail++ % r->flow_count] = index;
        return;
    }
    if (f->slot == NONE) {
        f->slot = r->free_slots[--r->free_count];
        r->slots[f->slot].filled_bytes = 0;
    }
    uint32_t filled = r->slots[f->slot].filled_bytes;
    struct io_uring_sqe *sqe = new_sqe(r);
    io_uring_prep_recv(sqe, f->fd, slot_memory(r, f->slot) + filled, r->slot_bytes - filled,
                       MSG_WAITALL);
    tag_sqe(sqe, TAG_RECEIVE, index);
}

static void give_slot(struct receiver *r, uint32_t slot) {
    r->free_slots[r->free_count++] = slot;
    if (r->line_head != r->line_tail)
        receive(r, r->line[r->line_head++ % r->flow_count]);
}

/* Writes a slot in whole blocks; behind the last byte of a flow come zeros. */
static void write_slot(struct receiver *r, uint32_t slot) {
    struct slot *s = &r->slots[slot];
    uint8_t *data = slot_memory(r, slot);
    s->write_bytes = (s->filled_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
    memset(data + s->filled_bytes, 0, s->write_bytes - s->filled_bytes);
    struct io_uring_sqe *sqe = new_sqe(r);
    io_uring_prep_write_fixed(sqe, 0, data, s->write_bytes, r->file_offset, 0);
    sqe->flags |= IOSQE_FIXED_FILE;
    tag_sqe(sqe, TAG_WRITE, slot);
    r->file_offset += s->write_bytes;
    r->writes_in_flight++;
}

static void accepted(struct receiver *r, int result) {
    if (result < 0)
        die("accept", -result);
    if (r->accepted_count == 0) {
        r->started_ns = clock_monotonic_ns();
        r->started_cpu = cpu_times();
    }
    uint32_t index = r->accepted_count++;
    r->flows[index] = (struct flow){.fd = result, .slot = NONE};
    receive(r, index);
    if (r->accepted_count < r->flow_count)
        accept_one(r);
}

static void received(struct receiver *r, uint32_t index, int result) {
    struct flow *f = &r->flows[index];
    struct slot *s = &r->slots[f->slot];
    if (result < 0)
        die("receive", -result);
    s->filled_bytes += (uint32_t)result;
    r->received_bytes += (uint32_t)result;
    f->ended = result == 0;
    r->ended_count += f->ended;
    uint32_t slot = f->slot;
    if (s->filled_bytes == r->slot_bytes || (f->ended && s->filled_bytes > 0)) {
        write_slot(r, slot);
        f->slot = NONE;
    } else if (f->ended) {
        f->slot = NONE;
        give_slot(r, slot);
    }
    if (!f->ended)
        receive(r, index);
}

static void written(struct receiver *r, uint32_t slot, int result) {
    if (result < 0 || (uint32_t)result != r->slots[slot].write_bytes)
        die("write", result < 0 ? -result : EIO);
    r->writes_in_flight--;
    give_slot(r, slot);
}

static void complete(struct receiver *r, const struct io_uring_cqe *cqe) {
    uint32_t index = (uint32_t)cqe->user_data;
    switch ((enum tag)(cqe->user_data >> 32)) {
    case TAG_ACCEPT:
        accepted(r, cqe->res);
        break;
    case TAG_RECEIVE:
        received(r, index, cqe->res);
        break;
    case TAG_WRITE:
        written(r, index, cqe->res);
        break;
    }
}

static void run(struct receiver *r) {
    accept_one(r);
    while (r->ended_count < r->flow_count || r->writes_in_flight > 0) {
        struct io_uring_cqe *cqe;
        unsigned head, count = 0;
        int code = io_uring_submit_and_wait(&r->ring, 1);
        if (code < 0 && code != -EINTR)
            die("io_uring_submit_and_wait", -code);
        io_uring_for_each_cqe(&r->ring, head, cqe) {
            complete(r, cqe);
            count++;
        }
        io_uring_cq_advance(&r->ring, count);
        r->completions += count;
    }
}

static void flush(struct receiver *r) {
    struct io_uring_cqe *cqe;
    struct io_uring_sqe *sqe = new_sqe(r);
    io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC);
    sqe->flags |= IOSQE_FIXED_FILE;
    int code = io_uring_submit_and_wait(&r->ring, 1);
    code = code < 0 ? code : io_uring_wait_cqe(&r->ring, &cqe);
    if (code < 0 || cqe->res < 0)
        die("flush", code < 0 ? -code : -cqe->res);
}

int main(int argc, char **argv) {
    struct receiver r = {.flow_count = 1, .slot_count = 32, .slot_bytes = 1u << 20};
    parse(&r, argc, argv);
    r.flows = check_memory(calloc(r.flow_count, sizeof *r.flows), "calloc");
    r.line = check_memory(calloc(r.flow_count, sizeof *r.line), "calloc");
    open_area(&r);
    open_ring(&r);
    open_listener(&r);
    run(&r);
    flush(&r);
    struct cpu_times cpu = cpu_times();
    double seconds = (double)(clock_monotonic_ns() - r.started_ns) * 1e-9;
    for (uint32_t i = 0; i < r.flow_count; i++)
        close(r.flows[i].fd);
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"user_s\": %.6f, \"sys_s\": %.6f, "
           "\"completions\": %llu}\n",
           (unsigned long long)r.received_bytes, seconds, cpu.user_s - r.started_cpu.user_s,
           cpu.sys_s - r.started_cpu.sys_s, (unsigned long long)r.completions);
    return 0;
}

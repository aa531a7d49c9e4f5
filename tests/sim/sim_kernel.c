/* SPDX-License-Identifier: Apache-2.0
 *
 * The played io_uring: liburing's functions that are no inlines, operations under way, and the
 * order in which they complete. What an operation does is its own part's: disk, network, NIC.
 *
 * Invariants: an operation has one last completion; a cancelled one completes all the same, as it
 * would have if it was quicker. Completions come while the worker waits, in any order.
 */
#include "sim.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OP_RECV_ZC 58u
#define OP_WRITEV_FIXED 61u
#define PAUSE_NS_MAX (40 * SECOND)
#define DEFER_NS 60000u

static struct operation operations[OPERATIONS_MAX];
static uint32_t operations_count;
static struct io_uring *ring_open;
static struct iovec registered;
static uint64_t wake_ns, refusing_until_ns;
static uint64_t eventfd_counters[2];

uint64_t sim_operations_count(void) {
    return operations_count;
}

void sim_wake_at(uint64_t time_ns) {
    if (time_ns < wake_ns)
        wake_ns = time_ns;
}

bool sim_is_registered(const uint8_t *at, uint64_t bytes) {
    const uint8_t *base = registered.iov_base;
    return at >= base && at + bytes <= base + registered.iov_len;
}

/* --- The rings -------------------------------------------------------------------- */

static void *ring_memory(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        sim_fail("no memory for a ring");
    return p;
}

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p) {
    uint32_t sq_entries = sim.shape.sq_entries, cq_entries = sim.shape.cq_entries;
    unsigned *words = ring_memory(4096);
    if (ring_open != NULL || entries < sq_entries)
        sim_fail("a ring is opened twice, or smaller than is played");
    memset(ring, 0, sizeof *ring);
    ring->flags = p->flags;
    ring->ring_fd = ring->enter_ring_fd = FD_RING;
    ring->sq.khead = &words[0];
    ring->sq.ktail = &words[1];
    ring->sq.kflags = &words[2];
    ring->sq.kdropped = &words[3];
    ring->sq.ring_mask = sq_entries - 1;
    ring->sq.ring_entries = sq_entries;
    ring->sq.sqes = ring_memory(sq_entries * sizeof *ring->sq.sqes);
    ring->cq.khead = &words[16];
    ring->cq.ktail = &words[17];
    ring->cq.kflags = &words[18];
    ring->cq.koverflow = &words[19];
    ring->cq.ring_mask = cq_entries - 1;
    ring->cq.ring_entries = cq_entries;
    ring->cq.cqes = ring_memory(cq_entries * 32ull);
    ring_open = ring;
    return 0;
}

void io_uring_queue_exit(struct io_uring *ring) {
    munmap(ring->sq.sqes, ring->sq.ring_entries * sizeof *ring->sq.sqes);
    munmap(ring->cq.cqes, ring->cq.ring_entries * 32ull);
    munmap(ring->sq.khead, 4096);
    ring_open = NULL;
}

int io_uring_register_buffers(struct io_uring *ring, const struct iovec *iovecs, unsigned count) {
    (void)ring;
    if (count != 1)
        return -EINVAL;
    registered = *iovecs;
    return 0;
}

int io_uring_register_files(struct io_uring *ring, const int *files, unsigned count) {
    (void)ring;
    return count == 1 && files[0] == FD_STORE ? 0 : -EBADF;
}

struct io_uring_probe *io_uring_get_probe_ring(struct io_uring *ring) {
    (void)ring;
    struct io_uring_probe *p = calloc(1, sizeof *p + 64 * sizeof p->ops[0]);
    if (p == NULL)
        return NULL;
    p->last_op = 63;
    p->ops[OP_WRITEV_FIXED].flags = sim_below(2) ? IO_URING_OP_SUPPORTED : 0;
    return p;
}

void io_uring_free_probe(struct io_uring_probe *probe) {
    free(probe);
}

static uint32_t ring_used(void) {
    return *ring_open->cq.ktail - *ring_open->cq.khead;
}

bool sim_ring_is_empty(void) {
    return ring_used() == 0;
}

bool sim_has_room(void) {
    return ring_used() < ring_open->cq.ring_entries;
}

bool sim_rings_wide(void) {
    return (ring_open->flags & IORING_SETUP_CQE32) != 0;
}

bool sim_post(uint64_t user_data, int result, uint32_t flags, uint64_t more) {
    if (!sim_has_room())
        return false;
    uint32_t at = *ring_open->cq.ktail & ring_open->cq.ring_mask;
    struct io_uring_cqe *cqe =
        (void *)((char *)ring_open->cq.cqes + at * (sim_rings_wide() ? 32u : 16u));
    cqe->user_data = user_data;
    cqe->res = result;
    cqe->flags = flags;
    if (sim_rings_wide()) {
        uint64_t upper[2] = {more, 0};
        memcpy(cqe + 1, upper, sizeof upper);
    }
    ++*ring_open->cq.ktail;
    sim_log("done %llx %d%s", (unsigned long long)user_data, result,
            flags & IORING_CQE_F_MORE ? " more" : "");
    return true;
}

/* --- Submission -------------------------------------------------------------------- */

static void cancel(const struct io_uring_sqe *sqe) {
    int result = -ENOENT;
    for (uint32_t i = 0; i < operations_count && result != 0; i++) {
        if (operations[i].user_data != sqe->addr)
            continue;
        if (operations[i].opcode == OP_RECV_ZC && sim_one_of(sim.shape.missed_cancel_of))
            break; /* it is where no cancel finds it just now: io_queue_async(), Linux 6.15 */
        result = sim_one_of(20) ? -EALREADY : 0;
        if (!operations[i].is_cancelled)
            operations[i].cancelled_step = sim.step;
        if (operations[i].opcode == IORING_OP_RECV || operations[i].opcode == IORING_OP_POLL_ADD ||
            operations[i].opcode == IORING_OP_ACCEPT || operations[i].opcode == OP_RECV_ZC)
            operations[i].is_cancelled = true;
        operations[i].not_before_ns = 0;
    }
    struct operation *o = &operations[operations_count++];
    *o = (struct operation){.user_data = sqe->user_data,
                            .opcode = IORING_OP_ASYNC_CANCEL,
                            .progress = (uint64_t)(int64_t)result,
                            .fd = -1};
}

static void begin_write(struct operation *o, const struct io_uring_sqe *sqe) {
    struct iovec one = {(void *)(uintptr_t)sqe->addr, sqe->len};
    bool is_vector = sqe->opcode != IORING_OP_WRITE_FIXED;
    if (sqe->fd != 0 || !(sqe->flags & IOSQE_FIXED_FILE))
        sim_fail("a write goes to another file than the store");
    disk_submit(o, is_vector ? (const struct iovec *)(uintptr_t)sqe->addr : &one,
                is_vector ? sqe->len : 1, (sqe->rw_flags & RWF_DSYNC) != 0);
}

static void begin_socket(struct operation *o, const struct io_uring_sqe *sqe) {
    o->fd = sqe->fd;
    if (sqe->opcode == IORING_OP_ACCEPT) {
        o->peer = (void *)(uintptr_t)sqe->addr;
        o->peer_bytes = (void *)(uintptr_t)sqe->addr2;
        return;
    }
    o->socket = socket_of(sqe->fd);
    o->socket->operations++;
    if (sqe->opcode == IORING_OP_RECV || sqe->opcode == IORING_OP_POLL_ADD ||
        sqe->opcode == OP_RECV_ZC)
        socket_served(o->socket);
    if (sqe->opcode == IORING_OP_RECV && o->memory != NULL)
        disk_check_free(o->memory, o->bytes, "a receive");
    if (sqe->opcode == OP_RECV_ZC && o->socket->has_bound_window)
        sim_fail("port %u is received from, and its window is bound", o->socket->port);
    if (sqe->opcode == OP_RECV_ZC)
        o->bound = sqe->len != 0 ? sqe->len : UINT64_MAX;
}

static void begin(const struct io_uring_sqe *sqe) {
    if (operations_count == OPERATIONS_MAX)
        sim_fail("more is under way than is played");
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        cancel(sqe);
        return;
    }
    struct operation *o = &operations[operations_count];
    *o = (struct operation){.user_data = sqe->user_data,
                            .opcode = sqe->opcode,
                            .fd = sqe->fd,
                            .memory = (uint8_t *)(uintptr_t)sqe->addr,
                            .bytes = sqe->len,
                            .offset = sqe->off,
                            .flags = sqe->msg_flags};
    sim_log("ask %llx op %u", (unsigned long long)sqe->user_data, sqe->opcode);
    switch (sqe->opcode) {
    case IORING_OP_READ:
        if (sqe->fd != FD_EVENTFD || sqe->len != 8)
            sim_fail("a read of something else than the mailbox's eventfd");
        break;
    case IORING_OP_WRITE_FIXED:
    case IORING_OP_WRITEV:
    case OP_WRITEV_FIXED:
        begin_write(o, sqe);
        break;
    case IORING_OP_FSYNC:
        disk_flush_submit(o);
        break;
    case IORING_OP_TIMEOUT: {
        const struct __kernel_timespec *t = (const void *)o->memory;
        o->not_before_ns = sim.now_ns + (uint64_t)t->tv_sec * SECOND + (uint64_t)t->tv_nsec;
        break;
    }
    case IORING_OP_ACCEPT:
    case IORING_OP_POLL_ADD:
    case IORING_OP_RECV:
    case IORING_OP_SEND:
    case IORING_OP_CLOSE:
    case OP_RECV_ZC:
        begin_socket(o, sqe);
        break;
    default:
        sim_fail("operation %u is not played", sqe->opcode);
    }
    operations_count++;
}

static int submit(struct io_uring *ring) {
    uint32_t count = ring->sq.sqe_tail - ring->sq.sqe_head;
    for (; ring->sq.sqe_head != ring->sq.sqe_tail; ring->sq.sqe_head++)
        begin(&ring->sq.sqes[ring->sq.sqe_head & ring->sq.ring_mask]);
    *ring->sq.khead = *ring->sq.ktail = ring->sq.sqe_tail;
    return (int)count;
}

/* The kernel has no memory for requests for a while, and takes nothing. */
static bool is_refusing(void) {
    if (!sim.calm && sim_one_of(sim.shape.refused_submit_of))
        refusing_until_ns = sim.now_ns + sim_time_below(2 * SECOND);
    return sim.now_ns < refusing_until_ns;
}

int io_uring_submit(struct io_uring *ring) {
    return is_refusing() ? -EAGAIN : submit(ring);
}

/* --- Completion -------------------------------------------------------------------- */

static enum ready complete_eventfd(const struct operation *o) {
    uint64_t *counter = &eventfd_counters[o->fd - FD_EVENTFD];
    if (*counter == 0)
        return READY_NOT;
    memcpy(o->memory, counter, sizeof *counter);
    *counter = 0;
    sim_post(o->user_data, 8, 0, 0);
    return READY_DONE;
}

static enum ready complete_one(struct operation *o) {
    switch (o->opcode) {
    case IORING_OP_READ:
        return complete_eventfd(o);
    case IORING_OP_ASYNC_CANCEL:
        sim_post(o->user_data, (int)(int64_t)o->progress, 0, 0);
        return READY_DONE;
    case IORING_OP_TIMEOUT:
        sim_post(o->user_data, -ETIME, 0, 0);
        return READY_DONE;
    case IORING_OP_WRITE_FIXED:
    case IORING_OP_WRITEV:
    case OP_WRITEV_FIXED:
        return disk_complete(o);
    case IORING_OP_FSYNC:
        return disk_flush_complete(o);
    case OP_RECV_ZC:
        return nic_complete(o);
    default:
        return network_complete(o);
    }
}

/* One that is ready completes now, or a little later. */
static void try_to_complete(uint32_t i) {
    struct operation *o = &operations[i];
    if (o->not_before_ns > sim.now_ns) {
        sim_wake_at(o->not_before_ns);
        return;
    }
    if (sim_one_of(4) && o->opcode != IORING_OP_TIMEOUT) {
        o->not_before_ns = sim.now_ns + 1 + sim_below(DEFER_NS);
        sim_wake_at(o->not_before_ns);
        return;
    }
    while (sim_has_room()) {
        enum ready ready = complete_one(o);
        if (ready == READY_MORE && sim_below(sim.shape.tiny_packets ? 32 : 4) != 0)
            continue;
        if (ready != READY_DONE)
            return;
        struct socket_ *s = o->socket;
        *o = operations[--operations_count];
        if (s != NULL) {
            s->operations--;
            socket_settle(s);
        }
        return;
    }
}

static void complete_some(void) {
    if (operations_count == 0)
        return;
    uint32_t at = sim_below(operations_count), tries = operations_count;
    for (; tries > 0 && operations_count > 0 && sim_has_room(); tries--) {
        at %= operations_count;
        uint32_t before = operations_count;
        try_to_complete(at);
        at += before == operations_count; /* else another one lies there now */
    }
}

/* The loop stands still, as a stopped process or machine does. */
static void maybe_pause(void) {
    if (sim.calm)
        return;
    if (sim_one_of(sim.shape.pause_of)) {
        sim.now_ns += sim_time_below(PAUSE_NS_MAX);
        sim_log("a pause");
    }
    if (sim_one_of(sim.shape.wall_jump_of)) {
        sim.wall_delta_ns += (int64_t)sim_time_below(7200 * SECOND) - (int64_t)(3600 * SECOND);
        sim_log("the wall clock jumps");
    }
}

static void let_time_pass(uint64_t until_ns) {
    uint64_t next_ns = wake_ns < until_ns ? wake_ns : until_ns;
    if (next_ns > sim.now_ns)
        sim.now_ns = next_ns;
    wake_ns = NEVER;
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
                                     unsigned wait_count, struct __kernel_timespec *t,
                                     sigset_t *mask) {
    (void)cqe, (void)mask;
    uint64_t until_ns = sim.now_ns + (uint64_t)t->tv_sec * SECOND + (uint64_t)t->tv_nsec;
    if (wait_count != 1)
        sim_fail("the loop waits for %u completions", wait_count);
    sim.now_ns += 200 + sim_below(5000);
    if (is_refusing()) {
        sim_log("the kernel refuses requests");
        return sim_below(2) ? -EAGAIN : -EBUSY;
    }
    int count = submit(ring);
    sim.step++;
    border_step();
    if (sim.power_off)
        return -EOWNERDEAD;
    bool is_first = true;
    for (;;) {
        nic_step();
        senders_step();
        complete_some();
        if (ring_used() > 0 || sim.power_off)
            break;
        if (sim.now_ns >= until_ns)
            return -ETIME;
        if (is_first)
            border_sleep();
        is_first = false;
        let_time_pass(until_ns);
        border_wake();
    }
    maybe_pause();
    return sim.power_off ? -EOWNERDEAD : count;
}

/* --- Descriptors of the mailbox ------------------------------------------------------- */

int sim_eventfd(unsigned count, int flags) {
    static int made;
    (void)flags;
    eventfd_counters[made % 2] = count;
    return FD_EVENTFD + made++ % 2;
}

ssize_t sim_write(int fd, const void *data, size_t bytes) {
    uint64_t added;
    if (fd < FD_EVENTFD || fd >= FD_EVENTFD + 2 || bytes != sizeof added)
        sim_fail("a write to descriptor %d", fd);
    memcpy(&added, data, sizeof added);
    eventfd_counters[fd - FD_EVENTFD] += added;
    return (ssize_t)bytes;
}

/* What is asked for by probe.c alone, which no worker calls. */
int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags) {
    (void)entries, (void)ring, (void)flags;
    return -ENOSYS;
}

int __io_uring_get_cqe(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned submit_count,
                       unsigned wait_count, sigset_t *mask) {
    (void)ring, (void)cqe, (void)submit_count, (void)wait_count, (void)mask;
    return -ENOSYS;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * io_uring by its system calls: see ring.h.
 *
 * Order of memory accesses: the tail that the other side reads is stored with release after the
 * entries behind it, the tail that the other side wrote is loaded with acquire before them.
 */
#define _GNU_SOURCE
#include "ring.h"
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *map(int fd, size_t bytes, off_t what) {
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    CHECK(address != MAP_FAILED, "mapping a ring: %m");
    return address;
}

int ring_open(struct ring *ring, uint32_t entries, uint32_t cq_entries, uint32_t flags) {
    struct io_uring_params params = {.flags = flags};
    size_t sq_bytes, cq_bytes;
    char *base;

    if (cq_entries) {
        params.flags |= IORING_SETUP_CQSIZE;
        params.cq_entries = cq_entries;
    }
    memset(ring, 0, sizeof(*ring));
    ring->fd = (int)syscall(__NR_io_uring_setup, entries, &params);
    if (ring->fd < 0)
        return -errno;
    ring->cqe_shift = flags & IORING_SETUP_CQE32 ? 1 : 0;
    sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    cq_bytes = params.cq_off.cqes +
               ((size_t)params.cq_entries * sizeof(struct io_uring_cqe) << ring->cqe_shift);
    base = map(ring->fd, sq_bytes > cq_bytes ? sq_bytes : cq_bytes, IORING_OFF_SQ_RING);
    ring->sqes = map(ring->fd, params.sq_entries * sizeof(*ring->sqes), IORING_OFF_SQES);
    ring->kernel_sq_tail = (uint32_t *)(void *)(base + params.sq_off.tail);
    ring->sq_mask = (uint32_t *)(void *)(base + params.sq_off.ring_mask);
    ring->sq_array = (uint32_t *)(void *)(base + params.sq_off.array);
    ring->cq_head = (uint32_t *)(void *)(base + params.cq_off.head);
    ring->kernel_cq_tail = (uint32_t *)(void *)(base + params.cq_off.tail);
    ring->cq_mask = (uint32_t *)(void *)(base + params.cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(void *)(base + params.cq_off.cqes);
    ring->sq_tail = *ring->kernel_sq_tail;
    return 0;
}

struct io_uring_sqe *ring_sqe(struct ring *ring) {
    uint32_t index = ring->sq_tail++ & *ring->sq_mask;

    ring->sq_array[index] = index;
    memset(&ring->sqes[index], 0, sizeof(ring->sqes[index]));
    return &ring->sqes[index];
}

int ring_enter(struct ring *ring, uint32_t wait) {
    uint32_t count = ring->sq_tail - *ring->kernel_sq_tail;
    long result;

    __atomic_store_n(ring->kernel_sq_tail, ring->sq_tail, __ATOMIC_RELEASE);
    result = syscall(__NR_io_uring_enter, ring->fd, count, wait, IORING_ENTER_GETEVENTS, NULL, 0);
    return result < 0 ? -errno : (int)result;
}

bool ring_take(struct ring *ring, struct completion *completion) {
    uint32_t head = *ring->cq_head;
    const struct io_uring_cqe *cqe;

    if (head == __atomic_load_n(ring->kernel_cq_tail, __ATOMIC_ACQUIRE))
        return false;
    cqe = &ring->cqes[(head & *ring->cq_mask) << ring->cqe_shift];
    *completion = (struct completion){
        .user_data = cqe->user_data,
        .result = cqe->res,
        .flags = cqe->flags,
        .area_offset = ring->cqe_shift ? cqe->big_cqe[0] : 0,
    };
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

struct completion ring_wait(struct ring *ring) {
    struct completion completion;
    int result;

    while (!ring_take(ring, &completion)) {
        result = ring_enter(ring, 1);
        CHECK(result >= 0 || result == -EINTR, "waiting for a completion: %s",
              check_error_name(result));
    }
    return completion;
}

long ring_register(const struct ring *ring, uint32_t operation, void *argument, uint32_t count) {
    long result = syscall(__NR_io_uring_register, ring->fd, operation, argument, count);
    return result < 0 ? -errno : result;
}

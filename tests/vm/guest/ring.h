/* SPDX-License-Identifier: Apache-2.0
 *
 * io_uring without liburing, so that these tests see the kernel's interface as it is and depend
 * on the kernel's headers alone. One thread owns a ring.
 */
#ifndef VM_RING_H
#define VM_RING_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stdint.h>

/* What zcrx asks of a ring. */
#define RING_FLAGS_ZCRX                                                                            \
    (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE32)

struct ring {
    int fd;
    uint32_t sq_tail; /* entries handed out; the kernel sees them at ring_enter() */
    uint32_t *kernel_sq_tail, *sq_mask, *sq_array;
    uint32_t *cq_head, *kernel_cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint32_t cqe_shift; /* 1 with CQE32 */
};

/* A completion by value; `area_offset` is the second half of a 32-byte one. */
struct completion {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
    uint64_t area_offset;
};

/* 0 or -errno. `cq_entries` of 0 leaves the size to the kernel. */
int ring_open(struct ring *ring, uint32_t entries, uint32_t cq_entries, uint32_t flags);

/* A cleared entry; there is always room as long as callers enter before `entries` are out. */
struct io_uring_sqe *ring_sqe(struct ring *ring);

/* Submits what is out and waits for `wait` completions; what was submitted, or -errno. */
int ring_enter(struct ring *ring, uint32_t wait);

/* Takes one completion if there is one. */
bool ring_take(struct ring *ring, struct completion *completion);

/* Enters until there is a completion; fails the case when the kernel reports an error. */
struct completion ring_wait(struct ring *ring);

/* io_uring_register(2): its value or -errno. */
long ring_register(const struct ring *ring, uint32_t operation, void *argument, uint32_t count);

#endif

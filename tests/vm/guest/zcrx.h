/* SPDX-License-Identifier: Apache-2.0
 *
 * One zcrx instance: an area, a refill ring, the kernel's counters.
 *
 * Invariants: the area and some padding behind it are one mapping, so that a write may gather
 * from both through one registered buffer; a piece is given back at most once.
 */
#ifndef VM_ZCRX_H
#define VM_ZCRX_H

#include "ring.h"

#include <linux/io_uring/zcrx.h>
#include <stddef.h>

#define ZCRX_PAGE_BYTES 4096u
#define ZCRX_HUGEPAGE_BYTES (2u << 20)
#define ZCRX_REFILL_ENTRIES 4096u
#define ZCRX_TAG_EVENT 0xeeeeu /* user_data of the kernel's events */

struct zcrx_options {
    uint32_t interface_index; /* 0: device-less, the kernel copies */
    uint32_t queue;
    size_t area_bytes;
    size_t padding_bytes; /* behind the area, zeros */
    uint32_t refill_entries;
    uint32_t rx_buf_bytes; /* 0: a page */
    bool hugepages;
};

struct zcrx {
    struct ring *ring;
    uint32_t id;
    uint32_t rx_buf_bytes;
    char *area;
    size_t area_bytes;
    uint64_t area_token;
    uint32_t *refill_head, *refill_tail;
    uint32_t refill_mask, tail;
    struct io_uring_zcrx_rqe *refill;
    const struct zcrx_stats *stats;
};

/* A completion's payload in terms of the area. */
struct fragment {
    uint64_t offset;
    uint32_t bytes;
};

/* 0 or -errno. */
int zcrx_register_once(struct zcrx *zcrx, struct ring *ring, const struct zcrx_options *options);

/* Like zcrx_register_once, but waits while the kernel still holds the queue for a process that
 * has just ended, and fails the case on any other error. */
void zcrx_register(struct zcrx *zcrx, struct ring *ring, const struct zcrx_options *options);

/* Arms a multishot receive; `bytes_max` of 0 is no bound. */
void zcrx_receive(struct zcrx *zcrx, int socket, uint64_t user_data, uint32_t bytes_max);

struct fragment zcrx_fragment(const struct completion *completion);

/* Puts a fragment on the refill ring; false when the ring is full. The kernel takes from the ring
 * only when a queue wants buffers, so it fills up when more has been received than is wanted. */
bool zcrx_give_back_once(struct zcrx *zcrx, struct fragment fragment);

/* Like zcrx_give_back_once, but has the kernel empty a full ring. */
void zcrx_give_back(struct zcrx *zcrx, struct fragment fragment);

/* Has the kernel take what is on the refill ring: 0 or -errno. */
long zcrx_flush(const struct zcrx *zcrx);

/* IORING_REGISTER_ZCRX_CTRL: 0 or -errno. */
long zcrx_control(const struct zcrx *zcrx, struct zcrx_ctrl *control);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Buddy allocator over the area: slots of SLOT_BYTES_MIN << order bytes.
 *
 * Pure: knows offsets, not memory. Owned by the worker's thread. Invariants:
 *  - A slot of order k begins at a multiple of its size.
 *  - Two free buddies are always merged, so the largest slot comes back as
 *    soon as everything in it is free.
 *  - free_bytes + the bytes of lent slots = total_bytes.
 */
#ifndef INGESTD_MEMORY_BUDDY_H
#define INGESTD_MEMORY_BUDDY_H

#include <stdbool.h>
#include <stdint.h>

#define SLOT_BYTES_MIN 16384u
#define BUDDY_ORDERS_MAX 17 /* 16 KiB << 16 = 1 GiB */
#define BUDDY_NONE UINT32_MAX

struct buddy_node {
    uint32_t next, prev; /* in the free list of its order */
    uint8_t order;
    uint8_t is_free; /* 1: this node heads a free slot */
    uint16_t shares; /* of the lent slot that it heads, beyond the first */
};

struct buddy {
    struct buddy_node *nodes; /* one per SLOT_BYTES_MIN */
    uint32_t node_count;
    uint32_t order_max;
    uint32_t heads[BUDDY_ORDERS_MAX];
    uint64_t free_bytes;
    uint64_t total_bytes;
};

/* total_bytes is a multiple of slot_bytes_max, itself SLOT_BYTES_MIN << n.
 * Returns 0 or -ENOMEM. */
int buddy_init(struct buddy *b, uint64_t total_bytes, uint64_t slot_bytes_max);
void buddy_destroy(struct buddy *b);

/* Offset of a slot of that order, or UINT64_MAX when none is free. */
uint64_t buddy_take(struct buddy *b, uint32_t order);
/* True: the slot is free now; false: others still have a share of it. */
bool buddy_release(struct buddy *b, uint64_t offset, uint32_t order);
/* One more has a share of a lent slot, which is free once all have given it back. */
void buddy_share(struct buddy *b, uint64_t offset);

/* Smallest order whose slot holds that many bytes, at most order_max. */
uint32_t buddy_order(const struct buddy *b, uint64_t bytes);

static inline uint64_t buddy_slot_bytes(uint32_t order) {
    return (uint64_t)SLOT_BYTES_MIN << order;
}

#endif

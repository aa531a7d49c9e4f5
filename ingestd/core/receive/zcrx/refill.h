/* SPDX-License-Identifier: Apache-2.0
 *
 * The refill ring, and the account of which chunks are lent to us.
 *
 * Pure: works on memory that it is given; a test plays the kernel. Owned by the
 * worker's thread. Invariants:
 *  - Each fragment delivered is returned exactly once, as one entry: the
 *    kernel counts references per chunk the same way.
 *  - A chunk with fragments outstanding is lent; chunks_lent counts them.
 *  - An entry that does not fit into the ring waits; it is never lost.
 */
#ifndef INGESTD_RECEIVE_ZCRX_REFILL_H
#define INGESTD_RECEIVE_ZCRX_REFILL_H

#include <stdbool.h>
#include <stdint.h>

#include "receive/zcrx/uapi.h"

struct refill {
    uint32_t *head; /* the kernel's: entries below are consumed */
    uint32_t *tail; /* ours: entries below are filled in */
    struct abi_zcrx_refill_entry *entries;
    uint32_t entry_count; /* a power of two */
    uint32_t tail_next;   /* filled in, not yet shown to the kernel */
    uint64_t token;
    uint32_t chunk_shift;
    uint32_t chunk_count;
    uint32_t *outstanding; /* per chunk: fragments delivered and not returned */
    uint16_t *shared;      /* per chunk: further holders of a fragment that was split */
    uint32_t chunks_lent;
    uint64_t fragments_lent;
    /* Entries that found the refill ring full: since an entry names a chunk, and
     * any place in it will do, a count per chunk and a queue of chunks hold all. */
    uint32_t *waiting;                   /* per chunk */
    uint32_t *waiting_queue;             /* of chunks with waiting > 0, each once */
    uint32_t waiting_head, waiting_tail; /* their difference is the queue's length */
};

/* Memory for the account; the ring's pointers are set by the caller. Returns 0
 * or -ENOMEM. */
int refill_init(struct refill *r, uint32_t chunk_count, uint32_t chunk_shift);
void refill_destroy(struct refill *r);

/* The kernel delivered a fragment. */
void refill_delivered(struct refill *r, uint64_t offset);
/* A second holder of the fragment at offset will return it as well. */
void refill_share(struct refill *r, uint64_t offset);
/* A holder returns the fragment at offset. */
void refill_return(struct refill *r, uint64_t offset);
/* Shows the kernel what was returned; returns how many entries are new to it. */
uint32_t refill_publish(struct refill *r);
/* How many entries were shown to the kernel that it has not read yet. */
static inline uint32_t refill_lying(const struct refill *r) {
    return __atomic_load_n(r->tail, __ATOMIC_RELAXED) - __atomic_load_n(r->head, __ATOMIC_ACQUIRE);
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The refill ring of refill.h.
 */
#include "receive/zcrx/refill.h"

#include <errno.h>
#include <stdlib.h>

int refill_init(struct refill *r, uint32_t chunk_count, uint32_t chunk_shift) {
    r->chunk_count = chunk_count;
    r->chunk_shift = chunk_shift;
    r->outstanding = calloc(chunk_count, sizeof *r->outstanding);
    r->shared = calloc(chunk_count, sizeof *r->shared);
    r->waiting = calloc(chunk_count, sizeof *r->waiting);
    r->waiting_queue = calloc(chunk_count, sizeof *r->waiting_queue);
    return r->outstanding && r->shared && r->waiting && r->waiting_queue ? 0 : -ENOMEM;
}

void refill_destroy(struct refill *r) {
    free(r->outstanding);
    free(r->shared);
    free(r->waiting);
    free(r->waiting_queue);
    r->outstanding = r->waiting = r->waiting_queue = NULL;
    r->shared = NULL;
}

static uint32_t refill_chunk_of(const struct refill *r, uint64_t offset) {
    uint64_t chunk = offset >> r->chunk_shift;
    assert(chunk < r->chunk_count);
    return (uint32_t)chunk;
}

void refill_delivered(struct refill *r, uint64_t offset) {
    uint32_t chunk = refill_chunk_of(r, offset);
    r->chunks_lent += r->outstanding[chunk]++ == 0;
    r->fragments_lent++;
}

void refill_share(struct refill *r, uint64_t offset) {
    uint32_t chunk = refill_chunk_of(r, offset);
    assert(r->outstanding[chunk] > 0 && r->shared[chunk] < UINT16_MAX);
    r->shared[chunk]++;
}

static bool refill_ring_is_full(const struct refill *r) {
    uint32_t head = __atomic_load_n(r->head, __ATOMIC_ACQUIRE);
    assert(r->tail_next - head <= r->entry_count);
    return r->tail_next - head == r->entry_count;
}

static void refill_push(struct refill *r, uint32_t chunk) {
    struct abi_zcrx_refill_entry *e = &r->entries[r->tail_next++ & (r->entry_count - 1)];
    e->offset = (uint64_t)chunk << r->chunk_shift | r->token;
    e->bytes = 1u << r->chunk_shift;
    e->zero = 0;
}

static void refill_push_later(struct refill *r, uint32_t chunk) {
    if (r->waiting[chunk]++ > 0)
        return;
    assert(r->waiting_tail - r->waiting_head < r->chunk_count);
    r->waiting_queue[r->waiting_tail++ % r->chunk_count] = chunk;
}

static void refill_push_waiting(struct refill *r) {
    while (r->waiting_head != r->waiting_tail && !refill_ring_is_full(r)) {
        uint32_t chunk = r->waiting_queue[r->waiting_head % r->chunk_count];
        refill_push(r, chunk);
        r->waiting_head += --r->waiting[chunk] == 0;
    }
    /* The queue is reset when empty, so that its counters never wrap unevenly. */
    if (r->waiting_head == r->waiting_tail)
        r->waiting_head = r->waiting_tail = 0;
}

void refill_return(struct refill *r, uint64_t offset) {
    uint32_t chunk = refill_chunk_of(r, offset);
    assert(r->outstanding[chunk] > 0);
    if (r->shared[chunk] > 0) {
        r->shared[chunk]--;
        return;
    }
    r->chunks_lent -= --r->outstanding[chunk] == 0;
    r->fragments_lent--;
    if (r->waiting_head == r->waiting_tail && !refill_ring_is_full(r))
        refill_push(r, chunk);
    else
        refill_push_later(r, chunk);
}

uint32_t refill_publish(struct refill *r) {
    refill_push_waiting(r);
    uint32_t fresh = r->tail_next - *r->tail;
    if (fresh > 0)
        __atomic_store_n(r->tail, r->tail_next, __ATOMIC_RELEASE);
    return fresh;
}

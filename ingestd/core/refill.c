/* SPDX-License-Identifier: Apache-2.0
 *
 * The refill ring of refill.h.
 */
#include "refill.h"

#include <errno.h>
#include <stdlib.h>

static uint32_t power_of_two_from(uint32_t value) {
    uint32_t power = 1;
    while (power < value)
        power *= 2;
    return power;
}

int refill_init(struct refill *r, uint32_t chunk_count, uint32_t chunk_shift,
                uint32_t fragments_max) {
    r->chunk_count = chunk_count;
    r->chunk_shift = chunk_shift;
    r->waiting_capacity = power_of_two_from(fragments_max);
    r->outstanding = calloc(chunk_count, sizeof *r->outstanding);
    r->shared = calloc(chunk_count, sizeof *r->shared);
    r->waiting = calloc(r->waiting_capacity, sizeof *r->waiting);
    return r->outstanding && r->shared && r->waiting ? 0 : -ENOMEM;
}

void refill_destroy(struct refill *r) {
    free(r->outstanding);
    free(r->shared);
    free(r->waiting);
    r->outstanding = NULL;
    r->shared = NULL;
    r->waiting = NULL;
}

static uint32_t chunk_of(const struct refill *r, uint64_t offset) {
    uint64_t chunk = offset >> r->chunk_shift;
    assert(chunk < r->chunk_count);
    return (uint32_t)chunk;
}

void refill_delivered(struct refill *r, uint64_t offset) {
    uint32_t chunk = chunk_of(r, offset);
    r->chunks_lent += r->outstanding[chunk]++ == 0;
    r->fragments_lent++;
    assert(r->fragments_lent <= r->waiting_capacity);
}

void refill_share(struct refill *r, uint64_t offset) {
    uint32_t chunk = chunk_of(r, offset);
    assert(r->outstanding[chunk] > 0 && r->shared[chunk] < UINT16_MAX);
    r->shared[chunk]++;
}

static bool ring_is_full(const struct refill *r) {
    uint32_t head = __atomic_load_n(r->head, __ATOMIC_ACQUIRE);
    assert(r->tail_next - head <= r->entry_count);
    return r->tail_next - head == r->entry_count;
}

static void push(struct refill *r, uint64_t offset) {
    struct abi_zcrx_refill_entry *e = &r->entries[r->tail_next++ & (r->entry_count - 1)];
    e->offset = offset | r->token;
    e->bytes = 1u << r->chunk_shift;
    e->zero = 0;
}

void refill_return(struct refill *r, uint64_t offset) {
    uint32_t chunk = chunk_of(r, offset);
    assert(r->outstanding[chunk] > 0);
    if (r->shared[chunk] > 0) {
        r->shared[chunk]--;
        return;
    }
    r->chunks_lent -= --r->outstanding[chunk] == 0;
    r->fragments_lent--;
    if (r->waiting_head == r->waiting_tail && !ring_is_full(r)) {
        push(r, offset);
        return;
    }
    assert(r->waiting_tail - r->waiting_head < r->waiting_capacity);
    r->waiting[r->waiting_tail++ & (r->waiting_capacity - 1)] = offset;
}

uint32_t refill_publish(struct refill *r) {
    while (r->waiting_head != r->waiting_tail && !ring_is_full(r))
        push(r, r->waiting[r->waiting_head++ & (r->waiting_capacity - 1)]);
    uint32_t fresh = r->tail_next - *r->tail;
    if (fresh > 0)
        __atomic_store_n(r->tail, r->tail_next, __ATOMIC_RELEASE);
    return fresh;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The lists and the relief valve of pending.h.
 */
#include "receive/zcrx/pending.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "receive/zcrx/register.h"

/* Per chunk: how many fragments can be out at once, on average. Small packets
 * that share a page make many; contiguous ones are merged while they wait. */
#define FRAGMENTS_PER_CHUNK 4u
#define RELIEF_SLOT_BYTES_MAX 65536u
#define RELIEF_ORDER_SHIFT 56
#define RELIEF_SLOTS_MIN 4u

uint64_t zcrx_relief_bytes(uint64_t area_bytes) {
    uint64_t slots = area_bytes / 8 / RELIEF_SLOT_BYTES_MAX;
    return (slots > RELIEF_SLOTS_MIN ? slots : RELIEF_SLOTS_MIN) * RELIEF_SLOT_BYTES_MAX;
}

int zcrx_pending_open(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    /* And what two turns can bring: see zcrx_table_is_low(). */
    z->fragment_count = z->chunk_count * FRAGMENTS_PER_CHUNK + 2 * r->reactor->ring.cq.ring_entries;
    z->fragments = calloc(z->fragment_count, sizeof *z->fragments);
    uint64_t relief_bytes = zcrx_relief_bytes(r->area->slots_bytes);
    z->relief_base = area_own(r->area, relief_bytes);
    if (z->fragments == NULL || buddy_init(&z->relief, relief_bytes, RELIEF_SLOT_BYTES_MAX) < 0)
        return -ENOMEM;
    for (uint32_t i = 0; i < z->fragment_count; i++)
        z->fragments[i].next = i + 1 < z->fragment_count ? i + 1 : ZCRX_FRAGMENT_NONE;
    return 0;
}

void zcrx_pending_close(struct receiver *r) {
    buddy_destroy(&r->zcrx.relief);
    free(r->zcrx.fragments);
}

/* --- Holds ----------------------------------------------------------------------- */

static uint32_t pending_relief_order(uint64_t hold) {
    return (uint32_t)(hold >> RELIEF_ORDER_SHIFT) & 0x7f;
}

static uint64_t pending_relief_slot(uint64_t hold) {
    return hold & ((1ull << RELIEF_ORDER_SHIFT) - 1);
}

/* Where in its relief slot a hold begins that names what a batch left of it. */
static uint64_t pending_relief_done(uint64_t hold) {
    return pending_relief_slot(hold) % buddy_slot_bytes(pending_relief_order(hold));
}

void zcrx_release(struct receiver *r, uint64_t hold) {
    if (zcrx_is_copied(hold)) {
        buddy_release(&r->zcrx.relief, pending_relief_slot(hold) - pending_relief_done(hold),
                      pending_relief_order(hold));
        return;
    }
    refill_return(&r->zcrx.refill, hold);
}

/* What is left of it goes to another batch, or waits: one more holder. */
static void pending_share(struct receiver *r, uint64_t hold) {
    if (zcrx_is_copied(hold))
        buddy_share(&r->zcrx.relief, pending_relief_slot(hold) - pending_relief_done(hold));
    else
        refill_share(&r->zcrx.refill, hold);
}

static uint8_t *pending_data_of(struct receiver *r, uint64_t hold) {
    if (zcrx_is_copied(hold))
        return r->zcrx.relief_base + pending_relief_slot(hold);
    return r->area->base + hold;
}

uint32_t zcrx_hand_over(struct receiver *r, struct connection *conn, uint64_t hold,
                        uint32_t bytes) {
    bool copied = zcrx_is_copied(hold);
    /* A relief slot is ours to its end; behind a fragment may lie another one. */
    uint64_t room =
        copied ? buddy_slot_bytes(pending_relief_order(hold)) - pending_relief_done(hold) : bytes;
    uint32_t slack = (uint32_t)room - bytes;
    uint32_t done = 0;
    while (done < bytes) {
        uint64_t rest = hold + done;
        const struct batch_piece piece = {
            .data = pending_data_of(r, rest),
            .bytes = bytes - done,
            .slack = slack,
            .copied_bytes = copied ? bytes - done : 0,
            .copied_for = BOUNCE_PRESSURE,
            .hold = rest,
        };
        uint32_t taken = engine_append(r, conn, &piece);
        if (taken == 0)
            break;
        done += taken;
        if (done < bytes)
            pending_share(r, rest);
    }
    return done;
}

/* --- Lists ----------------------------------------------------------------------- */

bool zcrx_append(struct receiver *r, struct connection *conn, uint64_t hold, uint32_t bytes) {
    struct zcrx *z = &r->zcrx;
    uint32_t index = z->fragment_free;
    if (index == ZCRX_FRAGMENT_NONE)
        return false;
    struct zcrx_fragment *n = zcrx_fragment_at(r, index);
    z->fragment_free = n->next;
    *n = (struct zcrx_fragment){.offset = hold, .bytes = bytes, .next = ZCRX_FRAGMENT_NONE};
    if (conn->zcrx.fragment_tail == ZCRX_FRAGMENT_NONE)
        conn->zcrx.fragment_head = index;
    else
        zcrx_fragment_at(r, conn->zcrx.fragment_tail)->next = index;
    conn->zcrx.fragment_tail = index;
    z->fragments_pending++;
    return true;
}

/* No list has the fragment any more. */
static void pending_free_fragment(struct receiver *r, uint32_t index) {
    struct zcrx *z = &r->zcrx;
    zcrx_fragment_at(r, index)->next = z->fragment_free;
    z->fragment_free = index;
    z->fragments_pending--;
}

void zcrx_pop(struct receiver *r, struct connection *conn) {
    uint32_t index = conn->zcrx.fragment_head;
    conn->zcrx.fragment_head = zcrx_fragment_at(r, index)->next;
    if (conn->zcrx.fragment_head == ZCRX_FRAGMENT_NONE)
        conn->zcrx.fragment_tail = ZCRX_FRAGMENT_NONE;
    pending_free_fragment(r, index);
}

bool zcrx_settle(struct receiver *r, struct connection *conn) {
    while (conn->zcrx.fragment_head != ZCRX_FRAGMENT_NONE) {
        struct zcrx_fragment *n = zcrx_fragment_at(r, conn->zcrx.fragment_head);
        if (conn->drop) {
            zcrx_release(r, n->offset);
        } else {
            uint32_t taken = zcrx_hand_over(r, conn, n->offset, n->bytes);
            n->offset += taken;
            n->bytes -= taken;
            if (n->bytes > 0)
                return false;
        }
        zcrx_pop(r, conn);
    }
    return true;
}

/* --- The relief valve -------------------------------------------------------------- */

uint64_t zcrx_payload_bytes(const struct connection *conn) {
    uint64_t bytes = conn->received_bytes - conn->stream.stored_bytes;
    assert(conn->stream.stored_bytes <= conn->received_bytes);
    return bytes > RECEIVE_BLOCK_BYTES ? bytes - RECEIVE_BLOCK_BYTES : 0;
}

uint64_t zcrx_list_payload_bytes(const struct connection *conn) {
    if (!engine_is_holding(conn))
        return UINT64_MAX;
    uint64_t bytes = zcrx_payload_bytes(conn);
    return bytes > conn->block->filled ? bytes - conn->block->filled : 0;
}

/* Bytes of the fragments from index on that one relief slot can take together. */
static uint32_t pending_run_bytes(struct receiver *r, uint32_t index, uint64_t left) {
    uint64_t most =
        time_min(left, time_min(RELIEF_SLOT_BYTES_MAX, r->storage->batches.payload_bytes_max));
    uint32_t bytes = 0;
    while (index != ZCRX_FRAGMENT_NONE) {
        const struct zcrx_fragment *n = zcrx_fragment_at(r, index);
        if (zcrx_is_copied(n->offset) || bytes + n->bytes > most)
            break;
        bytes += n->bytes;
        index = n->next;
    }
    return bytes;
}

/* Copies the run of fragments that begins at index into a slot, and makes one
 * pending fragment of it. Returns the index of the one behind. */
static uint32_t pending_copy_run(struct receiver *r, struct connection *conn, uint32_t index,
                                 uint64_t slot, uint32_t order, uint32_t bytes) {
    struct zcrx *z = &r->zcrx;
    struct zcrx_fragment *first = zcrx_fragment_at(r, index);
    uint32_t done = 0, next = index;
    while (done < bytes) {
        uint32_t at = next;
        struct zcrx_fragment *n = zcrx_fragment_at(r, at);
        memcpy(z->relief_base + slot + done, r->area->base + n->offset, n->bytes);
        refill_return(&z->refill, n->offset);
        done += n->bytes;
        next = n->next;
        if (at != index)
            pending_free_fragment(r, at);
    }
    assert(done == bytes);
    first->offset = slot | ZCRX_HOLD_COPIED | (uint64_t)order << RELIEF_ORDER_SHIFT;
    first->bytes = bytes;
    first->next = next;
    if (next == ZCRX_FRAGMENT_NONE)
        conn->zcrx.fragment_tail = index;
    return next;
}

/* Copies what a connection has waiting into relief slots, as long as there are some
 * and chunks are short, and gives the chunks back. What may be the connection's trailer
 * is left where it is. */
static void pending_copy_out(struct receiver *r, struct connection *conn) {
    struct zcrx *z = &r->zcrx;
    uint32_t index = conn->zcrx.fragment_head;
    uint64_t left = zcrx_list_payload_bytes(conn);
    while (index != ZCRX_FRAGMENT_NONE && zcrx_chunks_are_short(r)) {
        const struct zcrx_fragment *n = zcrx_fragment_at(r, index);
        uint32_t bytes = pending_run_bytes(r, index, left);
        if (bytes == 0) { /* copied already, or too large for a slot, or not surely payload */
            left -= time_min(left, n->bytes);
            index = n->next;
            continue;
        }
        uint32_t order = buddy_order(&z->relief, bytes);
        uint64_t slot = buddy_take(&z->relief, order);
        if (slot == UINT64_MAX)
            return;
        index = pending_copy_run(r, conn, index, slot, order, bytes);
        left -= bytes;
    }
}

void zcrx_relieve(struct receiver *r) {
    if (r->zcrx.refill.chunks_lent > r->zcrx.chunk_count / 2)
        storage_request_flush(r->storage);
    uint32_t index = r->table->waiting[QUEUE_BLOCKED].head;
    while (zcrx_chunks_are_short(r) && index != CONNECTION_NONE) {
        struct connection *conn = &r->table->connections[index];
        if (conn->phase == CONNECTION_BLOCKED)
            pending_copy_out(r, conn);
        index = conn->wait.next;
    }
}

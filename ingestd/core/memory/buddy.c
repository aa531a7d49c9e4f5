/* SPDX-License-Identifier: Apache-2.0
 *
 * The buddy allocator of buddy.h: free lists by order, linked by node index.
 */
#include "memory/buddy.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

static void buddy_push(struct buddy *b, uint32_t node, uint32_t order) {
    struct buddy_node *n = &b->nodes[node];
    assert(!n->is_free);
    n->order = (uint8_t)order;
    n->is_free = 1;
    n->prev = BUDDY_NONE;
    n->next = b->heads[order];
    if (n->next != BUDDY_NONE)
        b->nodes[n->next].prev = node;
    b->heads[order] = node;
}

static void buddy_unlink(struct buddy *b, uint32_t node) {
    struct buddy_node *n = &b->nodes[node];
    assert(n->is_free);
    if (n->prev == BUDDY_NONE)
        b->heads[n->order] = n->next;
    else
        b->nodes[n->prev].next = n->next;
    if (n->next != BUDDY_NONE)
        b->nodes[n->next].prev = n->prev;
    n->is_free = 0;
}

int buddy_init(struct buddy *b, uint64_t total_bytes, uint64_t slot_bytes_max) {
    uint32_t order_max = 0;
    while (buddy_slot_bytes(order_max) < slot_bytes_max)
        order_max++;
    assert(buddy_slot_bytes(order_max) == slot_bytes_max && order_max < BUDDY_ORDERS_MAX);
    assert(total_bytes >= slot_bytes_max && total_bytes % slot_bytes_max == 0);
    b->node_count = (uint32_t)(total_bytes / SLOT_BYTES_MIN);
    b->nodes = calloc(b->node_count, sizeof *b->nodes);
    if (b->nodes == NULL)
        return -ENOMEM;
    b->order_max = order_max;
    b->total_bytes = b->free_bytes = total_bytes;
    for (uint32_t order = 0; order < BUDDY_ORDERS_MAX; order++)
        b->heads[order] = BUDDY_NONE;
    /* Pushed from the end, so that the lowest offset is taken first. */
    for (uint32_t node = b->node_count; node != 0; node -= 1u << order_max)
        buddy_push(b, node - (1u << order_max), order_max);
    return 0;
}

void buddy_destroy(struct buddy *b) {
    free(b->nodes);
    b->nodes = NULL;
}

uint64_t buddy_take(struct buddy *b, uint32_t order) {
    assert(order <= b->order_max);
    uint32_t have = order;
    while (have <= b->order_max && b->heads[have] == BUDDY_NONE)
        have++;
    if (have > b->order_max)
        return UINT64_MAX;
    uint32_t node = b->heads[have];
    buddy_unlink(b, node);
    while (have > order) {
        have--;
        buddy_push(b, node + (1u << have), have);
    }
    b->nodes[node].order = (uint8_t)order;
    b->free_bytes -= buddy_slot_bytes(order);
    return (uint64_t)node * SLOT_BYTES_MIN;
}

bool buddy_release(struct buddy *b, uint64_t offset, uint32_t order) {
    uint32_t node = (uint32_t)(offset / SLOT_BYTES_MIN);
    assert(offset % buddy_slot_bytes(order) == 0 && node < b->node_count);
    assert(!b->nodes[node].is_free && b->nodes[node].order == order);
    if (b->nodes[node].shares > 0) {
        b->nodes[node].shares--;
        return false;
    }
    b->free_bytes += buddy_slot_bytes(order);
    while (order < b->order_max) {
        uint32_t other = node ^ (1u << order);
        if (!b->nodes[other].is_free || b->nodes[other].order != order)
            break;
        buddy_unlink(b, other);
        node &= ~(1u << order);
        order++;
    }
    buddy_push(b, node, order);
    return true;
}

void buddy_share(struct buddy *b, uint64_t offset) {
    uint32_t node = (uint32_t)(offset / SLOT_BYTES_MIN);
    assert(offset % SLOT_BYTES_MIN == 0 && node < b->node_count);
    assert(!b->nodes[node].is_free && b->nodes[node].shares < UINT16_MAX);
    b->nodes[node].shares++;
}

uint32_t buddy_order(const struct buddy *b, uint64_t bytes) {
    uint32_t order = 0;
    while (order < b->order_max && buddy_slot_bytes(order) < bytes)
        order++;
    return order;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The blocks of control.h.
 */
#include "receive/zcrx/control.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "receive/engine.h"
#include "receive/zcrx/pending.h"

/* 4096 bytes are three packets of 1448 bytes and a part of a fourth: senders that send
 * full packets have nothing copied. */
#define HELD_FRAGMENTS_MAX 8u

/* --- A block that is expected ------------------------------------------------------- */

void zcrx_block_delivered(struct receiver *r, struct connection *conn, uint64_t offset,
                          uint32_t bytes) {
    struct receive_room room = receive_block_room(conn->block);
    uint32_t chunk_bytes = conn->block->chunk_bytes;
    uint32_t taken = (uint32_t)time_min(bytes, room.bytes - chunk_bytes);
    memcpy(room.at + chunk_bytes, r->area->base + offset, taken);
    conn->block->chunk_bytes = chunk_bytes + taken;
    /* The receive is bounded by the room; a kernel that does not keep to it is not believed.
     * Behind a trailer that is too much in any case; behind a hello it would be payload. */
    if (taken < bytes && conn->phase == CONNECTION_HELLO)
        conn->error = EOVERFLOW;
    else if (taken < bytes)
        conn->block->overrun = true;
    refill_delivered(&r->zcrx.refill, offset);
    refill_return(&r->zcrx.refill, offset);
}

bool zcrx_block_ended(struct receiver *r, struct connection *conn, int result) {
    uint32_t chunk_bytes = conn->block->chunk_bytes;
    if (chunk_bytes == 0 && result == -ENOMEM && !conn->stop)
        return false;
    conn->block->chunk_bytes = 0;
    if (conn->error != 0)
        engine_report(r, conn, REPORT_BLOCK, -conn->error);
    else if (chunk_bytes > 0) /* what has ended the receive will end the next one, if it lasts */
        engine_report(r, conn, REPORT_BLOCK, (int)chunk_bytes);
    else
        engine_report(r, conn, REPORT_BLOCK,
                      result == -ENOSPC || result == -ENOMEM ? -EAGAIN : result);
    return true;
}

/* --- What may be a trailer ------------------------------------------------------------ */

/* The block's bytes are the oldest. */
static bool control_settle_block(struct receiver *r, struct connection *conn, bool all) {
    struct receive_block *s = conn->block;
    uint32_t bytes = (uint32_t)time_min(zcrx_payload_bytes(conn), s->filled);
    if (bytes == 0 || (bytes < s->filled && !all))
        return true;
    if (connection_is_behind(r->table, conn, QUEUE_BLOCKED) ||
        !storage_append_copy(r->storage, &conn->stream, s->memory, bytes))
        return false;
    s->filled -= bytes;
    memmove(s->memory, s->memory + bytes, s->filled);
    return true;
}

static bool control_settle_list(struct receiver *r, struct connection *conn, bool all) {
    while (conn->zcrx.fragment_head != ZCRX_FRAGMENT_NONE) {
        struct zcrx_fragment *n = zcrx_fragment_at(r, conn->zcrx.fragment_head);
        uint64_t left = zcrx_list_payload_bytes(conn);
        uint32_t bytes = (uint32_t)time_min(left, n->bytes);
        if (bytes == 0 || (bytes < n->bytes && !all))
            return true;
        uint32_t taken = zcrx_hand_over(r, conn, n->offset, bytes);
        if (taken == bytes && bytes < n->bytes) /* the list stays a holder of the rest */
            refill_share(&r->zcrx.refill, n->offset);
        n->offset += taken;
        n->bytes -= taken;
        if (taken < bytes)
            return false;
        if (n->bytes == 0)
            zcrx_pop(r, conn);
    }
    return true;
}

static void control_copy_list_to_block(struct receiver *r, struct connection *conn) {
    struct receive_block *s = conn->block;
    while (conn->zcrx.fragment_head != ZCRX_FRAGMENT_NONE) {
        const struct zcrx_fragment *n = zcrx_fragment_at(r, conn->zcrx.fragment_head);
        assert(!zcrx_is_copied(n->offset) && s->filled + n->bytes <= RECEIVE_BLOCK_BYTES);
        memcpy(s->memory + s->filled, r->area->base + n->offset, n->bytes);
        s->filled += n->bytes;
        zcrx_release(r, n->offset);
        zcrx_pop(r, conn);
    }
}

static bool control_list_is_long(struct receiver *r, const struct connection *conn) {
    uint32_t index = conn->zcrx.fragment_head;
    for (uint32_t i = 0; i < HELD_FRAGMENTS_MAX && index != ZCRX_FRAGMENT_NONE; i++)
        index = zcrx_fragment_at(r, index)->next;
    return index != ZCRX_FRAGMENT_NONE;
}

bool zcrx_settle_held(struct receiver *r, struct connection *conn, bool all) {
    if (!control_settle_block(r, conn, all) ||
        (conn->block->filled == 0 && !control_settle_list(r, conn, all)))
        return false;
    if (!all && !control_list_is_long(r, conn))
        return true;
    if (!control_settle_block(r, conn, true) || !control_settle_list(r, conn, true))
        return false;
    control_copy_list_to_block(r, conn);
    return true;
}

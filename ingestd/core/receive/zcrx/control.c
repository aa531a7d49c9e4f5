/* SPDX-License-Identifier: Apache-2.0
 *
 * The blocks of control.h.
 */
#include "receive/zcrx/control.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "worker.h"
#include "receive/zcrx/pending.h"

/* 4096 bytes are three packets of 1448 bytes and a part of a fourth: senders that send
 * full packets have nothing copied. */
#define HELD_FRAGMENTS_MAX 8u

/* --- A block that is expected ------------------------------------------------------- */

void zcrx_block_delivered(struct worker *w, struct flow *f, uint64_t offset, uint32_t bytes) {
    struct session_room room = session_room(f->session);
    uint32_t chunk_bytes = f->session->chunk_bytes;
    uint32_t taken = (uint32_t)time_min(bytes, room.bytes - chunk_bytes);
    memcpy(room.at + chunk_bytes, w->area.base + offset, taken);
    f->session->chunk_bytes = chunk_bytes + taken;
    /* The receive is bounded by the room; a kernel that does not keep to it is not believed.
     * Behind a trailer that is too much in any case; behind a hello it would be payload. */
    if (taken < bytes && f->phase == FLOW_HELLO)
        f->error = EOVERFLOW;
    else if (taken < bytes)
        f->session->overrun = true;
    refill_delivered(&w->zcrx.refill, offset);
    refill_return(&w->zcrx.refill, offset);
}

bool zcrx_block_ended(struct worker *w, struct flow *f, int result) {
    uint32_t chunk_bytes = f->session->chunk_bytes;
    if (chunk_bytes == 0 && result == -ENOMEM && !f->stop)
        return false;
    f->session->chunk_bytes = 0;
    if (f->error != 0)
        ingest_block_received(w, f, -f->error);
    else if (chunk_bytes > 0) /* what has ended the receive will end the next one, if it lasts */
        ingest_block_received(w, f, (int)chunk_bytes);
    else
        ingest_block_received(w, f, result == -ENOSPC || result == -ENOMEM ? -EAGAIN : result);
    return true;
}

/* --- What may be a trailer ------------------------------------------------------------ */

/* How many of the bytes received and not stored are payload, whatever comes. */
static uint64_t payload_bytes(const struct flow *f) {
    uint64_t bytes = f->received_bytes - f->stream.stored_bytes;
    return bytes > SESSION_BLOCK_BYTES ? bytes - SESSION_BLOCK_BYTES : 0;
}

uint64_t zcrx_list_payload_bytes(const struct flow *f) {
    if (!ingest_is_holding(f))
        return UINT64_MAX;
    uint64_t bytes = payload_bytes(f);
    return bytes > f->session->filled ? bytes - f->session->filled : 0;
}

/* The block's bytes are the oldest. */
static bool settle_block(struct worker *w, struct flow *f, bool all) {
    struct session *s = f->session;
    uint32_t bytes = (uint32_t)time_min(payload_bytes(f), s->filled);
    if (bytes == 0 || (bytes < s->filled && !all))
        return true;
    if (flow_is_behind(&w->flows, f, QUEUE_BLOCKED) ||
        !storage_append_copy(&w->storage, &f->stream, s->pages->block, bytes))
        return false;
    s->filled -= bytes;
    memmove(s->pages->block, s->pages->block + bytes, s->filled);
    return true;
}

static bool settle_list(struct worker *w, struct flow *f, bool all) {
    while (f->fragment_head != FLOW_NONE) {
        struct zcrx_fragment *n = zcrx_fragment_at(w, f->fragment_head);
        uint64_t left = zcrx_list_payload_bytes(f);
        uint32_t bytes = (uint32_t)time_min(left, n->bytes);
        if (bytes == 0 || (bytes < n->bytes && !all))
            return true;
        uint32_t taken = zcrx_hand_over(w, f, n->offset, bytes);
        if (taken == bytes && bytes < n->bytes) /* the list stays a holder of the rest */
            refill_share(&w->zcrx.refill, n->offset);
        n->offset += taken;
        n->bytes -= taken;
        if (taken < bytes)
            return false;
        if (n->bytes == 0)
            zcrx_pop(w, f);
    }
    return true;
}

static void copy_list_to_block(struct worker *w, struct flow *f) {
    struct session *s = f->session;
    while (f->fragment_head != FLOW_NONE) {
        const struct zcrx_fragment *n = zcrx_fragment_at(w, f->fragment_head);
        assert(!zcrx_is_copied(n->offset) && s->filled + n->bytes <= SESSION_BLOCK_BYTES);
        memcpy(s->pages->block + s->filled, w->area.base + n->offset, n->bytes);
        s->filled += n->bytes;
        zcrx_let_go(w, n->offset);
        zcrx_pop(w, f);
    }
}

static bool list_is_long(struct worker *w, const struct flow *f) {
    uint32_t index = f->fragment_head;
    for (uint32_t i = 0; i < HELD_FRAGMENTS_MAX && index != FLOW_NONE; i++)
        index = zcrx_fragment_at(w, index)->next;
    return index != FLOW_NONE;
}

bool zcrx_settle_held(struct worker *w, struct flow *f, bool all) {
    if (!settle_block(w, f, all) || (f->session->filled == 0 && !settle_list(w, f, all)))
        return false;
    if (!all && !list_is_long(w, f))
        return true;
    if (!settle_block(w, f, true) || !settle_list(w, f, true))
        return false;
    copy_list_to_block(w, f);
    return true;
}

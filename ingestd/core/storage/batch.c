/* SPDX-License-Identifier: Apache-2.0
 *
 * The batches of batch.h: what goes into the open one.
 */
#include "storage/batch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"

uint64_t batch_pool_own_bytes(uint32_t count, uint32_t bounce_bytes) {
    return (uint64_t)count * (BATCH_HEADER_BYTES_MAX + bounce_bytes);
}

static int batch_take_memory(struct batch_pool *p, struct area *a, uint32_t index) {
    struct batch *b = &p->batches[index];
    b->index = index;
    b->iov = calloc(BATCH_IOVECS_MAX, sizeof *b->iov);
    b->holds = calloc(BATCH_HOLDS_MAX, sizeof *b->holds);
    b->touches = calloc(BATCH_TOUCHES_MAX, sizeof *b->touches);
    b->header = area_own(a, BATCH_HEADER_BYTES_MAX);
    b->bounce = area_own(a, p->bounce_bytes);
    return b->iov && b->holds && b->touches ? 0 : -ENOMEM;
}

int batch_pool_open(struct batch_pool *p, struct area *a, uint32_t count) {
    int code = 0;
    p->batches = calloc(count, sizeof *p->batches);
    p->free = calloc(count, sizeof *p->free);
    if (p->batches == NULL || p->free == NULL)
        return -ENOMEM;
    p->count = count;
    for (uint32_t i = 0; i < count && code == 0; i++) {
        code = batch_take_memory(p, a, i);
        p->free[p->free_count++] = count - 1 - i;
    }
    return code;
}

void batch_pool_close(struct batch_pool *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        free(p->batches[i].iov);
        free(p->batches[i].holds);
        free(p->batches[i].touches);
    }
    free(p->batches);
    free(p->free);
    memset(p, 0, sizeof *p);
}

struct batch *batch_open(struct batch_pool *p, uint64_t now_ns, bool uses_reserve) {
    assert(p->open == NULL && p->free_count > 0);
    struct batch *b = &p->batches[p->free[--p->free_count]];
    uint32_t iovecs =
        p->profile.iovecs_max < BATCH_IOVECS_MAX ? p->profile.iovecs_max : BATCH_IOVECS_MAX;
    plan_begin(&b->plan, b->iov, iovecs, b->header, p->header_bytes_max, b->bounce, p->bounce_bytes,
               p->checksum);
    b->opened_ns = now_ns;
    b->full = b->urgent = b->flush_requested = b->placed = b->abandoned = false;
    b->uses_reserve = uses_reserve;
    b->hold_count = b->touch_count = 0;
    b->next_done = BATCH_NONE;
    p->open = b;
    return b;
}

void batch_put(struct batch_pool *p, struct batch *b) {
    assert(p->open != b && p->free_count < p->count);
    b->hold_count = b->touch_count = 0;
    p->free[p->free_count++] = b->index;
}

static void batch_note_touch(struct batch *b, struct storage_stream *t, uint32_t bytes,
                             uint32_t crc_after, uint32_t flags) {
    struct batch_touch *n = b->touch_count ? &b->touches[b->touch_count - 1] : NULL;
    if (n == NULL || n->stream != t) {
        assert(b->touch_count < BATCH_TOUCHES_MAX);
        n = &b->touches[b->touch_count++];
        *n = (struct batch_touch){
            .stream = t,
            .first_offset = t->stored_bytes,
            .end_offset = t->stored_bytes,
            .crc_before = t->crc,
        };
    }
    n->bytes += bytes;
    n->end_offset += bytes;
    n->crc_after = crc_after;
    n->flags |= flags;
}

static bool batch_add_open(struct batch *b, struct storage_stream *t) {
    assert(t->open != NULL);
    if (frame_add_open(&b->plan.frame, t->id, t->open) != 0)
        return false;
    t->opened = true;
    batch_note_touch(b, t, 0, t->crc, SPAN_HAS_OPEN);
    return true;
}

bool batch_has_room(struct batch_pool *p, struct storage_stream *t, uint32_t bytes) {
    uint32_t record_bytes = BATCH_PIECE_RECORD_BYTES;
    if (t->opened)
        return batch_has_space(p, bytes, record_bytes);
    record_bytes += frame_open_bytes(t->open); /* its texts may be long */
    return batch_has_space(p, bytes, record_bytes) && batch_add_open(p->open, t);
}

/* The planner counts bytes as direct that were copied before they were appended. */
static void batch_count_copied(struct batch *b, const struct batch_piece *piece,
                               uint64_t direct_before) {
    uint64_t direct = b->plan.direct_bytes - direct_before;
    uint64_t copied = piece->copied_bytes < direct ? piece->copied_bytes : direct;
    b->plan.bounced_bytes[piece->copied_for] += copied;
    b->plan.direct_bytes -= copied;
}

uint32_t batch_add(struct batch_pool *p, struct storage_stream *t,
                   const struct batch_piece *piece) {
    struct batch *b = p->open;
    struct plan_fragment fragment = {
        .flow = t->id,
        .stream_offset = t->stored_bytes,
        .data = piece->data,
        .bytes = piece->bytes,
        .slack = piece->slack,
        .crc = t->crc,
    };
    uint64_t direct_before = b->plan.direct_bytes;
    assert(t->opened && !b->placed && b->hold_count < p->holds_max);
    uint32_t taken = plan_add(&b->plan, &p->profile, &fragment);
    if (piece->copied_bytes > 0)
        batch_count_copied(b, piece, direct_before);
    assert(taken <= piece->bytes && (taken > 0 || !plan_is_empty(&b->plan)));
    if (taken > 0) {
        batch_note_touch(b, t, taken, fragment.crc, 0);
        trace_append(t->id, t->owner, t->stored_bytes, taken, b->index);
        b->holds[b->hold_count++] = piece->hold;
        t->crc = fragment.crc;
        t->stored_bytes += taken;
    }
    return taken;
}

bool batch_add_copy(struct batch_pool *p, struct storage_stream *t, uint8_t *data, uint32_t bytes) {
    struct batch *b = p->open;
    struct plan_fragment fragment = {
        .flow = t->id,
        .stream_offset = t->stored_bytes,
        .data = data,
        .bytes = bytes,
        .crc = t->crc,
    };
    assert(bytes <= PLAN_PAGE_BYTES && t->opened && !b->placed);
    if (!plan_copy(&b->plan, &p->profile, &fragment, BOUNCE_TRAILER)) {
        assert(!plan_is_empty(&b->plan));
        return false;
    }
    batch_note_touch(b, t, bytes, fragment.crc, 0);
    trace_append(t->id, t->owner, t->stored_bytes, bytes, b->index);
    t->crc = fragment.crc;
    t->stored_bytes += bytes;
    return true;
}

bool batch_add_close(struct batch_pool *p, struct storage_stream *t, const struct frame_close *c) {
    struct batch *b = p->open;
    struct frame_close close = *c;
    assert(t->opened && !b->placed);
    close.stream_bytes = t->stored_bytes;
    close.crc32c = t->crc;
    if (frame_add_close(&b->plan.frame, t->id, &close) != 0)
        return false;
    batch_note_touch(b, t, 0, t->crc, SPAN_HAS_CLOSE);
    b->urgent = true;
    return true;
}

void batch_rewind(struct batch *b) {
    assert(!b->placed && !b->abandoned);
    for (uint32_t i = b->touch_count; i-- > 0;) {
        const struct batch_touch *n = &b->touches[i];
        n->stream->stored_bytes = n->first_offset;
        n->stream->crc = n->crc_before;
        if (n->flags & SPAN_HAS_OPEN)
            n->stream->opened = false;
    }
    b->abandoned = true;
}

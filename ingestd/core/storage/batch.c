/* SPDX-License-Identifier: Apache-2.0
 *
 * The batches of batch.h: filling the open one and deciding when it closes.
 */
#include "storage/batch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker.h"

/* While this many batches are being written, urgent bytes gather in the open
 * one: the device is busy anyway, and what gathers shares a write and a flush. */
#define URGENT_WRITES_MAX 2u

uint64_t batch_pool_own_bytes(uint32_t count, uint32_t bounce_bytes) {
    return (uint64_t)count * (BATCH_HEADER_BYTES_MAX + bounce_bytes);
}

static int batch_open_memory(struct worker *w, struct batch *b, uint32_t index) {
    b->index = index;
    b->iov = calloc(BATCH_IOVECS_MAX, sizeof *b->iov);
    b->holds = calloc(BATCH_HOLDS_MAX, sizeof *b->holds);
    b->touches = calloc(BATCH_TOUCHES_MAX, sizeof *b->touches);
    b->header = area_own(&w->area, BATCH_HEADER_BYTES_MAX);
    b->bounce = area_own(&w->area, w->batches.bounce_bytes);
    return b->iov && b->holds && b->touches ? 0 : -ENOMEM;
}

int batch_pool_open(struct worker *w, uint32_t count) {
    struct batch_pool *p = &w->batches;
    int code = 0;
    p->batches = calloc(count, sizeof *p->batches);
    p->free = calloc(count, sizeof *p->free);
    if (p->batches == NULL || p->free == NULL)
        return fault_set(&w->reactor.fault, ENOMEM, "calloc", "batches");
    p->count = count;
    for (uint32_t i = 0; i < count && code == 0; i++) {
        code = batch_open_memory(w, &p->batches[i], i);
        p->free[p->free_count++] = count - 1 - i;
    }
    return code < 0 ? fault_set(&w->reactor.fault, -code, "calloc", "batches") : 0;
}

void batch_pool_close(struct worker *w) {
    struct batch_pool *p = &w->batches;
    for (uint32_t i = 0; i < p->count; i++) {
        free(p->batches[i].iov);
        free(p->batches[i].holds);
        free(p->batches[i].touches);
    }
    free(p->batches);
    free(p->free);
    memset(p, 0, sizeof *p);
}

static struct batch *open_batch(struct worker *w) {
    struct batch_pool *p = &w->batches;
    if (p->open != NULL || p->free_count == 0 || w->writer.failed)
        return p->open;
    struct batch *b = &p->batches[p->free[--p->free_count]];
    uint32_t iovecs =
        p->profile.iovecs_max < BATCH_IOVECS_MAX ? p->profile.iovecs_max : BATCH_IOVECS_MAX;
    plan_begin(&b->plan, b->iov, iovecs, b->header, p->header_bytes_max, b->bounce, p->bounce_bytes,
               w->settings.checksum);
    b->opened_ns = w->reactor.now_ns;
    b->full = b->urgent = b->hurried = b->placed = false;
    b->rescued = w->writer.exhausted;
    b->hold_count = b->touch_count = 0;
    p->open = b;
    return b;
}

/* Tries to place the open batch; true when a new one may be opened. */
static bool close_open(struct worker *w) {
    struct batch *b = w->batches.open;
    b->full = true;
    if (!writer_place(w, b))
        return false;
    w->batches.open = NULL;
    return true;
}

static void touch(struct batch *b, const struct flow *f, uint32_t bytes, uint32_t crc_before,
                  uint32_t crc_after, uint32_t flags) {
    struct batch_touch *t = b->touch_count ? &b->touches[b->touch_count - 1] : NULL;
    if (t == NULL || t->flow != f->index) {
        assert(b->touch_count < BATCH_TOUCHES_MAX);
        t = &b->touches[b->touch_count++];
        *t = (struct batch_touch){
            .flow = f->index,
            .first_offset = f->stored_bytes,
            .end_offset = f->stored_bytes,
            .crc_before = crc_before,
        };
    }
    t->bytes += bytes;
    t->end_offset += bytes;
    t->crc_after = crc_after;
    t->flags |= flags;
}

static bool add_open_record(struct worker *w, struct batch *b, struct flow *f) {
    const struct listener *l = &w->listeners[f->listener];
    struct frame_open o = {
        .started_ns = f->started_ns,
        .peer_port = f->peer_port,
        .peer_family = f->peer_family,
        .protocol = (uint8_t)l->protocol,
        .stream_offset = f->base_bytes,
        .listener = l->name,
        .listener_bytes = (uint16_t)strlen(l->name),
    };
    if (f->session != NULL) {
        o.name = f->session->pages->name;
        o.name_bytes = f->session->name_bytes;
        o.labels = f->session->pages->labels;
        o.labels_bytes = f->session->labels_bytes;
    }
    memcpy(o.peer_address, f->peer_address, sizeof o.peer_address);
    if (frame_add_open(&b->plan.frame, f->id, &o) != 0)
        return false;
    f->opened = true;
    touch(b, f, 0, f->crc, f->crc, SPAN_HAS_OPEN);
    return true;
}

/* The open batch, with the flow's OPEN record written and room for its bytes. */
static struct batch *batch_for(struct worker *w, struct flow *f, uint32_t bytes) {
    const struct batch_pool *p = &w->batches;
    /* A fragment may make three extents (head, body, tail), and a CLOSE may follow. */
    uint32_t records = 3 * sizeof(struct record_extent) + sizeof(struct record_close);
    if (flow_is_behind(&w->flows, f, QUEUE_BLOCKED))
        return NULL;        /* what room there is belongs to those who waited for it */
    if (f->session != NULL) /* its texts may be long: what they leave must do for the rest */
        records += sizeof(struct record_open) + RECORD_TEXT_BYTES_MAX;
    for (;;) {
        struct batch *b = open_batch(w);
        if (b == NULL)
            return NULL;
        bool room = !b->full && b->touch_count < BATCH_TOUCHES_MAX - 1 &&
                    b->hold_count < p->holds_max &&
                    b->plan.iov_count + PLAN_IOVECS_MIN <= b->plan.iov_capacity;
        room = room && (plan_is_empty(&b->plan) || bytes == 0 ||
                        b->plan.payload_end + bytes <= p->payload_bytes_max);
        room = room && frame_has_room(&b->plan.frame, records);
        room = room && (f->opened || add_open_record(w, b, f));
        if (room)
            return b;
        if (!close_open(w))
            return NULL;
    }
}

uint32_t batch_add(struct worker *w, struct flow *f, uint8_t *data, uint32_t bytes, uint32_t slack,
                   uint64_t hold) {
    struct plan_fragment fragment = {
        .flow = f->id,
        .stream_offset = f->stored_bytes,
        .data = data,
        .bytes = bytes,
        .slack = slack,
        .crc = f->crc,
    };
    struct batch *b = batch_for(w, f, bytes);
    if (b == NULL || b->rescued)
        return 0;
    uint64_t direct_before = b->plan.direct_bytes;
    uint32_t taken = plan_add(&b->plan, &w->batches.profile, &fragment);
    if (hold & BATCH_HOLD_COPIED) { /* direct for the planner, but copied before */
        b->plan.bounced_bytes[BOUNCE_PRESSURE] += b->plan.direct_bytes - direct_before;
        b->plan.direct_bytes = direct_before;
    }
    if (f->slot_copied > 0) {
        uint64_t direct = b->plan.direct_bytes - direct_before;
        uint64_t copied = f->slot_copied < direct ? f->slot_copied : direct;
        b->plan.bounced_bytes[BOUNCE_TRAILER] += copied;
        b->plan.direct_bytes -= copied;
    }
    assert(taken <= bytes && (taken > 0 || !plan_is_empty(&b->plan)));
    if (taken > 0) {
        touch(b, f, taken, f->crc, fragment.crc, 0);
        b->holds[b->hold_count++] = hold;
        f->crc = fragment.crc;
        f->stored_bytes += taken;
    }
    if (b->plan.payload_end >= w->batches.payload_bytes_max || taken < bytes ||
        b->hold_count >= w->batches.holds_max)
        close_open(w);
    return taken;
}

bool batch_copy(struct worker *w, struct flow *f, uint8_t *data, uint32_t bytes) {
    struct plan_fragment fragment = {
        .flow = f->id,
        .stream_offset = f->stored_bytes,
        .data = data,
        .bytes = bytes,
        .crc = f->crc,
    };
    assert(bytes <= PLAN_PAGE_BYTES);
    for (;;) {
        struct batch *b = batch_for(w, f, bytes);
        if (b == NULL || b->rescued)
            return false;
        if (plan_copy(&b->plan, &w->batches.profile, &fragment, BOUNCE_TRAILER)) {
            touch(b, f, bytes, f->crc, fragment.crc, 0);
            break;
        }
        assert(!plan_is_empty(&b->plan));
        if (!close_open(w))
            return false;
    }
    f->crc = fragment.crc;
    f->stored_bytes += bytes;
    return true;
}

bool batch_add_close(struct worker *w, struct flow *f) {
    struct batch *b = batch_for(w, f, 0);
    if (b == NULL)
        return false;
    struct frame_close c = {
        .stream_bytes = f->stored_bytes,
        .ended_ns = reactor_unix_ns(&w->reactor),
        .state = f->state,
        .reason = f->reason,
        .flags = f->checksummed ? CLOSE_HAS_CRC32C : 0,
        .crc32c = f->crc,
    };
    if (f->session != NULL && f->session->has_sender_crc) {
        c.flags |= CLOSE_HAS_SENDER_CRC32C;
        c.sender_crc32c = f->session->sender_crc;
    }
    if (frame_add_close(&b->plan.frame, f->id, &c) != 0)
        return false;
    touch(b, f, 0, f->crc, f->crc, SPAN_HAS_CLOSE);
    b->urgent = true;
    return true;
}

uint64_t batch_turn(struct worker *w) {
    struct batch *b = w->batches.open;
    if (b == NULL || b->touch_count == 0)
        return TIME_NEVER;
    uint64_t due_ns = b->opened_ns + w->settings.flush_interval_ns;
    bool urgent = b->urgent && w->device.batches_in_flight < URGENT_WRITES_MAX;
    if (b->full || b->hurried || urgent || w->reactor.now_ns >= due_ns) {
        close_open(w);
        return TIME_NEVER; /* what it waits for, if it does, wakes the loop */
    }
    return due_ns;
}

static void release_holds(struct worker *w, struct batch *b) {
    for (uint32_t i = 0; i < b->hold_count; i++)
        w->engine->release(w, b->holds[i]);
    b->hold_count = 0;
}

void batch_release(struct worker *w, struct batch *b) {
    assert(w->batches.open != b && w->batches.free_count < w->batches.count);
    release_holds(w, b);
    w->batches.free[w->batches.free_count++] = b->index;
}

void batch_hurry(struct worker *w) {
    if (w->batches.open != NULL)
        w->batches.open->hurried = true;
}

void batch_abandon(struct worker *w) {
    struct batch *b = w->batches.open;
    if (b == NULL)
        return;
    w->batches.open = NULL;
    for (uint32_t i = b->touch_count; i-- > 0;) {
        const struct batch_touch *t = &b->touches[i];
        struct flow *f = &w->flows.flows[t->flow];
        f->stored_bytes = t->first_offset;
        f->crc = t->crc_before;
        if (t->flags & SPAN_HAS_OPEN)
            f->opened = false;
        if (t->flags & SPAN_HAS_CLOSE)
            intake_unclosed(w, f);
    }
    batch_release(w, b);
}

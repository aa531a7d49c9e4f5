/* SPDX-License-Identifier: Apache-2.0
 *
 * The storage of storage.h: when batches close, the handling of a full or failed store, and
 * the news.
 */
#include "storage/storage.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/trace.h"

/* While this many batches are being written, urgent bytes gather in the open
 * one: the device is busy anyway, and what gathers shares a write and a flush. */
#define URGENT_WRITES_MAX 2u
#define SEGMENT_BATCHES_MIN 16u
/* Of each batch's memory, where pieces lie in slots: locked, and times the writes in flight. */
#define SLOT_COPIES_BYTES_MAX (64u << 10)

/* --- Memory ------------------------------------------------------------------------- */

static uint64_t storage_power_below(uint64_t value) {
    uint64_t power = 1;
    while (power * 2 <= value)
        power *= 2;
    return power;
}

static uint32_t storage_batch_count(const struct storage *s) {
    return s->settings.writes_in_flight_max + 1; /* one is filled meanwhile */
}

/* A piece in a slot begins on a page, and is padded in place up to its edge, or copied behind
 * the copies of others. Padding writes up to an edge of zeros, copying costs a memcpy: below half
 * an edge a batch of padded pieces would be more zeros than payload. */
static uint32_t storage_copy_below(const struct storage_settings *settings) {
    uint32_t half_edge = settings->mem_align / 2;
    bool gathers = settings->any_address || half_edge < PLAN_GATHER_BYTES_MIN;
    return gathers ? PLAN_GATHER_BYTES_MIN : half_edge;
}

/* The copies that a batch has room for. Pieces that begin and end anywhere bounce a head and a
 * tail each, or everything where the device has a virtual boundary that they do not respect. Of
 * those in slots only the short ones are copied: a batch that has no room for more of them is
 * large enough that its header and a write cost little. */
static uint32_t storage_bounce_bytes(const struct storage *s) {
    const struct plan_profile *p = &s->batches.profile;
    uint64_t most = SLOT_COPIES_BYTES_MAX;
    if (s->settings.any_address)
        most = p->virt_mask != 0 ? s->batches.payload_bytes_max
                                 : 2ull * (p->mem_align + PLAN_GATHER_BYTES_MIN) * BATCH_HOLDS_MAX;
    uint64_t bytes = plan_bounce_bytes_min(p) + time_min(most, s->batches.payload_bytes_max);
    return (uint32_t)((bytes + AREA_PAGE_BYTES - 1) / AREA_PAGE_BYTES * AREA_PAGE_BYTES);
}

bool storage_init(struct storage *s, const struct storage_settings *settings) {
    *s = (struct storage){
        .settings = *settings,
        .retry_deadline_ns = TIME_NEVER,
        .done_head = BATCH_NONE,
        .done_tail = BATCH_NONE,
    };
    uint64_t payload_max = segment_batch_bytes_max(settings->segment_bytes, settings->block_bytes) -
                           2 * BATCH_HEADER_BYTES_MAX;
    /* A batch is placed whole: small segments would end half empty. */
    uint64_t share = storage_power_below(settings->segment_bytes / SEGMENT_BATCHES_MIN);
    payload_max = time_min(payload_max, time_min(share, settings->payload_bytes_max));
    struct batch_pool *b = &s->batches;
    b->payload_bytes_max = payload_max;
    b->header_bytes_max = segment_header_bytes_max(settings->segment_bytes, settings->block_bytes);
    b->holds_max = BATCH_HOLDS_MAX;
    b->checksum = settings->checksum;
    b->profile = (struct plan_profile){
        .mem_align = settings->mem_align,
        .block_bytes = settings->block_bytes,
        .virt_mask = settings->virt_mask,
        .iovecs_max = settings->iovecs_max,
        .batch_bytes_max = (uint32_t)payload_max + 2 * BATCH_HEADER_BYTES_MAX,
        .copy_below = storage_copy_below(settings),
    };
    b->bounce_bytes = storage_bounce_bytes(s);
    return plan_profile_is_usable(&b->profile, b->header_bytes_max, BATCH_IOVECS_MAX) &&
           b->profile.iovecs_max >= BATCH_IOVECS_MIN;
}

uint64_t storage_own_bytes(const struct storage *s) {
    return batch_pool_own_bytes(storage_batch_count(s), s->batches.bounce_bytes) +
           writer_own_bytes(&s->settings);
}

int storage_open(struct storage *s, struct reactor *r, struct area *a) {
    uint32_t count = storage_batch_count(s);
    s->reactor = r;
    s->area = a;
    if (batch_pool_open(&s->batches, a, count) < 0)
        return fault_set(&r->fault, ENOMEM, "calloc", "batches");
    int code = device_open(s, count + WRITER_WRITES_COUNT);
    if (code == 0 && writer_open(s) < 0)
        code = fault_set(&r->fault, ENOMEM, "calloc", "segments");
    return code;
}

void storage_close(struct storage *s) {
    device_close(s);
    writer_close(s);
    batch_pool_close(&s->batches);
}

void storage_bound(struct storage *s, uint32_t holds_max, uint32_t writes_in_flight_max) {
    assert(holds_max > 0 && writes_in_flight_max > 0);
    if (holds_max < s->batches.holds_max)
        s->batches.holds_max = holds_max;
    if (writes_in_flight_max < s->settings.writes_in_flight_max)
        s->settings.writes_in_flight_max = writes_in_flight_max;
}

/* --- Taking bytes --------------------------------------------------------------------- */

static struct batch *storage_open_batch(struct storage *s) {
    struct batch_pool *p = &s->batches;
    if (p->open != NULL || p->free_count == 0 || s->state == STORAGE_FAILED)
        return p->open;
    return batch_open(p, s->reactor->now_ns, storage_is_exhausted(s));
}

/* Tries to place the open batch; true when a new one may be opened. What has found no place is
 * tried again only when something has changed: a completion, a commit, an acknowledgement taken,
 * a segment granted, or the store's state. */
static bool storage_close_batch(struct storage *s) {
    struct batch *b = s->batches.open;
    assert(b->full || !s->place_waits);
    if (s->place_waits)
        return false;
    b->full = true;
    s->place_waits = !writer_place(s, b);
    if (s->place_waits)
        return false;
    s->batches.open = NULL;
    return true;
}

/* The open batch, with the stream's OPEN record written and room for its bytes. The reserve
 * is for CLOSE records alone. */
static struct batch *storage_batch_for(struct storage *s, struct storage_stream *t, uint32_t bytes,
                                       bool closes) {
    for (;;) {
        struct batch *b = storage_open_batch(s);
        if (b == NULL || (b->uses_reserve && !closes))
            return NULL;
        if (batch_has_room(&s->batches, t, bytes))
            return b;
        if (!storage_close_batch(s))
            return NULL;
    }
}

/* The open batch had no memory left to copy the piece into: the next one has. */
static uint32_t storage_append_anew(struct storage *s, struct storage_stream *t,
                                    const struct batch_piece *piece) {
    if (!storage_close_batch(s) || storage_batch_for(s, t, piece->bytes, false) == NULL)
        return 0;
    uint32_t taken = batch_add(&s->batches, t, piece);
    assert(taken > 0); /* an empty batch takes the first part of any piece */
    return taken;
}

uint32_t storage_append(struct storage *s, struct storage_stream *t,
                        const struct batch_piece *piece) {
    struct batch_pool *p = &s->batches;
    struct batch *b = p->open;
    /* Of a flow's fragments nearly all find the open batch with room, and nothing else to do. */
    if (b == NULL || b->uses_reserve || !t->opened ||
        !batch_has_space(p, piece->bytes, BATCH_PIECE_RECORD_BYTES))
        b = storage_batch_for(s, t, piece->bytes, false);
    if (b == NULL)
        return 0;
    uint32_t taken = batch_add(p, t, piece);
    if (taken == 0)
        return storage_append_anew(s, t, piece);
    if (b->plan.payload_end >= p->payload_bytes_max || taken < piece->bytes ||
        b->hold_count >= p->holds_max)
        storage_close_batch(s);
    return taken;
}

bool storage_append_copy(struct storage *s, struct storage_stream *t, uint8_t *data,
                         uint32_t bytes) {
    for (;;) {
        if (storage_batch_for(s, t, bytes, false) == NULL)
            return false;
        if (batch_add_copy(&s->batches, t, data, bytes))
            return true;
        if (!storage_close_batch(s))
            return false;
    }
}

bool storage_append_close(struct storage *s, struct storage_stream *t,
                          const struct frame_close *c) {
    struct frame_close close = *c;
    if (storage_batch_for(s, t, 0, true) == NULL)
        return false;
    close.ended_ns = reactor_unix_ns(s->reactor);
    return batch_add_close(&s->batches, t, &close);
}

void storage_request_flush(struct storage *s) {
    if (s->batches.open != NULL)
        s->batches.open->flush_requested = true;
}

/* --- Full and failed stores ------------------------------------------------------------ */

void storage_grant(struct storage *s, uint32_t segment_index, uint64_t sequence) {
    s->place_waits = false;
    writer_grant(s, segment_index, sequence);
}

void storage_note_full(struct storage *s) {
    s->place_waits = false;
    if (s->state == STORAGE_READY)
        s->state = STORAGE_FULL;
}

/* The batch waits until its holds are taken back, and then is free. */
static void storage_note_done(struct storage *s, struct batch *b) {
    assert(s->batches.open != b && b->next_done == BATCH_NONE);
    if (s->done_tail == BATCH_NONE)
        s->done_head = b->index;
    else
        s->batches.batches[s->done_tail].next_done = b->index;
    s->done_tail = b->index;
}

/* Drops what the open batch has, as if never taken. */
static void storage_abandon(struct storage *s) {
    struct batch *b = s->batches.open;
    if (b == NULL)
        return;
    s->batches.open = NULL;
    s->place_waits = false;
    batch_rewind(b);
    storage_note_done(s, b);
}

void storage_fail(struct storage *s, int code, enum storage_failure what, uint64_t offset) {
    assert(code > 0);
    if (s->state == STORAGE_FAILED)
        return;
    s->state = STORAGE_FAILED;
    s->error = code;
    s->failed_pending = true;
    STAT_SET(s->reactor, store_errno, code);
    reactor_event(s->reactor, (struct event_detail){.kind = EVENT_STORE_FAILED,
                                                    .store_failure = {code, what, offset}});
    writer_drop_acks(s);
    storage_abandon(s);
}

/* Drops what a full store could not take. */
static void storage_settle(struct storage *s) {
    const struct batch *b = s->batches.open;
    if (!storage_is_exhausted(s) || b == NULL || !b->full)
        return;
    if (b->uses_reserve && s->state != STORAGE_RESERVE_EXHAUSTED)
        return; /* it only waits for its turn to be written */
    storage_abandon(s);
    s->full_pending = true;
}

void storage_finish(struct storage *s, bool wanted) {
    s->writer.closing = wanted;
}

/* --- Completions and turns ---------------------------------------------------------------- */

static void storage_write_done(struct storage *s, const struct device_write *d) {
    if (d->kind != DEVICE_BATCH) {
        writer_write_done(s, d);
        return;
    }
    struct batch *b = &s->batches.batches[d->owner];
    writer_batch_done(s, b);
    trace_write_done(b->index, b->item, d->submitted_ns);
    storage_note_done(s, b);
}

void storage_complete(struct storage *s, enum uring_tag tag, uint32_t index, int result) {
    s->place_waits = false;
    if (tag == TAG_WRITE) {
        struct device_result r = device_complete(s, index, result);
        if (r.outcome == DEVICE_FAILED)
            storage_fail(s, r.error, FAILED_WRITE, r.write->offset);
        if (r.outcome != DEVICE_AGAIN)
            storage_write_done(s, r.write);
    } else if (tag == TAG_RETRY) {
        device_retry(s, index);
    } else {
        int error = device_flush_complete(s, result);
        if (error != 0)
            storage_fail(s, error, FAILED_FLUSH, 0);
        else
            writer_flush_done(s);
    }
}

static uint64_t storage_place_due(struct storage *s) {
    const struct batch *b = s->batches.open;
    if (b == NULL || b->touch_count == 0)
        return TIME_NEVER;
    uint64_t due_ns = b->opened_ns + s->settings.flush_interval_ns;
    bool urgent = b->urgent && s->device.batches_in_flight < URGENT_WRITES_MAX;
    if (!b->full && !b->flush_requested && !urgent && s->reactor->now_ns < due_ns)
        return due_ns;
    storage_close_batch(s);
    return TIME_NEVER; /* what it waits for, if it does, wakes the loop */
}

void storage_place_full(struct storage *s) {
    assert(s->batches.open->full && !s->place_waits);
    if (s->batches.open->touch_count > 0)
        storage_close_batch(s);
}

static void storage_publish(struct storage *s) {
    STAT_SET(s->reactor, writes_in_flight, s->device.batches_in_flight);
    STAT_SET(s->reactor, segments_ready, s->writer.ready_count);
    STAT_SET(s->reactor, store_is_full, storage_is_exhausted(s));
    device_publish_age(s);
}

/* A flush may be complete. False: of a file that was deleted or cut off all writes succeed,
 * and so did this one's. */
static bool storage_commit(struct storage *s) {
    int code = device_lost(s);
    if (code != 0)
        storage_fail(s, code, FAILED_LOST, 0);
    else
        writer_commit(s);
    s->place_waits = false;
    return code == 0;
}

uint64_t storage_turn(struct storage *s) {
    uint64_t next_ns = storage_place_due(s);
    bool place_waits = false;
    storage_settle(s);
    if (s->state != STORAGE_FAILED && writer_is_flushed(s) && storage_commit(s)) {
        /* What the open batch waited for may be there now, and wakes nobody. */
        place_waits = s->batches.open != NULL && s->batches.open->full;
    }
    if (s->state != STORAGE_FAILED)
        next_ns = time_min(next_ns, writer_turn(s));
    storage_publish(s);
    return place_waits ? s->reactor->now_ns : next_ns;
}

/* --- News ------------------------------------------------------------------------------ */

/* Of the oldest batch that is done: each CLOSE record that was dropped with it, then its
 * holds. The next call frees it. */
static bool storage_batch_news(struct storage *s, struct storage_news *out) {
    struct batch *b = &s->batches.batches[s->done_head];
    while (b->abandoned && s->done_touch < b->touch_count) {
        const struct batch_touch *n = &b->touches[b->touch_count - ++s->done_touch];
        if (n->flags & SPAN_HAS_CLOSE) {
            *out = (struct storage_news){.kind = NEWS_UNDONE, .stream = n->stream};
            return true;
        }
    }
    if (b->hold_count > 0) {
        *out = (struct storage_news){
            .kind = NEWS_RELEASED, .holds = b->holds, .hold_count = b->hold_count};
        b->hold_count = 0;
        return true;
    }
    s->done_head = b->next_done;
    if (s->done_head == BATCH_NONE)
        s->done_tail = BATCH_NONE;
    s->done_touch = 0;
    batch_put(&s->batches, b);
    return false;
}

bool storage_next_news(struct storage *s, struct storage_news *out) {
    struct ack a;
    while (s->done_head != BATCH_NONE)
        if (storage_batch_news(s, out))
            return true;
    if (s->failed_pending || s->full_pending) {
        *out = (struct storage_news){.kind = s->failed_pending ? NEWS_FAILED : NEWS_FULL};
        *(s->failed_pending ? &s->failed_pending : &s->full_pending) = false;
        return true;
    }
    if (!writer_take_ack(s, &a))
        return false;
    s->place_waits = false;
    *out = (struct storage_news){.kind = a.closes ? NEWS_CLOSED : NEWS_DURABLE, .stream = a.stream};
    return true;
}

bool storage_is_finished(const struct storage *s) {
    return s->writer.closing && s->batches.open == NULL && writer_is_idle(s);
}

bool storage_is_behind(const struct storage *s) {
    return s->device.batches_in_flight >= s->settings.writes_in_flight_max ||
           (s->batches.open != NULL && s->batches.open->full) || s->batches.free_count == 0;
}

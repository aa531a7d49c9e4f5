/* SPDX-License-Identifier: Apache-2.0
 *
 * The writer of writer.h: segments, places, commits.
 */
#include "storage/writer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker.h"

static uint32_t span_capacity(uint64_t segment_bytes) {
    return segment_footer_bytes_max(segment_bytes) / (uint32_t)sizeof(struct record_span);
}

uint64_t writer_own_bytes(uint64_t segment_bytes, uint32_t block_bytes) {
    uint64_t one = segment_footer_bytes_max(segment_bytes) + 2ull * block_bytes;
    return SEGMENTS_LIVE_MAX * (one + 3ull * AREA_PAGE_BYTES);
}

static int open_live(struct worker *w, struct live_segment *l, uint32_t index) {
    const struct worker_settings *s = &w->settings;
    struct device_write *writes = &w->device.writes[w->batches.count + 3 * index];
    l->header = area_own(&w->area, s->block_bytes);
    l->mark = area_own(&w->area, s->block_bytes);
    l->segment.footer = area_own(&w->area, segment_footer_bytes_max(s->segment_bytes));
    l->segment.spans = calloc(span_capacity(s->segment_bytes), sizeof *l->segment.spans);
    l->header_write = &writes[0];
    l->mark_write = &writes[1];
    l->footer_write = &writes[2];
    l->header_write->kind = DEVICE_SEGMENT_HEADER;
    l->mark_write->kind = DEVICE_MARK;
    l->footer_write->kind = DEVICE_FOOTER;
    /* With checksums a torn batch gives itself away; the mark then only helps readers. */
    l->mark_write->stable = !s->checksum;
    for (int i = 0; i < 3; i++)
        writes[i].owner = index;
    return l->segment.spans ? 0 : -ENOMEM;
}

int writer_open(struct worker *w) {
    struct writer *x = &w->writer;
    int code = 0;
    commit_init(&x->commit);
    x->item_end = calloc(UNCOMMITTED_ITEMS_MAX, sizeof *x->item_end);
    x->item_begun = calloc(UNCOMMITTED_ITEMS_MAX, sizeof *x->item_begun);
    x->acks = calloc(ACKS_MAX, sizeof *x->acks);
    if (x->item_end == NULL || x->item_begun == NULL || x->acks == NULL)
        code = -ENOMEM;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX && code == 0; i++)
        code = open_live(w, &x->live[i], i);
    return code < 0 ? fault_set(&w->reactor.fault, -code, "calloc", "segments") : 0;
}

void writer_close(struct worker *w) {
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++)
        free(w->writer.live[i].segment.spans);
    free(w->writer.item_end);
    free(w->writer.item_begun);
    free(w->writer.acks);
}

void writer_grant(struct worker *w, uint32_t index, uint64_t sequence) {
    struct writer *x = &w->writer;
    assert(x->ready_count < SEGMENTS_READY_MAX);
    x->ready[x->ready_count].index = index;
    x->ready[x->ready_count].sequence = sequence;
    x->ready_count++;
    x->full = x->exhausted = x->speechless = false;
}

/* The oldest grant becomes the segment being filled; false when there is none,
 * or all live segments still wait for their commits. */
static bool open_segment(struct worker *w) {
    struct writer *x = &w->writer;
    const struct worker_settings *s = &w->settings;
    struct live_segment *l = NULL;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX && l == NULL; i++)
        if (x->live[i].state == LIVE_NONE)
            l = &x->live[i];
    if (l == NULL || x->ready_count == 0 || !commit_has_room(&x->commit))
        return false;
    uint32_t index = x->ready[0].index;
    uint64_t sequence = x->ready[0].sequence;
    memmove(&x->ready[0], &x->ready[1], --x->ready_count * sizeof x->ready[0]);
    segment_open(&l->segment, index, sequence, s->segments_offset + index * s->segment_bytes,
                 s->segment_bytes, s->block_bytes, l->segment.footer,
                 segment_footer_bytes_max(s->segment_bytes), l->segment.spans,
                 span_capacity(s->segment_bytes));
    memset(l->header, 0, s->block_bytes);
    frame_segment_header((void *)l->header, s->store_uuid, sequence, index, s->worker_index,
                         reactor_unix_ns(&w->reactor));
    l->state = LIVE_FILLING;
    l->header_item = commit_begin(&x->commit);
    x->filling = l;
    device_submit_single(w, l->header_write, l->header, s->block_bytes, l->segment.offset);
    STAT_ADD(&w->reactor, header_bytes, s->block_bytes);
    STAT_ADD(&w->reactor, segments_used, 1);
    reactor_event(&w->reactor, EVENT_SEGMENT_OPENED, (int)index, 0, sequence);
    mailbox_want_grant(&w->reactor.mailbox);
    return true;
}

static void close_filling(struct writer *x) {
    x->filling->state = LIVE_CLOSING;
    x->filling = NULL;
}

/* Finds a segment with room: the one being filled, or a new one. */
static struct live_segment *segment_for(struct worker *w, const struct batch *b) {
    struct writer *x = &w->writer;
    uint64_t bytes = plan_bytes(&b->plan, &w->batches.profile);
    uint32_t records = b->plan.frame.used;
    bool last = x->full && x->ready_count == 0;
    uint32_t reserve = last && !b->rescued ? segment_reserve_bytes(w->settings.segment_bytes) : 0;
    if (x->filling && segment_fits(&x->filling->segment, bytes, records, reserve))
        return x->filling;
    if (last && b->rescued)
        x->speechless = true;
    if (last && !x->exhausted) {
        x->exhausted = true;
        reactor_event(&w->reactor, EVENT_STORE_FULL, 0, 0, 0);
    }
    if (last || x->ready_count == 0)
        return NULL; /* what is being filled is kept open: last words may still fit */
    if (x->filling)
        close_filling(x);
    if (!open_segment(w))
        return NULL;
    assert(segment_fits(&x->filling->segment, bytes, records, 0));
    return x->filling;
}

static void push_ack(struct worker *w, const struct batch_touch *t, uint64_t item) {
    struct writer *x = &w->writer;
    assert(x->ack_tail - x->ack_head < ACKS_MAX);
    x->acks[x->ack_tail++ % ACKS_MAX] = (struct ack){
        .item = item,
        .end_offset = t->end_offset,
        .flow = t->flow,
        .bytes = t->bytes,
        .closes = (t->flags & SPAN_HAS_CLOSE) != 0,
    };
    w->flows.flows[t->flow].acks_pending++;
}

static void note_touches(struct worker *w, struct segment *s, const struct batch *b,
                         uint64_t item) {
    for (uint32_t i = 0; i < b->touch_count; i++) {
        const struct batch_touch *t = &b->touches[i];
        struct flow *f = &w->flows.flows[t->flow];
        struct segment_touch n = {
            .flow = f->id,
            .first_offset = t->first_offset,
            .end_offset = t->end_offset,
            .crc_before = t->crc_before,
            .crc_after = t->crc_after,
            .flags = t->flags,
        };
        segment_note_touch(s, &f->span, &n);
        push_ack(w, t, item);
    }
}

static void account(struct worker *w, const struct batch *b) {
    const struct plan_batch *p = &b->plan;
    STAT_ADD(&w->reactor, batches, 1);
    STAT_ADD(&w->reactor, header_bytes, p->iov[0].iov_len);
    STAT_ADD(&w->reactor, direct_bytes, p->direct_bytes);
    STAT_ADD(&w->reactor, padding_bytes, p->padding_bytes);
    STAT_ADD(&w->reactor, bounced_head_bytes, p->bounced_bytes[BOUNCE_HEAD]);
    STAT_ADD(&w->reactor, bounced_tail_bytes, p->bounced_bytes[BOUNCE_TAIL]);
    STAT_ADD(&w->reactor, bounced_small_bytes, p->bounced_bytes[BOUNCE_SMALL]);
    STAT_ADD(&w->reactor, bounced_boundary_bytes, p->bounced_bytes[BOUNCE_BOUNDARY]);
    STAT_ADD(&w->reactor, bounced_pressure_bytes, p->bounced_bytes[BOUNCE_PRESSURE]);
    STAT_ADD(&w->reactor, bounced_trailer_bytes, p->bounced_bytes[BOUNCE_TRAILER]);
}

bool writer_place(struct worker *w, struct batch *b) {
    struct writer *x = &w->writer;
    bool room = w->device.batches_in_flight < w->settings.writes_in_flight_max &&
                commit_has_room(&x->commit) &&
                x->commit.next_item - x->commit.committed_upto < UNCOMMITTED_ITEMS_MAX - 2 &&
                ACKS_MAX - (x->ack_tail - x->ack_head) > b->touch_count;
    struct live_segment *l = room && !x->failed ? segment_for(w, b) : NULL;
    if (l == NULL || !commit_has_room(&x->commit)) {
        /* What is missing (a live segment, room for acknowledgements) may hang on
         * a commit that nobody waits for yet. */
        if (x->commit.next_item > x->commit.committed_upto)
            commit_want(&x->commit, x->commit.next_item - 1);
        return false;
    }
    struct segment *s = &l->segment;
    struct frame_batch info = {
        .store_uuid = w->settings.store_uuid,
        .segment_sequence = s->sequence,
        .batch_index = s->batch_count,
        .batches_committed = s->committed_batches,
        .flags = w->settings.checksum ? BATCH_HAS_CRC32C : 0,
        .made_ns = reactor_unix_ns(&w->reactor),
    };
    uint64_t bytes = plan_finish(&b->plan, &w->batches.profile, &info);
    b->item = commit_begin(&x->commit);
    segment_note_records(s, b->header);
    note_touches(w, s, b, b->item);
    uint64_t offset = s->offset + s->end_bytes;
    segment_append(s, bytes, b->plan.frame.payload_bytes);
    x->item_end[b->item % UNCOMMITTED_ITEMS_MAX] = s->end_bytes;
    x->item_begun[b->item % UNCOMMITTED_ITEMS_MAX] = b->opened_ns;
    if (b->urgent)
        commit_want(&x->commit, b->item);
    b->placed = true;
    account(w, b);
    struct device_write *d = &w->device.writes[b->index];
    *d = (struct device_write){
        .index = b->index,
        .owner = b->index,
        .kind = DEVICE_BATCH,
        .iov = b->plan.iov,
        .iov_count = b->plan.iov_count,
        .offset = offset,
        .bytes = bytes,
    };
    device_submit(w, d);
    return true;
}

void writer_write_done(struct worker *w, struct device_write *d) {
    struct writer *x = &w->writer;
    struct live_segment *l = &x->live[d->owner % SEGMENTS_LIVE_MAX];
    switch (d->kind) {
    case DEVICE_BATCH: {
        struct batch *b = &w->batches.batches[d->owner];
        if (!x->failed)
            commit_written(&x->commit, b->item, w->reactor.now_ns);
        batch_release(w, b);
        break;
    }
    case DEVICE_SEGMENT_HEADER:
        if (!x->failed)
            commit_written(&x->commit, l->header_item, w->reactor.now_ns);
        break;
    case DEVICE_MARK:
        l->marking = false;
        x->marks_in_flight--;
        break;
    case DEVICE_FOOTER:
        l->state = LIVE_NONE;
        reactor_event(&w->reactor, EVENT_SEGMENT_CLOSED, (int)l->segment.index, 0,
                      l->segment.sequence);
        break;
    }
}

/* Tells the flows whose bytes are now committed. */
static void acknowledge(struct worker *w) {
    struct writer *x = &w->writer;
    uint64_t bytes = 0;
    while (x->ack_head != x->ack_tail) {
        const struct ack *a = &x->acks[x->ack_head % ACKS_MAX];
        if (a->item >= x->commit.committed_upto)
            break;
        struct flow *f = &w->flows.flows[a->flow];
        x->ack_head++;
        f->acks_pending--;
        f->durable_bytes = a->end_offset;
        uint64_t latency_ns = w->reactor.now_ns - x->item_begun[a->item % UNCOMMITTED_ITEMS_MAX];
        histogram_add(&w->reactor.ack_latency, latency_ns);
        STAT_ADD(&w->reactor, ack_latency_sum_ns, latency_ns);
        STAT_ADD(&w->reactor, durable_bytes, a->bytes);
        bytes += a->bytes;
        if (f->phase == FLOW_GONE)
            intake_gone(w, f);
        else if (a->closes && f->phase == FLOW_CLOSING)
            intake_closed(w, f);
        else if (f->session != NULL)
            ingest_advanced(w, f);
    }
    histogram_add_bytes(&w->reactor.commit_bytes, bytes);
}

static void write_mark(struct worker *w, struct live_segment *l) {
    struct segment *s = &l->segment;
    uint64_t block = SEGMENT_MARK_BLOCK + s->mark_sequence % SEGMENT_MARKS_COUNT;
    memset(l->mark, 0, s->block_bytes);
    frame_commit_mark((void *)l->mark, w->settings.store_uuid, s->sequence, ++s->mark_sequence,
                      s->committed_batches, s->committed_end);
    l->marking = true;
    w->writer.marks_in_flight++;
    STAT_ADD(&w->reactor, header_bytes, s->block_bytes);
    device_submit_single(w, l->mark_write, l->mark, s->block_bytes,
                         s->offset + block * s->block_bytes);
}

/* The flush is done: each segment that it covers gets its mark. */
void writer_flush_done(struct worker *w) {
    struct writer *x = &w->writer;
    uint64_t upto = x->commit.flushing_upto;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++) {
        struct live_segment *l = &x->live[i];
        if (l->state == LIVE_NONE || l->state == LIVE_FOOTER || upto <= l->header_item + 1)
            continue;
        uint64_t batches = upto - (l->header_item + 1);
        if (batches > l->segment.batch_count)
            batches = l->segment.batch_count;
        if (batches == l->segment.committed_batches)
            continue;
        uint64_t last_item = l->header_item + batches;
        l->segment.committed_batches = (uint32_t)batches;
        l->segment.committed_end = x->item_end[last_item % UNCOMMITTED_ITEMS_MAX];
        write_mark(w, l);
    }
}

static void write_footer(struct worker *w, struct live_segment *l) {
    uint64_t offset;
    uint64_t bytes =
        segment_footer(&l->segment, w->settings.store_uuid, reactor_unix_ns(&w->reactor), &offset);
    l->state = LIVE_FOOTER;
    STAT_ADD(&w->reactor, header_bytes, bytes);
    device_submit_single(w, l->footer_write, l->segment.footer, bytes, l->segment.offset + offset);
}

static void write_footers(struct worker *w) {
    struct writer *x = &w->writer;
    if (x->closing && x->filling && w->batches.open == NULL)
        close_filling(x);
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++) {
        struct live_segment *l = &x->live[i];
        bool committed = l->segment.committed_batches == l->segment.batch_count &&
                         x->commit.committed_upto > l->header_item;
        if (l->state == LIVE_CLOSING && committed && !l->marking)
            write_footer(w, l);
    }
}

uint64_t writer_turn(struct worker *w) {
    struct writer *x = &w->writer;
    bool place_waits = false;
    if (x->failed)
        return TIME_NEVER;
    if (x->commit.flushing && !w->device.flush_in_flight && x->marks_in_flight == 0) {
        /* Of a file that was deleted or cut off, all writes succeed. */
        int code = device_lost(w);
        if (code != 0) {
            writer_fail(w, code, FAILED_LOST, 0);
            return TIME_NEVER;
        }
        commit_done(&x->commit, w->reactor.now_ns);
        STAT_ADD(&w->reactor, commits, 1);
        acknowledge(w);
        /* What the open batch waited for may be there now, and wakes nobody. */
        place_waits = w->batches.open != NULL && w->batches.open->full;
    }
    write_footers(w);
    uint64_t interval_ns = x->closing ? 0 : w->settings.commit_interval_ns;
    uint64_t due_ns = commit_due_ns(&x->commit, interval_ns);
    if (due_ns > w->reactor.now_ns)
        return place_waits ? w->reactor.now_ns : due_ns;
    commit_flush(&x->commit);
    device_flush(w);
    return place_waits ? w->reactor.now_ns : TIME_NEVER;
}

bool writer_is_idle(const struct worker *w) {
    const struct writer *x = &w->writer;
    bool idle = w->device.in_flight == 0 && !w->device.flush_in_flight;
    if (x->failed)
        return idle;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++)
        idle = idle && x->live[i].state == LIVE_NONE;
    return idle && x->commit.committed_upto == x->commit.next_item;
}

/* Nothing that waits for a commit will get one. */
static void drop_acks(struct worker *w) {
    struct writer *x = &w->writer;
    while (x->ack_head != x->ack_tail)
        w->flows.flows[x->acks[x->ack_head++ % ACKS_MAX].flow].acks_pending--;
}

void writer_fail(struct worker *w, int code, enum store_failure what, uint64_t offset) {
    assert(code > 0);
    if (w->writer.failed)
        return;
    w->writer.failed = code;
    STAT_SET(&w->reactor, store_errno, code);
    reactor_event(&w->reactor, EVENT_STORE_FAILED, code, (int)what, offset);
    drop_acks(w);
    batch_abandon(w);
    intake_interrupt_all(w, CLOSE_REASON_NONE, true);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The writer of writer.h: segments, places, commits.
 */
#include "storage/writer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"
#include "storage/storage.h"

/* Locked, and times FOOTER_MEMORIES_COUNT; the records of the largest batch fit in many times. */
#define FOOTER_MEMORY_BYTES_MAX (512u * 1024u)

static uint32_t writer_footer_bytes(const struct storage_settings *settings) {
    uint32_t most = segment_footer_bytes_max(settings->segment_bytes);
    return most < FOOTER_MEMORY_BYTES_MAX ? most : FOOTER_MEMORY_BYTES_MAX;
}

static uint32_t writer_span_capacity(const struct storage_settings *settings) {
    return writer_footer_bytes(settings) / (uint32_t)sizeof(struct record_span);
}

static uint64_t writer_memory_bytes(const struct storage_settings *settings) {
    return writer_footer_bytes(settings) + (uint64_t)SEGMENT_PART_BLOCKS * settings->block_bytes;
}

uint64_t writer_own_bytes(const struct storage_settings *settings) {
    uint64_t memory = writer_memory_bytes(settings) + AREA_PAGE_BYTES;
    uint64_t live = 2ull * (settings->block_bytes + AREA_PAGE_BYTES);
    return FOOTER_MEMORIES_COUNT * memory + SEGMENTS_LIVE_MAX * live;
}

static int writer_open_live(struct storage *s, struct live_segment *l, uint32_t index) {
    const struct storage_settings *set = &s->settings;
    struct device_write *writes = &s->device.writes[s->batches.count + 3 * index];
    l->header = area_own(s->area, set->block_bytes);
    l->mark = area_own(s->area, set->block_bytes);
    l->segment.spans = calloc(writer_span_capacity(set), sizeof *l->segment.spans);
    l->header_write = &writes[0];
    l->mark_write = &writes[1];
    l->footer_write = &writes[2];
    l->header_write->kind = DEVICE_SEGMENT_HEADER;
    l->mark_write->kind = DEVICE_MARK;
    l->footer_write->kind = DEVICE_FOOTER;
    /* With checksums a torn batch gives itself away; the mark then only helps readers. */
    l->mark_write->stable = !set->checksum;
    for (int i = 0; i < 3; i++)
        writes[i].owner = index;
    return l->segment.spans ? 0 : -ENOMEM;
}

static void writer_open_memory(struct storage *s, uint32_t index) {
    struct footer_memory *m = &s->writer.memories[index];
    m->bytes = area_own(s->area, writer_memory_bytes(&s->settings));
    m->part_write = &s->device.writes[s->batches.count + 3 * SEGMENTS_LIVE_MAX + index];
    m->part_write->kind = DEVICE_PART;
    m->part_write->owner = index;
}

int writer_open(struct storage *s) {
    struct writer *x = &s->writer;
    int code = 0;
    commit_init(&x->commit);
    x->item_end = calloc(UNCOMMITTED_ITEMS_MAX, sizeof *x->item_end);
    x->item_begun = calloc(UNCOMMITTED_ITEMS_MAX, sizeof *x->item_begun);
    x->acks = calloc(ACKS_MAX, sizeof *x->acks);
    if (x->item_end == NULL || x->item_begun == NULL || x->acks == NULL)
        code = -ENOMEM;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX && code == 0; i++)
        code = writer_open_live(s, &x->live[i], i);
    for (uint32_t i = 0; i < FOOTER_MEMORIES_COUNT && code == 0; i++)
        writer_open_memory(s, i);
    x->commit_reported = true;
    return code;
}

void writer_close(struct storage *s) {
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++)
        free(s->writer.live[i].segment.spans);
    free(s->writer.item_end);
    free(s->writer.item_begun);
    free(s->writer.acks);
}

void writer_grant(struct storage *s, uint32_t index, uint64_t sequence) {
    struct writer *x = &s->writer;
    assert(x->ready_count < SEGMENTS_READY_MAX);
    x->ready[x->ready_count].index = index;
    x->ready[x->ready_count].sequence = sequence;
    x->ready_count++;
    if (s->state != STORAGE_FAILED)
        s->state = STORAGE_READY;
}

/* NULL: all are used, one at least by a part that is being written. */
static struct footer_memory *writer_take_memory(struct writer *x) {
    for (uint32_t i = 0; i < FOOTER_MEMORIES_COUNT; i++) {
        if (x->memories[i].is_used)
            continue;
        x->memories[i].is_used = true;
        return &x->memories[i];
    }
    return NULL;
}

static uint8_t *writer_records_of(const struct storage *s, const struct footer_memory *m) {
    return m->bytes + (size_t)SEGMENT_PART_BLOCKS * s->settings.block_bytes;
}

/* The oldest grant becomes the segment being filled; false when there is none, all live
 * segments still wait for their commits, or a part has the last memory for a footer. */
static bool writer_open_segment(struct storage *s) {
    struct writer *x = &s->writer;
    const struct storage_settings *set = &s->settings;
    struct live_segment *l = NULL;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX && l == NULL; i++)
        if (x->live[i].state == LIVE_NONE)
            l = &x->live[i];
    if (l == NULL || x->ready_count == 0 || !commit_has_room(&x->commit))
        return false;
    l->memory = writer_take_memory(x);
    if (l->memory == NULL)
        return false;
    uint32_t index = x->ready[0].index;
    uint64_t sequence = x->ready[0].sequence;
    memmove(&x->ready[0], &x->ready[1], --x->ready_count * sizeof x->ready[0]);
    segment_open(&l->segment, index, sequence, set->segments_offset + index * set->segment_bytes,
                 set->segment_bytes, set->block_bytes, writer_records_of(s, l->memory),
                 writer_footer_bytes(set), l->segment.spans, writer_span_capacity(set));
    l->segment.part_record_bytes = set->part_record_bytes;
    memset(l->header, 0, set->block_bytes);
    frame_segment_header((void *)l->header, set->store_uuid, sequence, index, set->worker_index,
                         reactor_unix_ns(s->reactor));
    l->state = LIVE_FILLING;
    l->header_item = commit_begin(&x->commit);
    x->filling = l;
    device_submit_single(s, l->header_write, l->header, set->block_bytes, l->segment.offset);
    STAT_ADD(s->reactor, header_bytes, set->block_bytes);
    STAT_ADD(s->reactor, segments_used, 1);
    reactor_event(s->reactor, (struct event_detail){.kind = EVENT_SEGMENT_OPENED,
                                                    .segment = {index, sequence}});
    mailbox_want_grant(&s->reactor->mailbox);
    return true;
}

static void writer_close_filling(struct writer *x) {
    x->filling->state = LIVE_CLOSING;
    x->filling = NULL;
    x->closing_count++;
}

/* The records of the segment's footer so far go into the segment; false while there is no
 * memory for those to come. */
static bool writer_place_part(struct storage *s, struct live_segment *l) {
    struct writer *x = &s->writer;
    struct segment *g = &l->segment;
    struct footer_memory *full = l->memory, *next = writer_take_memory(x);
    if (next == NULL)
        return false;
    struct frame_batch info = {
        .store_uuid = s->settings.store_uuid,
        .flags = s->settings.checksum ? BATCH_HAS_CRC32C : 0,
        .made_ns = reactor_unix_ns(s->reactor),
    };
    uint64_t offset = g->offset + g->end_bytes;
    uint64_t bytes = segment_part(g, &info, writer_records_of(s, next));
    l->memory = next;
    full->part_item = commit_begin(&x->commit);
    x->item_end[full->part_item % UNCOMMITTED_ITEMS_MAX] = g->end_bytes;
    x->item_begun[full->part_item % UNCOMMITTED_ITEMS_MAX] = s->reactor->now_ns;
    STAT_ADD(s->reactor, header_bytes, bytes);
    device_submit_single(s, full->part_write, full->bytes, bytes, offset);
    return true;
}

/* Finds a segment with room: the one being filled, or a new one. */
static struct live_segment *writer_segment_for(struct storage *s, const struct batch *b) {
    struct writer *x = &s->writer;
    uint64_t bytes = plan_bytes(&b->plan, &s->batches.profile);
    uint32_t records = b->plan.frame.used;
    bool last = s->state >= STORAGE_FULL && x->ready_count == 0;
    uint32_t reserve =
        last && !b->uses_reserve ? segment_reserve_bytes(s->settings.segment_bytes) : 0;
    if (x->filling && segment_fits(&x->filling->segment, bytes, records, reserve))
        return x->filling;
    if (x->filling && segment_fits_behind_part(&x->filling->segment, bytes, records, reserve))
        return writer_place_part(s, x->filling) ? x->filling : NULL;
    if (last && s->state == STORAGE_FULL)
        reactor_event(s->reactor, (struct event_detail){.kind = EVENT_STORE_FULL});
    if (last)
        s->state = b->uses_reserve ? STORAGE_RESERVE_EXHAUSTED : STORAGE_EXHAUSTED;
    if (last || x->ready_count == 0)
        return NULL; /* what is being filled is kept open: CLOSE records may still fit */
    if (x->filling)
        writer_close_filling(x);
    if (!writer_open_segment(s))
        return NULL;
    assert(segment_fits(&x->filling->segment, bytes, records, 0));
    return x->filling;
}

static void writer_push_ack(struct writer *x, const struct batch_touch *n, uint64_t item) {
    assert(x->ack_tail - x->ack_head < ACKS_MAX);
    x->acks[x->ack_tail++ % ACKS_MAX] = (struct ack){
        .item = item,
        .end_offset = n->end_offset,
        .stream = n->stream,
        .bytes = n->bytes,
        .closes = (n->flags & SPAN_HAS_CLOSE) != 0,
    };
    n->stream->acks_pending++;
}

static void writer_note_touches(struct writer *x, struct segment *g, const struct batch *b) {
    for (uint32_t i = 0; i < b->touch_count; i++) {
        const struct batch_touch *n = &b->touches[i];
        struct segment_touch touch = {
            .flow = n->stream->id,
            .first_offset = n->first_offset,
            .end_offset = n->end_offset,
            .crc_before = n->crc_before,
            .crc_after = n->crc_after,
            .flags = n->flags,
        };
        segment_note_touch(g, &n->stream->span, &touch);
        writer_push_ack(x, n, b->item);
    }
}

static void writer_account(struct reactor *r, const struct batch *b) {
    const struct plan_batch *p = &b->plan;
    STAT_ADD(r, batches, 1);
    STAT_ADD(r, header_bytes, p->iov[0].iov_len);
    STAT_ADD(r, direct_bytes, p->direct_bytes);
    STAT_ADD(r, padding_bytes, p->padding_bytes);
    STAT_ADD(r, bounced_head_bytes, p->bounced_bytes[BOUNCE_HEAD]);
    STAT_ADD(r, bounced_tail_bytes, p->bounced_bytes[BOUNCE_TAIL]);
    STAT_ADD(r, bounced_small_bytes, p->bounced_bytes[BOUNCE_SMALL]);
    STAT_ADD(r, bounced_boundary_bytes, p->bounced_bytes[BOUNCE_BOUNDARY]);
    STAT_ADD(r, bounced_pressure_bytes, p->bounced_bytes[BOUNCE_PRESSURE]);
    STAT_ADD(r, bounced_trailer_bytes, p->bounced_bytes[BOUNCE_TRAILER]);
}

static bool writer_has_room(const struct storage *s, const struct batch *b) {
    const struct writer *x = &s->writer;
    return s->state != STORAGE_FAILED &&
           s->device.batches_in_flight < s->settings.writes_in_flight_max &&
           commit_has_room(&x->commit) &&
           x->commit.next_item - x->commit.committed_upto < UNCOMMITTED_ITEMS_MAX - 2 &&
           ACKS_MAX - (x->ack_tail - x->ack_head) > b->touch_count;
}

/* Its place is at the end of the segment. Returns where in the store that is. */
static uint64_t writer_assign_place(struct storage *s, struct batch *b, struct segment *g,
                                    uint64_t *bytes) {
    struct writer *x = &s->writer;
    struct frame_batch info = {
        .store_uuid = s->settings.store_uuid,
        .segment_sequence = g->sequence,
        .batch_index = g->batch_count,
        .batches_committed = g->committed_batches,
        .flags = s->settings.checksum ? BATCH_HAS_CRC32C : 0,
        .made_ns = reactor_unix_ns(s->reactor),
    };
    *bytes = plan_finish(&b->plan, &s->batches.profile, &info);
    b->item = commit_begin(&x->commit);
    segment_note_records(g, b->header);
    writer_note_touches(x, g, b);
    uint64_t offset = g->offset + g->end_bytes;
    segment_append(g, *bytes, b->plan.frame.payload_bytes);
    x->item_end[b->item % UNCOMMITTED_ITEMS_MAX] = g->end_bytes;
    x->item_begun[b->item % UNCOMMITTED_ITEMS_MAX] = b->opened_ns;
    if (b->urgent)
        commit_want(&x->commit, b->item);
    b->placed = true;
    return offset;
}

bool writer_place(struct storage *s, struct batch *b) {
    struct writer *x = &s->writer;
    assert(b->full && !b->placed && !b->abandoned);
    struct live_segment *l = writer_has_room(s, b) ? writer_segment_for(s, b) : NULL;
    if (l == NULL || !commit_has_room(&x->commit)) {
        /* What is missing (a live segment, room for acknowledgements) may hang on
         * a commit that nobody waits for yet. */
        if (x->commit.next_item > x->commit.committed_upto)
            commit_want(&x->commit, x->commit.next_item - 1);
        return false;
    }
    uint64_t bytes;
    uint64_t offset = writer_assign_place(s, b, &l->segment, &bytes);
    writer_account(s->reactor, b);
    struct device_write *d = &s->device.writes[b->index];
    *d = (struct device_write){
        .index = b->index,
        .owner = b->index,
        .kind = DEVICE_BATCH,
        .iov = b->plan.iov,
        .iov_count = b->plan.iov_count,
        .offset = offset,
        .bytes = bytes,
    };
    device_submit(s, d);
    trace_place(b->index, b->item, offset, bytes);
    return true;
}

void writer_batch_done(struct storage *s, const struct batch *b) {
    assert(b->placed);
    if (s->state != STORAGE_FAILED)
        commit_written(&s->writer.commit, b->item, s->reactor->now_ns);
}

static void writer_part_done(struct storage *s, struct footer_memory *m) {
    assert(m->is_used);
    m->is_used = false;
    if (s->state != STORAGE_FAILED)
        commit_written(&s->writer.commit, m->part_item, s->reactor->now_ns);
}

void writer_write_done(struct storage *s, const struct device_write *d) {
    struct writer *x = &s->writer;
    struct live_segment *l = &x->live[d->owner % SEGMENTS_LIVE_MAX];
    assert(d->kind != DEVICE_BATCH);
    if (d->kind == DEVICE_PART) {
        writer_part_done(s, &x->memories[d->owner]);
        return;
    }
    if (d->kind == DEVICE_SEGMENT_HEADER && s->state != STORAGE_FAILED)
        commit_written(&x->commit, l->header_item, s->reactor->now_ns);
    if (d->kind == DEVICE_MARK) {
        l->marking = false;
        x->marks_in_flight--;
    }
    if (d->kind == DEVICE_FOOTER) {
        l->state = LIVE_NONE;
        l->memory->is_used = false;
        reactor_event(s->reactor,
                      (struct event_detail){.kind = EVENT_SEGMENT_CLOSED,
                                            .segment = {l->segment.index, l->segment.sequence}});
    }
}

bool writer_take_ack(struct storage *s, struct ack *out) {
    struct writer *x = &s->writer;
    const struct ack *a = &x->acks[x->ack_head % ACKS_MAX];
    if (x->ack_head == x->ack_tail || a->item >= x->commit.committed_upto) {
        if (!x->commit_reported)
            histogram_add_bytes(&s->reactor->commit_bytes, x->commit_ack_bytes);
        x->commit_reported = true;
        return false;
    }
    assert(a->stream->acks_pending > 0 && a->end_offset >= a->stream->durable_bytes);
    x->ack_head++;
    a->stream->acks_pending--;
    a->stream->durable_bytes = a->end_offset;
    uint64_t latency_ns = s->reactor->now_ns - x->item_begun[a->item % UNCOMMITTED_ITEMS_MAX];
    histogram_add(&s->reactor->ack_latency, latency_ns);
    STAT_ADD(s->reactor, ack_latency_sum_ns, latency_ns);
    STAT_ADD(s->reactor, durable_bytes, a->bytes);
    x->commit_ack_bytes += a->bytes;
    trace_ack(a->stream->id, a->stream->owner, a->end_offset, a->closes);
    *out = *a;
    return true;
}

static void writer_write_mark(struct storage *s, struct live_segment *l) {
    struct segment *g = &l->segment;
    uint64_t block = SEGMENT_MARK_BLOCK + g->mark_sequence % SEGMENT_MARKS_COUNT;
    memset(l->mark, 0, g->block_bytes);
    frame_commit_mark((void *)l->mark, s->settings.store_uuid, g->sequence, ++g->mark_sequence,
                      g->committed_batches, g->committed_end);
    l->marking = true;
    s->writer.marks_in_flight++;
    STAT_ADD(s->reactor, header_bytes, g->block_bytes);
    device_submit_single(s, l->mark_write, l->mark, g->block_bytes,
                         g->offset + block * g->block_bytes);
}

void writer_flush_done(struct storage *s) {
    struct writer *x = &s->writer;
    uint64_t upto = x->commit.flushing_upto;
    trace_flush_done(upto);
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
        writer_write_mark(s, l);
    }
}

static void writer_write_footer(struct storage *s, struct live_segment *l) {
    uint64_t offset;
    uint64_t bytes =
        segment_footer(&l->segment, s->settings.store_uuid, reactor_unix_ns(s->reactor), &offset);
    assert(s->writer.closing_count > 0);
    s->writer.closing_count--;
    l->state = LIVE_FOOTER;
    STAT_ADD(s->reactor, header_bytes, bytes);
    device_submit_single(s, l->footer_write, l->segment.footer, bytes, l->segment.offset + offset);
}

static void writer_write_footers(struct storage *s) {
    struct writer *x = &s->writer;
    if (x->closing && x->filling && s->batches.open == NULL)
        writer_close_filling(x);
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++) {
        struct live_segment *l = &x->live[i];
        bool committed = l->segment.committed_batches == l->segment.batch_count &&
                         x->commit.committed_upto > l->header_item;
        if (l->state == LIVE_CLOSING && committed && !l->marking)
            writer_write_footer(s, l);
    }
}

bool writer_is_flushed(const struct storage *s) {
    const struct writer *x = &s->writer;
    return x->commit.flushing && !s->device.flush_in_flight && x->marks_in_flight == 0;
}

void writer_commit(struct storage *s) {
    struct writer *x = &s->writer;
    assert(writer_is_flushed(s) && x->commit_reported);
    commit_done(&x->commit, s->reactor->now_ns);
    trace_commit(x->commit.committed_upto);
    STAT_ADD(s->reactor, commits, 1);
    x->commit_ack_bytes = 0;
    x->commit_reported = false;
}

uint64_t writer_turn(struct storage *s) {
    struct writer *x = &s->writer;
    assert(s->state != STORAGE_FAILED);
    if (x->closing || x->closing_count > 0)
        writer_write_footers(s);
    uint64_t interval_ns = x->closing ? 0 : s->settings.commit_interval_ns;
    uint64_t due_ns = commit_due_ns(&x->commit, interval_ns);
    if (due_ns > s->reactor->now_ns)
        return due_ns;
    commit_flush(&x->commit);
    device_flush(s);
    return TIME_NEVER;
}

bool writer_is_idle(const struct storage *s) {
    const struct writer *x = &s->writer;
    bool idle = s->device.in_flight == 0 && !s->device.flush_in_flight;
    if (s->state == STORAGE_FAILED)
        return idle;
    for (uint32_t i = 0; i < SEGMENTS_LIVE_MAX; i++)
        idle = idle && x->live[i].state == LIVE_NONE;
    return idle && x->commit.committed_upto == x->commit.next_item;
}

void writer_drop_acks(struct storage *s) {
    struct writer *x = &s->writer;
    while (x->ack_head != x->ack_tail)
        x->acks[x->ack_head++ % ACKS_MAX].stream->acks_pending--;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The segment of segment.h: placing batches and building the footer.
 */
#include "format/segment.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

static uint64_t segment_round_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

uint32_t segment_footer_bytes_max(uint64_t segment_bytes) {
    uint64_t eighth = segment_bytes / 8;
    return (uint32_t)(eighth < 1024 * 1024 ? eighth : 1024 * 1024);
}

uint32_t segment_reserve_bytes(uint64_t segment_bytes) {
    return segment_footer_bytes_max(segment_bytes);
}

uint32_t segment_header_bytes_max(uint64_t segment_bytes, uint32_t block_bytes) {
    /* A footer grows by less than 2.25 x its records: see segment_fits. */
    uint32_t quarter = segment_footer_bytes_max(segment_bytes) / 4 / block_bytes * block_bytes;
    return quarter < BATCH_HEADER_BYTES_MAX ? quarter : BATCH_HEADER_BYTES_MAX;
}

uint64_t segment_batch_bytes_max(uint64_t segment_bytes, uint32_t block_bytes) {
    return segment_bytes - (uint64_t)SEGMENT_DATA_BLOCK * block_bytes -
           segment_footer_bytes_max(segment_bytes) - segment_reserve_bytes(segment_bytes);
}

void segment_open(struct segment *s, uint32_t index, uint64_t sequence, uint64_t offset,
                  uint64_t bytes, uint32_t block_bytes, uint8_t *footer, uint32_t footer_capacity,
                  struct record_span *spans, uint32_t span_capacity) {
    assert(footer_capacity % block_bytes == 0 && bytes % block_bytes == 0);
    *s = (struct segment){
        .index = index,
        .sequence = sequence,
        .offset = offset,
        .bytes = bytes,
        .block_bytes = block_bytes,
        .end_bytes = (uint64_t)SEGMENT_DATA_BLOCK * block_bytes,
        .committed_end = (uint64_t)SEGMENT_DATA_BLOCK * block_bytes,
        .footer = footer,
        .footer_capacity = footer_capacity,
        .spans = spans,
        .span_capacity = span_capacity,
    };
}

static uint64_t segment_record_bytes(const struct segment *s) {
    return s->copies_bytes + (uint64_t)s->span_count * sizeof(struct record_span);
}

static uint64_t segment_footer_bytes(const struct segment *s, uint64_t more_record_bytes) {
    return segment_round_up(segment_record_bytes(s) + more_record_bytes, s->block_bytes) +
           s->block_bytes;
}

/* A batch adds at most a copy and a span per record; a span is less than 1.25 x the
 * smallest record (an extent). */
static uint64_t segment_added_bytes(uint32_t record_bytes) {
    return (uint64_t)record_bytes * 9 / 4;
}

bool segment_fits(const struct segment *s, uint64_t batch_bytes, uint32_t record_bytes,
                  uint32_t reserve_bytes) {
    uint64_t footer = segment_footer_bytes(s, segment_added_bytes(record_bytes));
    uint64_t spans = s->span_count + record_bytes / sizeof(struct record_extent) + 1;
    if (s->part_record_bytes > 0 && segment_record_bytes(s) >= s->part_record_bytes)
        return false;
    if (footer > s->footer_capacity || spans > s->span_capacity)
        return false;
    return s->end_bytes + batch_bytes + footer + reserve_bytes <= s->bytes;
}

static uint64_t segment_part_bytes(const struct segment *s) {
    return segment_round_up(segment_record_bytes(s), s->block_bytes) +
           (uint64_t)SEGMENT_PART_BLOCKS * s->block_bytes;
}

bool segment_fits_behind_part(const struct segment *s, uint64_t batch_bytes, uint32_t record_bytes,
                              uint32_t reserve_bytes) {
    uint64_t footer =
        segment_round_up(segment_added_bytes(record_bytes), s->block_bytes) + s->block_bytes;
    uint64_t end = s->end_bytes + segment_part_bytes(s) + batch_bytes;
    return segment_record_bytes(s) > 0 && end + footer + reserve_bytes <= s->bytes;
}

void segment_append(struct segment *s, uint64_t batch_bytes, uint64_t payload_bytes) {
    assert(batch_bytes % s->block_bytes == 0);
    s->end_bytes += batch_bytes;
    s->payload_bytes += payload_bytes;
    s->batch_count++;
    assert(s->end_bytes + segment_footer_bytes(s, 0) <= s->bytes);
}

void segment_note_records(struct segment *s, const uint8_t *header) {
    const struct batch_header *h = (const void *)header;
    const uint8_t *at = header + sizeof *h;
    const uint8_t *end = at + h->record_bytes;
    while (at < end) {
        const struct record_head *r = (const void *)at;
        assert(r->record_bytes >= sizeof *r && at + r->record_bytes <= end);
        if (r->kind != RECORD_EXTENT) {
            memcpy(s->footer + s->copies_bytes, at, r->record_bytes);
            s->copies_bytes += r->record_bytes;
            s->copies_count++;
        }
        at += r->record_bytes;
    }
    assert(segment_footer_bytes(s, 0) <= s->footer_capacity);
}

void segment_note_touch(struct segment *s, struct segment_span_ref *ref,
                        const struct segment_touch *t) {
    uint32_t batch_block = (uint32_t)(s->end_bytes / s->block_bytes);
    if (ref->sequence != s->sequence || ref->part != s->part_count) {
        assert(s->span_count < s->span_capacity);
        ref->sequence = s->sequence;
        ref->part = s->part_count;
        ref->index = s->span_count++;
        struct record_span *n = &s->spans[ref->index];
        *n = (struct record_span){
            .head = {.kind = RECORD_SPAN, .record_bytes = sizeof *n},
            .first_offset = t->first_offset,
            .end_offset = t->first_offset,
            .first_batch_block = batch_block,
            .crc_before = t->crc_before,
            .crc_after = t->crc_before,
        };
        memcpy(n->head.flow, t->flow, sizeof n->head.flow);
    }
    struct record_span *n = &s->spans[ref->index];
    assert(n->end_offset == t->first_offset && t->end_offset >= t->first_offset);
    n->head.flags |= t->flags;
    n->end_offset = t->end_offset;
    n->crc_after = t->crc_after;
    n->last_batch_block = batch_block;
}

/* Puts the spans behind the copies, and zeros up to `bytes`. Returns the records' bytes. */
static uint64_t segment_gather(struct segment *s, uint64_t bytes) {
    uint64_t record_bytes = segment_record_bytes(s);
    assert(record_bytes <= bytes && bytes <= s->footer_capacity);
    memcpy(s->footer + s->copies_bytes, s->spans, record_bytes - s->copies_bytes);
    memset(s->footer + record_bytes, 0, bytes - record_bytes);
    return record_bytes;
}

static void segment_fill_part(const struct segment *s, struct footer_part *p, const uint8_t *uuid,
                              uint64_t record_bytes) {
    memset(p, 0, s->block_bytes);
    memcpy(p->magic, PART_MAGIC, FORMAT_MAGIC_BYTES);
    memcpy(p->store_uuid, uuid, FORMAT_UUID_BYTES);
    p->version = FORMAT_VERSION;
    p->segment_sequence = s->sequence;
    p->part_number = s->part_count + 1;
    p->record_count = s->copies_count + s->span_count;
    p->record_bytes = record_bytes;
    p->previous_offset = s->last_part_offset;
    p->previous_record_bytes = s->last_part_record_bytes;
    p->records_crc32c = frame_crc32c(0, s->footer, record_bytes);
    p->span_count = s->span_count;
    p->crc32c = frame_crc32c(0, p, sizeof *p);
}

uint64_t segment_part(struct segment *s, struct frame_batch *info, uint8_t *next) {
    struct frame header;
    const uint64_t total = segment_part_bytes(s);
    const uint64_t front = (uint64_t)SEGMENT_PART_BLOCKS * s->block_bytes;
    uint8_t *part = s->footer - s->block_bytes;
    assert(next != s->footer && s->span_count > 0);
    uint64_t record_bytes = segment_gather(s, total - front);
    segment_fill_part(s, (void *)part, info->store_uuid, record_bytes);
    frame_begin(&header, s->footer - front, s->block_bytes);
    info->segment_sequence = s->sequence;
    info->batch_index = s->batch_count;
    info->batches_committed = s->committed_batches;
    info->block_bytes = s->block_bytes;
    info->flags |= BATCH_IS_PART;
    info->batch_bytes = total;
    frame_finish(&header, info);
    s->part_count++;
    s->last_part_offset = s->end_bytes + s->block_bytes;
    s->last_part_record_bytes = record_bytes;
    s->copies_bytes = s->copies_count = s->span_count = 0;
    s->footer = next;
    segment_append(s, total, 0);
    return total;
}

uint64_t segment_footer(struct segment *s, const uint8_t store_uuid[16], uint64_t closed_ns,
                        uint64_t *offset) {
    assert(s->committed_batches == s->batch_count);
    uint64_t total = segment_footer_bytes(s, 0);
    uint64_t record_bytes = segment_gather(s, total);
    struct segment_footer *f = (void *)(s->footer + total - s->block_bytes);
    memcpy(f->magic, FOOTER_MAGIC, FORMAT_MAGIC_BYTES);
    memcpy(f->store_uuid, store_uuid, FORMAT_UUID_BYTES);
    f->version = FORMAT_VERSION;
    f->segment_sequence = s->sequence;
    f->batch_count = s->batch_count;
    f->record_count = s->copies_count + s->span_count;
    f->records_offset = s->bytes - total;
    f->record_bytes = record_bytes;
    f->batches_end = s->end_bytes;
    f->payload_bytes = s->payload_bytes;
    f->closed_ns = closed_ns;
    f->span_count = s->span_count;
    f->records_crc32c = frame_crc32c(0, s->footer, record_bytes);
    f->last_part_offset = s->last_part_offset;
    f->last_part_record_bytes = s->last_part_record_bytes;
    f->part_count = s->part_count;
    f->crc32c = frame_crc32c(0, f, sizeof *f);
    *offset = f->records_offset;
    return total;
}

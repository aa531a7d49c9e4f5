/* SPDX-License-Identifier: Apache-2.0
 *
 * Placing batches in a segment, and the footer that lists them.
 */
#include "format/segment.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "random.h"

#define BLOCK 4096u
#define BYTES (1u << 20)
#define SPANS_MAX 2000
#define FLOWS 50

static const uint8_t store[16] = {1, 2, 3};
static uint8_t *footer, *other, *header;
static struct record_span spans[SPANS_MAX];

static struct segment opened(void) {
    struct segment s;
    segment_open(&s, 7, 42, 3 * BYTES, BYTES, BLOCK, footer, segment_footer_bytes_max(BYTES), spans,
                 SPANS_MAX);
    return s;
}

struct model {
    uint8_t id[16];
    uint64_t bytes;
    struct segment_span_ref ref;
    uint64_t first_offset;
    uint32_t first_block, last_block, flags;
    bool here;
};

/* One batch with some flows' extents and some OPEN records. */
static bool add_batch(struct segment *s, struct model *flows, uint64_t *records_copied) {
    struct frame f;
    frame_begin(&f, header, BATCH_HEADER_BYTES_MAX);
    uint32_t used[FLOWS], count = 1 + random_below(8), payload = 0;
    uint64_t copies = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct frame_open o = {.listener = "lan", .listener_bytes = 3};
        used[i] = random_below(FLOWS);
        if (random_below(4) == 0)
            copies += frame_add_open(&f, flows[used[i]].id, &o) == 0;
        frame_add_extent(&f, flows[used[i]].id, 0, payload, 512, 0, 0);
        payload += 512;
    }
    uint64_t bytes = frame_header_bytes(&f, BLOCK) + (payload + BLOCK - 1) / BLOCK * BLOCK;
    if (!segment_fits(s, bytes, f.used, 0))
        return false;
    struct frame_batch info = {.store_uuid = store, .block_bytes = BLOCK, .batch_bytes = bytes};
    frame_finish(&f, &info);
    segment_note_records(s, header);
    for (uint32_t i = 0; i < count; i++) {
        struct model *m = &flows[used[i]];
        struct segment_touch t = {.flow = m->id,
                                  .first_offset = m->bytes,
                                  .end_offset = m->bytes + 512,
                                  .crc_before = (uint32_t)m->bytes,
                                  .crc_after = (uint32_t)m->bytes + 512};
        segment_note_touch(s, &m->ref, &t);
        if (!m->here) {
            m->first_offset = m->bytes;
            m->first_block = (uint32_t)(s->end_bytes / BLOCK);
            m->here = true;
        }
        m->last_block = (uint32_t)(s->end_bytes / BLOCK);
        m->bytes += 512;
    }
    segment_append(s, bytes, payload);
    *records_copied += copies;
    return true;
}

static void check_span(const struct record_span *n, const struct model *flows) {
    const struct model *m = NULL;
    for (int i = 0; i < FLOWS; i++)
        if (memcmp(flows[i].id, n->head.flow, 16) == 0)
            m = &flows[i];
    CHECK(m != NULL && m->here);
    CHECK_EQUAL(n->head.kind, RECORD_SPAN);
    CHECK_EQUAL(n->first_offset, m->first_offset);
    CHECK_EQUAL(n->end_offset, m->bytes);
    CHECK_EQUAL(n->crc_before, (uint32_t)m->first_offset);
    CHECK_EQUAL(n->crc_after, (uint32_t)m->bytes);
    CHECK_EQUAL(n->first_batch_block, m->first_block);
    CHECK_EQUAL(n->last_batch_block, m->last_block);
}

static void the_footer_tells_what_was_appended(void) {
    struct model flows[FLOWS] = {0};
    uint64_t copies = 0, offset;
    for (int i = 0; i < FLOWS; i++) {
        memset(flows[i].id, i + 1, 16);
        flows[i].bytes = random_below(1000); /* began in another segment */
    }
    struct segment s = opened();
    while (add_batch(&s, flows, &copies))
        continue;
    CHECK(s.batch_count > 10);
    CHECK(!segment_fits(&s, BYTES / 8, 200, 0));
    s.committed_batches = s.batch_count;
    uint64_t bytes = segment_footer(&s, store, 99, &offset);
    const struct segment_footer *f = (const void *)(footer + bytes - BLOCK);
    CHECK_EQUAL(offset + bytes, BYTES);
    CHECK(s.end_bytes <= offset);
    CHECK(memcmp(f->magic, FOOTER_MAGIC, 8) == 0);
    CHECK_EQUAL(f->batch_count, s.batch_count);
    CHECK_EQUAL(f->batches_end, s.end_bytes);
    CHECK_EQUAL(f->records_offset, offset);
    CHECK_EQUAL(f->record_count, copies + f->span_count);
    CHECK_EQUAL(f->records_crc32c, frame_crc32c(0, footer, f->record_bytes));
    struct segment_footer without = *f;
    without.crc32c = 0;
    CHECK_EQUAL(f->crc32c, frame_crc32c(0, &without, sizeof without));
    uint64_t seen = 0;
    for (uint8_t *at = footer; at < footer + f->record_bytes;) {
        const struct record_head *r = (const void *)at;
        if (r->kind == RECORD_SPAN)
            check_span((const void *)at, flows), seen++;
        at += r->record_bytes;
    }
    CHECK_EQUAL(seen, f->span_count);
}

/* The records at `at` are the spans of all that was appended since the last part, and so many
 * copies; what comes next begins anew. */
static void check_records(const uint8_t *at, uint64_t record_bytes, struct model *flows,
                          uint64_t copies, uint32_t span_count) {
    const uint8_t *end = at + record_bytes;
    uint64_t spans_seen = 0, copies_seen = 0;
    for (; at < end; at += ((const struct record_head *)(const void *)at)->record_bytes) {
        const struct record_head *r = (const void *)at;
        if (r->kind == RECORD_SPAN)
            check_span((const void *)at, flows), spans_seen++;
        else
            copies_seen++;
    }
    CHECK_EQUAL(spans_seen, span_count);
    CHECK_EQUAL(copies_seen, copies);
    for (int i = 0; i < FLOWS; i++)
        flows[i].here = false;
}

/* A part is a batch whose payload is a block that says what comes behind it. */
static void check_part(const struct segment *s, const uint8_t *begin, uint64_t bytes,
                       struct model *flows, uint64_t copies) {
    const struct batch_header *h = (const void *)begin;
    const struct footer_part *p = (const void *)(begin + BLOCK);
    struct footer_part without = *p;
    without.crc32c = 0;
    CHECK_EQUAL(h->header_bytes, BLOCK);
    CHECK_EQUAL(h->batch_bytes, bytes);
    CHECK_EQUAL(h->batch_index, s->batch_count - 1);
    CHECK_EQUAL(h->flags, BATCH_IS_PART | BATCH_HAS_CRC32C);
    CHECK_EQUAL(h->record_count + h->record_bytes + h->payload_bytes, 0);
    CHECK(memcmp(p->magic, PART_MAGIC, 8) == 0);
    CHECK_EQUAL(p->crc32c, frame_crc32c(0, &without, sizeof without));
    CHECK_EQUAL(p->segment_sequence, s->sequence);
    CHECK_EQUAL(p->part_number, s->part_count);
    CHECK_EQUAL(p->record_count, copies + p->span_count);
    CHECK_EQUAL(p->records_crc32c, frame_crc32c(0, begin + 2 * BLOCK, p->record_bytes));
    CHECK_EQUAL(s->last_part_offset, s->end_bytes - bytes + BLOCK);
    CHECK_EQUAL(s->last_part_record_bytes, p->record_bytes);
    check_records(begin + 2 * BLOCK, p->record_bytes, flows, copies, p->span_count);
}

static void parts_tell_what_came_before_them(void) {
    struct model flows[FLOWS] = {0};
    uint64_t copies = 0, offset, before_offset = 0, before_bytes = 0;
    for (int i = 0; i < FLOWS; i++)
        memset(flows[i].id, i + 1, 16);
    struct segment s = opened();
    CHECK(!segment_fits_behind_part(&s, BLOCK, 200, 0)); /* it would be empty */
    for (uint32_t part = 1; part <= 5; part++) {
        for (int i = 0; i < 5; i++)
            CHECK(add_batch(&s, flows, &copies));
        struct frame_batch info = {.store_uuid = store, .flags = BATCH_HAS_CRC32C};
        uint8_t *full = s.footer;
        uint64_t bytes = segment_part(&s, &info, full == footer ? other : footer);
        const struct footer_part *p = (const void *)(full - BLOCK);
        CHECK_EQUAL(s.part_count, part);
        CHECK_EQUAL(p->previous_offset, before_offset);
        CHECK_EQUAL(p->previous_record_bytes, before_bytes);
        check_part(&s, full - 2 * BLOCK, bytes, flows, copies);
        before_offset = s.last_part_offset;
        before_bytes = p->record_bytes;
        copies = 0;
    }
    CHECK(add_batch(&s, flows, &copies));
    CHECK_EQUAL(s.batch_count, 31);
    s.committed_batches = s.batch_count;
    uint64_t bytes = segment_footer(&s, store, 99, &offset);
    const struct segment_footer *f = (const void *)(s.footer + bytes - BLOCK);
    CHECK_EQUAL(f->part_count, 5);
    CHECK_EQUAL(f->last_part_offset, before_offset);
    CHECK_EQUAL(f->last_part_record_bytes, before_bytes);
    check_records(s.footer, f->record_bytes, flows, copies, f->span_count);
}

/* A batch that no footer's memory has room for fits behind a part, up to the segment's end. */
static void a_full_footer_does_not_end_the_segment(void) {
    struct model flows[FLOWS] = {0};
    uint64_t copies = 0;
    struct segment s = opened();
    s.footer_capacity = 3 * BLOCK;
    while (add_batch(&s, flows, &copies))
        continue;
    CHECK(s.end_bytes < s.bytes / 2);
    while (segment_fits_behind_part(&s, 2 * BLOCK, 400, 0)) {
        struct frame_batch info = {.store_uuid = store};
        segment_part(&s, &info, s.footer == footer ? other : footer);
        CHECK(segment_fits(&s, 2 * BLOCK, 400, 0));
        while (add_batch(&s, flows, &copies))
            continue;
    }
    CHECK(s.part_count >= 2);
    CHECK(s.end_bytes + 12 * BLOCK > s.bytes);
}

static void last_words_may_use_the_reserve(void) {
    struct segment s = opened();
    const uint32_t reserve = segment_reserve_bytes(BYTES);
    while (segment_fits(&s, 16 * BLOCK, 200, reserve))
        segment_append(&s, 16 * BLOCK, 0);
    CHECK(segment_fits(&s, BLOCK, 200, 0));
    while (segment_fits(&s, BLOCK, 200, 0))
        segment_append(&s, BLOCK, 0); /* asserts that the footer still fits */
    CHECK(s.end_bytes + 2 * BLOCK >= s.bytes - BLOCK);
}

static void an_empty_segment_takes_the_largest_batch(void) {
    const uint64_t sizes[] = {SEGMENT_BYTES_MIN, 3u << 20, 64u << 20, SEGMENT_BYTES_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct segment s;
        segment_open(&s, 0, 1, 0, sizes[i], BLOCK, footer, segment_footer_bytes_max(sizes[i]),
                     spans, SPANS_MAX);
        uint64_t most = segment_batch_bytes_max(sizes[i], BLOCK);
        CHECK(segment_fits(&s, most, segment_header_bytes_max(sizes[i], BLOCK),
                           segment_reserve_bytes(sizes[i])));
    }
}

/* The least segment of each size of block, which formatting asks for: 32 blocks, or the least. */
static void a_header_has_a_block_at_least(void) {
    for (uint32_t block = BLOCK; block <= BLOCK_BYTES_MAX; block *= 2) {
        uint64_t least = 32ull * block > SEGMENT_BYTES_MIN ? 32ull * block : SEGMENT_BYTES_MIN;
        uint32_t header = segment_header_bytes_max(least, block);
        CHECK(header >= block && header % block == 0);
        CHECK(segment_batch_bytes_max(least, block) > least / 3);
    }
    CHECK_EQUAL(segment_header_bytes_max(SEGMENT_BYTES_MIN, BLOCK_BYTES_MAX), 0);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(the_footer_tells_what_was_appended),       TEST(parts_tell_what_came_before_them),
        TEST(a_full_footer_does_not_end_the_segment),   TEST(last_words_may_use_the_reserve),
        TEST(an_empty_segment_takes_the_largest_batch), TEST(a_header_has_a_block_at_least),
    };
    random_seed();
    footer = (uint8_t *)aligned_alloc(BLOCK, (1 << 20) + 2 * BLOCK) + 2 * BLOCK;
    other = (uint8_t *)aligned_alloc(BLOCK, (1 << 20) + 2 * BLOCK) + 2 * BLOCK;
    header = aligned_alloc(BLOCK, BATCH_HEADER_BYTES_MAX);
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

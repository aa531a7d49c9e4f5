/* SPDX-License-Identifier: Apache-2.0
 *
 * Looks at each batch that was written whole: the bytes of each of its extents are those that
 * the flow's sender has sent. Of footers and their parts it looks, in the order in which they
 * are submitted, whether each names the part before it.
 */
#include "sim.h"

#include <string.h>

#include "format/format.h"

#define CHAINS_COUNT 1024u /* more than a life has segments */

/* The parts of one segment's footer. */
static struct chain {
    uint64_t sequence, last_offset, last_record_bytes;
    uint32_t part_count;
} chains[CHAINS_COUNT];

static struct chain *chain_of(uint64_t sequence) {
    struct chain *c = &chains[sequence % CHAINS_COUNT];
    if (c->sequence != sequence)
        *c = (struct chain){.sequence = sequence};
    return c;
}

static void check_part_submitted(const uint8_t *data, uint64_t bytes, uint64_t offset) {
    struct batch_header h;
    struct footer_part p;
    memcpy(&h, data, sizeof h);
    memcpy(&p, data + h.header_bytes, sizeof p);
    const uint64_t records_at = (uint64_t)h.header_bytes + sim.shape.block_bytes;
    struct chain *c = chain_of(h.segment_sequence);
    if (memcmp(p.magic, PART_MAGIC, FORMAT_MAGIC_BYTES) != 0 ||
        p.segment_sequence != h.segment_sequence || h.record_count != 0 || h.payload_bytes != 0)
        sim_fail("a part of a footer does not say what it is");
    if (p.record_bytes == 0 || records_at + p.record_bytes > bytes ||
        bytes >= records_at + p.record_bytes + sim.shape.block_bytes)
        sim_fail("a part of %llu bytes of records lies in %llu bytes",
                 (unsigned long long)p.record_bytes, (unsigned long long)bytes);
    if (sim_crc32c(0, data + records_at, p.record_bytes) != p.records_crc32c)
        sim_fail("a part's records are others than it says");
    if (p.part_number <= c->part_count)
        return; /* the write is tried again, maybe behind later ones; the footer counts them */
    if (p.part_number != ++c->part_count || p.previous_offset != c->last_offset ||
        p.previous_record_bytes != c->last_record_bytes)
        sim_fail("part %u of a footer does not name the one before", p.part_number);
    c->last_offset = offset % SEGMENT_BYTES + h.header_bytes;
    c->last_record_bytes = p.record_bytes;
}

static void check_footer_submitted(const uint8_t *block) {
    struct segment_footer f;
    memcpy(&f, block, sizeof f);
    const struct chain *c = chain_of(f.segment_sequence);
    if (f.part_count != c->part_count || f.last_part_offset != c->last_offset ||
        f.last_part_record_bytes != c->last_record_bytes)
        sim_fail("a footer has %u parts, and names %u", c->part_count, f.part_count);
}

static struct stream *stream_by_id(const uint8_t id[16]) {
    for (uint32_t i = 0; i < streams_count; i++)
        if (streams[i].is_used && memcmp(streams[i].id, id, 16) == 0)
            return &streams[i];
    return NULL;
}

/* A raw flow gets its id from the core: whose it is, its peer's port tells. */
static void note_open(const struct record_head *r) {
    struct record_open o;
    memcpy(&o, r, sizeof o);
    if (stream_by_id(r->flow) != NULL)
        return;
    for (uint32_t i = 0; i < streams_count; i++)
        if (!streams[i].is_ingest && streams[i].port == o.peer_port) {
            memcpy(streams[i].id, r->flow, 16);
            streams[i].is_used = true;
            return;
        }
    sim_fail("a batch opens a flow of nobody, port %u", o.peer_port);
}

static void check_extent(const struct record_head *r, const uint8_t *payload, uint64_t room) {
    struct record_extent e;
    uint8_t expected[4096];
    memcpy(&e, r, sizeof e);
    struct stream *s = stream_by_id(r->flow);
    if (s == NULL)
        sim_fail("a batch has bytes of nobody");
    if ((uint64_t)e.payload_offset + e.bytes > room)
        sim_fail("an extent leaves its batch");
    if (e.stream_offset + e.bytes > s->sent_bytes)
        sim_fail("stream %u: %llu bytes are written, and %llu were sent", s->number,
                 (unsigned long long)(e.stream_offset + e.bytes),
                 (unsigned long long)s->sent_bytes);
    for (uint32_t at = 0; at < e.bytes; at += sizeof expected) {
        uint32_t bytes = e.bytes - at < sizeof expected ? e.bytes - at : (uint32_t)sizeof expected;
        stream_bytes(s, e.stream_offset + at, expected, bytes);
        if (memcmp(expected, payload + e.payload_offset + at, bytes) != 0)
            sim_fail("stream %u: its bytes at %llu are written as others", s->number,
                     (unsigned long long)(e.stream_offset + at));
    }
}

void records_submitted(const uint8_t *data, uint64_t bytes, uint64_t offset) {
    struct batch_header h;
    if (bytes < sizeof h)
        return;
    if (bytes >= sim.shape.block_bytes) {
        const uint8_t *last = data + bytes - sim.shape.block_bytes;
        if (memcmp(last, FOOTER_MAGIC, FORMAT_MAGIC_BYTES) == 0)
            check_footer_submitted(last);
    }
    if (memcmp(data, BATCH_MAGIC, FORMAT_MAGIC_BYTES) != 0)
        return;
    memcpy(&h, data, sizeof h);
    if (h.header_bytes > bytes)
        sim_fail("a batch's header lies in two pieces");
    if (h.flags & BATCH_IS_PART)
        check_part_submitted(data, bytes, offset);
    for (uint64_t at = sizeof h; at < sizeof h + h.record_bytes;) {
        const struct record_head *r = (const void *)(data + at);
        if (r->kind == RECORD_OPEN)
            note_open(r);
        at += r->record_bytes;
    }
}

void records_check(const uint8_t *data, uint64_t bytes) {
    struct batch_header h;
    if (bytes < sizeof h || memcmp(data, BATCH_MAGIC, FORMAT_MAGIC_BYTES) != 0)
        return;
    memcpy(&h, data, sizeof h);
    uint64_t at = sizeof h, end = sizeof h + h.record_bytes;
    if (h.batch_bytes != bytes || end > h.header_bytes || h.header_bytes > bytes)
        sim_fail("a batch's header does not say what is written");
    while (at < end) {
        const struct record_head *r = (const void *)(data + at);
        if (r->record_bytes < sizeof *r || at + r->record_bytes > end)
            sim_fail("a record leaves its header");
        if (r->kind == RECORD_EXTENT)
            check_extent(r, data + h.header_bytes, bytes - h.header_bytes);
        at += r->record_bytes;
    }
}

/* Batches may become safe in any order. */
static void note_safe(struct stream *s, uint64_t begin, uint64_t end) {
    if (s->ahead_count == SAFE_AHEAD_MAX) {
        s->is_safe_unknown = true;
        return;
    }
    s->ahead[s->ahead_count][0] = begin;
    s->ahead[s->ahead_count++][1] = end;
    for (uint32_t i = 0; i < s->ahead_count; i++) {
        if (s->ahead[i][0] > s->safe_bytes)
            continue;
        bool is_new = s->ahead[i][1] > s->safe_bytes;
        s->safe_bytes = is_new ? s->ahead[i][1] : s->safe_bytes;
        memcpy(s->ahead[i], s->ahead[--s->ahead_count], sizeof s->ahead[i]);
        i = is_new ? UINT32_MAX : i - 1;
    }
}

/* Of what is safe now, or was written in part only, the streams know. */
void records_safe(const uint8_t *data, uint64_t bytes, bool is_whole) {
    struct batch_header h;
    if (bytes < sizeof h || memcmp(data, BATCH_MAGIC, FORMAT_MAGIC_BYTES) != 0)
        return;
    memcpy(&h, data, sizeof h);
    for (uint64_t at = sizeof h; at < sizeof h + h.record_bytes;) {
        const struct record_head *r = (const void *)(data + at);
        struct stream *s = stream_by_id(r->flow);
        struct record_extent e;
        at += r->record_bytes;
        if (s == NULL)
            continue;
        s->is_safe_unknown = s->is_safe_unknown || !is_whole;
        if (r->kind != RECORD_EXTENT)
            continue;
        memcpy(&e, r, sizeof e);
        note_safe(s, e.stream_offset, e.stream_offset + e.bytes);
    }
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner's stage: see plan_model.h.
 */
#include "plan_model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE PLAN_PAGE_BYTES

_Noreturn void model_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    /* Not abort(): that is how the planner's own assertions end a program. */
    __builtin_trap();
}

/* A flow's bytes repeat after a prime number of them, so no block or page falls
 * on a repetition. The table holds two periods: a run may begin anywhere. */
#define PERIOD 65521u
static uint8_t pattern[2 * PERIOD];

static void make_pattern(void) {
    if (pattern[0] != 0)
        return;
    uint64_t state = 1;
    for (uint32_t i = 0; i < PERIOD; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        pattern[i] = pattern[i + PERIOD] = (uint8_t)((state >> 33) % 255 + 1);
    }
}

/* The flow's bytes from `offset` on; at least PERIOD of them. */
static const uint8_t *flow_bytes(uint32_t flow, uint64_t offset) {
    return pattern + (offset + flow * 16381u) % PERIOD;
}

static void write_flow(uint32_t flow, uint64_t offset, uint8_t *to, uint32_t bytes) {
    for (uint32_t done = 0, step; done < bytes; done += step) {
        step = bytes - done < PERIOD ? bytes - done : PERIOD;
        memcpy(to + done, flow_bytes(flow, offset + done), step);
    }
}

static bool is_flow(uint32_t flow, uint64_t offset, const uint8_t *at, uint32_t bytes) {
    for (uint32_t done = 0, step; done < bytes; done += step) {
        step = bytes - done < PERIOD ? bytes - done : PERIOD;
        if (memcmp(at + done, flow_bytes(flow, offset + done), step) != 0)
            return false;
    }
    return true;
}

static uint8_t *pages(size_t bytes) {
    uint8_t *memory = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (memory == NULL)
        model_fail("no memory for %zu bytes", bytes);
    return memory;
}

/* Large memory is taken once: a fuzzer sets up thousands of models, one at a time. */
static uint8_t *kept_arena, *kept_image;

static void begin(struct plan_model *m) {
    /* What is left from an earlier batch must not shine through. */
    memset(m->header, 0xEE, m->header_capacity);
    memset(m->bounce, 0xEE, m->bounce_capacity);
    m->arena_used = 0;
    m->direct_end = 0;
    plan_begin(&m->batch, m->iov, MODEL_IOVECS_MAX, m->header, m->header_capacity, m->bounce,
               m->bounce_capacity, m->checksum);
}

void model_setup(struct plan_model *m, const struct plan_profile *profile, uint32_t header_capacity,
                 uint32_t bounce_capacity, bool checksum) {
    if (!plan_profile_is_usable(profile, header_capacity, MODEL_IOVECS_MAX))
        model_fail("the profile is not usable");
    if (bounce_capacity < plan_bounce_bytes_min(profile))
        model_fail("bounce memory of %u bytes is too small", bounce_capacity);
    memset(m, 0, sizeof(*m));
    make_pattern();
    m->profile = *profile;
    m->checksum = checksum;
    m->header_capacity = header_capacity;
    m->bounce_capacity = bounce_capacity;
    for (uint32_t flow = 0; flow < MODEL_FLOWS_COUNT; flow++)
        memset(m->flows[flow].id, (int)(0x10 + flow), sizeof(m->flows[flow].id));
    if (kept_arena == NULL) {
        kept_arena = pages(MODEL_ARENA_BYTES);
        kept_image = pages(MODEL_IMAGE_BYTES);
    }
    if (profile->batch_bytes_max > MODEL_IMAGE_BYTES)
        model_fail("a batch of %u bytes is too large here", profile->batch_bytes_max);
    m->arena = kept_arena;
    m->image = kept_image;
    m->header = pages(header_capacity);
    m->bounce = pages(bounce_capacity);
    begin(m);
}

void model_teardown(struct plan_model *m) {
    free(m->header);
    free(m->bounce);
}

static void check_rest(const struct plan_model *m, const struct plan_fragment *f,
                       const struct plan_fragment *before, uint32_t taken) {
    const uint64_t page_or_edge = (PAGE - 1) | (m->profile.mem_align - 1) | m->profile.virt_mask;
    if (taken > before->bytes || f->bytes != before->bytes - taken)
        model_fail("of %u bytes %u were taken and %u are left", before->bytes, taken, f->bytes);
    if (f->stream_offset != before->stream_offset + taken || f->data != before->data + taken)
        model_fail("the fragment does not describe what is left");
    if (taken != 0 && f->bytes != 0 && ((uintptr_t)f->data & page_or_edge) != 0)
        model_fail("the rest begins at %p", (void *)f->data);
    if (f->bytes != 0 && f->slack != before->slack)
        model_fail("slack was used behind bytes that were not taken");
    if (before->slack - f->slack >= m->profile.mem_align)
        model_fail("%u bytes of slack were used", before->slack - f->slack);
    if (!m->checksum && f->crc != before->crc)
        model_fail("the CRC was touched");
}

/* What of a fragment's bytes is direct and what is copied for which reason, by the text of plan.h
 * alone; slack is 0 where the fragment was cut. */
struct account {
    uint64_t direct, head, tail, small, boundary;
    uint32_t padded_in_place;
};

static uintptr_t up_to(uintptr_t value, uintptr_t unit) {
    return (value + unit - 1) / unit * unit;
}

static struct account expect(struct plan_model *m, uintptr_t begin, uintptr_t end, uint32_t slack) {
    const uintptr_t align = m->profile.mem_align;
    const uintptr_t edge = align > m->profile.virt_mask ? align : m->profile.virt_mask + 1u;
    const uintptr_t aligned = up_to(begin, align), first = up_to(begin, edge);
    const uintptr_t merges_at = m->direct_end, lacks = up_to(end, edge) - end;
    struct account a = {.head = (aligned < end ? aligned : end) - begin};
    a.tail = (end - begin - a.head) % align;
    uint64_t middle = end - begin - a.head - a.tail;
    uintptr_t last = end / edge * edge;
    m->direct_end = 0;
    if (end > first && lacks < align && lacks <= slack) {
        last = end + lacks;
        a.padded_in_place = (uint32_t)lacks;
    }
    if (first >= last) {
        a.boundary = middle;
        a.padded_in_place = 0;
        return a;
    }
    uint64_t body = (last < end ? last : end) - first;
    if (body < m->profile.copy_below && !(begin == first && begin == merges_at)) {
        a.small = body;
        a.tail = a.padded_in_place != 0 ? 0 : a.tail;
        a.boundary = end - begin - a.head - a.tail - body;
        a.padded_in_place = 0;
        return a;
    }
    a.direct = body;
    a.tail = a.padded_in_place != 0 ? 0 : a.tail;
    a.boundary = end - begin - a.head - a.tail - body;
    m->direct_end = last >= end ? last : 0;
    return a;
}

static void check_account(struct plan_model *m, const struct plan_batch *before,
                          const struct plan_fragment *whole, uint32_t taken, uint32_t padded) {
    const uintptr_t begin = (uintptr_t)whole->data;
    const struct plan_batch *b = &m->batch;
    const bool is_cut = taken < whole->bytes;
    if (taken == 0)
        return;
    const struct account a = expect(m, begin, begin + taken, is_cut ? 0 : whole->slack);
    const uint64_t counted[] = {[BOUNCE_HEAD] = a.head,
                                [BOUNCE_TAIL] = a.tail,
                                [BOUNCE_SMALL] = a.small,
                                [BOUNCE_BOUNDARY] = a.boundary};
    if (b->direct_bytes - before->direct_bytes != a.direct)
        model_fail("%u bytes of a fragment: %llu are direct, and not %llu", taken,
                   (unsigned long long)(b->direct_bytes - before->direct_bytes),
                   (unsigned long long)a.direct);
    for (int i = BOUNCE_HEAD; i <= BOUNCE_BOUNDARY; i++)
        if (b->bounced_bytes[i] - before->bounced_bytes[i] != counted[i])
            model_fail("%u bytes of a fragment: for reason %d %llu are copied, and not %llu", taken,
                       i, (unsigned long long)(b->bounced_bytes[i] - before->bounced_bytes[i]),
                       (unsigned long long)counted[i]);
    if (padded != a.padded_in_place)
        model_fail("%u bytes are padded in place, and not %u", padded, a.padded_in_place);
}

/* By the most careful of estimates nothing stands in the fragment's way. */
static bool surely_fits(const struct plan_model *m, uint32_t bytes) {
    const struct plan_profile *p = &m->profile;
    const struct plan_batch *b = &m->batch;
    const uint64_t edge = p->mem_align > p->virt_mask ? p->mem_align : p->virt_mask + 1u;
    const uint64_t unit = edge > p->block_bytes ? edge : p->block_bytes;
    const uint64_t used = b->frame.used + 3 * sizeof(struct record_extent);
    return used <= b->frame.capacity &&
           up_to(used, unit) + up_to(b->payload_end + bytes + 3 * edge, unit) <=
               p->batch_bytes_max &&
           b->iov_count + 4 <= p->iovecs_max &&
           b->bounce_used + 4 * edge + p->copy_below + unit <= m->bounce_capacity;
}

uint32_t model_add(struct plan_model *m, uint32_t flow, uint32_t offset, uint32_t bytes,
                   uint32_t slack) {
    struct model_flow *to = &m->flows[flow];
    uint8_t *data = m->arena + offset;
    if ((uint64_t)offset + bytes + slack > MODEL_ARENA_BYTES)
        model_fail("the arena ends before the fragment does");
    write_flow(flow, to->given, data, bytes);
    memset(data + bytes, 0xDD, slack);
    struct plan_fragment f = {.flow = to->id,
                              .stream_offset = to->given,
                              .data = data,
                              .bytes = bytes,
                              .slack = slack,
                              .crc = to->crc};
    const struct plan_fragment before = f;
    const struct plan_batch batch_before = m->batch;
    const bool fits = surely_fits(m, bytes);
    const uint32_t taken = plan_add(&m->batch, &m->profile, &f);
    check_rest(m, &f, &before, taken);
    check_account(m, &batch_before, &before, taken, before.slack - f.slack);
    if (taken != bytes && fits)
        model_fail("there was room for all of %u bytes, and %u were taken", bytes, taken);
    for (uint32_t i = before.slack - f.slack; i < slack; i++) {
        if (data[bytes + i] != 0xDD)
            model_fail("byte %u behind the fragment was written", i);
    }
    if (m->checksum && f.crc != frame_crc32c(before.crc, data, taken))
        model_fail("the CRC was not carried over the %u bytes taken", taken);
    if (plan_bytes(&m->batch, &m->profile) > m->profile.batch_bytes_max)
        model_fail("the batch has outgrown its limit");
    to->given += taken;
    to->crc = f.crc;
    return taken;
}

void model_feed(struct plan_model *m, uint32_t flow, uint32_t bytes, uint32_t align,
                uint32_t slack) {
    while (bytes != 0) {
        const uint32_t offset = (m->arena_used + align - 1) / align * align;
        if (offset + bytes + slack > MODEL_ARENA_BYTES) {
            model_finish(m);
            continue;
        }
        const bool was_empty = plan_is_empty(&m->batch);
        const uint32_t taken = model_add(m, flow, offset, bytes, slack);
        if (taken == 0 && was_empty)
            model_fail("an empty batch took nothing of %u bytes", bytes);
        m->arena_used = offset + bytes + slack;
        bytes -= taken;
        if (bytes != 0)
            model_finish(m);
    }
}

static uint64_t gather(struct plan_model *m) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < m->batch.iov_count; i++) {
        const struct iovec *iov = &m->batch.iov[i];
        const uintptr_t ends = (uintptr_t)iov->iov_base | iov->iov_len;
        if (iov->iov_len == 0 || (ends & (m->profile.mem_align - 1)) != 0)
            model_fail("iovec %u of %zu bytes is not aligned", i, iov->iov_len);
        if (i > 0 && ((uintptr_t)iov->iov_base & m->profile.virt_mask) != 0)
            model_fail("iovec %u does not begin on the boundary", i);
        if (i + 1 < m->batch.iov_count &&
            (((uintptr_t)iov->iov_base + iov->iov_len) & m->profile.virt_mask) != 0)
            model_fail("iovec %u does not end on the boundary", i);
        if (at + iov->iov_len > m->profile.batch_bytes_max)
            model_fail("the iovecs hold more than batch_bytes_max");
        memcpy(m->image + at, iov->iov_base, iov->iov_len);
        at += iov->iov_len;
    }
    return at;
}

static uint32_t flow_of(const struct plan_model *m, const uint8_t id[16]) {
    for (uint32_t flow = 0; flow < MODEL_FLOWS_COUNT; flow++) {
        if (memcmp(m->flows[flow].id, id, 16) == 0)
            return flow;
    }
    model_fail("an extent names an unknown flow");
}

/* Reads one extent; returns where in the payload it ends. */
static uint64_t read_extent(struct plan_model *m, const struct record_extent *e,
                            const uint8_t *payload, uint64_t payload_end, uint64_t read_to) {
    const uint32_t flow = flow_of(m, e->head.flow);
    const uint64_t end = (uint64_t)e->payload_offset + e->bytes;
    if (e->bytes == 0 || e->payload_offset < read_to || end > payload_end)
        model_fail("an extent overlaps another, or the batch's end");
    if (e->stream_offset != m->flows[flow].written)
        model_fail("an extent is out of its flow's order");
    for (uint64_t i = read_to; i < e->payload_offset; i++) {
        if (payload[i] != 0)
            model_fail("padding is not zero at %llu", (unsigned long long)i);
    }
    if (!is_flow(flow, e->stream_offset, payload + e->payload_offset, e->bytes))
        model_fail("the bytes of an extent of flow %u are wrong", flow);
    const uint32_t crc = frame_crc32c(e->crc_before, payload + e->payload_offset, e->bytes);
    if (m->checksum ? crc != e->crc_after : (e->crc_before | e->crc_after) != 0)
        model_fail("an extent's CRC is wrong");
    m->flows[flow].written += e->bytes;
    return end;
}

static void read_batch(struct plan_model *m, uint64_t batch_bytes) {
    struct batch_header *h = (struct batch_header *)(void *)m->image;
    const uint32_t crc = h->crc32c;
    h->crc32c = 0;
    if (memcmp(h->magic, BATCH_MAGIC, 8) != 0 || crc != frame_crc32c(0, h, h->header_bytes))
        model_fail("the batch's header is not valid");
    if (h->batch_bytes != batch_bytes || h->batch_index != m->batch_index)
        model_fail("the header tells of another batch");
    if ((h->flags & BATCH_HAS_CRC32C) != (m->checksum ? BATCH_HAS_CRC32C : 0))
        model_fail("the header is wrong about its CRCs");
    const uint8_t *payload = m->image + h->header_bytes;
    const uint64_t payload_end = batch_bytes - h->header_bytes;
    const uint8_t *at = (const uint8_t *)(h + 1);
    uint64_t read_to = 0, payload_bytes = 0;
    for (uint32_t i = 0; i < h->record_count; i++) {
        const struct record_head *head = (const struct record_head *)(const void *)at;
        if (head->kind == RECORD_EXTENT) {
            const struct record_extent *e = (const struct record_extent *)(const void *)at;
            read_to = read_extent(m, e, payload, payload_end, read_to);
            payload_bytes += e->bytes;
        }
        at += head->record_bytes;
    }
    if (at != (const uint8_t *)(h + 1) + h->record_bytes || payload_bytes != h->payload_bytes)
        model_fail("the header miscounts its records or their bytes");
    for (; at < payload; at++) {
        if (*at != 0)
            model_fail("the header is not filled up with zeros");
    }
    for (; read_to < payload_end; read_to++) {
        if (payload[read_to] != 0)
            model_fail("the padding of the batch's end is not zero");
    }
}

uint64_t model_finish(struct plan_model *m) {
    if (plan_is_empty(&m->batch))
        return 0;
    const uint8_t store_uuid[16] = {1, 2, 3};
    struct frame_batch info = {
        .store_uuid = store_uuid, .segment_sequence = 7, .batch_index = m->batch_index};
    const uint64_t said = plan_bytes(&m->batch, &m->profile);
    const uint64_t batch_bytes = plan_finish(&m->batch, &m->profile, &info);
    if (batch_bytes != said)
        model_fail("plan_bytes and plan_finish disagree");
    if (batch_bytes % m->profile.block_bytes != 0 || m->batch.iov_count > m->profile.iovecs_max)
        model_fail("the device would refuse the batch");
    if (gather(m) != batch_bytes)
        model_fail("the iovecs do not hold the batch");
    read_batch(m, batch_bytes);
    for (uint32_t flow = 0; flow < MODEL_FLOWS_COUNT; flow++) {
        if (m->flows[flow].written != m->flows[flow].given)
            model_fail("flow %u lacks bytes that were taken", flow);
    }
    m->direct_bytes += m->batch.direct_bytes;
    m->padding_bytes += m->batch.padding_bytes;
    for (int reason = 0; reason < BOUNCE_REASONS_COUNT; reason++)
        m->bounced_bytes[reason] += m->batch.bounced_bytes[reason];
    m->batch_index++;
    begin(m);
    return batch_bytes;
}

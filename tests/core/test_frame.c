/* SPDX-License-Identifier: Apache-2.0
 *
 * Framing: records, headers, marks and CRCs, byte by byte.
 */
#include "format/frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define BLOCK 4096u

static const uint8_t flow_a[16] = {0xA0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint8_t store[16] = {0x55, 0x66, 0x77};
static uint8_t *header;

/* CRC32C by its definition: reflected polynomial 0x82F63B78, a bit at a time. */
static uint32_t crc32c_slow(uint32_t crc, const uint8_t *data, size_t bytes) {
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static bool all_zero(const uint8_t *at, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (at[i] != 0)
            return false;
    }
    return true;
}

static struct frame begun(void) {
    struct frame f;
    memset(header, 0xEE, BATCH_HEADER_BYTES_MAX);
    frame_begin(&f, header, BATCH_HEADER_BYTES_MAX);
    return f;
}

static void crc_is_crc32c(void) {
    CHECK_EQUAL(frame_crc32c(0, "123456789", 9), 0xE3069283u);
    CHECK_EQUAL(frame_crc32c(0, "", 0), 0);
    CHECK_EQUAL(frame_crc32c(0x12345678u, "", 0), 0x12345678u);
    uint8_t data[300];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + 3);
    for (size_t bytes = 0; bytes <= sizeof(data); bytes++)
        CHECK_EQUAL(frame_crc32c(0, data, bytes), crc32c_slow(0, data, bytes));
}

static void crc_chains(void) {
    uint8_t data[257];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 13 + 1);
    const uint32_t whole = frame_crc32c(0, data, sizeof(data));
    for (size_t cut = 0; cut <= sizeof(data); cut++) {
        const uint32_t first = frame_crc32c(0, data, cut);
        CHECK_EQUAL(frame_crc32c(first, data + cut, sizeof(data) - cut), whole);
    }
}

static void extents_lie_in_order(void) {
    struct frame f = begun();
    CHECK_EQUAL(frame_add_extent(&f, flow_a, 1000, 512, 77, 3, 4), 0);
    CHECK_EQUAL(f.used, sizeof(struct batch_header) + sizeof(struct record_extent));
    CHECK_EQUAL(f.record_count, 1);
    CHECK_EQUAL(f.payload_bytes, 77);
    const struct record_extent *e = (const void *)(header + sizeof(struct batch_header));
    CHECK(f.last_extent == e);
    CHECK_EQUAL(e->head.kind, RECORD_EXTENT);
    CHECK_EQUAL(e->head.record_bytes, sizeof(*e));
    CHECK_EQUAL(e->head.flags, 0);
    CHECK(memcmp(e->head.flow, flow_a, 16) == 0);
    CHECK_EQUAL(e->stream_offset, 1000);
    CHECK_EQUAL(e->payload_offset, 512);
    CHECK_EQUAL(e->bytes, 77);
    CHECK_EQUAL(e->crc_before, 3);
    CHECK_EQUAL(e->crc_after, 4);
}

static void open_carries_its_texts(void) {
    struct frame f = begun();
    const struct frame_open o = {.started_ns = 5,
                                 .stream_offset = 6,
                                 .peer_address = {127, 0, 0, 1},
                                 .peer_port = 7,
                                 .peer_family = 4,
                                 .protocol = 1,
                                 .listener_bytes = 3,
                                 .name_bytes = 4,
                                 .labels_bytes = 0,
                                 .listener = "rawXX",
                                 .name = "beamXX",
                                 .labels = NULL};
    CHECK_EQUAL(frame_open_bytes(&o), 80);
    CHECK_EQUAL(frame_add_open(&f, flow_a, &o), 0);
    CHECK(f.last_extent == NULL);
    const struct record_open *r = (const void *)(header + sizeof(struct batch_header));
    CHECK_EQUAL(r->head.kind, RECORD_OPEN);
    CHECK_EQUAL(r->head.record_bytes, 80);
    CHECK_EQUAL(r->started_ns, 5);
    CHECK_EQUAL(r->stream_offset, 6);
    CHECK_EQUAL(r->peer_address[0], 127);
    CHECK_EQUAL(r->peer_port, 7);
    CHECK_EQUAL(r->peer_family, 4);
    CHECK_EQUAL(r->protocol, 1);
    CHECK_EQUAL(r->listener_bytes, 3);
    CHECK_EQUAL(r->name_bytes, 4);
    CHECK_EQUAL(r->labels_bytes, 0);
    CHECK(all_zero((const uint8_t *)r->reserved, sizeof(r->reserved)));
    CHECK(memcmp(r + 1, "rawbeam\0", 8) == 0);
}

static void every_text_length_is_padded(void) {
    char text[RECORD_TEXT_BYTES_MAX];
    memset(text, 'x', sizeof(text));
    for (uint16_t bytes = 0; bytes <= 40; bytes++) {
        struct frame f = begun();
        const struct frame_open o = {.labels_bytes = bytes, .labels = text};
        CHECK_EQUAL(frame_add_open(&f, flow_a, &o), 0);
        const uint32_t record_bytes = f.used - (uint32_t)sizeof(struct batch_header);
        CHECK_EQUAL(record_bytes % 8, 0);
        CHECK(record_bytes >= sizeof(struct record_open) + bytes);
        CHECK(record_bytes < sizeof(struct record_open) + bytes + 8u);
        const uint8_t *behind =
            header + sizeof(struct batch_header) + sizeof(struct record_open) + bytes;
        CHECK(all_zero(behind, (size_t)(header + f.used - behind)));
    }
    const struct frame_open largest = {.labels_bytes = RECORD_TEXT_BYTES_MAX, .labels = text};
    struct frame f = begun();
    CHECK_EQUAL(frame_add_open(&f, flow_a, &largest), 0);
}

static void close_tells_the_end(void) {
    struct frame f = begun();
    CHECK_EQUAL(frame_add_extent(&f, flow_a, 0, 0, 1, 0, 0), 0);
    const struct frame_close c = {.stream_bytes = 1,
                                  .ended_ns = 2,
                                  .state = FLOW_STATE_INTERRUPTED,
                                  .reason = CLOSE_REASON_IDLE,
                                  .flags = CLOSE_HAS_CRC32C,
                                  .crc32c = 3,
                                  .sender_crc32c = 4};
    CHECK_EQUAL(frame_add_close(&f, flow_a, &c), 0);
    CHECK(f.last_extent == NULL);
    CHECK_EQUAL(f.record_count, 2);
    const struct record_close *r = (const void *)(header + f.used - sizeof(*r));
    CHECK_EQUAL(r->head.kind, RECORD_CLOSE);
    CHECK_EQUAL(r->head.flags, CLOSE_HAS_CRC32C);
    CHECK_EQUAL(r->stream_bytes, 1);
    CHECK_EQUAL(r->ended_ns, 2);
    CHECK_EQUAL(r->state, FLOW_STATE_INTERRUPTED);
    CHECK_EQUAL(r->reason, CLOSE_REASON_IDLE);
    CHECK_EQUAL(r->crc32c, 3);
    CHECK_EQUAL(r->sender_crc32c, 4);
}

static void full_frame_refuses_whole_records(void) {
    struct frame f;
    memset(header, 0xEE, BLOCK);
    frame_begin(&f, header, BLOCK);
    uint32_t count = 0;
    while (frame_add_extent(&f, flow_a, count, count, 1, 0, 0) == 0)
        count++;
    CHECK_EQUAL(count, (BLOCK - sizeof(struct batch_header)) / sizeof(struct record_extent));
    CHECK_EQUAL(f.record_count, count);
    CHECK_EQUAL(f.payload_bytes, count);
    const uint32_t left = BLOCK - f.used;
    CHECK(frame_has_room(&f, left));
    CHECK(!frame_has_room(&f, left + 1));
    const struct frame before = f;
    const struct frame_close c = {0};
    const struct frame_open o = {0};
    CHECK_EQUAL(frame_add_close(&f, flow_a, &c), (uint64_t)-ENOSPC);
    CHECK_EQUAL(frame_add_open(&f, flow_a, &o), (uint64_t)-ENOSPC);
    CHECK_EQUAL(frame_add_extent(&f, flow_a, 0, 0, 1, 0, 0), (uint64_t)-ENOSPC);
    CHECK(memcmp(&before, &f, sizeof(f)) == 0);
    for (uint32_t i = f.used; i < BLOCK; i++)
        CHECK_EQUAL(header[i], 0xEE);
}

static void finish_fills_the_header(void) {
    struct frame f = begun();
    for (uint32_t i = 0; i < 100; i++)
        CHECK_EQUAL(frame_add_extent(&f, flow_a, i * 2, i * 2, 1, 0, 0), 0);
    CHECK_EQUAL(frame_header_bytes(&f, BLOCK), 2 * BLOCK);
    CHECK_EQUAL(frame_header_bytes(&f, 512), 5120);
    const struct frame_batch b = {.store_uuid = store,
                                  .segment_sequence = 0x100000002u,
                                  .batch_index = 3,
                                  .batches_committed = 2,
                                  .block_bytes = BLOCK,
                                  .flags = BATCH_HAS_CRC32C,
                                  .batch_bytes = 4 * BLOCK,
                                  .made_ns = 99};
    CHECK_EQUAL(frame_finish(&f, &b), 2 * BLOCK);
    struct batch_header h;
    memcpy(&h, header, sizeof(h));
    CHECK(memcmp(h.magic, "INGESTBT", 8) == 0);
    CHECK_EQUAL(h.header_bytes, 2 * BLOCK);
    CHECK(memcmp(h.store_uuid, store, 16) == 0);
    CHECK_EQUAL(h.segment_sequence, 0x100000002u);
    CHECK_EQUAL(h.batch_index, 3);
    CHECK_EQUAL(h.batches_committed, 2);
    CHECK_EQUAL(h.batch_bytes, 4 * BLOCK);
    CHECK_EQUAL(h.record_count, 100);
    CHECK_EQUAL(h.record_bytes, 100 * sizeof(struct record_extent));
    CHECK_EQUAL(h.flags, BATCH_HAS_CRC32C);
    CHECK_EQUAL(h.reserved, 0);
    CHECK_EQUAL(h.payload_bytes, 100);
    CHECK_EQUAL(h.made_ns, 99);
    CHECK(all_zero(h.zero, sizeof(h.zero)));
    CHECK(all_zero(header + f.used, 2 * BLOCK - f.used));
    memset(header + offsetof(struct batch_header, crc32c), 0, 4);
    CHECK_EQUAL(h.crc32c, crc32c_slow(0, header, 2 * BLOCK));
    CHECK_EQUAL(header[2 * BLOCK], 0xEE);
}

static void segment_header_is_whole(void) {
    struct segment_header h;
    memset(&h, 0xEE, sizeof(h));
    frame_segment_header(&h, store, 1, 2, 3, 4);
    CHECK(memcmp(h.magic, "INGESTSG", 8) == 0);
    CHECK_EQUAL(h.version, FORMAT_VERSION);
    CHECK(memcmp(h.store_uuid, store, 16) == 0);
    CHECK_EQUAL(h.segment_sequence, 1);
    CHECK_EQUAL(h.segment_index, 2);
    CHECK_EQUAL(h.worker_index, 3);
    CHECK_EQUAL(h.opened_ns, 4);
    CHECK(all_zero(h.zero, sizeof(h.zero)));
    const uint32_t crc = h.crc32c;
    h.crc32c = 0;
    CHECK_EQUAL(crc, crc32c_slow(0, (const uint8_t *)&h, sizeof(h)));
}

static void commit_mark_is_whole(void) {
    struct commit_mark m;
    memset(&m, 0xEE, sizeof(m));
    frame_commit_mark(&m, store, 1, 2, 3, 4);
    CHECK(memcmp(m.magic, "INGESTMK", 8) == 0);
    CHECK_EQUAL(m.version, FORMAT_VERSION);
    CHECK(memcmp(m.store_uuid, store, 16) == 0);
    CHECK_EQUAL(m.segment_sequence, 1);
    CHECK_EQUAL(m.mark_sequence, 2);
    CHECK_EQUAL(m.batches_committed, 3);
    CHECK_EQUAL(m.reserved, 0);
    CHECK_EQUAL(m.committed_end, 4);
    CHECK(all_zero(m.zero, sizeof(m.zero)));
    const uint32_t crc = m.crc32c;
    m.crc32c = 0;
    CHECK_EQUAL(crc, crc32c_slow(0, (const uint8_t *)&m, sizeof(m)));
}

static const struct harness_test tests[] = {
    TEST(crc_is_crc32c),
    TEST(crc_chains),
    TEST(extents_lie_in_order),
    TEST(open_carries_its_texts),
    TEST(every_text_length_is_padded),
    TEST(close_tells_the_end),
    TEST(full_frame_refuses_whole_records),
    TEST(finish_fills_the_header),
    TEST(segment_header_is_whole),
    TEST(commit_mark_is_whole),
};

int main(void) {
    header = aligned_alloc(BLOCK, BATCH_HEADER_BYTES_MAX);
    const int status = harness_run(tests, sizeof(tests) / sizeof(tests[0]));
    free(header);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Framing: see frame.h. Pure; owned by the worker's thread.
 */
#include "format/frame.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>

#include <isa-l/crc.h>

#define RECORD_ALIGN 8u

static_assert(sizeof(struct batch_header) % RECORD_ALIGN == 0, "records begin aligned");
static_assert(sizeof(struct record_open) + RECORD_TEXT_BYTES_MAX <= UINT16_MAX, "record_bytes");

/* isa-l computes the bare register: it neither inverts what goes in nor what
 * comes out. Inverting both gives the common CRC32C, which chains over pieces. */
uint32_t frame_crc32c(uint32_t crc, const void *data, uint64_t bytes) {
    unsigned char *at = (unsigned char *)(uintptr_t)data; /* isa-l only reads it */
    uint32_t state = ~crc;
    while (bytes > INT_MAX) {
        const int step = INT_MAX & ~63;
        state = crc32_iscsi(at, step, state);
        at += step;
        bytes -= (uint64_t)step;
    }
    return ~crc32_iscsi(at, (int)bytes, state);
}

static uint32_t frame_round_up(uint32_t value, uint32_t power_of_two) {
    return (value + power_of_two - 1) & ~(power_of_two - 1);
}

void frame_begin(struct frame *f, uint8_t *buffer, uint32_t capacity) {
    assert((uintptr_t)buffer % RECORD_ALIGN == 0);
    assert(capacity >= sizeof(struct batch_header) && capacity <= BATCH_HEADER_BYTES_MAX);
    f->buffer = buffer;
    f->capacity = capacity;
    f->used = sizeof(struct batch_header);
    f->record_count = 0;
    f->payload_bytes = 0;
    f->last_extent = NULL;
}

/* Reserves a record and fills in its head; NULL when it does not fit. */
static void *frame_add_record(struct frame *f, uint16_t kind, uint32_t record_bytes, uint32_t flags,
                              const uint8_t flow[FORMAT_UUID_BYTES]) {
    assert(record_bytes % RECORD_ALIGN == 0 && record_bytes <= UINT16_MAX);
    if (!frame_has_room(f, record_bytes))
        return NULL;
    struct record_head *head = (struct record_head *)(void *)(f->buffer + f->used);
    head->kind = kind;
    head->record_bytes = (uint16_t)record_bytes;
    head->flags = flags;
    memcpy(head->flow, flow, FORMAT_UUID_BYTES);
    f->used += record_bytes;
    f->record_count++;
    f->last_extent = NULL;
    assert(f->used <= f->capacity && f->used % RECORD_ALIGN == 0);
    return head;
}

int frame_add_extent(struct frame *f, const uint8_t flow[16], uint64_t stream_offset,
                     uint32_t payload_offset, uint32_t bytes, uint32_t crc_before,
                     uint32_t crc_after) {
    assert(bytes > 0);
    struct record_extent *r = frame_add_record(f, RECORD_EXTENT, sizeof(*r), 0, flow);
    if (r == NULL)
        return -ENOSPC;
    r->stream_offset = stream_offset;
    r->payload_offset = payload_offset;
    r->bytes = bytes;
    r->crc_before = crc_before;
    r->crc_after = crc_after;
    f->payload_bytes += bytes;
    f->last_extent = r;
    return 0;
}

static uint32_t frame_open_text_bytes(const struct frame_open *o) {
    return (uint32_t)o->listener_bytes + o->name_bytes + o->labels_bytes;
}

uint32_t frame_open_bytes(const struct frame_open *o) {
    assert(frame_open_text_bytes(o) <= RECORD_TEXT_BYTES_MAX);
    return frame_round_up((uint32_t)sizeof(struct record_open) + frame_open_text_bytes(o),
                          RECORD_ALIGN);
}

/* An absent text may have a null pointer, which memcpy must not be given. */
static uint8_t *frame_put_text(uint8_t *at, const char *text, uint16_t bytes) {
    if (bytes > 0)
        memcpy(at, text, bytes);
    return at + bytes;
}

int frame_add_open(struct frame *f, const uint8_t flow[16], const struct frame_open *o) {
    const uint32_t record_bytes = frame_open_bytes(o);
    struct record_open *r = frame_add_record(f, RECORD_OPEN, record_bytes, 0, flow);
    if (r == NULL)
        return -ENOSPC;
    r->started_ns = o->started_ns;
    r->stream_offset = o->stream_offset;
    memcpy(r->peer_address, o->peer_address, sizeof(r->peer_address));
    r->peer_port = o->peer_port;
    r->peer_family = o->peer_family;
    r->protocol = o->protocol;
    r->listener_bytes = o->listener_bytes;
    r->name_bytes = o->name_bytes;
    r->labels_bytes = o->labels_bytes;
    memset(r->reserved, 0, sizeof(r->reserved));
    uint8_t *at = (uint8_t *)(r + 1);
    at = frame_put_text(at, o->listener, o->listener_bytes);
    at = frame_put_text(at, o->name, o->name_bytes);
    at = frame_put_text(at, o->labels, o->labels_bytes);
    memset(at, 0, (size_t)((uint8_t *)r + record_bytes - at));
    return 0;
}

int frame_add_close(struct frame *f, const uint8_t flow[16], const struct frame_close *c) {
    struct record_close *r = frame_add_record(f, RECORD_CLOSE, sizeof(*r), c->flags, flow);
    if (r == NULL)
        return -ENOSPC;
    r->stream_bytes = c->stream_bytes;
    r->ended_ns = c->ended_ns;
    r->state = c->state;
    r->reason = c->reason;
    r->crc32c = c->crc32c;
    r->sender_crc32c = c->sender_crc32c;
    return 0;
}

uint32_t frame_header_bytes(const struct frame *f, uint32_t block_bytes) {
    assert(block_bytes != 0 && (block_bytes & (block_bytes - 1)) == 0);
    return frame_round_up(f->used, block_bytes);
}

uint32_t frame_finish(struct frame *f, const struct frame_batch *b) {
    const uint32_t header_bytes = frame_header_bytes(f, b->block_bytes);
    assert(header_bytes <= f->capacity && header_bytes <= b->batch_bytes);
    assert(f->payload_bytes <= b->batch_bytes - header_bytes);
    struct batch_header *h = (struct batch_header *)(void *)f->buffer;
    memset(h, 0, sizeof(*h));
    memset(f->buffer + f->used, 0, header_bytes - f->used);
    memcpy(h->magic, BATCH_MAGIC, FORMAT_MAGIC_BYTES);
    memcpy(h->store_uuid, b->store_uuid, FORMAT_UUID_BYTES);
    h->header_bytes = header_bytes;
    h->segment_sequence = b->segment_sequence;
    h->batch_index = b->batch_index;
    h->batches_committed = b->batches_committed;
    h->batch_bytes = b->batch_bytes;
    h->record_count = f->record_count;
    h->record_bytes = f->used - (uint32_t)sizeof(*h);
    h->flags = b->flags;
    h->payload_bytes = f->payload_bytes;
    h->made_ns = b->made_ns;
    h->crc32c = frame_crc32c(0, f->buffer, header_bytes);
    return header_bytes;
}

void frame_segment_header(struct segment_header *out, const uint8_t store_uuid[16],
                          uint64_t segment_sequence, uint32_t segment_index, uint32_t worker_index,
                          uint64_t opened_ns) {
    memset(out, 0, sizeof(*out));
    memcpy(out->magic, SEGMENT_MAGIC, FORMAT_MAGIC_BYTES);
    memcpy(out->store_uuid, store_uuid, FORMAT_UUID_BYTES);
    out->version = FORMAT_VERSION;
    out->segment_sequence = segment_sequence;
    out->segment_index = segment_index;
    out->worker_index = worker_index;
    out->opened_ns = opened_ns;
    out->crc32c = frame_crc32c(0, out, sizeof(*out));
}

void frame_commit_mark(struct commit_mark *out, const uint8_t store_uuid[16],
                       uint64_t segment_sequence, uint64_t mark_sequence,
                       uint32_t batches_committed, uint64_t committed_end) {
    memset(out, 0, sizeof(*out));
    memcpy(out->magic, MARK_MAGIC, FORMAT_MAGIC_BYTES);
    memcpy(out->store_uuid, store_uuid, FORMAT_UUID_BYTES);
    out->version = FORMAT_VERSION;
    out->segment_sequence = segment_sequence;
    out->mark_sequence = mark_sequence;
    out->batches_committed = batches_committed;
    out->committed_end = committed_end;
    out->crc32c = frame_crc32c(0, out, sizeof(*out));
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Framing: builds a batch's header and a segment's footer as a row of records.
 *
 * Pure: no system call, no clock, no allocation; the caller lends the memory.
 * Owned by the worker's thread. Invariants:
 *  - used <= capacity, and every record begins at a multiple of 8.
 *  - A record is written whole or not at all.
 *  - The last extent may be grown as long as nothing was written behind it.
 */
#ifndef INGESTD_FORMAT_FRAME_H
#define INGESTD_FORMAT_FRAME_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/format.h"

struct frame {
    uint8_t *buffer;
    uint32_t capacity; /* multiple of block_bytes */
    uint32_t used;     /* bytes, struct batch_header included */
    uint32_t record_count;
    uint64_t payload_bytes;
    struct record_extent *last_extent; /* NULL unless the last record is an extent */
};

/* What an OPEN record says of a connection. Texts need no terminator. */
struct frame_open {
    uint64_t started_ns;
    uint64_t stream_offset;
    uint8_t peer_address[16];
    uint16_t peer_port;
    uint8_t peer_family;
    uint8_t protocol;
    uint16_t listener_bytes;
    uint16_t name_bytes;
    uint16_t labels_bytes;
    const char *listener;
    const char *name;
    const char *labels;
};

struct frame_close {
    uint64_t stream_bytes;
    uint64_t ended_ns;
    uint32_t state;
    uint32_t reason;
    uint32_t flags;
    uint32_t crc32c;
    uint32_t sender_crc32c;
};

/* What the header of a batch says besides its records. */
struct frame_batch {
    const uint8_t *store_uuid;
    uint64_t segment_sequence;
    uint32_t batch_index;
    uint32_t batches_committed;
    uint32_t block_bytes;
    uint32_t flags;
    uint64_t batch_bytes;
    uint64_t made_ns;
};

uint32_t frame_crc32c(uint32_t crc, const void *data, uint64_t bytes);

void frame_begin(struct frame *f, uint8_t *buffer, uint32_t capacity);
static inline bool frame_has_room(const struct frame *f, uint32_t record_bytes) {
    assert(f->used <= f->capacity);
    return record_bytes <= f->capacity - f->used;
}
uint32_t frame_open_bytes(const struct frame_open *o);

/* Each of these returns 0, or -ENOSPC when the record does not fit. */
int frame_add_extent(struct frame *f, const uint8_t flow[16], uint64_t stream_offset,
                     uint32_t payload_offset, uint32_t bytes, uint32_t crc_before,
                     uint32_t crc_after);
int frame_add_open(struct frame *f, const uint8_t flow[16], const struct frame_open *o);
int frame_add_close(struct frame *f, const uint8_t flow[16], const struct frame_close *c);

/* Bytes the header takes on disk: used, rounded up to block_bytes. */
uint32_t frame_header_bytes(const struct frame *f, uint32_t block_bytes);

/* Zeroes the rest of the header, fills in struct batch_header and its CRC32C;
 * returns header_bytes. */
uint32_t frame_finish(struct frame *f, const struct frame_batch *b);

/* The 4096-byte blocks; each fills all of *out and its CRC32C. */
void frame_segment_header(struct segment_header *out, const uint8_t store_uuid[16],
                          uint64_t segment_sequence, uint32_t segment_index, uint32_t worker_index,
                          uint64_t opened_ns);
void frame_commit_mark(struct commit_mark *out, const uint8_t store_uuid[16],
                       uint64_t segment_sequence, uint64_t mark_sequence,
                       uint32_t batches_committed, uint64_t committed_end);

#endif

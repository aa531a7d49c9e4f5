/* SPDX-License-Identifier: Apache-2.0
 *
 * A segment being filled: where the next batch goes, and the footer to come.
 *
 * Pure: no system call, no clock, no allocation; the caller lends the memory.
 * Owned by the worker's thread. Invariants:
 *  - end_bytes + the footer never exceed the segment.
 *  - A flow has one span here; within it its extents follow each other.
 *  - The footer is written only when committed_batches == batch_count.
 */
#ifndef INGESTD_FORMAT_SEGMENT_H
#define INGESTD_FORMAT_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "format/frame.h"

#define SEGMENT_NONE UINT32_MAX

/* What one batch adds to one flow. */
struct segment_touch {
    const uint8_t *flow; /* 16 bytes */
    uint64_t first_offset;
    uint64_t end_offset;
    uint32_t crc_before;
    uint32_t crc_after;
    uint32_t flags; /* SPAN_HAS_* */
};

/* Remembered with the flow: where its span is, if in this segment. */
struct segment_span_ref {
    uint64_t sequence;
    uint32_t index;
};

struct segment {
    uint32_t index;
    uint64_t sequence;
    uint64_t offset; /* byte of the store */
    uint64_t bytes;
    uint32_t block_bytes;
    uint64_t end_bytes; /* where the next batch goes, from the segment's start */
    uint64_t payload_bytes;
    uint32_t batch_count;
    uint32_t committed_batches;
    uint64_t committed_end;
    uint64_t mark_sequence;

    uint8_t *footer; /* lent, aligned to block_bytes */
    uint32_t footer_capacity;
    uint32_t copies_bytes; /* of OPEN and CLOSE records at the footer's start */
    uint32_t copies_count;
    struct record_span *spans; /* lent */
    uint32_t span_count;
    uint32_t span_capacity;
};

/* Bytes for a footer, and those reserved for CLOSE records in a full store's last segment. */
uint32_t segment_footer_bytes_max(uint64_t segment_bytes);
uint32_t segment_reserve_bytes(uint64_t segment_bytes);

/* The largest header, and the largest batch, that an empty segment is sure to take. */
uint32_t segment_header_bytes_max(uint64_t segment_bytes, uint32_t block_bytes);
uint64_t segment_batch_bytes_max(uint64_t segment_bytes, uint32_t block_bytes);

void segment_open(struct segment *s, uint32_t index, uint64_t sequence, uint64_t offset,
                  uint64_t bytes, uint32_t block_bytes, uint8_t *footer, uint32_t footer_capacity,
                  struct record_span *spans, uint32_t span_capacity);

/* Whether a batch fits together with the footer it would need and reserve_bytes
 * kept free behind it. */
bool segment_fits(const struct segment *s, uint64_t batch_bytes, uint32_t record_bytes,
                  uint32_t reserve_bytes);

/* Copies the OPEN and CLOSE records of a finished batch header. */
void segment_note_records(struct segment *s, const uint8_t *header);

/* Notes one flow's part of the batch that is about to be appended. */
void segment_note_touch(struct segment *s, struct segment_span_ref *ref,
                        const struct segment_touch *t);

/* The batch lies at end_bytes; the next goes behind it. */
void segment_append(struct segment *s, uint64_t batch_bytes, uint64_t payload_bytes);

/* Builds records and footer block in one run of memory (s->footer); returns its
 * bytes and sets *offset to where it goes in the segment. */
uint64_t segment_footer(struct segment *s, const uint8_t store_uuid[16], uint64_t closed_ns,
                        uint64_t *offset);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * A segment being filled: where the next batch goes, and the footer to come. When the
 * footer's records fill their memory, they go into the segment as a part of it.
 *
 * Pure: no system call, no clock, no allocation; the caller lends the memory.
 * Owned by the worker's thread. Invariants:
 *  - end_bytes + the footer never exceed the segment.
 *  - A flow has one span in each part; within it its extents follow each other.
 *  - The footer is written only when committed_batches == batch_count.
 */
#ifndef INGESTD_FORMAT_SEGMENT_H
#define INGESTD_FORMAT_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "format/frame.h"

#define SEGMENT_NONE UINT32_MAX
/* In front of a part's records: a batch's header, and the part's own block. */
#define SEGMENT_PART_BLOCKS 2u

/* What one batch adds to one flow. */
struct segment_touch {
    const uint8_t *flow; /* 16 bytes */
    uint64_t first_offset;
    uint64_t end_offset;
    uint32_t crc_before;
    uint32_t crc_after;
    uint32_t flags; /* SPAN_HAS_* */
};

/* Remembered with the flow: where its span is, if in this segment and this part. */
struct segment_span_ref {
    uint64_t sequence;
    uint32_t part;
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

    uint8_t *footer; /* lent; SEGMENT_PART_BLOCKS blocks in front of it are as well */
    uint32_t footer_capacity;
    uint32_t copies_bytes; /* of OPEN and CLOSE records at the footer's start */
    uint32_t copies_count;
    uint32_t part_count;        /* parts that are placed */
    uint64_t part_record_bytes; /* 0, or a part is made of so many, whatever there is room for */
    uint64_t last_part_offset;
    uint64_t last_part_record_bytes;
    struct record_span *spans; /* lent */
    uint32_t span_count;
    uint32_t span_capacity;
};

/* Bytes for a footer or a part of it, and those reserved for CLOSE records in a full store's last
 * segment. */
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

/* Whether it does when the footer's records so far become a part in front of it. */
bool segment_fits_behind_part(const struct segment *s, uint64_t batch_bytes, uint32_t record_bytes,
                              uint32_t reserve_bytes);

/* Makes a part of the footer's records so far: a batch at end_bytes, built in the footer's
 * memory and the blocks in front of it. Continues with the memory `next`, of the same size.
 * Of `info` the caller fills in store_uuid, flags and made_ns. Returns the batch's bytes. */
uint64_t segment_part(struct segment *s, struct frame_batch *info, uint8_t *next);

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

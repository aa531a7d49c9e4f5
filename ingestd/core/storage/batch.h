/* SPDX-License-Identifier: Apache-2.0
 *
 * Batches: the open one that streams' bytes go into, and those under a write.
 *
 * Places nothing and submits nothing: storage.c decides when a batch closes. Owned by the
 * worker's thread. Invariants:
 *  - At most one batch is open; batches are placed in the order they were opened.
 *  - Memory that a batch reads (holds, header, bounce) stays until its write
 *    has completed; then the holds are released to their lender.
 */
#ifndef INGESTD_STORAGE_BATCH_H
#define INGESTD_STORAGE_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/area.h"
#include "storage/plan.h"
#include "storage/stream.h"

#define BATCH_IOVECS_MAX 1024u                  /* UIO_MAXIOV */
#define BATCH_IOVECS_MIN (1u + PLAN_IOVECS_MIN) /* an empty batch takes any one fragment */
#define BATCH_HOLDS_MAX 1024u
#define BATCH_TOUCHES_MAX 1024u
#define BATCH_NONE UINT32_MAX
/* A fragment may make three extents (head, body, tail), and a CLOSE may follow. */
#define BATCH_PIECE_RECORD_BYTES (3 * sizeof(struct record_extent) + sizeof(struct record_close))

/* A run of a stream's bytes that is handed over: it lies in the area until its hold comes back. */
struct batch_piece {
    uint8_t *data;
    uint32_t bytes;
    uint32_t slack;        /* bytes behind them that may be overwritten by padding */
    uint32_t copied_bytes; /* of the first ones: copied before they were appended ... */
    uint32_t copied_for;   /* ... for this reason (enum bounce_reason) */
    uint64_t hold;         /* the lender's name for the memory */
};

/* What a batch does for one stream; kept until the commit is reported to the stream's owner. */
struct batch_touch {
    struct storage_stream *stream;
    uint32_t bytes;
    uint64_t first_offset;
    uint64_t end_offset;
    uint32_t crc_before;
    uint32_t crc_after;
    uint32_t flags; /* SPAN_HAS_* */
};

struct batch {
    struct plan_batch plan;
    uint64_t opened_ns;
    uint64_t item;        /* of the commit, once placed */
    bool full;            /* takes nothing more; waits to be placed */
    bool urgent;          /* someone waits for its commit */
    bool uses_reserve;    /* holds CLOSE records only and may use the segment's reserve */
    bool flush_requested; /* to be written at once: memory is short */
    bool placed;          /* has its place in a segment */
    bool abandoned;       /* dropped: its streams are back at what lies before it */
    uint32_t index;
    uint32_t next_done; /* BATCH_NONE: none */
    uint32_t hold_count;
    uint32_t touch_count;
    uint64_t *holds; /* to be released when the write is complete */
    struct batch_touch *touches;
    struct iovec *iov;
    uint8_t *header;
    uint8_t *bounce;
};

struct batch_pool {
    struct batch *batches;
    uint32_t count;
    uint32_t *free; /* stack of indexes */
    uint32_t free_count;
    struct batch *open; /* or NULL */
    uint32_t bounce_bytes;
    uint32_t header_bytes_max; /* of one batch */
    uint32_t holds_max;        /* of one batch */
    uint64_t payload_bytes_max;
    bool checksum;
    struct plan_profile profile;
};

/* Bytes of the area's own part that the pool will take. */
uint64_t batch_pool_own_bytes(uint32_t count, uint32_t bounce_bytes);
int batch_pool_open(struct batch_pool *p, struct area *a, uint32_t count); /* 0 or -ENOMEM */
void batch_pool_close(struct batch_pool *p);

/* Opens one of the free ones, of which there is one. */
struct batch *batch_open(struct batch_pool *p, uint64_t now_ns, bool uses_reserve);
/* It is written, or dropped, and its holds are released. */
void batch_put(struct batch_pool *p, struct batch *b);

/* Whether the open batch takes so many bytes, and records of that many. */
static inline bool batch_has_space(const struct batch_pool *p, uint32_t bytes,
                                   uint32_t record_bytes) {
    const struct batch *b = p->open;
    if (b->full || b->touch_count >= BATCH_TOUCHES_MAX - 1 || b->hold_count >= p->holds_max ||
        b->plan.iov_count + PLAN_IOVECS_MIN > b->plan.iov_capacity)
        return false;
    if (!plan_is_empty(&b->plan) && bytes > 0 && b->plan.payload_end + bytes > p->payload_bytes_max)
        return false;
    return frame_has_room(&b->plan.frame, record_bytes);
}
/* Whether the open batch takes so many bytes of the stream: then its OPEN record is in it. */
bool batch_has_room(struct batch_pool *p, struct storage_stream *t, uint32_t bytes);

/* Takes the piece, which is the stream's next, into the open batch: as much as there is
 * room for. Returns the bytes taken. */
uint32_t batch_add(struct batch_pool *p, struct storage_stream *t, const struct batch_piece *piece);
/* Takes bytes, all or none, by a copy: they lie outside of the area. At most a page. */
bool batch_add_copy(struct batch_pool *p, struct storage_stream *t, uint8_t *data, uint32_t bytes);
/* Adds the stream's CLOSE record, of which the batch fills in the stream's part. */
bool batch_add_close(struct batch_pool *p, struct storage_stream *t, const struct frame_close *c);

/* As if the batch had never taken anything: streams are put back to what lies before it. */
void batch_rewind(struct batch *b);

#endif

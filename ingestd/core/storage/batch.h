/* SPDX-License-Identifier: Apache-2.0
 *
 * Batches: the open one that flows' bytes go into, and those under a write.
 *
 * Owned by the worker's thread. Invariants:
 *  - At most one batch is open; batches are placed in the order they were opened.
 *  - Memory that a batch reads (holds, header, bounce) stays until its write
 *    has completed; then the engine gets the holds back.
 */
#ifndef INGESTD_STORAGE_BATCH_H
#define INGESTD_STORAGE_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "connection/flow.h"
#include "storage/plan.h"

#define BATCH_IOVECS_MAX 1024u                  /* UIO_MAXIOV */
#define BATCH_IOVECS_MIN (1u + PLAN_IOVECS_MIN) /* an empty batch takes any one fragment */
#define BATCH_HOLDS_MAX 1024u
#define BATCH_TOUCHES_MAX 1024u

/* In a hold: what was received was copied out before (reason `pressure`). */
#define BATCH_HOLD_COPIED (1ull << 63)

struct worker;

/* What a batch does for one flow; kept until the flow is told of the commit. */
struct batch_touch {
    uint32_t flow;
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
    uint64_t item; /* of the commit, once placed */
    bool full;     /* takes nothing more; waits to be placed */
    bool urgent;   /* someone waits for its commit */
    bool rescued;  /* holds last words only and may use the segment's reserve */
    bool hurried;  /* to be written at once: memory is short */
    bool placed;   /* has its place in a segment */
    uint32_t index;
    uint32_t hold_count;
    uint32_t touch_count;
    uint64_t *holds; /* what the engine gets back when the write is complete */
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
    struct plan_profile profile;
};

/* Bytes of the area's own part that the pool will take. */
uint64_t batch_pool_own_bytes(uint32_t count, uint32_t bounce_bytes);
int batch_pool_open(struct worker *w, uint32_t count);
void batch_pool_close(struct worker *w);

/* Takes the bytes at data, which are the flow's next, into the open batch: as
 * many as it has room for. Returns the bytes taken, 0 when the caller must wait.
 * slack: bytes behind them that may be overwritten by padding. */
uint32_t batch_add(struct worker *w, struct flow *f, uint8_t *data, uint32_t bytes, uint32_t slack,
                   uint64_t hold);

/* Takes the bytes at data, all or none, by a copy: they lie outside of the area,
 * held back as they might have been the flow's trailer. At most a page. */
bool batch_copy(struct worker *w, struct flow *f, uint8_t *data, uint32_t bytes);

/* Adds the flow's CLOSE record; false when the caller must wait. */
bool batch_add_close(struct worker *w, struct flow *f);

/* Closes and places the open batch if it is full, old, or wanted; called once a
 * turn. Returns when to call again at the latest. */
uint64_t batch_turn(struct worker *w);

/* The memory that the open batch holds is wanted back: it is closed at its next turn. */
void batch_hurry(struct worker *w);

/* Gives the open batch's content up, as if never taken: the store is full or has
 * failed. Flows are put back to what lies in batches placed before. */
void batch_abandon(struct worker *w);

/* The write is complete (or given up): holds go back to the engine. */
void batch_release(struct worker *w, struct batch *b);

#endif

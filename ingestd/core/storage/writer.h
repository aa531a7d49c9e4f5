/* SPDX-License-Identifier: Apache-2.0
 *
 * The writer: places batches in segments, commits them, and tells flows.
 *
 * Owned by the worker's thread. Invariants:
 *  - Items of the commit are numbered in the order of their places: a segment's
 *    header, its batches, the next segment's header, ...
 *  - Without checksums nobody is told before a commit mark, written after the
 *    flush, is itself on stable media.
 *  - A footer is written only when its whole segment is committed.
 */
#ifndef INGESTD_STORAGE_WRITER_H
#define INGESTD_STORAGE_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/batch.h"
#include "storage/commit.h"
#include "storage/device.h"
#include "format/segment.h"

#define SEGMENTS_LIVE_MAX 4u
#define SEGMENTS_READY_MAX 4u
#define UNCOMMITTED_ITEMS_MAX 4096u /* a power of two */
#ifndef ACKS_MAX
#define ACKS_MAX 65536u /* a power of two */
#endif

enum live_state {
    LIVE_NONE = 0,
    LIVE_FILLING, /* batches are appended */
    LIVE_CLOSING, /* full; its batches are being committed */
    LIVE_FOOTER,  /* its footer is being written */
};

struct live_segment {
    struct segment segment;
    uint8_t state;
    bool marking; /* its mark is being written */
    uint64_t header_item;
    uint8_t *header; /* one block each */
    uint8_t *mark;
    struct device_write *header_write, *mark_write, *footer_write;
};

/* What to tell a flow once an item is committed. */
struct ack {
    uint64_t item;
    uint64_t end_offset;
    uint32_t flow;
    uint32_t bytes;
    bool closes;
};

struct writer {
    struct live_segment live[SEGMENTS_LIVE_MAX];
    struct live_segment *filling; /* or NULL */
    struct {
        uint32_t index;
        uint64_t sequence;
    } ready[SEGMENTS_READY_MAX]; /* granted, oldest first */
    uint32_t ready_count;
    uint32_t marks_in_flight;
    struct commit commit;
    uint64_t *item_end;   /* where in its segment an uncommitted item ends */
    uint64_t *item_begun; /* when a batch was opened: ns */
    struct ack *acks;
    uint32_t ack_head, ack_tail;
    bool full;       /* no segment can be had */
    bool exhausted;  /* ... and what there was is used up */
    bool speechless; /* ... and so is the reserve for last words */
    bool closing;    /* the last segment is to be closed: the worker drains */
    int failed;      /* errno that made the store fail, or 0 */
};

uint64_t writer_own_bytes(uint64_t segment_bytes, uint32_t block_bytes);
int writer_open(struct worker *w);
void writer_close(struct worker *w);

void writer_grant(struct worker *w, uint32_t index, uint64_t sequence);

/* Gives the batch its place and submits its write; false when there is none yet. */
bool writer_place(struct worker *w, struct batch *b);

/* Once a turn: flush, marks, footers. Returns when to call again at the latest. */
uint64_t writer_turn(struct worker *w);

/* Everything placed is committed and every segment is closed. */
bool writer_is_idle(const struct worker *w);

void writer_write_done(struct worker *w, struct device_write *d);
void writer_flush_done(struct worker *w);

/* What failed: of the device, or that the store itself is not there any more. */
enum store_failure { FAILED_WRITE = 0, FAILED_FLUSH = 1, FAILED_LOST = 2 };

/* The store failed: nothing is acknowledged any more and all flows are told. */
void writer_fail(struct worker *w, int code, enum store_failure what, uint64_t offset);

#endif

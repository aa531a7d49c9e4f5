/* SPDX-License-Identifier: Apache-2.0
 *
 * The writer: places batches in segments, commits them, and keeps who is to hear of it.
 *
 * Owned by the worker's thread. Invariants:
 *  - Items of the commit are numbered in the order of their places: a segment's
 *    header, its batches, the next segment's header, ...
 *  - Without checksums nothing counts as durable before a commit mark, written after the
 *    flush, is itself on stable media.
 *  - A footer is written only when its whole segment is committed; a part of it is a
 *    batch like any other.
 *  - A footer's memory is free, with a live segment, or under the write of a part.
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
/* Each live segment has one; one more is written as a part while the segment is filled. */
#define FOOTER_MEMORIES_COUNT (SEGMENTS_LIVE_MAX + 1u)
/* Of a live segment its header, its mark and its footer; and the parts of footers. */
#define WRITER_WRITES_COUNT (3u * SEGMENTS_LIVE_MAX + FOOTER_MEMORIES_COUNT)
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

/* What the records of a footer, or of a part of it, are gathered in and written from. */
struct footer_memory {
    uint8_t *bytes; /* a part's two blocks come first, then the records */
    struct device_write *part_write;
    uint64_t part_item;
    bool is_used;
};

struct live_segment {
    struct segment segment;
    struct footer_memory *memory;
    uint8_t state;
    bool marking; /* its mark is being written */
    uint64_t header_item;
    uint8_t *header; /* one block each */
    uint8_t *mark;
    struct device_write *header_write, *mark_write, *footer_write;
};

/* What a stream's owner hears once an item is committed. */
struct ack {
    uint64_t item;
    uint64_t end_offset;
    struct storage_stream *stream;
    uint32_t bytes;
    bool closes;
};

struct writer {
    struct live_segment live[SEGMENTS_LIVE_MAX];
    struct footer_memory memories[FOOTER_MEMORIES_COUNT];
    struct live_segment *filling; /* or NULL */
    uint32_t closing_count;       /* live segments whose footer is not written yet */
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
    uint64_t commit_ack_bytes; /* of the acknowledgements of the last commit, so far */
    bool commit_reported;      /* ... and all of them were taken */
    bool closing;              /* the last segment is to be closed: the worker drains */
};

struct storage;
struct storage_settings;

uint64_t writer_own_bytes(const struct storage_settings *settings);
int writer_open(struct storage *s); /* 0 or -ENOMEM */
void writer_close(struct storage *s);

void writer_grant(struct storage *s, uint32_t index, uint64_t sequence);

/* Gives the batch its place and submits its write; false when there is none yet. */
bool writer_place(struct storage *s, struct batch *b);
/* The batch is written. */
void writer_batch_done(struct storage *s, const struct batch *b);
/* Another write is complete: of a segment's header, mark, footer, or part of one. */
void writer_write_done(struct storage *s, const struct device_write *d);
/* The flush is done: each segment that it covers gets its mark. */
void writer_flush_done(struct storage *s);

/* The flush under way is done, and with it the marks that it made due ... */
bool writer_is_flushed(const struct storage *s);
/* ... so what it covers is committed now: acknowledgements may be due. */
void writer_commit(struct storage *s);
/* Once a turn: flush, footers. Returns when to call again at the latest. */
uint64_t writer_turn(struct storage *s);

/* Whether there may be an acknowledgement to take: not once all of the last commit's were. */
static inline bool writer_may_have_ack(const struct writer *x) {
    return !x->commit_reported;
}
/* Takes the oldest acknowledgement, if its item is committed. */
bool writer_take_ack(struct storage *s, struct ack *out);
/* Nothing that waits for a commit will get one. */
void writer_drop_acks(struct storage *s);

/* Everything placed is committed and every segment is closed. */
bool writer_is_idle(const struct storage *s);

#endif

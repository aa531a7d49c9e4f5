/* SPDX-License-Identifier: Apache-2.0
 *
 * Group commit: which writes are complete, when to flush, what a flush covers.
 *
 * Pure: no system call and no clock of its own. Owned by the worker's thread.
 * Every write that a commit depends on (segment headers and batches) is an item
 * with a number of its own. Invariants:
 *  - committed_upto <= flushing_upto <= written_upto <= next_item.
 *  - A flush covers only items whose writes were complete when it was issued.
 *  - One flush is under way at a time; items continue to be written beside it.
 */
#ifndef INGESTD_STORAGE_COMMIT_H
#define INGESTD_STORAGE_COMMIT_H

#include <stdbool.h>
#include <stdint.h>

#define COMMIT_WINDOW 512u /* items between written_upto and next_item; a power of two */

struct commit {
    uint64_t next_item;      /* number of the next item */
    uint64_t written_upto;   /* items below are written */
    uint64_t flushing_upto;  /* items below are covered by the flush under way */
    uint64_t committed_upto; /* items below are on stable media */
    uint64_t wanted_upto;    /* someone waits for items below ... */
    uint64_t wanted_first;   /* ... and for none below this one */
    uint64_t oldest_ns;      /* when the first uncommitted item was written */
    bool flushing;
    uint8_t written[COMMIT_WINDOW];
};

void commit_init(struct commit *c);
bool commit_has_room(const struct commit *c);
uint64_t commit_begin(struct commit *c);
void commit_written(struct commit *c, uint64_t item, uint64_t now_ns);

/* Someone waits until item is on stable media. */
void commit_want(struct commit *c, uint64_t item);

/* When to flush: at once if an item that someone waits for is written, else when
 * the oldest uncommitted item is interval_ns old. UINT64_MAX: nothing to do. */
uint64_t commit_due_ns(const struct commit *c, uint64_t interval_ns);

/* A flush is issued now; returns the item it covers up to (exclusive). */
uint64_t commit_flush(struct commit *c);

/* Flush and marks are complete: committed_upto advances. */
void commit_done(struct commit *c, uint64_t now_ns);

#endif

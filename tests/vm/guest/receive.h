/* SPDX-License-Identifier: Apache-2.0
 *
 * Receives one stream through zcrx, checks every byte, gives every fragment back and reports what
 * the fragments looked like.
 */
#ifndef VM_RECEIVE_H
#define VM_RECEIVE_H

#include "zcrx.h"

#define SHAPE_LENGTHS_COUNT 65537u /* no fragment seen so far was longer than 65536 bytes */

struct shape {
    uint64_t bytes, fragments;
    uint64_t at_page_start;
    uint64_t after_previous;   /* begins where the one before ended */
    uint64_t in_previous_page; /* begins in the page the one before began in */
    uint64_t crossing_page;
    uint64_t longest;
    uint32_t offset_granule; /* largest power of two that divides all offsets, at most a page */
    uint64_t rearms, events_alloc_fail, events_copy;
    uint64_t lengths[SHAPE_LENGTHS_COUNT];
};

struct receive_options {
    uint64_t bytes_expected;
    uint32_t held_max; /* fragments kept before the oldest goes back */
};

/* Receives from a connected socket until the sender ends it. Fails the case on a wrong byte, on a
 * wrong total and on any end but those that are re-armed (queue full, out of chunks). */
void receive_stream(struct zcrx *zcrx, int socket, const struct receive_options *options,
                    struct shape *shape);

/* Sets an event up to fire again. */
void receive_rearm_event(const struct zcrx *zcrx, int type);

/* Share of fragments, in percent, with this length. */
double shape_percent(const struct shape *shape, uint64_t count);

#endif

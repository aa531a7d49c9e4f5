/* SPDX-License-Identifier: Apache-2.0
 *
 * What engine `zcrx` has of a connection and no batch has yet: lists of pending fragments,
 * handing them over, and the relief valve that copies them out when chunks are short.
 *
 * No system call. Owned by the worker's thread. Invariants:
 *  - A connection's list is in stream order, and what comes goes behind it.
 *  - What several batches share, or a batch and a list, has as many holders: a chunk
 *    as well as a slot that was copied into.
 */
#ifndef INGESTD_RECEIVE_ZCRX_PENDING_H
#define INGESTD_RECEIVE_ZCRX_PENDING_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "receive/engine.h"

/* Memory for the lists and the relief slots; the count of chunks is known. 0 or -ENOMEM. */
int zcrx_pending_open(struct receiver *r);
void zcrx_pending_close(struct receiver *r);

/* Hands bytes to batches until all are taken; returns how many were. Of less than
 * all, the caller keeps being a holder of the rest. */
uint32_t zcrx_hand_over(struct receiver *r, struct connection *conn, uint64_t hold, uint32_t bytes);
/* A holder releases it. */
void zcrx_release(struct receiver *r, uint64_t hold);

/* Puts bytes at the end of the connection's list; false when the table is used up. */
bool zcrx_append(struct receiver *r, struct connection *conn, uint64_t hold, uint32_t bytes);
/* The first of the list is no longer pending. */
void zcrx_pop(struct receiver *r, struct connection *conn);
/* Hands the connection's pending fragments to batches, or drops them. True when none is left. */
bool zcrx_settle(struct receiver *r, struct connection *conn);

/* How many of the bytes received and not stored are payload, whatever comes; of a connection that
 * holds some back. */
uint64_t zcrx_payload_bytes(const struct connection *conn);
/* How many bytes of the connection's list are payload for certain; UINT64_MAX: whatever it has. */
uint64_t zcrx_list_payload_bytes(const struct connection *conn);

/* The relief valve: TCP's out-of-order queue holds chunks too, and with none
 * left for a retransmission it would hold them for ever. */
void zcrx_relieve(struct receiver *r);

static inline bool zcrx_chunks_are_short(const struct receiver *r) {
    return r->zcrx.refill.chunks_lent > r->zcrx.chunk_count / 4 * 3;
}

static inline struct zcrx_fragment *zcrx_fragment_at(struct receiver *r, uint32_t index) {
    assert(index < r->zcrx.fragment_count);
    return &r->zcrx.fragments[index];
}

static inline bool zcrx_is_copied(uint64_t hold) {
    return (hold & ZCRX_HOLD_COPIED) != 0;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * State of the engine `zcrx`: zero-copy receive from one rx queue.
 *
 * Owned by the worker's thread. Invariants:
 *  - Every fragment that the kernel delivered is with a batch, in a flow's
 *    list of pending ones, or given back.
 *  - Batches hold at most half of the chunks, so that the NIC is never starved
 *    by writes alone; what waits beyond is copied out (reason `pressure`).
 */
#ifndef INGESTD_ENGINE_ZCRX_H
#define INGESTD_ENGINE_ZCRX_H

#include <stdint.h>

#include "buddy.h"
#include "fault.h"
#include "refill.h"

#define ZCRX_NAPI_IDS_MAX 64u

/* A fragment that no batch could take yet; linked by index. */
struct zcrx_fragment {
    uint64_t offset; /* in the area; of a relief slot with BATCH_HOLD_COPIED set */
    uint32_t bytes;
    uint32_t next;
};

/* Which buffers the listeners have; they are opened after the engine. */
enum zcrx_listeners { ZCRX_LISTENERS_NEW, ZCRX_LISTENERS_OPEN, ZCRX_LISTENERS_FULL };

struct zcrx {
    uint32_t id; /* the kernel's, of this interface queue */
    uint32_t rx_buf_len;
    uint32_t chunk_count;
    uint8_t *region;
    uint64_t region_bytes;
    struct abi_zcrx_stats *kernel_stats; /* NULL where the kernel has none */
    enum zcrx_listeners listeners;
    struct refill refill;
    struct zcrx_fragment *fragments;
    uint32_t fragment_count;
    uint32_t fragment_free; /* linked by next */
    uint32_t fragments_pending;
    struct buddy relief; /* slots to copy pending fragments to */
    uint8_t *relief_base;
    uint32_t napi_own; /* 0: not known, not checked */
    uint32_t napi_others[ZCRX_NAPI_IDS_MAX];
    uint32_t napi_owners[ZCRX_NAPI_IDS_MAX]; /* worker index of each */
    uint32_t napi_other_count;
};

struct worker;

/* The kernel tells of the queue: it found no chunk for a packet. */
void zcrx_event(struct worker *w, uint32_t type);

/* Bytes of the area's own part that the relief slots take. */
uint64_t zcrx_relief_bytes(uint64_t area_bytes);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * State of the engine `zcrx`: zero-copy receive from one rx queue.
 *
 * Owned by the worker's thread. Invariants:
 *  - Every fragment that the kernel delivered is with a batch, in a connection's
 *    list of pending ones, or returned.
 *  - Receives pause before the table of fragments is used up: all that the completion
 *    queue can bring in two turns finds a place, as a pause takes effect behind the second.
 *  - Receive buffers of connections add up to half of the area at most; a connection that
 *    waits to be accepted has two packets' worth.
 *  - Batches hold at most half of the chunks, so that the NIC is never starved
 *    by writes alone; what waits beyond is copied out (reason `pressure`).
 */
#ifndef INGESTD_RECEIVE_ZCRX_ZCRX_H
#define INGESTD_RECEIVE_ZCRX_ZCRX_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/buddy.h"
#include "base/fault.h"
#include "receive/zcrx/refill.h"

#define ZCRX_NAPI_IDS_MAX 64u

/* In a hold: what was received was copied out before (reason `pressure`). */
#define ZCRX_HOLD_COPIED (1ull << 63)

#define ZCRX_FRAGMENT_NONE UINT32_MAX

/* A fragment that no batch could take yet; linked by index. */
struct zcrx_fragment {
    uint64_t offset; /* in the area; of a relief slot with ZCRX_HOLD_COPIED set */
    uint32_t bytes;
    uint32_t next;
};

/* What the engine has of a connection; the files of this folder alone look into it. */
struct zcrx_connection {
    uint32_t fragment_head, fragment_tail; /* no batch could take them yet */
    bool armed;                            /* its multishot receive is under way */
    uint64_t starved_ns;  /* it was served as starved, since when it had waited; 0: and got bytes */
    uint64_t bound_bytes; /* it ends at so many received_bytes; UINT64_MAX: not by itself */
};

#define ZCRX_CONNECTION_NONE                                                                       \
    ((struct zcrx_connection){.fragment_head = ZCRX_FRAGMENT_NONE,                                 \
                              .fragment_tail = ZCRX_FRAGMENT_NONE})

/* No byte of it is in the engine's hands, and none will come. */
static inline bool zcrx_has_nothing(const struct zcrx_connection *own) {
    return own->fragment_head == ZCRX_FRAGMENT_NONE && !own->armed;
}

struct zcrx {
    uint32_t id; /* the kernel's, of this interface queue */
    uint32_t rx_buf_len;
    uint32_t chunk_count;
    uint8_t *region;
    uint64_t region_bytes;
    struct abi_zcrx_stats *kernel_stats; /* NULL where the kernel has none */
    bool listeners_set;                  /* they are opened after the engine */
    uint32_t buffers_for; /* connections that half of the area is shared among; a power of two */
    uint32_t probes;      /* starved connections that try again without a sign of free chunks ... */
    uint64_t probe_ns;    /* ... at this time */
    bool table_low;       /* the last turn found too few fragments free */
    bool receives_run;    /* one was armed since the table's want of room paused them all */
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

struct receiver;

/* The kernel reports that the queue found no chunk for a packet. */
void zcrx_event(struct receiver *r, uint32_t type);

/* Bytes of the area's own part that the relief slots take. */
uint64_t zcrx_relief_bytes(uint64_t area_bytes);

#endif

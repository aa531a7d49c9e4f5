/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner: turns fragments into one batch that the device accepts.
 *
 * Pure: no system call, no clock, no allocation; driven in tests by made-up
 * fragments. Owned by the worker's thread. Invariants, for a profile (M, L, V, S):
 *  - iov[0] is the header; every iovec's address and length is a multiple of M.
 *  - With V set, every inner edge of the iovec list lies on a multiple of V + 1.
 *  - iov_count <= S; header + payload is a multiple of L and <= batch_bytes_max.
 *  - direct + bounced bytes = bytes taken; each bounced byte has one reason.
 *  - A fragment is taken in stream order of its flow, wholly or its first part;
 *    what is left of it then begins on a page.
 *  - Padding is zeros, and never memory of another flow.
 *
 * What is copied (bounced), and why:
 *  - A direct piece begins and ends on an edge: a multiple of max(M, V + 1).
 *    The bytes of a fragment before its first edge and behind its last one are
 *    copied; of those, fewer than M on each side count as head and tail, the
 *    rest as boundary.
 *  - A tail that lacks fewer than M bytes to the next edge is not copied where
 *    `slack` covers them: zeros are put behind it in place.
 *  - A direct piece of fewer than copy_below bytes, padding not counted, is copied
 *    as small, its tail included, unless it continues the last iovec.
 *  - Copied pieces follow one another byte by byte, also of different flows, in
 *    one bounce iovec, which is padded up to an edge before a direct piece.
 *
 * Units: the header's memory begins on a page, and its size on disk is rounded
 * up to max(M, L, V + 1), so that the payload's first iovec begins on an edge
 * even where a block is smaller than the boundary. The end of the batch is
 * rounded up to max(M, L): no inner edge lies there.
 */
#ifndef INGESTD_STORAGE_PLAN_H
#define INGESTD_STORAGE_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "format/frame.h"

/* Fewest iovecs of one write: header, head, body, and tail or padding. */
#define PLAN_IOVECS_MIN 4u
#define PLAN_PAGE_BYTES 4096u

/* Shorter pieces are copied by `zcrx`. A device splits a long list of pieces into
 * requests of some 127 segments (NVMe without larger lists), each a whole number
 * of blocks: 127 pieces of this length always hold a block of up to 16 KiB. */
#define PLAN_GATHER_BYTES_MIN 256u

/* What the device takes as it lies. M, L and V + 1 are powers of two, and M and
 * V + 1 at most a page, which is what header and bounce memory is aligned to. */
struct plan_profile {
    uint32_t mem_align;       /* M: address and length of every iovec */
    uint32_t block_bytes;     /* L: offset and length of a write; also the header's unit */
    uint32_t virt_mask;       /* V: 0, or page size - 1 */
    uint32_t iovecs_max;      /* S: iovecs of one write, >= PLAN_IOVECS_MIN */
    uint32_t batch_bytes_max; /* header, payload and padding */
    uint32_t copy_below;      /* pieces shorter than this are copied; 0: never */
};

enum bounce_reason {
    BOUNCE_HEAD,     /* bytes before the first multiple of M */
    BOUNCE_TAIL,     /* bytes behind the last multiple of M */
    BOUNCE_SMALL,    /* shorter than copy_below */
    BOUNCE_BOUNDARY, /* the device's virtual boundary */
    BOUNCE_PRESSURE, /* copied out to give a chunk back */
    BOUNCE_TRAILER,  /* held back, as they might have been the flow's trailer */
    BOUNCE_REASONS_COUNT
};

/* One run of a flow's bytes as it lies in memory. */
struct plan_fragment {
    const uint8_t *flow; /* 16 bytes */
    uint64_t stream_offset;
    uint8_t *data;
    uint32_t bytes;
    uint32_t slack; /* bytes behind data[bytes] that the planner may zero as padding;
                     * less by what it zeroed, once the fragment is taken */
    uint32_t crc;   /* in: CRC32C of the flow so far; out: including the bytes taken */
};

struct plan_batch {
    struct frame frame;
    struct iovec *iov;
    uint32_t iov_count; /* header included */
    uint32_t iov_capacity;
    uint8_t *bounce; /* aligned to 4096; lent for this batch */
    uint32_t bounce_used;
    uint32_t bounce_capacity;
    uint32_t payload_end; /* bytes behind the header, padding included */
    uint8_t *direct_end;  /* behind the last iovec's memory, if it is a direct one */
    bool checksum;
    uint64_t direct_bytes;
    uint64_t padding_bytes;
    uint64_t bounced_bytes[BOUNCE_REASONS_COUNT];
};

/* Whether a profile is one that the planner can serve with headers of up to
 * header_capacity bytes and iov_capacity iovecs; to be called once, at start. */
bool plan_profile_is_usable(const struct plan_profile *p, uint32_t header_capacity,
                            uint32_t iov_capacity);

/* Bounce memory with which an empty batch takes the first part of any fragment.
 * More of it lets a batch hold more copied pieces. */
uint32_t plan_bounce_bytes_min(const struct plan_profile *p);

/* header and bounce are the memory lent, on page boundaries; header_capacity <=
 * BATCH_HEADER_BYTES_MAX. */
void plan_begin(struct plan_batch *b, struct iovec *iov, uint32_t iov_capacity, uint8_t *header,
                uint32_t header_capacity, uint8_t *bounce, uint32_t bounce_capacity, bool checksum);

/* Takes as much of the fragment as fits; returns the bytes taken, 0 when the
 * batch is full. The fragment is left describing what was not taken. The memory
 * taken must stay as it is until the write is complete. The profile stays the
 * same for the life of a batch. */
uint32_t plan_add(struct plan_batch *b, const struct plan_profile *p, struct plan_fragment *f);

/* Takes the whole fragment by a copy, for that reason: it lies where no device
 * writes from. False when it does not fit; an empty batch has room for a page. */
bool plan_copy(struct plan_batch *b, const struct plan_profile *p, struct plan_fragment *f,
               enum bounce_reason reason);

/* Whether a record (OPEN, CLOSE) of record_bytes may be added to b->frame: it
 * fits the header, and a header grown by it still fits batch_bytes_max. */
bool plan_has_record_room(const struct plan_batch *b, const struct plan_profile *p,
                          uint32_t record_bytes);

/* Whether there is nothing to write: no payload and no record. */
static inline bool plan_is_empty(const struct plan_batch *b) {
    return b->frame.record_count == 0;
}

/* Header + payload + padding if the batch were closed now. */
uint64_t plan_bytes(const struct plan_batch *b, const struct plan_profile *p);

/* Pads to L, fills the header and iov[0]; info->batch_bytes, block_bytes (the
 * header's unit) and BATCH_HAS_CRC32C of flags are set here. Returns the bytes
 * of the write: those of all iovecs. */
uint64_t plan_finish(struct plan_batch *b, const struct plan_profile *p, struct frame_batch *info);

#endif

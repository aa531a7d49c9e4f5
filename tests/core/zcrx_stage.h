/* SPDX-License-Identifier: Apache-2.0
 *
 * A stage for engine `zcrx`: the kernel's and the NIC's part is played here, and so is the part of
 * the worker that the engine calls. The engine, the refill account, the relief slots, the flow
 * table and the planner are the core's own.
 *
 * The NIC lays packets of known bytes into chunks that it has, several to a chunk or one to
 * several; sockets keep them until the flow's receive is armed; completions end receives in every
 * way the kernel knows. Batches take bytes by the planner, or nothing while all are under way, and
 * complete in any order. Only then a chunk may be given back, so each batch looks at all its bytes
 * again: a chunk that the NIC was given too early has other bytes by then.
 */
#ifndef INGESTD_TESTS_ZCRX_STAGE_H
#define INGESTD_TESTS_ZCRX_STAGE_H

#include "worker.h"

#define STAGE_CHUNKS_MAX 512u
#define STAGE_FLOWS_MAX 16u
#define STAGE_QUEUED_MAX 4096u
#define STAGE_PIECES_MAX 2048u
#define STAGE_BATCHES 4u
#define STAGE_IOVECS 1024u

/* What one case is like; sizes in bytes. What is 0 gets the value in brackets. */
struct stage_shape {
    uint32_t chunk_shift, chunk_count, flows_count; /* (12, 256, 4) */
    uint32_t packet_bytes;                          /* payload of a full one */
    uint32_t odd_of;       /* one packet of so many has an odd size; 0: none */
    uint32_t merged_max;   /* so many packets that lie behind one another make one fragment */
    uint32_t stream_bytes; /* of each flow, and i more of flow i (614400) */
    bool shares_chunks;    /* packets are packed into chunks */
    bool in_order;         /* chunks are used again in the order they came back */
    uint32_t trouble_of;   /* one completion of so many ends its receive; 0: none */
    uint32_t slow_of;      /* one step of so many completes a batch (20) */
    uint32_t mem_align, block_bytes; /* (4, 4096) */
};

struct stage_fragment {
    uint64_t offset;
    uint32_t bytes;
};

struct stage_sender {
    uint64_t laid;      /* bytes that the NIC has received for the flow */
    uint64_t delivered; /* ... that completions told of */
    uint64_t handed;    /* ... that batches took */
    struct stage_fragment queued[STAGE_QUEUED_MAX];
    uint32_t first, count; /* a ring */
    bool cancelled;        /* its receive is to end with -ECANCELED */
    bool over;             /* the engine ended the flow */
    uint32_t current_chunk, current_used;
};

struct stage_piece {
    const uint8_t *data;
    uint64_t stream_offset;
    uint64_t hold;
    uint32_t bytes, flow;
};

struct stage_batch {
    struct plan_batch plan;
    struct stage_piece pieces[STAGE_PIECES_MAX];
    uint32_t piece_count;
    bool under_way;
    struct iovec iov[STAGE_IOVECS];
    uint8_t *header, *bounce;
};

struct stage {
    struct stage_shape shape;
    struct worker *w;
    struct plan_profile profile;
    struct stage_sender senders[STAGE_FLOWS_MAX];
    struct flow *flows[STAGE_FLOWS_MAX];
    struct stage_batch batches[STAGE_BATCHES];
    struct stage_batch *open; /* or NULL */
    uint32_t references[STAGE_CHUNKS_MAX];
    uint32_t posted[STAGE_CHUNKS_MAX]; /* chunks that the NIC has; a ring */
    uint32_t posted_first, posted_count;
    uint32_t head, tail;
    struct abi_zcrx_refill_entry entries[64];
    uint64_t pressure_bytes;
    uint64_t armed_count, ended_early_count, blocked_count;
    const char *wrong; /* the first thing that was */
};

extern struct stage stage;

/* Prints the seed of all that is random, or takes it from INGESTD_TEST_SEED. */
void stage_seed(void);
void stage_open(const struct stage_shape *shape);
/* Steps until every flow has ended and everything came back; false when nothing moves any more. */
bool stage_run(void);
void stage_close(void);

#endif

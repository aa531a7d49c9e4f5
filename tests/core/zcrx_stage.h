/* SPDX-License-Identifier: Apache-2.0
 *
 * A stage for engine `zcrx`: the kernel's and the NIC's part is played here (zcrx_stage.c), and so
 * is the part of the worker that the engine calls (zcrx_stage_worker.c). The engine, the refill
 * account, the relief slots, the sessions of protocol ingest, the flow table and the planner are
 * the core's own.
 *
 * The NIC lays packets of known bytes into chunks that it has, several to a chunk or one to
 * several; sockets keep them until the flow's receive is armed; completions end receives in every
 * way the kernel knows. Batches take bytes by the planner, or nothing while all are under way, and
 * complete in any order. Only then a chunk may be given back, so each batch looks at all its bytes
 * again: a chunk that the NIC was given too early has other bytes by then.
 *
 * With `ingest` a flow's stream is a hello, its payload, and for every other kind a trailer;
 * packets and fragments know nothing of where one ends, unless the sender waits to be accepted.
 * Blocks must reach Python's side of the admission as they were laid, and payload the batches.
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
#define STAGE_HEADER_BYTES 65536u
#define STAGE_BOUNCE_BYTES 1048576u
#define STAGE_PAYLOAD_BYTES_MAX 65536u
#define STAGE_NO_HOLD UINT64_MAX

/* How a flow of protocol ingest ends. */
enum stage_kind { STAGE_HELD_TRAILER, STAGE_TRAILER, STAGE_STATED, STAGE_OPEN, STAGE_KINDS_COUNT };

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
    bool ingest;                     /* flow i is of stage_kind i % STAGE_KINDS_COUNT ... */
    enum stage_kind first_kind;      /* ... counted from here */
    bool one_kind;                   /* ... or all are of it */
    int32_t excess_bytes;            /* sent beyond the length stated; less than 0: missing */
    uint32_t missed_of;              /* one cancel of so many finds nothing; 0: none */
    uint32_t stop_of;                /* one step of so many ends a flow; 0: none */
    uint32_t silent_at;              /* so many bytes are sent and no more; 0: all */
    uint64_t hello_timeout_ns;       /* (a day) */
    uint64_t flush_interval_ns;      /* (a day) */
    uint32_t table_count;            /* fragments that the engine has room for (as it likes) */
    uint32_t turn_completions_max;   /* what one turn brings at most (whatever it is) */
    uint32_t turn_of;                /* one step of so many is followed by a turn (4) */
    bool ignores_bounds;             /* payload comes in whole fragments, as before Linux 7.3.3;
                                      * no sender sends it before it is accepted */
    bool by_copy;                    /* chunks come from the free list: of the refill ring nothing
                                      * is read but by a flush */
};

struct stage_fragment {
    uint64_t offset;
    uint32_t bytes;
};

struct stage_sender {
    uint64_t laid;      /* bytes that the NIC has received for the flow */
    uint64_t delivered; /* ... that completions reported */
    uint64_t handed;    /* ... that batches took */
    struct stage_fragment queued[STAGE_QUEUED_MAX];
    uint32_t first, count; /* a ring */
    bool cancelled;        /* its receive is to end with -ECANCELED ... */
    uint64_t cancelled_ns; /* ... since then; where turns are bounded, it brings no more behind */
    bool cancel_missed;    /* a cancel's completion is to say that it found nothing */
    bool over;             /* the engine ended the flow */
    bool sealed, stopped;  /* how; stopped: the stage wanted it */
    int error;             /* the engine's own, by which it ended */
    bool stated, trailer;  /* as the hello says */
    bool waits;            /* sends payload only when it is accepted */
    bool accepted;
    uint32_t head_bytes, tail_bytes;
    uint64_t payload_bytes, sent_bytes; /* as stated; as laid, without the blocks */
    uint64_t base_bytes;                /* where in the flow this connection begins */
    uint64_t bound_bytes;               /* the receive may yet bring; UINT64_MAX: whatever comes */
    enum uring_tag tag;                 /* of the receive */
    uint32_t current_chunk, current_used;
};

struct stage_piece {
    const uint8_t *data;
    uint64_t stream_offset;
    uint64_t hold; /* STAGE_NO_HOLD: it was copied to the batch's own memory */
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
    struct connection *flows[STAGE_FLOWS_MAX];
    struct stage_batch batches[STAGE_BATCHES];
    struct stage_batch *open; /* or NULL */
    uint32_t references[STAGE_CHUNKS_MAX];
    uint32_t posted[STAGE_CHUNKS_MAX]; /* chunks that the NIC has; a ring */
    uint32_t posted_first, posted_count;
    uint32_t head, tail;
    struct abi_zcrx_refill_entry entries[64];
    struct io_uring_sqe sqe; /* what the engine fills in, and the kernel has not seen yet */
    bool sqe_is_new;
    uint64_t pressure_bytes, held_copied_bytes;
    uint32_t held_count_max; /* fragments that a flow had which was being received */
    uint64_t armed_count, ended_early_count, blocked_count;
    uint64_t table_low_count; /* turns that found the table short of room */
    uint32_t turn_completions;
    const char *wrong; /* the first thing that was */
};

extern struct stage stage;
extern const struct protocol stage_protocol_raw;

uint8_t stage_pattern(uint32_t flow, uint64_t offset);
void stage_wrong(const char *what);
void stage_check_bytes(const struct stage_piece *piece, const char *what);
/* The kernel takes what was submitted. */
void stage_submit(void);
/* The kernel reads so many entries of the refill ring, if there are. */
void stage_take_refill_entries(uint32_t most);
/* Python answers what it was asked. */
void stage_answer(void);

/* Prints the seed of all that is random, or takes it from INGESTD_TEST_SEED. */
void stage_seed(void);
void stage_open(const struct stage_shape *shape);
/* Steps until every flow has ended and everything came back; false when nothing moves any more. */
bool stage_run(void);
/* So many steps at most, whatever is still to come; true when all has ended. */
bool stage_steps(uint32_t steps);
void stage_close(void);

#endif

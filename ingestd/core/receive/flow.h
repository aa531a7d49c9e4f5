/* SPDX-License-Identifier: Apache-2.0
 *
 * Flows and the queues they wait in.
 *
 * The table is taken at start; a flow is named by its index. Owned by the
 * worker's thread. Invariants:
 *  - A flow is in at most one wait queue, and in its listener's idle queue
 *    exactly while it is being received.
 *  - stream.stored_bytes <= received_bytes.
 *  - A flow is freed only when no completion and no commit can name it.
 *  - Its phase changes in flow_set_phase() alone.
 */
#ifndef INGESTD_RECEIVE_FLOW_H
#define INGESTD_RECEIVE_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "receive/block.h"
#include "storage/storage.h"

#define FLOW_NONE UINT32_MAX
#define FLOW_LINE_BYTES 384

enum flow_phase {
    FLOW_FREE = 0,  /* in the table, for the next connection */
    FLOW_NEW,       /* accepted; nothing is received yet */
    FLOW_HELLO,     /* protocol ingest: the hello block is being received */
    FLOW_PENDING,   /* protocol ingest: Python decides on a hello or a trailer */
    FLOW_POLLING,   /* no buffer; waits until the socket has data */
    FLOW_RECEIVING, /* a receive into its slot is under way */
    FLOW_STARVED,   /* has data, waits for a slot */
    FLOW_BLOCKED,   /* its slot waits for a batch to go into */
    FLOW_TAIL,      /* protocol ingest: what follows the payload is being received */
    FLOW_CLOSING,   /* received; waits for the commit of its CLOSE record */
    FLOW_ANSWERING, /* the last line is being sent */
    FLOW_LINGERING, /* its last line was sent early: what still arrives is dropped for a moment */
    FLOW_GONE,      /* closed; completions that name it are still to come */
    FLOW_PHASES_COUNT
};

enum flow_queue {
    QUEUE_NONE = 0,
    QUEUE_DIRTY,   /* bytes lie in a slot, ordered by when the first came; zcrx: bytes are held
                    * back in chunks, ordered by when the last came */
    QUEUE_ARMED,   /* a receive waits in the kernel, ordered by when it was armed */
    QUEUE_STARVED, /* in the order of their requests */
    QUEUE_BLOCKED, /* in the order in which they found no room in a batch */
    QUEUE_LINGER,
    QUEUE_ANSWER, /* protocol ingest: the last line may find no room in the socket */
    QUEUES_COUNT
};

struct flow_link {
    uint32_t next, prev;
};

struct flow_list {
    uint32_t head, tail, count;
};

struct protocol;
struct session;

struct flow {
    struct storage_stream stream; /* what storage has of it */
    int fd;                       /* -1: closed, or another worker's */
    uint32_t index;
    uint8_t phase;
    uint8_t queue;
    uint8_t listener;
    uint8_t ops_in_flight; /* completions that still name this flow */
    bool adopted;          /* another worker accepted it */
    bool counted;          /* among its peer's: struct peers */
    bool polled;           /* a poll of its socket is under way */
    bool eof;              /* the sender has half-closed */
    bool stop;             /* it is to be ended from outside */
    bool drop;             /* ... and bytes not yet with a batch are dropped */
    bool ended;            /* nothing more is received: connection_end() was called */
    bool cancelling;       /* its receive is being cancelled */
    bool flush_due;        /* what its slot holds, or is held back, is to leave the area */
    bool checksummed;      /* crc is that of its bytes */
    bool starved;          /* the kernel found no chunk for it */
    bool bulk;             /* fills whole slots: receives wait for a full one */
    uint8_t state;         /* enum flow_state of its CLOSE record */
    uint8_t reason;        /* enum close_reason */
    int error;             /* errno of the connection, for the log */

    /* engine zcrx: fragments that no batch could take yet */
    uint32_t fragment_head, fragment_tail;
    bool armed;           /* its multishot receive is under way */
    uint64_t starved_ns;  /* it was served as starved, since when it had waited; 0: and got bytes */
    uint64_t bound_bytes; /* it ends at so many received_bytes; UINT64_MAX: not by itself */

    /* engine recv: the slot it borrows */
    uint32_t slot_order;
    uint32_t slot_filled;
    uint32_t slot_copied; /* of these, bytes that we copied to its front */
    uint32_t slot_taken;  /* of these, bytes that a batch has, and a share of the slot */
    uint64_t slot_offset; /* UINT64_MAX: none */

    const struct protocol *protocol;
    struct receive_block *block; /* what is no payload goes there; NULL: all is */
    struct flow_list *idle_list; /* its listener's */
    uint8_t report;              /* enum report_kind, not taken yet */
    int report_result;
    uint32_t report_next;
    struct session *session;   /* protocol ingest; else NULL */
    uint64_t base_bytes;       /* where this connection began in the flow */
    uint64_t limit_bytes;      /* nothing behind it is received as payload; UINT64_MAX: none */
    uint64_t received_bytes;   /* all of these count from the flow's first byte */
    uint64_t started_ns;       /* Unix time */
    uint64_t since_ns;         /* since when it stands in its wait queue */
    uint64_t active_ns;        /* last byte received, in awake time (struct worker) */
    struct frame_open opening; /* what its OPEN record says */

    struct flow_link wait, idle, ack;
    uint8_t peer_address[16];
    uint16_t peer_port;
    uint8_t peer_family;
    uint16_t line_bytes;
    char line[FLOW_LINE_BYTES];
};

struct flow_table {
    struct flow *flows;
    uint32_t capacity;
    uint32_t used_upto; /* flows at or behind this index were never used */
    uint32_t free_head; /* linked by wait.next */
    uint32_t count;
    struct flow_list waiting[QUEUES_COUNT];
};

int flow_table_init(struct flow_table *t, uint32_t capacity);
void flow_table_destroy(struct flow_table *t);
struct flow *flow_take(struct flow_table *t); /* NULL when all are in use */
void flow_give(struct flow_table *t, struct flow *f);

/* The one place that changes a phase: only to one that the table in flow.c lets follow. */
void flow_set_phase(struct flow *f, enum flow_phase phase);
/* For tests and documents. */
bool flow_phase_may_follow(enum flow_phase from, enum flow_phase to);
const char *flow_phase_name(enum flow_phase phase);

/* Moves a flow to the tail of a wait queue, out of the one it is in. */
void flow_wait(struct flow_table *t, struct flow *f, enum flow_queue queue, uint64_t since_ns);
/* The same, behind those only that wait as long or longer. */
void flow_wait_in_order(struct flow_table *t, struct flow *f, enum flow_queue queue,
                        uint64_t since_ns);
/* The same, but it keeps its place and time if it stands in that queue already. */
void flow_keep_waiting(struct flow_table *t, struct flow *f, enum flow_queue queue,
                       uint64_t since_ns);
/* Whether others have waited longer in that queue. */
bool flow_is_behind(const struct flow_table *t, const struct flow *f, enum flow_queue queue);
struct flow *flow_first(const struct flow_table *t, enum flow_queue queue);

/* Lists linked by `idle`. A listener's idle queue: least recently active first. */
void flow_idle_touch(struct flow_table *t, struct flow_list *list, struct flow *f);
void flow_idle_remove(struct flow_table *t, struct flow_list *list, struct flow *f);

/* Lists linked by `ack`: flows whose durable offset is to be reported. */
void flow_ack_add(struct flow_table *t, struct flow_list *list, struct flow *f);
void flow_ack_remove(struct flow_table *t, struct flow_list *list, struct flow *f);

#endif

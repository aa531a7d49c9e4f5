/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections, as engines and protocols share them, and the queues they wait in.
 *
 * The table is taken at start; a connection is named by its index. Owned by the
 * worker's thread. Invariants:
 *  - A connection is in at most one wait queue, and in its listener's idle queue
 *    exactly while it is being received.
 *  - stream.stored_bytes <= received_bytes.
 *  - A connection is freed only when no completion and no commit can name it.
 *  - Its phase changes in connection_set_phase() alone.
 */
#ifndef INGESTD_RECEIVE_CONNECTION_TABLE_H
#define INGESTD_RECEIVE_CONNECTION_TABLE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "receive/block.h"
#include "receive/recv.h"
#include "receive/zcrx/zcrx.h"
#include "storage/storage.h"

#define CONNECTION_NONE UINT32_MAX
#define CONNECTION_LINE_BYTES 384

enum connection_phase {
    CONNECTION_FREE = 0,  /* in the table, for the next connection */
    CONNECTION_NEW,       /* accepted; nothing is received yet */
    CONNECTION_HELLO,     /* protocol ingest: the hello block is being received */
    CONNECTION_PENDING,   /* protocol ingest: Python decides on a hello or a trailer */
    CONNECTION_POLLING,   /* no buffer; waits until the socket has data */
    CONNECTION_RECEIVING, /* a receive into its slot is under way */
    CONNECTION_STARVED,   /* has data, waits for a slot */
    CONNECTION_BLOCKED,   /* its slot waits for a batch to go into */
    CONNECTION_TAIL,      /* protocol ingest: what follows the payload is being received */
    CONNECTION_CLOSING,   /* received; waits for the commit of its CLOSE record */
    CONNECTION_LAST_LINE, /* the last line is being sent */
    CONNECTION_LINGERING, /* its last line was sent early: what still arrives is dropped for a
                             moment */
    CONNECTION_GONE,      /* closed; completions that name it are still to come */
    CONNECTION_PHASES_COUNT
};

enum connection_queue {
    QUEUE_NONE = 0,
    QUEUE_DIRTY,   /* bytes lie in a slot, ordered by when the first came; zcrx: bytes are held
                    * back in chunks, ordered by when the last came */
    QUEUE_ARMED,   /* a receive waits in the kernel, ordered by when it was armed */
    QUEUE_STARVED, /* in the order of their requests */
    QUEUE_BLOCKED, /* in the order in which they found no room in a batch */
    QUEUE_LINGER,
    QUEUE_LAST_LINE, /* protocol ingest: the last line may find no room in the socket */
    QUEUES_COUNT
};

struct connection_link {
    uint32_t next, prev;
};

struct connection_list {
    uint32_t head, tail, count;
};

#define CONNECTION_LIST_EMPTY ((struct connection_list){CONNECTION_NONE, CONNECTION_NONE, 0})

struct protocol;
struct session;

struct connection {
    struct storage_stream stream; /* what storage has of it */
    int fd;                       /* -1: closed, or another worker's */
    uint32_t index;
    uint8_t phase;
    uint8_t queue;
    uint8_t listener;
    uint8_t ops_in_flight; /* completions that still name this connection */
    bool adopted;          /* another worker accepted it */
    bool counted;          /* among its peer's: struct peers */
    bool eof;              /* the sender has half-closed */
    bool stop;             /* it is to be ended from outside */
    bool drop;             /* ... and bytes not yet with a batch are dropped */
    bool ended;            /* nothing more is received: connection_end() was called */
    bool cancelling;       /* its receive is being cancelled */
    bool flush_due;        /* what its slot holds, or is held back, is to leave the area */
    bool checksummed;      /* crc is that of its bytes */
    bool starved;          /* the kernel found no chunk for it */
    uint8_t state;         /* enum flow_state of its CLOSE record */
    uint8_t reason;        /* enum close_reason */
    int error;             /* errno of the connection, for the log */

    /* Each engine's own, which only its files look into. They lie side by side: in a union, what
     * is empty would depend on the engine, and 40 bytes of a connection are not worth that. */
    struct recv_connection recv;
    struct zcrx_connection zcrx;

    const struct protocol *protocol;
    struct receive_block *block;       /* what is no payload goes there; NULL: all is */
    struct connection_list *idle_list; /* its listener's */
    uint8_t report;                    /* enum report_kind, not taken yet */
    int report_result;
    uint32_t report_next;
    struct session *session;   /* protocol ingest; else NULL */
    uint64_t move_id;          /* its hello is known to Python by this number; 0: to nobody */
    uint64_t base_bytes;       /* where this connection began in the flow */
    uint64_t limit_bytes;      /* nothing behind it is received as payload; UINT64_MAX: none */
    uint64_t received_bytes;   /* all of these count from the flow's first byte */
    uint64_t started_ns;       /* Unix time */
    uint64_t since_ns;         /* since when it stands in its wait queue */
    uint64_t active_ns;        /* last byte received, in awake time (struct worker) */
    struct frame_open opening; /* what its OPEN record says */

    struct connection_link wait, idle, ack;
    uint8_t peer_address[16];
    uint16_t peer_port;
    uint8_t peer_family;
    uint16_t line_bytes;
    char line[CONNECTION_LINE_BYTES];
};

struct connection_table {
    struct connection *connections;
    uint32_t capacity;
    uint32_t used_upto; /* connections at or behind this index were never used */
    uint32_t free_head; /* linked by wait.next */
    uint32_t count;
    struct connection_list waiting[QUEUES_COUNT];
};

int connection_table_init(struct connection_table *t, uint32_t capacity);
void connection_table_deinit(struct connection_table *t);
struct connection *connection_table_take(struct connection_table *t); /* NULL when all are in use */
void connection_table_put(struct connection_table *t, struct connection *conn);

/* Which phases follow each, a bit for each one. */
extern const uint32_t connection_phase_next[CONNECTION_PHASES_COUNT];
/* The one place that changes a phase: only to one that the table of phases lets follow. */
static inline void connection_set_phase(struct connection *conn, enum connection_phase phase) {
    assert(connection_phase_next[conn->phase] >> phase & 1u);
    conn->phase = (uint8_t)phase;
}
/* For tests and documents. */
bool connection_phase_may_follow(enum connection_phase from, enum connection_phase to);
const char *connection_phase_name(enum connection_phase phase);

/* Moves a connection to the tail of a wait queue, out of the one it is in. */
void connection_wait(struct connection_table *t, struct connection *conn,
                     enum connection_queue queue, uint64_t since_ns);
/* The same, behind those only that wait as long or longer. */
void connection_wait_in_order(struct connection_table *t, struct connection *conn,
                              enum connection_queue queue, uint64_t since_ns);
/* The same, but it keeps its place and time if it stands in that queue already. */
static inline void connection_keep_waiting(struct connection_table *t, struct connection *conn,
                                           enum connection_queue queue, uint64_t since_ns) {
    if (conn->queue != queue)
        connection_wait(t, conn, queue, since_ns);
}
/* Whether others have waited longer in that queue. */
static inline bool connection_is_behind(const struct connection_table *t,
                                        const struct connection *conn,
                                        enum connection_queue queue) {
    uint32_t head = t->waiting[queue].head;
    return head != CONNECTION_NONE && head != conn->index;
}
static inline struct connection *connection_first(const struct connection_table *t,
                                                  enum connection_queue queue) {
    uint32_t head = t->waiting[queue].head;
    return head == CONNECTION_NONE ? NULL : &t->connections[head];
}

/* Lists linked by `idle`. A listener's idle queue: least recently active first. */
void connection_idle_move(struct connection_table *t, struct connection_list *list,
                          struct connection *conn);
static inline void connection_idle_touch(struct connection_table *t, struct connection_list *list,
                                         struct connection *conn) {
    if (list->tail != conn->index)
        connection_idle_move(t, list, conn);
}
void connection_idle_remove(struct connection_table *t, struct connection_list *list,
                            struct connection *conn);

/* Lists linked by `ack`: connections whose durable offset is to be reported. */
void connection_ack_add(struct connection_table *t, struct connection_list *list,
                        struct connection *conn);
void connection_ack_remove(struct connection_table *t, struct connection_list *list,
                           struct connection *conn);

#endif

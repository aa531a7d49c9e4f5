/* SPDX-License-Identifier: Apache-2.0
 *
 * The lines that a session sends: which one is next, and how far it has got. Pure.
 *
 * greeting -> accepted -> durable offsets -> the last line. Owned by the worker's
 * thread. Invariants:
 *  - One line is under way at a time, and none is ever cut in two by another one.
 *  - A durable offset is reported once, and they only grow.
 *  - A sender that does not read gets fewer durable offsets, and only its last line waits
 *    for room in the socket. Nothing is sent after that one.
 */
#ifndef INGESTD_CONNECTION_INGEST_OUTBOX_H
#define INGESTD_CONNECTION_INGEST_OUTBOX_H

#include <stdbool.h>
#include <stdint.h>

enum outbox_step {
    OUTBOX_READY = 0, /* nothing is under way */
    OUTBOX_SENDING,
    OUTBOX_CUT,    /* the socket had no room for all of a line: the rest is due */
    OUTBOX_FAILED, /* the connection takes nothing more */
};

enum outbox_line {
    OUTBOX_NOTHING = 0, /* none is due, or can be sent now */
    OUTBOX_REST,        /* of the line that was cut */
    OUTBOX_ACCEPTED,
    OUTBOX_DURABLE,
    OUTBOX_LAST,
};

/* What is to be done when a send is complete. */
enum outbox_after {
    OUTBOX_WAIT = 0, /* nothing */
    OUTBOX_NEXT,     /* another line is due */
    OUTBOX_LATER,    /* the rest of this one, when a durable offset would be reported */
    OUTBOX_OVER,     /* the last line has left, or nothing ever will: outbox_failed() */
};

struct outbox {
    uint8_t step;      /* enum outbox_step */
    bool accepted_due; /* the line that the sender waits for before it sends payload */
    bool reports;      /* durable offsets are reported */
    bool closing;      /* only the last line is due ... */
    bool last_taken;   /* ... and is the line that is under way, or was */
    uint16_t line_bytes, line_sent;
    const char *line;
    uint64_t reported_bytes; /* the durable offset that the sender knows */
};

/* The flow begins at an offset, which the sender learns by the next line. */
void outbox_accept(struct outbox *o, uint64_t base_bytes);
/* No durable offset is reported any more: the flow has ended. */
void outbox_end_reports(struct outbox *o);
/* The last line is due. */
void outbox_close(struct outbox *o);

/* The line to be sent now. Any but NOTHING and REST is to be worded and put. */
enum outbox_line outbox_next(struct outbox *o, uint64_t durable_bytes);
void outbox_put(struct outbox *o, const char *line, uint16_t bytes);
/* A send of the rest begins. */
void outbox_send(struct outbox *o);
/* ... and is complete: bytes, or -errno. */
enum outbox_after outbox_sent(struct outbox *o, int result);

static inline bool outbox_failed(const struct outbox *o) {
    return o->step == OUTBOX_FAILED;
}

#endif

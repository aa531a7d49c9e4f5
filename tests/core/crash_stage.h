/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the stage of crash_stage.c share: the trace, and the kernel that is played.
 */
#ifndef INGESTD_TESTS_CRASH_STAGE_H
#define INGESTD_TESTS_CRASH_STAGE_H

#include "worker.h"

#define KERNEL_OPERATIONS_MAX 256u

enum trace_kind {
    TRACE_FLOW = 1, /* id: flow; a: where in the common bytes it begins; data: its UUID */
    TRACE_WRITE,    /* id: operation; a: byte of the store; b: 1 if it is to be stable; data */
    TRACE_DONE,     /* id: operation; a: bytes written */
    TRACE_FLUSH,    /* id: operation */
    TRACE_FLUSHED,  /* id: operation; a: 1 if it failed */
    TRACE_PLACED,   /* id: flow; a: its bytes up to here are in writes that were submitted */
    TRACE_DURABLE,  /* id: flow; a: its bytes up to here are acknowledged */
    TRACE_ANSWER,   /* id: flow; data: the line that its sender gets */
    TRACE_ENDED,    /* the store is closed in good order */
};

/* What precedes the data of an event in the trace. */
struct trace {
    uint32_t kind, id;
    uint64_t a, b, bytes;
};

struct kernel {
    struct worker *w;
    struct io_uring_sqe entries[KERNEL_OPERATIONS_MAX]; /* asked for in this turn */
    uint32_t entries_count;
    struct operation *operations; /* under way */
    uint32_t operations_count, operation_id;
    uint32_t slow_of;    /* one turn of so many lets anything complete */
    uint32_t trouble_of; /* one write of so many comes back short or refused; 0: none */
    bool flush_fails;    /* flushes fail now and then */
};

extern struct kernel kernel;

void die(const char *what) __attribute__((noreturn));
void *pages(uint64_t bytes);
void trace(enum trace_kind kind, uint32_t id, uint64_t a, uint64_t b, const void *data,
           uint64_t bytes);

/* A batch is being written: its flows' bytes may reach the disk from now on. */
void note_placed(const struct batch *b);

/* Storage has news after completions, and after its turn. */
void take_news(void);

/* What a turn has asked for goes to the kernel at its end, as in the worker's loop. */
void kernel_submit(void);
/* Some of what is under way, or nothing, is complete: in any order. Returns how many. */
uint32_t kernel_complete_some(void);

#endif

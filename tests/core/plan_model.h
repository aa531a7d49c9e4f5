/* SPDX-License-Identifier: Apache-2.0
 *
 * A stage for the planner: made-up flows whose every byte is known, memory to
 * lay fragments in, and a reader that takes the finished batch apart again by
 * the rules of format.h and ends the program with a sentence when a byte is not
 * where the records say. Used by the C tests and by the fuzzer.
 *
 * Invariant: no byte of a flow is zero, so padding cannot be mistaken for it.
 */
#ifndef INGESTD_TESTS_PLAN_MODEL_H
#define INGESTD_TESTS_PLAN_MODEL_H

#include "storage/plan.h"

#define MODEL_FLOWS_COUNT 4u
#define MODEL_ARENA_BYTES (2u * 1024u * 1024u)
#define MODEL_IMAGE_BYTES (4u * 1024u * 1024u)
#define MODEL_IOVECS_MAX 1024u

struct model_flow {
    uint8_t id[16];
    uint64_t given;   /* bytes the planner took */
    uint64_t written; /* bytes read back from batches */
    uint32_t crc;
};

struct plan_model {
    struct plan_profile profile;
    bool checksum;
    struct model_flow flows[MODEL_FLOWS_COUNT];
    uint8_t *arena; /* page-aligned */
    uint32_t arena_used;
    uint8_t *header;
    uint32_t header_capacity;
    uint8_t *bounce;
    uint32_t bounce_capacity;
    uint8_t *image; /* a batch as the device would hold it */
    struct iovec iov[MODEL_IOVECS_MAX];
    uint32_t batch_index;
    struct plan_batch batch;
    uintptr_t direct_end;  /* behind the batch's last iovec, if it is a direct one; else 0 */
    uint64_t direct_bytes; /* sums over finished batches */
    uint64_t padding_bytes;
    uint64_t bounced_bytes[BOUNCE_REASONS_COUNT];
};

/* The profile must be usable; bounce memory of at least the planner's minimum. */
void model_setup(struct plan_model *m, const struct plan_profile *profile, uint32_t header_capacity,
                 uint32_t bounce_capacity, bool checksum);
void model_teardown(struct plan_model *m);

/* Lays the flow's next bytes at arena + offset and adds them to the batch, once.
 * Returns what plan_add took; checks that what is left is described rightly. */
uint32_t model_add(struct plan_model *m, uint32_t flow, uint32_t offset, uint32_t bytes,
                   uint32_t slack);

/* model_add at the arena's next `align`, with a new batch whenever one is full. */
void model_feed(struct plan_model *m, uint32_t flow, uint32_t bytes, uint32_t align,
                uint32_t slack);

/* Finishes the batch (if it has anything), reads it back, begins the next. */
uint64_t model_finish(struct plan_model *m);

/* Prints the sentence and ends the program by SIGILL. */
_Noreturn void model_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

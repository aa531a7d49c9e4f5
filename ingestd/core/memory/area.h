/* SPDX-License-Identifier: Apache-2.0
 *
 * The area: memory to receive into and to write from, taken once at start.
 *
 * One mapping: the slots that connections borrow, and behind them the worker's own
 * part (batch headers, bounce space, footers, marks), so that one registered
 * buffer covers whatever one write gathers. Owned by the worker's thread, which
 * touches it first and thereby places it on the NUMA node of its CPU.
 */
#ifndef INGESTD_MEMORY_AREA_H
#define INGESTD_MEMORY_AREA_H

#include <stdint.h>

#include "memory/buddy.h"
#include "base/fault.h"

#define AREA_PAGE_BYTES 4096u
#define AREA_HUGEPAGE_BYTES (2u * 1024u * 1024u)
/* A smaller mapping has nothing to gain from hugepages, and is not rounded up to them. */
#define AREA_HUGE_BYTES_MIN (16u * 1024u * 1024u)
/* One fixed buffer holds at most 1 GiB (Linux 6.18: 2 GiB gives EFAULT). */
#define AREA_MAPPING_BYTES_MAX (1024u * 1024u * 1024u)

struct area {
    uint8_t *base; /* slots */
    uint64_t slots_bytes;
    uint8_t *own; /* the worker's part */
    uint64_t own_bytes;
    uint64_t own_used;
    uint64_t mapping_bytes;
    uint64_t hugepage_bytes; /* on MAP_HUGETLB pages; else transparent ones are requested */
    struct buddy slots;
};

struct area_parts {
    uint64_t slots_bytes;    /* what connections borrow */
    uint64_t slot_bytes_max; /* a power of two */
    uint64_t own_bytes;      /* the worker's part */
};

/* What an area of these parts maps, and thus registers with the ring. */
uint64_t area_mapping_bytes(const struct area_parts *parts);

/* Returns 0 or -errno with the fault set. */
int area_open(struct area *a, const struct area_parts *parts, struct fault *fault);
void area_close(struct area *a);

/* Takes page-aligned bytes of the worker's own part; aborts when there are too few. */
uint8_t *area_own(struct area *a, uint64_t bytes);

#endif

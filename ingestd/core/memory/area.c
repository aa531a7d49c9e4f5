/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping of the area of area.h.
 */
#include "memory/area.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static uint64_t area_round_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

static uint8_t *area_map(uint64_t bytes, int more_flags) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | more_flags;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Every page is touched here and now: one that the machine or a control group denies
 * is an error code, not a signal later (madvise(2), MADV_POPULATE_WRITE). */
static bool area_populate(uint8_t *p, uint64_t bytes) {
    if (madvise(p, bytes, MADV_POPULATE_WRITE) == 0)
        return true;
    int code = errno == EFAULT ? ENOMEM : errno; /* EFAULT: a touch would be a SIGBUS */
    munmap(p, bytes);
    errno = code;
    return false;
}

/* Hugepages set aside by the operator come first; without them, or where a control
 * group grants none, transparent ones are requested, which the kernel may have. */
static uint8_t *area_take(struct area *a) {
    bool is_huge = a->mapping_bytes % AREA_HUGEPAGE_BYTES == 0;
    uint8_t *p = is_huge ? area_map(a->mapping_bytes, MAP_HUGETLB) : NULL;
    if (p != NULL && area_populate(p, a->mapping_bytes)) {
        a->hugepage_bytes = a->mapping_bytes;
        return p;
    }
    p = area_map(a->mapping_bytes, 0);
    if (p == NULL)
        return NULL;
    madvise(p, a->mapping_bytes, MADV_HUGEPAGE);
    return area_populate(p, a->mapping_bytes) ? p : NULL;
}

uint64_t area_mapping_bytes(const struct area_parts *parts) {
    uint64_t bytes = parts->slots_bytes + area_round_up(parts->own_bytes, AREA_PAGE_BYTES);
    return area_round_up(bytes,
                         bytes < AREA_HUGE_BYTES_MIN ? AREA_PAGE_BYTES : AREA_HUGEPAGE_BYTES);
}

int area_open(struct area *a, const struct area_parts *parts, struct fault *fault) {
    char object[64];
    a->slots_bytes = parts->slots_bytes;
    a->own_bytes = area_round_up(parts->own_bytes, AREA_PAGE_BYTES);
    a->mapping_bytes = area_mapping_bytes(parts);
    snprintf(object, sizeof object, "area of %llu bytes", (unsigned long long)a->mapping_bytes);
    if (a->mapping_bytes > AREA_MAPPING_BYTES_MAX)
        return fault_set(fault, E2BIG, "mmap", object);
    a->base = area_take(a);
    if (a->base == NULL)
        return fault_set(fault, errno, "mmap", object);
    a->own = a->base + a->slots_bytes;
    int code = buddy_init(&a->slots, a->slots_bytes, parts->slot_bytes_max);
    if (code < 0)
        return fault_set(fault, -code, "calloc", "slot table of the area");
    return 0;
}

void area_close(struct area *a) {
    buddy_destroy(&a->slots);
    if (a->base != NULL)
        munmap(a->base, a->mapping_bytes);
    a->base = NULL;
}

uint8_t *area_own(struct area *a, uint64_t bytes) {
    bytes = area_round_up(bytes, AREA_PAGE_BYTES);
    assert(a->own_used + bytes <= a->own_bytes);
    uint8_t *p = a->own + a->own_used;
    a->own_used += bytes;
    return p;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping of the area of area.h.
 */
#include "area.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static uint64_t round_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

/* Hugepages set aside by the operator come first; without them the kernel is
 * asked for transparent ones, which it may or may not have. */
static uint8_t *area_map(struct area *a) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void *p = mmap(NULL, a->mapping_bytes, PROT_READ | PROT_WRITE,
                   flags | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    if (p != MAP_FAILED) {
        a->hugepage_bytes = a->mapping_bytes;
        return p;
    }
    p = mmap(NULL, a->mapping_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, a->mapping_bytes, MADV_HUGEPAGE);
    if (madvise(p, a->mapping_bytes, MADV_POPULATE_WRITE) != 0) {
        int code = errno;
        munmap(p, a->mapping_bytes);
        errno = code;
        return NULL;
    }
    return p;
}

int area_open(struct area *a, uint64_t slots_bytes, uint64_t slot_bytes_max, uint64_t own_bytes,
              struct fault *fault) {
    char object[64];
    a->slots_bytes = slots_bytes;
    a->own_bytes = round_up(own_bytes, AREA_PAGE_BYTES);
    a->mapping_bytes = round_up(slots_bytes + a->own_bytes, AREA_HUGEPAGE_BYTES);
    snprintf(object, sizeof object, "area of %llu bytes", (unsigned long long)a->mapping_bytes);
    if (a->mapping_bytes > AREA_MAPPING_BYTES_MAX)
        return fault_set(fault, E2BIG, "mmap", object);
    a->base = area_map(a);
    if (a->base == NULL)
        return fault_set(fault, errno, "mmap", object);
    a->own = a->base + slots_bytes;
    int code = buddy_init(&a->slots, slots_bytes, slot_bytes_max);
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
    bytes = round_up(bytes, AREA_PAGE_BYTES);
    assert(a->own_used + bytes <= a->own_bytes);
    uint8_t *p = a->own + a->own_used;
    a->own_used += bytes;
    return p;
}

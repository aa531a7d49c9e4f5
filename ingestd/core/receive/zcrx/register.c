/* SPDX-License-Identifier: Apache-2.0
 *
 * Registering for zero-copy receive: area, refill ring, counters, events.
 *
 * What the running kernel offers is queried (IORING_REGISTER_QUERY) or
 * tried; nothing is derived from its version.
 */
#include "receive/zcrx/register.h"

#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "receive/engine.h"

/* The region holds a header for head and tail, the entries, and our counters. */
#define REFILL_HEADER_BYTES 128u
#define RETRY_FIRST_NS 50000000ull
#define RETRY_MAX_NS 1000000000ull

int zcrx_register(int ring_fd, unsigned operation, void *argument, unsigned count) {
    long code = syscall(SYS_io_uring_register, ring_fd, operation, argument, count);
    return code < 0 ? -errno : (int)code;
}

int zcrx_query(struct abi_query_zcrx *out) {
    struct abi_query_header h = {
        .data = (uint64_t)(uintptr_t)out,
        .operation = ABI_QUERY_ZCRX,
        .bytes = sizeof *out,
    };
    *out = (struct abi_query_zcrx){0};
    int code = zcrx_register(-1, ABI_REGISTER_QUERY, &h, 0);
    return code < 0 ? code : h.result;
}

static uint64_t register_round_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

static int register_try(struct receiver *r, struct abi_zcrx_ifq *q, struct abi_zcrx_area *area,
                        struct abi_region *region, uint32_t rx_buf_len) {
    const struct receiver_settings *s = &r->settings;
    uint64_t entries_end =
        REFILL_HEADER_BYTES + (uint64_t)s->refill_entries * sizeof(struct abi_zcrx_refill_entry);
    struct abi_query_zcrx features;
    bool events = zcrx_query(&features) == 0 && (features.features & ABI_ZCRX_FEATURE_EVENT);
    struct abi_zcrx_event event = {
        .user_data = uring_tag(TAG_ZCRX_EVENT, 0),
        .type_mask = 1u << ABI_ZCRX_EVENT_ALLOC_FAIL,
        .flags = ABI_ZCRX_EVENT_HAS_STATS,
        .stats_offset = register_round_up(entries_end, 64),
    };
    *area = (struct abi_zcrx_area){
        .address = (uint64_t)(uintptr_t)r->area->base,
        .bytes = r->area->slots_bytes,
    };
    *region = (struct abi_region){
        .bytes =
            register_round_up(event.stats_offset + sizeof(struct abi_zcrx_stats), AREA_PAGE_BYTES),
    };
    *q = (struct abi_zcrx_ifq){
        .interface_index = s->interface_index,
        .rx_queue = s->rx_queue,
        .refill_entries = s->refill_entries,
        .flags = s->interface_index == 0 ? ABI_ZCRX_NODEV : 0,
        .area = (uint64_t)(uintptr_t)area,
        .region = (uint64_t)(uintptr_t)region,
        .rx_buf_len = rx_buf_len,
        .event = events ? (uint64_t)(uintptr_t)&event : 0,
    };
    return zcrx_register(r->reactor->ring.ring_fd, ABI_REGISTER_ZCRX_IFQ, q, 1);
}

/* A queue may still be held by a process that is exiting: it is requested again
 * with growing pauses. */
static int register_patiently(struct receiver *r, struct abi_zcrx_ifq *q,
                              struct abi_zcrx_area *area, struct abi_region *region,
                              uint32_t rx_buf_len) {
    uint64_t waited_ns = 0, pause_ns = RETRY_FIRST_NS;
    for (;;) {
        int code = register_try(r, q, area, region, rx_buf_len);
        bool held = code == -EEXIST || code == -EBUSY;
        if (!held || waited_ns >= r->settings.queue_retry_ns)
            return code;
        struct timespec t = {(time_t)(pause_ns / 1000000000), (long)(pause_ns % 1000000000)};
        nanosleep(&t, NULL);
        waited_ns += pause_ns;
        pause_ns = time_min(pause_ns * 2, RETRY_MAX_NS);
    }
}

static int register_map_region(struct receiver *r, const struct abi_zcrx_ifq *q,
                               const struct abi_region *region) {
    struct zcrx *z = &r->zcrx;
    z->region_bytes = region->bytes;
    void *p = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                   r->reactor->ring.ring_fd, (off_t)region->mmap_offset);
    if (p == MAP_FAILED)
        return fault_set(&r->reactor->fault, errno, "mmap", "refill ring");
    z->region = p;
    z->refill.head = (void *)(z->region + q->offsets.head);
    z->refill.tail = (void *)(z->region + q->offsets.tail);
    z->refill.entries = (void *)(z->region + q->offsets.entries);
    z->refill.entry_count = q->refill_entries;
    z->refill.tail_next = *z->refill.tail;
    if (q->event != 0) {
        uint64_t at = REFILL_HEADER_BYTES +
                      (uint64_t)r->settings.refill_entries * sizeof(struct abi_zcrx_refill_entry);
        z->kernel_stats = (void *)(z->region + register_round_up(at, 64));
    }
    return 0;
}

static uint32_t register_log2_of(uint32_t power) {
    return (uint32_t)__builtin_ctz(power);
}

int zcrx_open_queue(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    struct abi_zcrx_ifq q;
    struct abi_zcrx_area area;
    struct abi_region region;
    char name[IF_NAMESIZE] = "none", object[80];
    uint32_t rx_buf_len = r->settings.rx_buf_len;
    int code = register_patiently(r, &q, &area, &region, rx_buf_len);
    /* Large buffers need a NIC, a kernel and contiguous memory that can have them. */
    bool refused = code == -EINVAL || code == -EOPNOTSUPP || code == -ERANGE || code == -ENOMEM;
    if (refused && rx_buf_len != 0)
        code = register_patiently(r, &q, &area, &region, 0);
    if (r->settings.interface_index != 0)
        if_indextoname(r->settings.interface_index, name);
    snprintf(object, sizeof object, "interface %s, rx queue %u", name, r->settings.rx_queue);
    if (code < 0)
        return fault_set(&r->reactor->fault, -code, "io_uring_register_ifq", object);
    z->id = q.id;
    z->rx_buf_len = q.rx_buf_len != 0 ? q.rx_buf_len : AREA_PAGE_BYTES;
    z->chunk_count = (uint32_t)(r->area->slots_bytes / z->rx_buf_len);
    z->refill.token = area.token;
    return register_map_region(r, &q, &region);
}

uint32_t zcrx_chunk_shift(const struct zcrx *z) {
    return register_log2_of(z->rx_buf_len);
}

int zcrx_flush_refill(struct receiver *r) {
    struct abi_zcrx_control c = {.id = r->zcrx.id, .operation = ABI_ZCRX_CTRL_FLUSH_RQ};
    return zcrx_register(r->reactor->ring.ring_fd, ABI_REGISTER_ZCRX_CTRL, &c, 0);
}

int zcrx_arm_event(struct receiver *r, uint32_t type) {
    struct abi_zcrx_control c = {.id = r->zcrx.id, .operation = ABI_ZCRX_CTRL_ARM_EVENT};
    c.argument.event_type = type;
    return zcrx_register(r->reactor->ring.ring_fd, ABI_REGISTER_ZCRX_CTRL, &c, 0);
}

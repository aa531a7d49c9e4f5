/* SPDX-License-Identifier: Apache-2.0
 *
 * One zcrx instance by the kernel's own structs: see zcrx.h.
 */
#define _GNU_SOURCE
#include "zcrx.h"
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HELD_QUEUE_TRIES 100
#define HELD_QUEUE_PAUSE_US 50000
#define REFILL_HEADER_BYTES 128u /* what the kernel keeps in front of the refill entries */

static size_t round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

static char *map_area(const struct zcrx_options *options) {
    size_t page = options->hugepages ? ZCRX_HUGEPAGE_BYTES : ZCRX_PAGE_BYTES;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    char *area;

    if (options->hugepages)
        flags |= MAP_HUGETLB;
    area = mmap(NULL, round_up(options->area_bytes + options->padding_bytes, page),
                PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(area != MAP_FAILED, "mapping an area of %zu bytes: %m", options->area_bytes);
    /* Small pages unless hugepages were asked for: the difference is what some cases are about. */
    if (!options->hugepages)
        madvise(area, options->area_bytes, MADV_NOHUGEPAGE);
    return area;
}

int zcrx_register_once(struct zcrx *zcrx, struct ring *ring, const struct zcrx_options *options) {
    uint32_t entries = options->refill_entries ? options->refill_entries : ZCRX_REFILL_ENTRIES;
    size_t stats_offset = REFILL_HEADER_BYTES + entries * sizeof(struct io_uring_zcrx_rqe);
    struct io_uring_region_desc region = {
        .size = round_up(stats_offset + sizeof(struct zcrx_stats), ZCRX_PAGE_BYTES)};
    struct io_uring_zcrx_area_reg area = {.len = options->area_bytes};
    struct zcrx_event_desc events = {
        .user_data = ZCRX_TAG_EVENT,
        .type_mask = 1u << ZCRX_EVENT_ALLOC_FAIL | 1u << ZCRX_EVENT_COPY,
        .flags = ZCRX_EVENT_DESC_FLAG_STATS,
        .stats_offset = stats_offset,
    };
    struct io_uring_zcrx_ifq_reg request = {
        .if_idx = options->interface_index,
        .if_rxq = options->queue,
        .rq_entries = entries,
        .flags = options->interface_index ? 0 : ZCRX_REG_NODEV,
        .area_ptr = (uintptr_t)&area,
        .region_ptr = (uintptr_t)&region,
        .rx_buf_len = options->rx_buf_bytes,
        .event_desc = (uintptr_t)&events,
    };
    char *base;
    long result;

    memset(zcrx, 0, sizeof(*zcrx));
    zcrx->area = map_area(options);
    area.addr = (uintptr_t)zcrx->area;
    result = ring_register(ring, IORING_REGISTER_ZCRX_IFQ, &request, 1);
    if (result < 0)
        return (int)result;
    base = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                (off_t)region.mmap_offset);
    CHECK(base != MAP_FAILED, "mapping the refill ring: %m");
    zcrx->ring = ring;
    zcrx->id = request.zcrx_id;
    zcrx->rx_buf_bytes = request.rx_buf_len;
    zcrx->area_bytes = options->area_bytes;
    zcrx->area_token = area.rq_area_token;
    zcrx->refill_head = (uint32_t *)(void *)(base + request.offsets.head);
    zcrx->refill_tail = (uint32_t *)(void *)(base + request.offsets.tail);
    zcrx->refill = (struct io_uring_zcrx_rqe *)(void *)(base + request.offsets.rqes);
    zcrx->refill_mask = request.rq_entries - 1;
    zcrx->stats = (const struct zcrx_stats *)(const void *)(base + stats_offset);
    return 0;
}

void zcrx_register(struct zcrx *zcrx, struct ring *ring, const struct zcrx_options *options) {
    int result = -EBUSY;

    for (int tries = 0; tries < HELD_QUEUE_TRIES; tries++) {
        result = zcrx_register_once(zcrx, ring, options);
        if (result != -EEXIST && result != -EBUSY)
            break;
        usleep(HELD_QUEUE_PAUSE_US);
    }
    CHECK_ERROR(result, 0, "registering zcrx");
}

void zcrx_receive(struct zcrx *zcrx, int socket, uint64_t user_data, uint32_t bytes_max) {
    struct io_uring_sqe *sqe = ring_sqe(zcrx->ring);

    sqe->opcode = IORING_OP_RECV_ZC;
    sqe->fd = socket;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->zcrx_ifq_idx = zcrx->id;
    sqe->user_data = user_data;
    sqe->len = bytes_max;
}

struct fragment zcrx_fragment(const struct completion *completion) {
    return (struct fragment){
        .offset = completion->area_offset & ~IORING_ZCRX_AREA_MASK,
        .bytes = (uint32_t)completion->result,
    };
}

bool zcrx_give_back_once(struct zcrx *zcrx, struct fragment fragment) {
    struct io_uring_zcrx_rqe *entry = &zcrx->refill[zcrx->tail & zcrx->refill_mask];

    if (zcrx->tail - __atomic_load_n(zcrx->refill_head, __ATOMIC_ACQUIRE) > zcrx->refill_mask)
        return false;
    entry->off = fragment.offset | zcrx->area_token;
    entry->len = fragment.bytes;
    entry->__pad = 0;
    zcrx->tail++;
    __atomic_store_n(zcrx->refill_tail, zcrx->tail, __ATOMIC_RELEASE);
    return true;
}

long zcrx_control(const struct zcrx *zcrx, struct zcrx_ctrl *control) {
    control->zcrx_id = zcrx->id;
    return ring_register(zcrx->ring, IORING_REGISTER_ZCRX_CTRL, control, 0);
}

long zcrx_flush(const struct zcrx *zcrx) {
    struct zcrx_ctrl control = {.op = ZCRX_CTRL_FLUSH_RQ};
    return zcrx_control(zcrx, &control);
}

void zcrx_give_back(struct zcrx *zcrx, struct fragment fragment) {
    if (zcrx_give_back_once(zcrx, fragment))
        return;
    CHECK_ERROR(zcrx_flush(zcrx), 0, "flushing a full refill ring");
    CHECK(zcrx_give_back_once(zcrx, fragment), "the refill ring is full after a flush");
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel's ABI of zero-copy receive, as far as ingestd uses it.
 *
 * Debian 12's headers (Linux 6.1, liburing 2.3) have none of it, and headers in
 * between have parts. So everything has a name of its own here, which no header
 * can collide with; sizes are asserted, and compared with the system's header by
 * uapi.c, where there is one that has them all.
 * Source of the layout: include/uapi/linux/io_uring/zcrx.h and query.h, Linux 7.3.
 */
#ifndef INGESTD_RECEIVE_ZCRX_UAPI_H
#define INGESTD_RECEIVE_ZCRX_UAPI_H

#include <assert.h>
#include <stdint.h>

/* io_uring_register(2) opcodes and flags of completions and rings. */
#define ABI_REGISTER_ZCRX_IFQ 32u /* Linux 6.15 */
#define ABI_REGISTER_QUERY 35u    /* Linux 6.18 */
#define ABI_REGISTER_ZCRX_CTRL 36u

/* Offsets of completions and refill entries carry the area's id in their top 16 bits. */
#define ABI_ZCRX_OFFSET_MASK ((1ull << 48) - 1)

#define ABI_ZCRX_NODEV 2u              /* ifq flags, Linux 7.1 */
#define ABI_ZCRX_FEATURE_RX_BUF_LEN 1u /* query features */
#define ABI_ZCRX_FEATURE_EVENT 2u
#define ABI_ZCRX_CTRL_FLUSH_RQ 0u
#define ABI_ZCRX_CTRL_ARM_EVENT 2u
#define ABI_ZCRX_EVENT_ALLOC_FAIL 0u
#define ABI_ZCRX_EVENT_COPY 1u
#define ABI_ZCRX_EVENT_HAS_STATS 1u
#define ABI_ZCRX_ENTRIES_MAX 32768u
#define ABI_QUERY_ZCRX 1u

struct abi_zcrx_refill_entry {
    uint64_t offset;
    uint32_t bytes;
    uint32_t zero;
};
static_assert(sizeof(struct abi_zcrx_refill_entry) == 16, "refill entry");

/* The upper half of a 32-byte completion. */
struct abi_zcrx_completion {
    uint64_t offset;
    uint64_t zero;
};
static_assert(sizeof(struct abi_zcrx_completion) == 16, "completion");

struct abi_zcrx_offsets {
    uint32_t head;
    uint32_t tail;
    uint32_t entries;
    uint32_t zero;
    uint64_t more_zero[2];
};
static_assert(sizeof(struct abi_zcrx_offsets) == 32, "offsets");

struct abi_zcrx_area {
    uint64_t address;
    uint64_t bytes;
    uint64_t token; /* out: goes into the offsets of refill entries */
    uint32_t flags;
    uint32_t dmabuf_fd;
    uint64_t zero[2];
};
static_assert(sizeof(struct abi_zcrx_area) == 48, "area");

struct abi_region {
    uint64_t user_address;
    uint64_t bytes;
    uint32_t flags;
    uint32_t id;
    uint64_t mmap_offset; /* out */
    uint64_t zero[4];
};
static_assert(sizeof(struct abi_region) == 64, "region");

struct abi_zcrx_stats {
    uint64_t copy_count;
    uint64_t copy_bytes;
};
static_assert(sizeof(struct abi_zcrx_stats) == 16, "stats");

struct abi_zcrx_event {
    uint64_t user_data;
    uint32_t type_mask;
    uint32_t flags;
    uint64_t stats_offset; /* in the refill ring's region */
    uint64_t zero[9];
};
static_assert(sizeof(struct abi_zcrx_event) == 96, "event");

struct abi_zcrx_ifq {
    uint32_t interface_index;
    uint32_t rx_queue;
    uint32_t refill_entries;
    uint32_t flags;
    uint64_t area;                   /* struct abi_zcrx_area * */
    uint64_t region;                 /* struct abi_region * */
    struct abi_zcrx_offsets offsets; /* out */
    uint32_t id;                     /* out */
    uint32_t rx_buf_len;             /* 0: a page; out: what it is (Linux 7.0) */
    uint64_t event;                  /* struct abi_zcrx_event *, Linux 7.2 */
    uint64_t zero[2];
};
static_assert(sizeof(struct abi_zcrx_ifq) == 96, "ifq");

struct abi_zcrx_control {
    uint32_t id;
    uint32_t operation;
    uint64_t zero[2];
    union {
        uint32_t event_type;
        uint64_t room[6];
    } argument;
};
static_assert(sizeof(struct abi_zcrx_control) == 72, "control");

struct abi_query_header {
    uint64_t next;
    uint64_t data;
    uint32_t operation;
    uint32_t bytes;
    int32_t result;
    uint32_t zero[3];
};
static_assert(sizeof(struct abi_query_header) == 40, "query header");

struct abi_query_zcrx {
    uint64_t register_flags;
    uint64_t area_flags;
    uint32_t control_count;
    uint32_t features;
    uint32_t refill_header_bytes;
    uint32_t refill_header_alignment;
    uint64_t zero;
};
static_assert(sizeof(struct abi_query_zcrx) == 40, "query zcrx");

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The look-ups of inspect.h.
 */
#include "inspect.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "receive/zcrx/register.h"

static const char *const stats_names[] = {
#define STATS_NAME(name, help) #name,
    STATS_LIST(STATS_NAME)
#undef STATS_NAME
};

const char *stats_name(int index) {
    return stats_names[index];
}

uint64_t stats_value(const struct worker *w, int index) {
    return __atomic_load_n((const uint64_t *)&w->reactor.stats + index, __ATOMIC_RELAXED);
}

uint64_t histogram_count(const struct histogram *h, int bucket) {
    return __atomic_load_n(&h->counts[bucket], __ATOMIC_RELAXED);
}

uint64_t histogram_bound_ns(int bucket) {
    static const uint64_t bounds[] = {HISTOGRAM_BOUNDS_NS_LIST};
    return bounds[bucket];
}

uint64_t histogram_bound_bytes(int bucket) {
    return HISTOGRAM_BYTES_MIN << bucket;
}

struct feature {
    const char *name;
    unsigned opcode;      /* of the kernel's probe, or 0 */
    unsigned setup_flags; /* a ring can be made with these */
    /* ... or what zcrx_query() is to show; registration flags and features. */
    uint64_t zcrx_flags;
    uint32_t zcrx_features;
};

static const struct feature features[FEATURES_COUNT] = {
    {"io_uring", 0, 0, 0, 0},
    {"defer_taskrun", 0, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0, 0},
    {"writev_fixed", URING_OP_WRITEV_FIXED, 0, 0, 0},
    {"recv_zc", URING_OP_RECV_ZC, 0, 0, 0},
    {"zcrx_nodev", 0, 0, ABI_ZCRX_NODEV, 0},
    {"zcrx_rx_buf_len", 0, 0, 0, ABI_ZCRX_FEATURE_RX_BUF_LEN},
    {"zcrx_events", 0, 0, 0, ABI_ZCRX_FEATURE_EVENT},
};

/* A kernel without the query is older than any feature that it would report. */
static int inspect_zcrx_has(const struct feature *f) {
    struct abi_query_zcrx q;
    if (zcrx_query(&q) != 0)
        return 0;
    return (q.register_flags & f->zcrx_flags) == f->zcrx_flags &&
           (q.features & f->zcrx_features) == f->zcrx_features;
}

const char *feature_name(int index) {
    return features[index].name;
}

int feature_query(int index) {
    const struct feature *f = &features[index];
    if (f->zcrx_flags != 0 || f->zcrx_features != 0)
        return inspect_zcrx_has(f);
    struct io_uring ring;
    struct io_uring_params p = {.flags = f->setup_flags};
    int code = io_uring_queue_init_params(2, &ring, &p);
    /* Flags that the kernel does not know are EINVAL: io_uring_setup(2). */
    if (code < 0)
        return code == -EINVAL && f->setup_flags != 0 ? 0 : code;
    int have = 1;
    if (f->opcode != 0) {
        struct io_uring_probe *probe = io_uring_get_probe_ring(&ring);
        have = probe == NULL ? -ENOMEM : io_uring_opcode_supported(probe, (int)f->opcode) != 0;
        io_uring_free_probe(probe);
    }
    io_uring_queue_exit(&ring);
    return have;
}

int direct_io_alignment(int fd, uint32_t *mem_align, uint32_t *write_align) {
    struct statx x = {0};
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) != 0)
        return -errno;
    if (!(x.stx_mask & STATX_DIOALIGN) || x.stx_dio_offset_align == 0)
        return -EOPNOTSUPP;
    *mem_align = x.stx_dio_mem_align;
    *write_align = x.stx_dio_offset_align;
    return 0;
}

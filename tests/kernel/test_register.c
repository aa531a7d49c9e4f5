/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel answers to every wrong (and some right) registration. The daemon turns these into
 * words for an operator, so they must stay as they are.
 *
 * All of this is device-less but for the cases that name an interface.
 */
#define _GNU_SOURCE
#include "check.h"
#include "net.h"
#include "zcrx.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AREA_BYTES (1u << 20)
#define REGION_PAGE 4096u
#define LOOPBACK_INDEX 1u
#define RING_WITHOUT_CQE32 (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)

/* One registration in all its parts, right as device-less until a case changes it. */
struct attempt {
    uint32_t ring_flags;
    struct io_uring_zcrx_ifq_reg request;
    struct io_uring_zcrx_area_reg area;
    struct io_uring_region_desc region;
    struct zcrx_event_desc events;
    bool with_events;
    bool split_off; /* the NIC's header split is to be turned on again afterwards */
    char *memory;
};

/* X(identifier, what is asked, answer, change of the attempt) */
#define REGISTRATIONS(X)                                                                           \
    X(plain, "device-less", 0, (void)0)                                                            \
    X(no_defer, "a ring without DEFER_TASKRUN", -EINVAL, a->ring_flags = IORING_SETUP_CQE32)       \
    X(no_cqe32, "a ring without CQE32", -EINVAL, a->ring_flags = RING_WITHOUT_CQE32)               \
    X(mixed, "a ring with CQE_MIXED", 0,                                                           \
      a->ring_flags = RING_WITHOUT_CQE32 | IORING_SETUP_CQE_MIXED)                                 \
    X(nodev_if, "device-less with an interface", -EINVAL, a->request.if_idx = LOOPBACK_INDEX)      \
    X(nodev_rxq, "device-less with a queue", -EINVAL, a->request.if_rxq = 1)                       \
    X(loopback, "the loopback interface", -EOPNOTSUPP,                                             \
      (a->request.flags = 0, a->request.if_idx = LOOPBACK_INDEX))                                  \
    X(no_such_if, "an interface that is not there", -ENODEV,                                       \
      (a->request.flags = 0, a->request.if_idx = 9999))                                            \
    X(queue_range, "a queue that the NIC has not", -ERANGE,                                        \
      (a->request.flags = 0, a->request.if_idx = net_interface_index(), a->request.if_rxq = 9))    \
    X(split_off, "a NIC with header split off", -EINVAL, ask_for_nic_without_split(a))             \
    X(no_rqes, "no refill entries", -EINVAL, a->request.rq_entries = 0)                            \
    X(many_rqes, "65536 refill entries", -EINVAL,                                                  \
      (a->request.rq_entries = 65536, a->region.size = 2u << 20))                                  \
    X(clamped_rqes, "65536 refill entries, clamped", 0,                                            \
      (a->request.rq_entries = 65536, a->region.size = 2u << 20,                                   \
       a->ring_flags |= IORING_SETUP_CLAMP))                                                       \
    X(odd_rqes, "65 refill entries, rounded up", 0, a->request.rq_entries = 65)                    \
    X(small_region, "a region too small for its entries", -EINVAL, a->request.rq_entries = 256)    \
    X(odd_region, "a region of 4097 bytes", -EINVAL, a->region.size = REGION_PAGE + 1)             \
    X(no_region, "a region of no bytes", -EINVAL, a->region.size = 0)                              \
    X(user_region, "a region in user memory", 0, use_own_region(a, 0))                             \
    X(skew_region, "a region in skewed user memory", -EINVAL, use_own_region(a, 64))               \
    X(undeclared_region, "user memory without its flag", -EFAULT,                                  \
      a->region.user_addr = (uintptr_t)a->memory)                                                  \
    X(no_area, "an area at address 0", -EFAULT, a->area.addr = 0)                                  \
    X(skew_area, "a skewed area", -EINVAL, a->area.addr += 512)                                    \
    X(odd_area, "an area of odd length", -EINVAL, a->area.len -= 512)                              \
    X(empty_area, "an area of no bytes", -EFAULT, a->area.len = 0)                                 \
    X(read_only_area, "a read-only area", -EFAULT, make_area_read_only(a))                         \
    X(unmapped_area, "an area that is not mapped", -EFAULT,                                        \
      CHECK_CALL(munmap(a->memory, AREA_BYTES)))                                                   \
    X(tokened_area, "an area with a token", -EINVAL, a->area.rq_area_token = 1)                    \
    X(flagged_area, "an area with unknown flags", -EINVAL, a->area.flags = 1u << 30)               \
    X(dmabuf_area, "a dmabuf without its flag", -EINVAL, a->area.dmabuf_fd = 3)                    \
    X(page_buffers, "buffers of a page", 0, a->request.rx_buf_len = 4096)                          \
    X(large_buffers, "device-less with buffers of 8 KiB", -EOPNOTSUPP,                             \
      a->request.rx_buf_len = 8192)                                                                \
    X(small_buffers, "buffers of 2 KiB", -EINVAL, a->request.rx_buf_len = 2048)                    \
    X(odd_buffers, "buffers of 5000 bytes", -EINVAL, a->request.rx_buf_len = 5000)                 \
    X(scattered_buffers, "buffers of 64 KiB on small pages", -ERANGE,                              \
      (a->request.flags = 0, a->request.if_idx = net_interface_index(), a->request.if_rxq = 3,     \
       a->request.rx_buf_len = 65536))                                                             \
    X(unknown_flags, "unknown flags", -EINVAL, a->request.flags |= 1u << 30)                       \
    X(reserved, "a reserved field", -EINVAL, a->request.__resv[0] = 1)                             \
    X(events, "both events", 0, (a->with_events = true, a->events.type_mask = 3))                  \
    X(unknown_event, "an unknown event", -EINVAL,                                                  \
      (a->with_events = true, a->events.type_mask = 1u << 30))                                     \
    X(stats, "counters behind the entries", 0, place_stats(a, 2048))                               \
    X(stats_inside, "counters inside the entries", -ERANGE, place_stats(a, 128))                   \
    X(stats_skewed, "skewed counters", -EINVAL, place_stats(a, 4090))                              \
    X(stats_outside, "counters past the region", -ERANGE, place_stats(a, 4088))                    \
    X(stats_undeclared, "counters without their flag", -EINVAL,                                    \
      (a->with_events = true, a->events.stats_offset = 2048))                                      \
    X(unprivileged, "no CAP_NET_ADMIN", -EPERM, drop_net_admin(a))                                 \
    X(memlock, "an area beyond RLIMIT_MEMLOCK", -ENOMEM, limit_memlock(a))

static void use_own_region(struct attempt *a, size_t skew) {
    a->region.flags = IORING_MEM_REGION_TYPE_USER;
    a->region.user_addr = (uintptr_t)a->memory + skew;
}

static void make_area_read_only(struct attempt *a) {
    CHECK_CALL(mprotect(a->memory, AREA_BYTES, PROT_READ));
}

static void place_stats(struct attempt *a, uint64_t offset) {
    a->with_events = true;
    a->events.flags = ZCRX_EVENT_DESC_FLAG_STATS;
    a->events.stats_offset = offset;
}

static void ask_for_nic_without_split(struct attempt *a) {
    net_command("ethtool -G zc0 tcp-data-split off");
    a->request.flags = 0;
    a->request.if_idx = net_interface_index();
    a->request.if_rxq = 3;
    a->split_off = true;
}

static void keep_capabilities(uint32_t kept) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {
        {.effective = kept, .permitted = kept}};

    CHECK_CALL(syscall(SYS_capset, &head, data));
}

static void drop_net_admin(struct attempt *a) {
    a->request.flags = 0;
    a->request.if_idx = net_interface_index();
    keep_capabilities(0);
}

static void limit_memlock(struct attempt *a) {
    struct rlimit limit = {.rlim_cur = 65536, .rlim_max = 65536};

    (void)a;
    CHECK_CALL(setrlimit(RLIMIT_MEMLOCK, &limit));
    /* CAP_IPC_LOCK lifts the limit; CAP_NET_ADMIN stays, or the answer would be EPERM. The limit
     * counts for a user who is not root. */
    keep_capabilities(1u << CAP_NET_ADMIN);
}

struct registration {
    void (*change)(struct attempt *attempt);
    int answer;
};

static void run_registration(const void *argument) {
    const struct registration *wanted = argument;
    struct attempt attempt = {
        .ring_flags = RING_FLAGS_ZCRX,
        .request = {.rq_entries = 64, .flags = ZCRX_REG_NODEV},
        .area = {.len = AREA_BYTES},
        .region = {.size = REGION_PAGE},
    };
    struct ring ring;
    long answer;

    attempt.memory = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(attempt.memory != MAP_FAILED, "mapping an area: %m");
    madvise(attempt.memory, AREA_BYTES, MADV_NOHUGEPAGE);
    attempt.area.addr = (uintptr_t)attempt.memory;
    wanted->change(&attempt);
    attempt.request.area_ptr = (uintptr_t)&attempt.area;
    attempt.request.region_ptr = (uintptr_t)&attempt.region;
    if (attempt.with_events)
        attempt.request.event_desc = (uintptr_t)&attempt.events;
    CHECK_ERROR(ring_open(&ring, 8, 64, attempt.ring_flags), 0, "opening a ring");
    answer = ring_register(&ring, IORING_REGISTER_ZCRX_IFQ, &attempt.request, 1);
    if (attempt.split_off)
        net_command("ethtool -G zc0 tcp-data-split on");
    CHECK_ERROR(answer, wanted->answer, "the registration");
}

#define DEFINE_REGISTRATION(identifier, text, expected, mutation)                                  \
    static void change_##identifier(struct attempt *a) {                                           \
        (void)a;                                                                                   \
        mutation;                                                                                  \
    }                                                                                              \
    static const struct registration registration_##identifier = {change_##identifier, expected};

#define LIST_REGISTRATION(identifier, text, expected, mutation)                                    \
    {"registering " text, run_registration, &registration_##identifier},

REGISTRATIONS(DEFINE_REGISTRATION)

static const struct check_case cases[] = {REGISTRATIONS(LIST_REGISTRATION)};

int main(void) {
    return check_run("registrations", cases, sizeof(cases) / sizeof(cases[0]));
}

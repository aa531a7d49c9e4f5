/* SPDX-License-Identifier: Apache-2.0
 *
 * A second area added to an instance that runs short: its chunks are used too, and a fragment
 * says in the upper bits of its offset which area it lies in.
 */
#define _GNU_SOURCE
#include "check.h"
#include "net.h"
#include "zcrx.h"

#include <sys/mman.h>

#ifdef HAVE_ADD_AREA

#define MIB (1u << 20)
#define FIRST_AREA_BYTES (128u * ZCRX_PAGE_BYTES)
#define SECOND_AREA_BYTES (8u * MIB)
#define STREAM_BYTES (4u * MIB)

static void run_second_area(const void *argument) {
    (void)argument;
    struct zcrx_options options = {.interface_index = net_interface_index(),
                                   .queue = NET_QUEUE,
                                   .area_bytes = FIRST_AREA_BYTES};
    uint64_t offset = 0, in_second = 0;
    struct completion completion;
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    net_set_mtu(NET_MTU_PAGE);
    CHECK_ERROR(ring_open(&ring, 64, 8192, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(&zcrx, &ring, &options);
    char *second = mmap(NULL, SECOND_AREA_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(second != MAP_FAILED, "mapping a second area: %m");
    struct io_uring_zcrx_area_reg area = {.addr = (uintptr_t)second, .len = SECOND_AREA_BYTES};
    struct zcrx_ctrl control = {.op = ZCRX_CTRL_ADD_AREA};
    control.zc_area.area_ptr = (uintptr_t)&area;
    CHECK_ERROR(zcrx_control(&zcrx, &control), 0, "adding an area");
    CHECK(area.rq_area_token != zcrx.area_token, "both areas have one token");

    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, STREAM_BYTES);
    zcrx_receive(&zcrx, net_accept(listener), 1, 0);
    /* Everything is kept, and the first area alone could not hold it. */
    while (offset < STREAM_BYTES) {
        completion = ring_wait(&ring);
        if (completion.user_data == ZCRX_TAG_EVENT)
            continue;
        CHECK(completion.result > 0, "the receive ended with %s",
              check_error_name(completion.result));
        struct fragment fragment = zcrx_fragment(&completion);
        bool is_second = (completion.area_offset & IORING_ZCRX_AREA_MASK) == area.rq_area_token;
        const char *data = (is_second ? second : zcrx.area) + fragment.offset;
        CHECK(net_stream_matches(data, fragment.bytes, offset), "wrong bytes at %llu",
              (unsigned long long)offset);
        offset += fragment.bytes;
        in_second += is_second;
    }
    net_join(sender);
    CHECK(in_second > 0, "no fragment lay in the second area");
}

#else

static void run_second_area(const void *argument) {
    (void)argument;
    check_skip("this kernel has one area per instance; several came with 7.3");
}

#endif

static const struct check_case cases[] = {
    {"a second area is used when the first is full", run_second_area, NULL},
};

int main(void) {
    return check_run("areas", cases, sizeof(cases) / sizeof(cases[0]));
}

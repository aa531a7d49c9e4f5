/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel answers to receive requests and to control requests on an instance that is
 * registered, device-less.
 */
#define _GNU_SOURCE
#include "check.h"
#include "net.h"
#include "zcrx.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/socket.h>
#include <unistd.h>

#define AREA_BYTES (1u << 20)
#define ABSENT_ID 77u

static void open_device_less(struct zcrx *zcrx, struct ring *ring) {
    struct zcrx_options options = {.area_bytes = AREA_BYTES, .refill_entries = 64};

    CHECK_ERROR(ring_open(ring, 8, 64, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(zcrx, ring, &options);
}

static int tcp_socket(void) {
    return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int udp_socket(void) {
    return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

static int unix_socket(void) {
    int pair[2];
    CHECK_CALL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    return pair[0];
}

static int plain_file(void) {
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* X(identifier, what is asked, answer, kind of socket, change of the request) */
#define RECEIVES(X)                                                                                \
    X(unconnected, "an unconnected socket", -ENOTCONN, tcp_socket, (void)0)                        \
    X(unix, "a unix socket", -EPROTONOSUPPORT, unix_socket, (void)0)                               \
    X(udp, "a UDP socket", -EPROTONOSUPPORT, udp_socket, (void)0)                                  \
    X(file, "a file", -ENOTSOCK, plain_file, (void)0)                                              \
    X(single, "a single shot", -EINVAL, tcp_socket, sqe->ioprio = 0)                               \
    X(absent, "an instance that is not there", -EINVAL, tcp_socket, sqe->zcrx_ifq_idx = ABSENT_ID) \
    X(address, "an address", -EINVAL, tcp_socket, sqe->addr = 4096)                                \
    X(select, "a provided buffer", -EOPNOTSUPP, tcp_socket, sqe->flags = IOSQE_BUFFER_SELECT)      \
    X(peek, "MSG_PEEK", -EINVAL, tcp_socket, sqe->msg_flags = MSG_PEEK)

struct receive_request {
    int answer;
    int (*open)(void);
    void (*change)(struct io_uring_sqe *sqe);
};

static void run_receive(const void *argument) {
    const struct receive_request *wanted = argument;
    struct completion completion;
    struct ring ring;
    struct zcrx zcrx;

    open_device_less(&zcrx, &ring);
    int fd = wanted->open();
    CHECK_CALL(fd);
    zcrx_receive(&zcrx, fd, 1, 0);
    wanted->change(&ring.sqes[(ring.sq_tail - 1) & *ring.sq_mask]);
    completion = ring_wait(&ring);
    CHECK(completion.user_data == 1, "a completion that nobody asked for");
    CHECK_ERROR(completion.result, wanted->answer, "the receive");
}

#define DEFINE_RECEIVE(identifier, text, expected, socket_, mutation)                              \
    static void change_##identifier(struct io_uring_sqe *sqe) {                                    \
        (void)sqe;                                                                                 \
        mutation;                                                                                  \
    }                                                                                              \
    static const struct receive_request receive_##identifier = {expected, socket_,                 \
                                                                change_##identifier};

#define LIST_RECEIVE(identifier, text, expected, socket_, mutation)                                \
    {"receiving from " text, run_receive, &receive_##identifier},

RECEIVES(DEFINE_RECEIVE)

static void run_controls(const void *argument) {
    (void)argument;
    struct zcrx_ctrl control = {.op = ZCRX_CTRL_FLUSH_RQ};
    struct ring ring;
    struct zcrx zcrx;

    open_device_less(&zcrx, &ring);
    CHECK_ERROR(zcrx_control(&zcrx, &control), 0, "a flush of an empty ring");
    CHECK_ERROR(ring_register(&ring, IORING_REGISTER_ZCRX_CTRL, &control, 1), -EINVAL,
                "a control with nr_args 1");
    control = (struct zcrx_ctrl){.op = ZCRX_CTRL_FLUSH_RQ, .zcrx_id = ABSENT_ID};
    CHECK_ERROR(ring_register(&ring, IORING_REGISTER_ZCRX_CTRL, &control, 0), -ENXIO,
                "a flush of an instance that is not there");
    control = (struct zcrx_ctrl){.op = 99};
    CHECK_ERROR(zcrx_control(&zcrx, &control), -EOPNOTSUPP, "an unknown control");
    control = (struct zcrx_ctrl){.op = ZCRX_CTRL_ARM_EVENT};
    CHECK_ERROR(zcrx_control(&zcrx, &control), -EINVAL, "arming an event that has not fired");
}

static void run_bogus_refill(const void *argument) {
    (void)argument;
    static const uint64_t offsets[] = {0, 1ull << IORING_ZCRX_AREA_SHIFT << 2, 0, 4096};
    struct ring ring;
    struct zcrx zcrx;

    open_device_less(&zcrx, &ring);
    for (size_t index = 0; index < sizeof(offsets) / sizeof(offsets[0]); index++)
        CHECK(zcrx_give_back_once(&zcrx, (struct fragment){offsets[index], 1}), "a full ring");
    /* Nobody holds the first: it is passed over. The second names an area that is not there: the
     * flush stops behind it, says nothing, and the next one continues. */
    CHECK_ERROR(zcrx_flush(&zcrx), 0, "a flush over bogus entries");
    CHECK(*zcrx.refill_head == 2, "the flush took %u entries", *zcrx.refill_head);
    CHECK_ERROR(zcrx_flush(&zcrx), 0, "another flush");
    CHECK(*zcrx.refill_head == zcrx.tail, "%u of %u entries taken", *zcrx.refill_head, zcrx.tail);
}

static void run_two_instances(const void *argument) {
    (void)argument;
    struct zcrx_options options = {.area_bytes = AREA_BYTES, .refill_entries = 64};
    struct ring ring;
    struct zcrx first, second;

    open_device_less(&first, &ring);
    zcrx_register(&second, &ring, &options);
    CHECK(first.id != second.id, "both instances have the number %u", first.id);
}

static void run_fixed_buffer(const void *argument) {
    (void)argument;
    struct ring ring;
    struct zcrx zcrx;

    open_device_less(&zcrx, &ring);
    struct iovec whole = {.iov_base = zcrx.area, .iov_len = zcrx.area_bytes};
    CHECK_ERROR(ring_register(&ring, IORING_REGISTER_BUFFERS, &whole, 1), 0,
                "the area as a fixed buffer");
}

static void run_export(const void *argument) {
    (void)argument;
    struct zcrx_ctrl control = {.op = ZCRX_CTRL_EXPORT};
    struct ring ring, other;
    struct zcrx zcrx;

    open_device_less(&zcrx, &ring);
    CHECK_ERROR(zcrx_control(&zcrx, &control), 0, "an export");
    struct io_uring_zcrx_ifq_reg request = {.flags = ZCRX_REG_IMPORT,
                                            .if_idx = control.zc_export.zcrx_fd};
    CHECK_ERROR(ring_open(&other, 8, 64, RING_FLAGS_ZCRX), 0, "opening another ring");
    CHECK_ERROR(ring_register(&other, IORING_REGISTER_ZCRX_IFQ, &request, 1), 0, "an import");
}

static const struct check_case cases[] = {
    RECEIVES(LIST_RECEIVE){"control requests", run_controls, NULL},
    {"a refill ring with entries nobody holds", run_bogus_refill, NULL},
    {"two instances in one ring", run_two_instances, NULL},
    {"the area as a fixed buffer", run_fixed_buffer, NULL},
    {"an instance exported to another ring", run_export, NULL},
};

int main(void) {
    return check_run("requests", cases, sizeof(cases) / sizeof(cases[0]));
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The whole path in one ring: fragments come by RECV_ZC, are written from where they lie by
 * WRITEV_FIXED with O_DIRECT, chunks go back when their write is complete, the device is read
 * back. No byte of payload is copied by this program.
 *
 * Devices are found by the environment variables that setup_disks.sh and the machine have set.
 */
#define _GNU_SOURCE
#include "check.h"
#include "device.h"
#include "net.h"
#include "zcrx.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MIB (1u << 20)
#define WIDE_WINDOW_BYTES (64 << 20)
#define WRITE_BYTES (128u << 10)
#define WRITES_IN_FLIGHT_MAX 64
#define PIECES_MAX 1000
#define BLOCK_BYTES 4096u
#define TAG_STREAM 1u
#define TAG_WRITE 100u /* plus the number of the write */

struct write_case {
    const char *device;
    int mtu;
    bool pack, tso, device_less, wide_window;
    uint32_t rx_buf_bytes;
    uint64_t bytes;
    int error; /* 0, or what every write gives: the device does not take this shape */
};

/* A write being gathered or in flight. Each piece holds one reference to its fragment. */
struct gather {
    struct iovec pieces[PIECES_MAX];
    struct held *held[PIECES_MAX];
    int count;
    size_t bytes;
    bool in_flight;
};

/* A fragment that writes still read from; goes back with the last reference. */
struct held {
    struct fragment fragment;
    int references;
};

struct path {
    const struct write_case *wanted;
    struct ring ring;
    struct zcrx zcrx;
    struct device device;
    struct gather writes[WRITES_IN_FLIGHT_MAX];
    unsigned current, in_flight;
    uint64_t received, written, failed;
    bool ended;
};

static void release(struct path *path, struct held *held) {
    if (--held->references)
        return;
    zcrx_give_back(&path->zcrx, held->fragment);
    free(held);
}

static void submit(struct path *path) {
    struct gather *gather = &path->writes[path->current];
    struct io_uring_sqe *sqe = ring_sqe(&path->ring);

    sqe->opcode = IORING_OP_WRITEV_FIXED;
    sqe->fd = path->device.fd;
    sqe->addr = (uintptr_t)gather->pieces;
    sqe->len = (uint32_t)gather->count;
    sqe->off = path->written;
    sqe->user_data = TAG_WRITE + path->current;
    gather->in_flight = true;
    path->written += gather->bytes;
    path->in_flight++;
    for (unsigned tries = 0; path->writes[path->current].in_flight; tries++) {
        CHECK(tries < WRITES_IN_FLIGHT_MAX, "all writes are in flight");
        path->current = (path->current + 1) % WRITES_IN_FLIGHT_MAX;
    }
}

static void add_piece(struct path *path, struct held *held, size_t from, size_t bytes) {
    struct gather *gather = &path->writes[path->current];

    CHECK(gather->count < PIECES_MAX, "more than %d pieces in a write", PIECES_MAX);
    gather->pieces[gather->count] =
        (struct iovec){path->zcrx.area + held->fragment.offset + from, bytes};
    gather->held[gather->count++] = held;
    gather->bytes += bytes;
    held->references++;
    if (gather->bytes == WRITE_BYTES)
        submit(path);
}

static void add_fragment(struct path *path, struct fragment fragment) {
    struct held *held = malloc(sizeof(*held));

    CHECK(held, "no memory");
    *held = (struct held){.fragment = fragment, .references = 1};
    for (size_t done = 0; done < fragment.bytes;) {
        size_t room = WRITE_BYTES - path->writes[path->current].bytes;
        size_t bytes = fragment.bytes - done < room ? fragment.bytes - done : room;
        add_piece(path, held, done, bytes);
        done += bytes;
    }
    path->received += fragment.bytes;
    release(path, held);
}

static void finish_stream(struct path *path) {
    struct gather *gather = &path->writes[path->current];
    size_t padding = (BLOCK_BYTES - gather->bytes % BLOCK_BYTES) % BLOCK_BYTES;

    path->ended = true;
    if (!gather->bytes)
        return;
    if (padding) {
        gather->pieces[gather->count] =
            (struct iovec){path->zcrx.area + path->zcrx.area_bytes, padding};
        gather->held[gather->count++] = NULL;
        gather->bytes += padding;
    }
    submit(path);
}

static void complete_write(struct path *path, const struct completion *completion) {
    struct gather *gather = &path->writes[completion->user_data - TAG_WRITE];
    long error = completion->result < 0 ? completion->result : 0;

    CHECK_ERROR(error, path->wanted->error, "the write");
    CHECK(error || (size_t)completion->result == gather->bytes, "a short write of %d bytes",
          completion->result);
    path->failed += error != 0;
    for (int index = 0; index < gather->count; index++)
        if (gather->held[index])
            release(path, gather->held[index]);
    gather->count = 0;
    gather->bytes = 0;
    gather->in_flight = false;
    path->in_flight--;
}

static void receive_and_write(struct path *path, int connection) {
    struct completion completion;

    zcrx_receive(&path->zcrx, connection, TAG_STREAM, 0);
    while (!path->ended || path->in_flight) {
        completion = ring_wait(&path->ring);
        if (completion.user_data >= TAG_WRITE && completion.user_data != ZCRX_TAG_EVENT) {
            complete_write(path, &completion);
        } else if (completion.user_data == ZCRX_TAG_EVENT) {
            continue;
        } else if (completion.result > 0) {
            add_fragment(path, zcrx_fragment(&completion));
        } else if (completion.result == 0) {
            finish_stream(path);
        } else {
            CHECK(completion.result == -ENOMEM || completion.result == -ENOSPC,
                  "the receive ended with %s", check_error_name(completion.result));
            CHECK_ERROR(zcrx_flush(&path->zcrx), 0, "flushing the refill ring");
            zcrx_receive(&path->zcrx, connection, TAG_STREAM, 0);
        }
    }
}

static void verify_device(const struct path *path) {
    for (uint64_t offset = 0; offset < path->received; offset += MIB) {
        uint64_t left = path->received - offset, bytes = left < MIB ? left : MIB;
        char *data = device_read(&path->device, offset, bytes);
        CHECK(net_stream_matches(data, bytes, offset), "%s holds wrong bytes at %llu",
              path->device.path, (unsigned long long)offset);
        free(data);
    }
}

static void open_path(struct path *path, const struct write_case *wanted, const char *device) {
    struct zcrx_options options = {
        .interface_index = wanted->device_less ? 0 : net_interface_index(),
        .queue = wanted->device_less ? 0 : NET_QUEUE,
        .area_bytes = 16 * MIB,
        .padding_bytes = 65536,
        .rx_buf_bytes = wanted->rx_buf_bytes,
        .hugepages = wanted->rx_buf_bytes > ZCRX_PAGE_BYTES,
    };

    path->wanted = wanted;
    net_reset();
    net_set_mtu(wanted->mtu);
    net_set_sender_tso(wanted->tso);
    net_set_parameter("pack", wanted->pack);
    net_set_parameter("pack_align", wanted->pack ? 1 : 64);
    /* Loopback's own MTU makes segments of odd length, which no device takes. */
    if (wanted->device_less)
        net_command("ip link set lo mtu %d", NET_MTU_PAGE);
    CHECK_ERROR(ring_open(&path->ring, 256, 8192, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(&path->zcrx, &path->ring, &options);
    struct iovec whole = {path->zcrx.area, options.area_bytes + options.padding_bytes};
    CHECK_ERROR(ring_register(&path->ring, IORING_REGISTER_BUFFERS, &whole, 1), 0,
                "the area as a fixed buffer");
    device_open(&path->device, device);
}

/* The sender may cut a segment short where the window ends, and then pages are not whole. A window
 * wider than the stream never ends. */
static void widen_window(int listener) {
    int bytes = WIDE_WINDOW_BYTES;
    CHECK_CALL(setsockopt(listener, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)));
}

static void run_write(const void *argument) {
    const struct write_case *wanted = argument;
    const char *device = getenv(wanted->device);
    struct path *path = calloc(1, sizeof(*path));
    const char *address = wanted->device_less ? NET_LOOPBACK : NET_ADDRESS;
    uint16_t port = wanted->device_less ? NET_UNSTEERED_PORT : NET_STEERED_PORT;

    CHECK(path && device, "no memory, or %s is not set", wanted->device);
    open_path(path, wanted, device);
    uint64_t frags = net_queue_counter("frags"), niov_frags = net_queue_counter("niov_frags");
    int listener = net_listen(address, port);
    if (wanted->wide_window)
        widen_window(listener);
    pid_t sender = net_send(address, port, wanted->bytes);
    receive_and_write(path, net_accept(listener));
    net_join(sender);
    CHECK(path->received == wanted->bytes, "received %llu bytes",
          (unsigned long long)path->received);
    frags = net_queue_counter("frags") - frags;
    niov_frags = net_queue_counter("niov_frags") - niov_frags;
    CHECK(wanted->device_less || (frags > 0 && frags == niov_frags),
          "%llu of %llu fragments of the NIC are net_iov", (unsigned long long)niov_frags,
          (unsigned long long)frags);
    if (wanted->error)
        CHECK(path->failed > 0, "no write failed");
    else
        verify_device(path);
}

#define WRITE(text, ...)                                                                           \
    {                                                                                              \
        text, run_write, &(const struct write_case) {                                              \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct check_case cases[] = {
    WRITE("NVMe 512, MSS 1448", .device = "VM_DISK_NVME512", .mtu = 1500, .bytes = 8 * MIB),
    WRITE("NVMe 4096, MSS 1448", .device = "VM_DISK_NVME4K", .mtu = 1500, .bytes = 8 * MIB),
    WRITE("NVMe 4096, whole pages", .device = "VM_DISK_NVME4K", .mtu = NET_MTU_PAGE,
          .bytes = 16 * MIB),
    WRITE("NVMe 4096, MTU 9000", .device = "VM_DISK_NVME4K", .mtu = 9000, .bytes = 8 * MIB),
    WRITE("NVMe 4096, packed by 1, whole pages", .device = "VM_DISK_NVME4K", .mtu = NET_MTU_PAGE,
          .pack = true, .bytes = 8 * MIB),
    WRITE("NVMe 4096, buffers of 64 KiB, TSO", .device = "VM_DISK_NVME4K", .mtu = 1500, .tso = true,
          .rx_buf_bytes = 65536, .bytes = 16 * MIB),
    WRITE("NVMe 4096, device-less", .device = "VM_DISK_NVME4K", .mtu = 1500, .device_less = true,
          .bytes = 8 * MIB),
    WRITE("NVMe 512, a tail of odd length is refused", .device = "VM_DISK_NVME512", .mtu = 1500,
          .bytes = 1449, .error = -EINVAL),
    WRITE("null_blk 4096, MSS 1448", .device = "VM_NULL4K", .mtu = 1500, .bytes = 8 * MIB),
    WRITE("virtio-blk, whole pages", .device = "VM_DISK_VIRTIO", .mtu = NET_MTU_PAGE,
          .wide_window = true, .bytes = 8 * MIB),
    WRITE("virtio-blk refuses MSS 1448", .device = "VM_DISK_VIRTIO", .mtu = 1500, .bytes = 1 * MIB,
          .error = -EINVAL),
    WRITE("virt_boundary, whole pages", .device = "VM_NULLVB", .mtu = NET_MTU_PAGE,
          .wide_window = true, .bytes = 8 * MIB),
    WRITE("virt_boundary refuses MSS 1448", .device = "VM_NULLVB", .mtu = 1500, .bytes = 1 * MIB,
          .error = -EINVAL),
};

int main(void) {
    return check_run("writes", cases, sizeof(cases) / sizeof(cases[0]));
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * What fragments look like, by the NIC's settings: length, place in the page, sharing of pages.
 * The planner of the daemon is built on these shapes, so a kernel that changes them must be
 * noticed here.
 *
 * The sender's kernel now and then sends less than a full segment, so shares are asked for, not
 * totals: MOST percent.
 */
#include "check.h"
#include "net.h"
#include "receive.h"

#include <stdlib.h>
#include <unistd.h>

#define MIB (1u << 20)
#define MOST 80.0

struct shape_case {
    int mtu;
    bool pack, tso, ipv6;
    unsigned pack_align, buffer_offset, drop_every, linear_bytes;
    bool no_gro;
    uint32_t rx_buf_bytes; /* on hugepages when larger than a page */
    uint64_t bytes;
    void (*verify)(const struct shape_case *wanted, const struct shape *seen,
                   const struct zcrx *zcrx);
};

static uint64_t at_length(const struct shape *seen, uint32_t bytes) {
    return seen->lengths[bytes];
}

#define CHECK_MOST(seen, count, what)                                                              \
    CHECK(shape_percent(seen, count) >= MOST, "only %.1f %% of %llu fragments %s",                 \
          shape_percent(seen, count), (unsigned long long)(seen)->fragments, what)

static void verify_ethernet(const struct shape_case *wanted, const struct shape *seen,
                            const struct zcrx *zcrx) {
    (void)wanted, (void)zcrx;
    CHECK_MOST(seen, at_length(seen, 1448), "have 1448 bytes");
    CHECK(seen->at_page_start == seen->fragments, "some fragments begin inside a page");
    CHECK(seen->in_previous_page == 0, "some fragments share a page");
}

static void verify_ethernet6(const struct shape_case *wanted, const struct shape *seen,
                             const struct zcrx *zcrx) {
    (void)wanted, (void)zcrx;
    CHECK_MOST(seen, at_length(seen, 1428), "have 1428 bytes");
    CHECK(seen->at_page_start == seen->fragments, "some fragments begin inside a page");
}

static void verify_page(const struct shape_case *wanted, const struct shape *seen,
                        const struct zcrx *zcrx) {
    (void)wanted, (void)zcrx;
    CHECK_MOST(seen, at_length(seen, 4096), "have 4096 bytes");
    CHECK(seen->at_page_start == seen->fragments, "some fragments begin inside a page");
}

static void verify_jumbo(const struct shape_case *wanted, const struct shape *seen,
                         const struct zcrx *zcrx) {
    (void)wanted, (void)zcrx;
    uint64_t pages = at_length(seen, 4096), tails = at_length(seen, 756);

    CHECK(seen->at_page_start == seen->fragments, "some fragments begin inside a page");
    CHECK_MOST(seen, pages + tails, "have 4096 or 756 bytes");
    CHECK(tails * 2 <= pages && tails * 3 >= pages, "%llu of 4096 bytes for %llu of 756",
          (unsigned long long)pages, (unsigned long long)tails);
}

static void verify_packed(const struct shape_case *wanted, const struct shape *seen,
                          const struct zcrx *zcrx) {
    (void)zcrx;
    /* Payloads of 1448 bytes are multiples of 8 whatever the NIC packs by. */
    CHECK(seen->offset_granule == (wanted->pack_align < 8 ? 8 : wanted->pack_align),
          "offsets are multiples of %u, packed by %u", seen->offset_granule, wanted->pack_align);
    CHECK(seen->crossing_page == 0, "some fragments cross a page");
    CHECK(shape_percent(seen, seen->in_previous_page) > 50.0, "pages are not shared");
}

static void verify_packed_contiguous(const struct shape_case *wanted, const struct shape *seen,
                                     const struct zcrx *zcrx) {
    (void)wanted, (void)zcrx;
    CHECK(seen->crossing_page == 0, "some fragments cross a page");
    /* Each one begins where the last one ended, or in a fresh page. */
    CHECK(seen->after_previous + seen->at_page_start >= seen->fragments,
          "%llu of %llu fragments leave a hole",
          (unsigned long long)(seen->fragments - seen->after_previous - seen->at_page_start),
          (unsigned long long)seen->fragments);
}

static void verify_offset(const struct shape_case *wanted, const struct shape *seen,
                          const struct zcrx *zcrx) {
    (void)zcrx;
    CHECK_MOST(seen, at_length(seen, 1448), "have 1448 bytes");
    CHECK(seen->at_page_start == 0, "some fragments begin at a page");
    CHECK(seen->offset_granule == wanted->buffer_offset, "offsets are multiples of %u",
          seen->offset_granule);
}

static void verify_bursts(const struct shape_case *wanted, const struct shape *seen,
                          const struct zcrx *zcrx) {
    (void)wanted, (void)zcrx;
    CHECK_MOST(seen, at_length(seen, 4096), "have 4096 bytes");
    CHECK(seen->at_page_start == seen->fragments, "some fragments begin inside a page");
}

static void verify_large_buffers(const struct shape_case *wanted, const struct shape *seen,
                                 const struct zcrx *zcrx) {
    /* A burst of TCP is shorter than 64 KiB, and so is a fragment in a larger buffer. */
    uint64_t limit = wanted->rx_buf_bytes < 65536 ? wanted->rx_buf_bytes : 65535;

    CHECK(zcrx->rx_buf_bytes == wanted->rx_buf_bytes, "the kernel took buffers of %u bytes",
          zcrx->rx_buf_bytes);
    CHECK(seen->longest <= limit, "a fragment of %llu bytes", (unsigned long long)seen->longest);
    CHECK(seen->longest * 2 > limit, "the longest fragment has only %llu bytes",
          (unsigned long long)seen->longest);
}

static void verify_bytes_only(const struct shape_case *wanted, const struct shape *seen,
                              const struct zcrx *zcrx) {
    (void)wanted, (void)seen, (void)zcrx; /* the bytes have been compared already */
}

static void verify_linear(const struct shape_case *wanted, const struct shape *seen,
                          const struct zcrx *zcrx) {
    /* The head of every packet is copied into a chunk of its own, and the kernel's counter of
     * copies does not count it: proof of zero copy is what the NIC counts. */
    CHECK(at_length(seen, wanted->linear_bytes) * 3 > seen->fragments,
          "only %llu of %llu fragments are heads",
          (unsigned long long)at_length(seen, wanted->linear_bytes),
          (unsigned long long)seen->fragments);
    CHECK(zcrx->stats->copy_count == 0, "the kernel counts copies of linear parts: %llu",
          (unsigned long long)zcrx->stats->copy_count);
}

static void run_shape(const void *argument) {
    const struct shape_case *wanted = argument;
    struct zcrx_options options = {
        .interface_index = net_interface_index(),
        .queue = NET_QUEUE,
        .area_bytes = 16 * MIB,
        .rx_buf_bytes = wanted->rx_buf_bytes,
        .hugepages = wanted->rx_buf_bytes > ZCRX_PAGE_BYTES,
    };
    struct receive_options receive = {.bytes_expected = wanted->bytes};
    struct shape *seen = malloc(sizeof(*seen));
    struct ring ring;
    struct zcrx zcrx;

    CHECK(seen, "no memory");
    net_reset();
    net_set_mtu(wanted->mtu);
    net_set_sender_tso(wanted->tso);
    net_set_parameter("pack", wanted->pack);
    net_set_parameter("pack_align", wanted->pack_align ? wanted->pack_align : 64);
    net_set_parameter("buffer_offset", wanted->buffer_offset);
    net_set_parameter("drop_every", wanted->drop_every);
    net_set_parameter("linear_bytes", wanted->linear_bytes);
    net_set_parameter("gro", !wanted->no_gro);
    CHECK_ERROR(ring_open(&ring, 64, 8192, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(&zcrx, &ring, &options);
    uint64_t frags = net_queue_counter("frags"), niov_frags = net_queue_counter("niov_frags");
    uint64_t drops = net_queue_counter("drops");
    const char *address = wanted->ipv6 ? NET_ADDRESS6 : NET_ADDRESS;
    int listener = net_listen(address, NET_STEERED_PORT);
    pid_t sender = net_send(address, NET_STEERED_PORT, wanted->bytes);
    int connection = net_accept(listener);
    receive_stream(&zcrx, connection, &receive, seen);
    net_join(sender);

    /* Whatever the shape: every piece that the NIC delivered lay in the area, none in a page. */
    frags = net_queue_counter("frags") - frags;
    niov_frags = net_queue_counter("niov_frags") - niov_frags;
    CHECK(frags > 0 && niov_frags == frags, "%llu of %llu fragments of the NIC are net_iov",
          (unsigned long long)niov_frags, (unsigned long long)frags);
    CHECK(!wanted->drop_every || net_queue_counter("drops") > drops, "the NIC dropped nothing");
    wanted->verify(wanted, seen, &zcrx);
}

static void run_device_less(const void *argument) {
    (void)argument;
    struct zcrx_options options = {.area_bytes = 16 * MIB};
    struct receive_options receive = {.bytes_expected = 8 * MIB};
    struct shape *seen = malloc(sizeof(*seen));
    struct ring ring;
    struct zcrx zcrx;

    CHECK(seen, "no memory");
    CHECK_ERROR(ring_open(&ring, 64, 8192, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(&zcrx, &ring, &options);
    int listener = net_listen(NET_LOOPBACK, NET_UNSTEERED_PORT);
    pid_t sender = net_send(NET_LOOPBACK, NET_UNSTEERED_PORT, receive.bytes_expected);
    receive_stream(&zcrx, net_accept(listener), &receive, seen);
    net_join(sender);
    CHECK(seen->at_page_start == seen->fragments, "some fragments begin inside a page");
    CHECK(seen->longest == 4096, "the longest fragment has %llu bytes",
          (unsigned long long)seen->longest);
    CHECK(zcrx.stats->copy_bytes == seen->bytes, "the kernel says it copied %llu bytes",
          (unsigned long long)zcrx.stats->copy_bytes);
}

#define SHAPE(text, ...)                                                                           \
    {                                                                                              \
        text, run_shape, &(const struct shape_case) {                                              \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct check_case cases[] = {
    SHAPE("MTU 1500: 1448 bytes, a page each", .mtu = 1500, .bytes = 8 * MIB,
          .verify = verify_ethernet),
    SHAPE("MTU 1500 by IPv6: 1428 bytes, a page each", .mtu = 1500, .ipv6 = true, .bytes = 8 * MIB,
          .verify = verify_ethernet6),
    SHAPE("MTU 4168 by IPv6: whole pages", .mtu = NET_MTU_PAGE6, .ipv6 = true, .bytes = 8 * MIB,
          .verify = verify_page),
    SHAPE("MTU 4148: whole pages", .mtu = NET_MTU_PAGE, .bytes = 8 * MIB, .verify = verify_page),
    SHAPE("MTU 9000: 4096, 4096, 756", .mtu = NET_MTU_JUMBO, .bytes = 8 * MIB,
          .verify = verify_jumbo),
    SHAPE("MTU 1500 packed by 64: pages are shared", .mtu = 1500, .pack = true, .pack_align = 64,
          .bytes = 8 * MIB, .verify = verify_packed),
    SHAPE("MTU 1500 packed by 4: pages are shared", .mtu = 1500, .pack = true, .pack_align = 4,
          .bytes = 4 * MIB, .verify = verify_packed),
    SHAPE("MTU 1500 packed by 1: one byte after the other", .mtu = 1500, .pack = true,
          .pack_align = 1, .bytes = 8 * MIB, .verify = verify_packed_contiguous),
    SHAPE("MTU 1500, payload at offset 64", .mtu = 1500, .buffer_offset = 64, .bytes = 4 * MIB,
          .verify = verify_offset),
    SHAPE("sender's TSO on: whole pages and a tail", .mtu = 1500, .tso = true, .bytes = 16 * MIB,
          .verify = verify_bursts),
    SHAPE("sender's TSO on, packed by 1", .mtu = 1500, .tso = true, .pack = true, .pack_align = 1,
          .bytes = 8 * MIB, .verify = verify_packed_contiguous),
    SHAPE("buffers of 16 KiB", .mtu = 1500, .tso = true, .rx_buf_bytes = 16384, .bytes = 8 * MIB,
          .verify = verify_large_buffers),
    SHAPE("buffers of 64 KiB", .mtu = 1500, .tso = true, .rx_buf_bytes = 65536, .bytes = 16 * MIB,
          .verify = verify_large_buffers),
    SHAPE("buffers of 64 KiB, MTU 9000 packed", .mtu = NET_MTU_JUMBO, .pack = true,
          .pack_align = 64, .rx_buf_bytes = 65536, .bytes = 4 * MIB, .verify = verify_bytes_only),
    SHAPE("GRO off", .mtu = 1500, .no_gro = true, .bytes = 4 * MIB, .verify = verify_ethernet),
    SHAPE("every 50th packet lost", .mtu = 1500, .drop_every = 50, .bytes = 2 * MIB,
          .verify = verify_bytes_only),
    SHAPE("header split off by 64 bytes", .mtu = NET_MTU_PAGE, .linear_bytes = 64, .bytes = 2 * MIB,
          .verify = verify_linear),
    {"device-less: the kernel copies, whole pages", run_device_less, NULL},
};

int main(void) {
    return check_run("shapes", cases, sizeof(cases) / sizeof(cases[0]));
}

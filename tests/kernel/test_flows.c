/* SPDX-License-Identifier: Apache-2.0
 *
 * What happens to flows when something is short, lost, shared or pulled away: several flows on a
 * queue, the wrong queue, starvation, a full completion queue, a killed owner, a link that goes.
 */
#define _GNU_SOURCE
#include "check.h"
#include "net.h"
#include "receive.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1u << 20)
#define FLOWS_MAX 8
#define AREA_BYTES (16u * MIB)
#define SMALL_AREA_BYTES (128u * ZCRX_PAGE_BYTES)
#define OTHER_QUEUE 3u
#define PAUSE_US 300000

static void open_queue(struct zcrx *zcrx, struct ring *ring, uint32_t queue, size_t area_bytes,
                       uint32_t cq_entries) {
    struct zcrx_options options = {
        .interface_index = net_interface_index(), .queue = queue, .area_bytes = area_bytes};

    CHECK_ERROR(ring_open(ring, 64, cq_entries, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(zcrx, ring, &options);
}

static struct shape *new_shape(void) {
    struct shape *shape = malloc(sizeof(*shape));
    CHECK(shape, "no memory");
    return shape;
}

struct several {
    unsigned flows;
    bool pack;
};

/* Several flows on one instance: what has come of each, and where the last fragment lay. */
struct crowd {
    struct zcrx zcrx;
    int connections[FLOWS_MAX];
    uint64_t offsets[FLOWS_MAX];
    uint64_t last_page, pages_shared;
    unsigned last_flow, open;
};

static void take_fragment(struct crowd *crowd, unsigned flow, const struct completion *completion) {
    struct fragment fragment = zcrx_fragment(completion);
    uint64_t page = fragment.offset / ZCRX_PAGE_BYTES;

    CHECK(net_stream_matches(crowd->zcrx.area + fragment.offset, fragment.bytes,
                             crowd->offsets[flow]),
          "wrong bytes in flow %u at %llu", flow, (unsigned long long)crowd->offsets[flow]);
    crowd->offsets[flow] += fragment.bytes;
    crowd->pages_shared += page == crowd->last_page && flow != crowd->last_flow;
    crowd->last_page = page;
    crowd->last_flow = flow;
    zcrx_give_back(&crowd->zcrx, fragment);
}

static void take_completion(struct crowd *crowd, const struct completion *completion) {
    unsigned flow = (unsigned)completion->user_data;

    if (completion->user_data == ZCRX_TAG_EVENT)
        return;
    if (completion->result > 0) {
        take_fragment(crowd, flow, completion);
    } else if (completion->result == 0) {
        crowd->open--;
    } else {
        /* A crowd may fill the completion queue at once: that ends a receive, not the flow. */
        CHECK(completion->result == -ENOSPC, "flow %u ended with %s", flow,
              check_error_name(completion->result));
        zcrx_receive(&crowd->zcrx, crowd->connections[flow], flow, 0);
    }
}

static void run_several_flows(const void *argument) {
    const struct several *wanted = argument;
    const uint64_t bytes = 2 * MIB;
    struct crowd crowd = {.last_page = UINT64_MAX, .open = wanted->flows};
    pid_t senders[FLOWS_MAX];
    struct completion completion;
    struct ring ring;

    net_reset();
    net_set_parameter("pack", wanted->pack);
    open_queue(&crowd.zcrx, &ring, NET_QUEUE, AREA_BYTES, 8192);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    for (unsigned flow = 0; flow < wanted->flows; flow++)
        senders[flow] = net_send(NET_ADDRESS, NET_STEERED_PORT, bytes);
    for (unsigned flow = 0; flow < wanted->flows; flow++) {
        crowd.connections[flow] = net_accept(listener);
        zcrx_receive(&crowd.zcrx, crowd.connections[flow], flow, 0);
    }
    while (crowd.open) {
        completion = ring_wait(&ring);
        take_completion(&crowd, &completion);
    }
    for (unsigned flow = 0; flow < wanted->flows; flow++) {
        net_join(senders[flow]);
        CHECK(crowd.offsets[flow] == bytes, "flow %u has %llu bytes", flow,
              (unsigned long long)crowd.offsets[flow]);
    }
    CHECK((crowd.pages_shared > 0) == wanted->pack, "%llu pages hold bytes of two flows",
          (unsigned long long)crowd.pages_shared);
}

static void run_wrong_queue(const void *argument) {
    (void)argument;
    struct ring ring;
    struct zcrx right, wrong;

    net_reset();
    open_queue(&right, &ring, NET_QUEUE, AREA_BYTES, 1024);
    struct zcrx_options other = {
        .interface_index = net_interface_index(), .queue = OTHER_QUEUE, .area_bytes = AREA_BYTES};
    zcrx_register(&wrong, &ring, &other);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, 4096);
    zcrx_receive(&wrong, net_accept(listener), 1, 0);
    CHECK_ERROR(ring_wait(&ring).result, -EFAULT, "receiving through another queue's instance");
    net_join(sender);
}

static void run_plain_recv(const void *argument) {
    (void)argument;
    char bytes[64];
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 1024);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, 4096);
    ssize_t result = recv(net_accept(listener), bytes, sizeof(bytes), 0);
    CHECK_ERROR(result < 0 ? -errno : (long)result, -EFAULT, "recv() of unreadable bytes");
    net_join(sender);
}

static void run_unsteered(const void *argument) {
    (void)argument;
    struct receive_options receive = {.bytes_expected = 4 * MIB};
    struct shape *seen = new_shape();
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 8192);
    int listener = net_listen(NET_ADDRESS, NET_UNSTEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_UNSTEERED_PORT, receive.bytes_expected);
    receive_stream(&zcrx, net_accept(listener), &receive, seen);
    net_join(sender);
    /* The kernel copied every byte and counted all but those in the linear part of a packet,
     * where the stack itself puts the payload of a very short one. */
    CHECK(zcrx.stats->copy_bytes <= seen->bytes && zcrx.stats->copy_bytes * 100 > seen->bytes * 99,
          "the kernel counts %llu of %llu bytes copied", (unsigned long long)zcrx.stats->copy_bytes,
          (unsigned long long)seen->bytes);
    CHECK(seen->events_copy > 0, "the kernel told of no copy");
}

static void run_small_completion_queue(const void *argument) {
    (void)argument;
    struct receive_options receive = {.bytes_expected = 4 * MIB};
    struct shape *seen = new_shape();
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    net_set_mtu(NET_MTU_PAGE);
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 64);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, receive.bytes_expected);
    int connection = net_accept(listener);
    /* Enough waits in the socket to fill the completion queue in one go. */
    usleep(PAUSE_US);
    receive_stream(&zcrx, connection, &receive, seen);
    net_join(sender);
    CHECK(seen->rearms > 0, "the completion queue never was full");
}

static void run_few_held(const void *argument) {
    (void)argument;
    struct receive_options receive = {.bytes_expected = 4 * MIB, .held_max = 40};
    struct shape *seen = new_shape();
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    net_set_mtu(NET_MTU_PAGE);
    open_queue(&zcrx, &ring, NET_QUEUE, SMALL_AREA_BYTES, 1024);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, receive.bytes_expected);
    receive_stream(&zcrx, net_accept(listener), &receive, seen);
    net_join(sender);
}

/* Keeps fragments until no more come, and returns how many bytes that were. */
static uint64_t hoard(struct zcrx *zcrx, int socket, struct fragment *kept, uint32_t *kept_count) {
    struct completion completion;
    uint64_t bytes = 0;

    zcrx_receive(zcrx, socket, 1, 0);
    for (int idle = 0; idle < 10;) {
        int entered = ring_enter(zcrx->ring, 0);
        CHECK(entered >= 0 || entered == -EINTR, "entering: %s", check_error_name(entered));
        if (!ring_take(zcrx->ring, &completion)) {
            usleep(PAUSE_US / 3);
            idle++;
            continue;
        }
        idle = 0;
        if (completion.user_data == ZCRX_TAG_EVENT)
            continue;
        CHECK(completion.result > 0, "the receive ended with %s",
              check_error_name(completion.result));
        CHECK(*kept_count < SMALL_AREA_BYTES / ZCRX_PAGE_BYTES, "more fragments than chunks");
        kept[*kept_count] = zcrx_fragment(&completion);
        bytes += kept[(*kept_count)++].bytes;
    }
    return bytes;
}

static void run_starvation(const void *argument) {
    (void)argument;
    static struct fragment kept[SMALL_AREA_BYTES / ZCRX_PAGE_BYTES];
    uint64_t bytes, total = 2 * MIB;
    uint32_t kept_count = 0;
    struct completion completion;
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    net_set_mtu(NET_MTU_PAGE);
    open_queue(&zcrx, &ring, NET_QUEUE, SMALL_AREA_BYTES, 1024);
    uint64_t alloc_fail = net_queue_counter("alloc_fail");
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, total);
    bytes = hoard(&zcrx, net_accept(listener), kept, &kept_count);
    CHECK(bytes < total, "an area of %u bytes took %llu", SMALL_AREA_BYTES,
          (unsigned long long)bytes);
    CHECK(net_queue_counter("alloc_fail") > alloc_fail, "the NIC never ran out of buffers");
    /* Nothing moves until chunks come back; then all of it does. */
    while (kept_count)
        zcrx_give_back(&zcrx, kept[--kept_count]);
    while (bytes < total) {
        completion = ring_wait(&ring);
        if (completion.user_data == ZCRX_TAG_EVENT)
            continue;
        CHECK(completion.result > 0, "the receive ended with %s",
              check_error_name(completion.result));
        struct fragment fragment = zcrx_fragment(&completion);
        CHECK(net_stream_matches(zcrx.area + fragment.offset, fragment.bytes, bytes),
              "wrong bytes at %llu", (unsigned long long)bytes);
        bytes += fragment.bytes;
        zcrx_give_back(&zcrx, fragment);
    }
    net_join(sender);
}

static void run_bounded(const void *argument) {
    (void)argument;
    const uint32_t bound = 100000;
    uint64_t bytes = 0;
    struct completion completion;
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 1024);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, MIB);
    zcrx_receive(&zcrx, net_accept(listener), 1, bound);
    while ((completion = ring_wait(&ring)).result > 0) {
        bytes += (uint32_t)completion.result;
        zcrx_give_back(&zcrx, zcrx_fragment(&completion));
    }
    /* Reaching the bound looks exactly like the end of the stream, which this is not. */
    CHECK(completion.result == 0 && completion.flags == 0, "the bound ends with %d, flags %#x",
          completion.result, completion.flags);
    CHECK(bytes == bound, "a receive bounded to %u gives %llu bytes", bound,
          (unsigned long long)bytes);
    kill(sender, SIGKILL);
    waitpid(sender, NULL, 0);
}

static void run_held_queue(const void *argument) {
    (void)argument;
    struct zcrx_options options = {
        .interface_index = net_interface_index(), .queue = NET_QUEUE, .area_bytes = AREA_BYTES};
    struct ring ring, other;
    struct zcrx first, second;

    net_reset();
    open_queue(&first, &ring, NET_QUEUE, AREA_BYTES, 1024);
    CHECK_ERROR(ring_open(&other, 8, 64, RING_FLAGS_ZCRX), 0, "opening another ring");
    CHECK_ERROR(zcrx_register_once(&second, &other, &options), -EEXIST,
                "registering a queue that is taken");
}

static void run_killed_owner(const void *argument) {
    (void)argument;
    struct receive_options receive = {.bytes_expected = 4 * MIB};
    struct shape *seen = new_shape();
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t owner = fork();
    CHECK_CALL(owner);
    if (owner == 0) {
        receive.bytes_expected = UINT64_MAX;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 8192);
        receive_stream(&zcrx, net_accept(listener), &receive, seen);
        _exit(0);
    }
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, 1ull << 40);
    usleep(3 * PAUSE_US);
    /* The sender is stopped first, or it would complain of the reset that it gets. */
    CHECK_CALL(kill(sender, SIGSTOP));
    CHECK_CALL(kill(owner, SIGKILL));
    CHECK_CALL(waitpid(owner, NULL, 0));
    CHECK_CALL(kill(sender, SIGKILL));
    CHECK_CALL(waitpid(sender, NULL, 0));
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 8192);
    sender = net_send(NET_ADDRESS, NET_STEERED_PORT, receive.bytes_expected);
    receive_stream(&zcrx, net_accept(listener), &receive, seen);
    net_join(sender);
}

static void run_link_down(const void *argument) {
    (void)argument;
    struct receive_options receive = {.bytes_expected = 64 * MIB};
    struct shape *seen = new_shape();
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    net_set_mtu(NET_MTU_PAGE);
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 8192);
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, receive.bytes_expected);
    int connection = net_accept(listener);
    pid_t hand = fork();
    CHECK_CALL(hand);
    if (hand == 0) {
        usleep(PAUSE_US);
        net_command("ip link set zc0 down && sleep 0.2 && ip link set zc0 up");
        _exit(0);
    }
    receive_stream(&zcrx, connection, &receive, seen);
    net_join(sender);
    net_join(hand);
}

static void run_split_off_under_us(const void *argument) {
    (void)argument;
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 1024);
    /* The kernel does not let it happen while an instance holds a queue. */
    net_command("! ethtool -G zc0 tcp-data-split off 2> /dev/null");
}

static void run_register_while_down(const void *argument) {
    (void)argument;
    struct receive_options receive = {.bytes_expected = MIB};
    struct shape *seen = new_shape();
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    net_command("ip link set zc0 down");
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 1024);
    net_command("ip link set zc0 up");
    int listener = net_listen(NET_ADDRESS, NET_STEERED_PORT);
    pid_t sender = net_send(NET_ADDRESS, NET_STEERED_PORT, receive.bytes_expected);
    receive_stream(&zcrx, net_accept(listener), &receive, seen);
    net_join(sender);
}

static void run_steered_napi(const void *argument) {
    (void)argument;
    int steered, unsteered, napi[2];
    socklen_t size = sizeof(napi[0]);
    struct ring ring;
    struct zcrx zcrx;

    net_reset();
    open_queue(&zcrx, &ring, NET_QUEUE, AREA_BYTES, 1024);
    int listeners[2] = {net_listen(NET_ADDRESS, NET_STEERED_PORT),
                        net_listen(NET_ADDRESS, NET_UNSTEERED_PORT)};
    pid_t senders[2] = {net_send(NET_ADDRESS, NET_STEERED_PORT, 4096),
                        net_send(NET_ADDRESS, NET_UNSTEERED_PORT, 4096)};
    steered = net_accept(listeners[0]);
    unsteered = net_accept(listeners[1]);
    CHECK_CALL(getsockopt(steered, SOL_SOCKET, SO_INCOMING_NAPI_ID, &napi[0], &size));
    CHECK_CALL(getsockopt(unsteered, SOL_SOCKET, SO_INCOMING_NAPI_ID, &napi[1], &size));
    CHECK(napi[0] && napi[1], "a connection without a NAPI id: %d, %d", napi[0], napi[1]);
    CHECK(napi[0] != napi[1], "both connections are on NAPI %d", napi[0]);
    net_join(senders[0]);
    net_join(senders[1]);
}

static const struct check_case cases[] = {
    {"4 flows, a page per packet", run_several_flows, &(const struct several){4, false}},
    {"8 flows in shared pages", run_several_flows, &(const struct several){8, true}},
    {"a connection knows its queue by NAPI id", run_steered_napi, NULL},
    {"a flow on another instance's queue fails with EFAULT", run_wrong_queue, NULL},
    {"recv() of a steered flow fails with EFAULT", run_plain_recv, NULL},
    {"a flow on an ordinary queue is copied", run_unsteered, NULL},
    {"a completion queue of 64 entries", run_small_completion_queue, NULL},
    {"40 of 128 chunks held", run_few_held, NULL},
    {"all 128 chunks held, then given back", run_starvation, NULL},
    {"a bounded receive ends like a stream", run_bounded, NULL},
    {"a queue that is taken", run_held_queue, NULL},
    {"kill -9 and the same queue again", run_killed_owner, NULL},
    {"link down and up in mid-stream", run_link_down, NULL},
    {"registering while the link is down", run_register_while_down, NULL},
    {"header split cannot be turned off under us", run_split_off_under_us, NULL},
};

int main(void) {
    return check_run("flows", cases, sizeof(cases) / sizeof(cases[0]));
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine zcrx of the core when something is short, slow, full, pulled away or killed under it:
 * receipts, accounts and chunks must come out right all the same. What lies in the stores
 * afterwards is compared byte by byte on the host.
 */
#include "check.h"
#include "delay.h"
#include "net.h"
#include "trial.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define MIB (1024u * 1024u)
#define SPREAD_PORT 7003 /* run_engine.sh spreads it over queues 1 to 3 */
#define OTHER_PORT 7004  /* ... and steers this one to queue 3 */
#define POLL_US 20000
#define RECEIVE_SECONDS 600
#define SECOND_US 1000000

/* Every case has content of its own. */
static unsigned fresh_seed(void) {
    return (unsigned)getpid() % 4093 * 4096 + 2048;
}

/* A server on the disk for faults, and what the NIC had counted when it had its queue. */
struct scene {
    const struct disk *disk;
    struct program server, sender;
    struct nic_counters before;
    char slow_path[DELAY_PATH_BYTES];
};

static void open_scene(struct scene *s, const char *options) {
    net_reset();
    s->disk = trial_disk("faults");
    trial_serve(&s->server, "-f %s -i zc0 -q 2 %s", trial_device(s->disk), options);
    s->before = trial_nic();
}

static void open_slow_scene(struct scene *s, unsigned delay_ms, const char *options) {
    net_reset();
    s->disk = trial_disk("faults");
    delay_create(trial_device(s->disk), delay_ms, s->slow_path);
    trial_serve(&s->server, "-f %s -i zc0 -q 2 %s", s->slow_path, options);
    s->before = trial_nic();
}

static void send_flows(struct scene *s, unsigned flows, unsigned bytes) {
    trial_send(&s->sender, s->disk, NET_ADDRESS, "-p %d -n %u -b %u -S %u", NET_STEERED_PORT, flows,
               bytes, fresh_seed());
}

static void close_scene(struct scene *s, enum trial_path path) {
    trial_stop(&s->server);
    trial_check_accounts(&s->server, &s->before, path);
    trial_check_sum(&s->server);
    trial_report(&s->server);
}

/* Until the server has received so much: what follows happens in mid-stream. */
static void await_bytes(const struct program *server, uint64_t bytes) {
    for (int tries = 0; tries < RECEIVE_SECONDS * (SECOND_US / POLL_US); tries++) {
        if (trial_value_now(server, "received_bytes") >= bytes)
            return;
        usleep(POLL_US);
    }
    check_fail(__FILE__, __LINE__, "the server has received %llu bytes only",
               (unsigned long long)trial_value_now(server, "received_bytes"));
}

static void run_format(const void *argument) {
    (void)argument;
    trial_format(trial_disk("faults"));
    trial_format(trial_disk("spare"));
}

struct shortage {
    const char *options;
    unsigned flows, bytes, drop_every, mtu;
};

static void run_shortage(const void *argument) {
    const struct shortage *t = argument;
    struct scene s;

    open_scene(&s, t->options);
    net_set_parameter("drop_every", t->drop_every);
    net_set_mtu(t->mtu ? (int)t->mtu : NET_MTU_ETHERNET);
    send_flows(&s, t->flows, t->bytes);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
}

/* The case that stood still in the lab: 128 chunks, 80 of them held, packets lost. Here a slow disk
 * holds them. */
static void run_relief(const void *argument) {
    const char *options = argument;
    struct scene s;

    open_slow_scene(&s, 300, options);
    net_set_parameter("drop_every", 20);
    send_flows(&s, 6, 200001);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
    CHECK(trial_value(&s.server, "seen_lent_max") >= 80, "at most %llu chunks were held",
          (unsigned long long)trial_value(&s.server, "seen_lent_max"));
    CHECK(trial_value(&s.server, "bounced_pressure_bytes") > 0, "nothing was copied out");
    delay_remove();
}

static void run_slow_disk(const void *argument) {
    (void)argument;
    struct scene s;

    open_slow_scene(&s, 100, "-d 2 -a 4096 -w 256");
    send_flows(&s, 4, 700001);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
    CHECK(trial_value(&s.server, "backpressure_device_ns") > 0, "no flow had to wait");
    delay_remove();
}

struct hang {
    const char *options;
    unsigned drop_every;
    uint64_t chunks;    /* of the area; 0: as many as can be wanted */
    bool is_unrelieved; /* the control: there is no relief valve */
};

/* TCP's out-of-order queue holds chunks as well. With 80 of 128 held elsewhere, a retransmission
 * found none, and nothing moved until chunks came back. A disk that hangs holds as many. Yet an
 * eighth of the chunks must stay with the NIC: what waits for the disk is copied out when three
 * quarters are lent, as long as there is room, and receives under way bring some more. */
static void check_hang(const struct scene *s, const struct hang *t) {
    uint64_t drops = trial_nic().drops;

    usleep(SECOND_US);
    drops = trial_nic().drops - drops;
    uint64_t lent = trial_value_now(&s->server, "chunks_lent");
    printf("    hanging: %llu chunks lent, %llu packets dropped in a second\n",
           (unsigned long long)lent, (unsigned long long)drops);
    if (t->is_unrelieved)
        CHECK(lent > t->chunks / 4 * 3, "chunks were not short");
    else if (t->chunks)
        CHECK(lent <= t->chunks / 8 * 7, "%llu of %llu chunks are held from the NIC",
              (unsigned long long)lent, (unsigned long long)t->chunks);
}

static void run_hanging_disk(const void *argument) {
    const struct hang *t = argument;
    struct scene s;

    open_slow_scene(&s, 0, t->options);
    net_set_parameter("drop_every", t->drop_every);
    send_flows(&s, 4, 1500001);
    await_bytes(&s.server, 100000);
    delay_suspend(true);
    usleep(SECOND_US);
    net_set_parameter("drop_every", 0); /* from here on only what finds no chunk is dropped */
    usleep(SECOND_US);
    check_hang(&s, t);
    delay_suspend(false);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
    if (t->chunks)
        CHECK((trial_value(&s.server, "bounced_pressure_bytes") > 0) == !t->is_unrelieved,
              "%llu bytes were copied out",
              (unsigned long long)trial_value(&s.server, "bounced_pressure_bytes"));
    delay_remove();
}

static void run_failing_disk(const void *argument) {
    (void)argument;
    struct scene s;

    open_slow_scene(&s, 0, "");
    trial_send(&s.sender, s.disk, NET_ADDRESS, "-p %d -n 4 -e -S %u", NET_STEERED_PORT,
               fresh_seed());
    await_bytes(&s.server, 2 * MIB);
    delay_break();
    trial_join(&s.sender);
    CHECK(trial_value(&s.sender, "ended") == 4, "not every flow was ended");
    trial_stop(&s.server);
    trial_check_returned(&s.server);
    CHECK(trial_value(&s.server, "store_errno") != 0, "the failed disk was not noticed");
    trial_report(&s.server);
    delay_remove();
}

static void run_full_store(const void *argument) {
    (void)argument;
    struct scene s;

    open_scene(&s, "-G 2");
    trial_send(&s.sender, s.disk, NET_ADDRESS, "-p %d -n 4 -b 3000001 -l -S %u", NET_STEERED_PORT,
               fresh_seed());
    trial_join(&s.sender);
    CHECK(trial_value(&s.sender, "ended") > 0, "two segments held everything");
    trial_stop(&s.server);
    trial_check_returned(&s.server);
    CHECK(trial_value(&s.server, "store_is_full") == 1, "the store is not full");
    trial_report(&s.server);
}

static void run_small_completion_queue(const void *argument) {
    const char *options = argument;
    struct scene s;

    open_scene(&s, options);
    send_flows(&s, 32, 100001);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
    trial_check_bounces(&s.server);
    CHECK(trial_value(&s.server, "seen_overflows") > 0, "the completion queue never was full");
}

static void run_kill(const void *argument) {
    (void)argument;
    struct program endless;
    struct scene s;

    open_scene(&s, "");
    send_flows(&s, 4, 300001);
    trial_join(&s.sender);
    trial_send(&endless, s.disk, NET_ADDRESS, "-p %d -n 3 -e -S %u", NET_STEERED_PORT,
               fresh_seed() + 100);
    await_bytes(&s.server, 4 * MIB);
    trial_kill(&s.server);
    /* At once: the kernel takes its time to give the queue back. */
    open_scene(&s, "-R 10000");
    trial_join(&endless);
    CHECK(trial_value(&endless, "ended") == 3, "a flow outlived its receiver");
    trial_send(&s.sender, s.disk, NET_ADDRESS, "-p %d -n 4 -b 300001 -S %u", NET_STEERED_PORT,
               fresh_seed() + 200);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
    trial_check_bounces(&s.server);
}

static void run_held_queue(const void *argument) {
    (void)argument;
    const struct disk *spare = trial_disk("spare");
    struct program refused, patient;
    struct scene s;

    open_scene(&s, "");
    trial_launch(&refused, "-f %s -i zc0 -q 2 -R 0", trial_device(spare));
    CHECK(trial_says(&refused, "fault EEXIST", 10), "a held queue is not refused with EEXIST");
    CHECK(trial_wait(&refused) == 3, "a held queue is no fault");
    trial_launch(&patient, "-f %s -i zc0 -q 2 -R 20000", trial_device(spare));
    CHECK(!trial_says(&patient, "ready", 1), "two servers have the same queue");
    trial_kill(&s.server);
    CHECK(trial_says(&patient, "ready", 20), "a queue that is free again is not taken");
    s.before = trial_nic();
    s.server = patient;
    s.disk = spare;
    send_flows(&s, 2, 500001);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
}

static void run_in_mid_stream(const void *argument) {
    const char *command = argument;
    struct scene s;

    open_scene(&s, "");
    send_flows(&s, 2, 6000001);
    await_bytes(&s.server, 1 * MIB);
    net_command("%s", command);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
}

static void run_reset(const void *argument) {
    (void)argument;
    struct program reset;
    struct scene s;

    open_scene(&s, "");
    send_flows(&s, 4, 500001);
    trial_send(&reset, s.disk, NET_ADDRESS, "-p %d -n 40 -r 200003 -S %u", NET_STEERED_PORT,
               fresh_seed() + 100);
    trial_join(&reset);
    trial_join(&s.sender);
    close_scene(&s, PATH_ZERO_COPY);
    CHECK(trial_value(&s.server, "flows_sealed") == 4, "4 flows were to be sealed");
    CHECK(trial_value(&s.server, "flows_interrupted") + trial_value(&s.server, "flows_refused") ==
              40,
          "40 flows were reset");
}

static void run_drain(const void *argument) {
    (void)argument;
    struct scene s;

    open_scene(&s, "-D 500");
    trial_send(&s.sender, s.disk, NET_ADDRESS, "-p %d -n 3 -e -S %u", NET_STEERED_PORT,
               fresh_seed());
    await_bytes(&s.server, 2 * MIB);
    close_scene(&s, PATH_OUTLIVED);
    trial_join(&s.sender);
    CHECK(trial_value(&s.server, "flows_interrupted") == 3, "3 flows were to be interrupted");
}

static void run_elsewhere(const void *argument) {
    const char *options = argument;
    struct scene s;
    const unsigned flows = 24;

    net_reset();
    s.disk = trial_disk("faults");
    trial_serve(&s.server, "-f %s -i zc0 -q 2,3 -p %d %s", trial_device(s.disk), OTHER_PORT,
                options);
    s.before = trial_nic();
    trial_send(&s.sender, s.disk, NET_ADDRESS, "-p %d -n %u -b 20001 -l -S %u", OTHER_PORT, flows,
               fresh_seed());
    trial_join(&s.sender);
    close_scene(&s, options[0] ? PATH_OUTLIVED : PATH_ZERO_COPY);
    uint64_t sealed = trial_value(&s.sender, "sealed");
    uint64_t handed = trial_value(&s.server, "flows_handed_away");
    printf("    %llu of %u flows sealed, %llu handed to the other worker\n",
           (unsigned long long)sealed, flows, (unsigned long long)handed);
    if (options[0]) /* the workers do not know of each other */
        CHECK(sealed > 0 && sealed < flows && handed == 0, "flows on another's queue were read");
    else
        CHECK(sealed == flows && handed > 0, "flows on another's queue were not handed over");
    CHECK(trial_value(&s.server, "flows_by_copy") == 0, "flows were copied");
}

static void run_by_copy(const void *argument) {
    const unsigned port = *(const unsigned *)argument;
    struct scene s;

    net_reset();
    s.disk = trial_disk("faults");
    s.before = trial_nic();
    trial_serve(&s.server, "-f %s -i zc0 -q 2 -p %u", trial_device(s.disk), port);
    trial_send(&s.sender, s.disk, NET_ADDRESS, "-p %u -n 4 -b 300001 -S %u", port, fresh_seed());
    trial_join(&s.sender);
    close_scene(&s, PATH_COPY);
    CHECK(trial_value(&s.server, "flows_by_copy") == 4, "%llu flows were counted as copied",
          (unsigned long long)trial_value(&s.server, "flows_by_copy"));
    CHECK(trial_value(&s.server, "kernel_copied_bytes") >= 4 * 300001,
          "the kernel tells of %llu bytes",
          (unsigned long long)trial_value(&s.server, "kernel_copied_bytes"));
}

static void run_deviceless_shortage(const void *argument) {
    const char *options = argument;
    struct scene s;

    net_reset();
    s.disk = trial_disk("faults");
    s.before = trial_nic();
    trial_serve(&s.server, "-f %s -i none %s", trial_device(s.disk), options);
    trial_send(&s.sender, s.disk, NET_LOOPBACK, "-p %d -n 8 -b 200001 -S %u", NET_STEERED_PORT,
               fresh_seed());
    trial_join(&s.sender);
    close_scene(&s, PATH_COPY);
}

#define SHORTAGE(text, ...)                                                                        \
    {                                                                                              \
        text, run_shortage, &(const struct shortage) {                                             \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

#define HANG(text, ...)                                                                            \
    {                                                                                              \
        text, run_hanging_disk, &(const struct hang) {                                             \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct check_case cases[] = {
    {"formatting", run_format, NULL},
    SHORTAGE("64 chunks", .options = "-a 256", .flows = 2, .bytes = 700001),
    SHORTAGE("64 chunks, 4 flows, lossy", .options = "-a 256", .flows = 4, .bytes = 100001,
             .drop_every = 20),
    /* Four flows more than such an area takes at once. */
    SHORTAGE("128 chunks, 12 flows", .options = "-a 512", .flows = 12, .bytes = 100001),
    SHORTAGE("128 chunks, 12 flows, lossy", .options = "-a 512", .flows = 12, .bytes = 100001,
             .drop_every = 20),
    SHORTAGE("128 chunks, lossy", .options = "-a 512", .flows = 4, .bytes = 400001,
             .drop_every = 30),
    SHORTAGE("128 chunks, lossy, a long flush interval", .options = "-a 512 -t 5000", .flows = 4,
             .bytes = 400001, .drop_every = 30),
    SHORTAGE("a write at a time", .options = "-d 1 -w 64", .flows = 4, .bytes = 400001),
    SHORTAGE("a refill ring of 64 entries", .options = "-r 64", .flows = 4, .bytes = 700001),
    {"device-less, 64 chunks", run_deviceless_shortage, "-a 256"},
    {"device-less, a completion queue of 64", run_deviceless_shortage, "-C 64"},
    {"128 chunks, 80 held by a slow disk, lossy: the relief valve", run_relief, "-a 512 -d 8"},
    {"a slow disk", run_slow_disk, NULL},
    HANG("a disk that hangs", .options = ""),
    HANG("a disk that hangs, 128 chunks, lossy: the relief valve", .options = "-a 512",
         .drop_every = 20, .chunks = 128),
    HANG("... and without the valve chunks are short", .options = "-a 512 -x", .drop_every = 20,
         .chunks = 128, .is_unrelieved = true),
    {"a disk that fails", run_failing_disk, NULL},
    {"a full store", run_full_store, NULL},
    {"a completion queue of 64", run_small_completion_queue, "-C 64"},
    {"kill -9 and at once the same queue", run_kill, NULL},
    {"a queue that another process holds", run_held_queue, NULL},
    {"link down and up in mid-stream", run_in_mid_stream,
     "ip link set zc0 down && sleep 0.2 && ip link set zc0 up"},
    {"tcp-data-split off in mid-stream is refused", run_in_mid_stream,
     "! ethtool -G zc0 tcp-data-split off 2> /dev/null"},
    {"resets in mid-flow", run_reset, NULL},
    {"flows that never end, and a drain", run_drain, NULL},
    {"flows on another worker's queue are handed over", run_elsewhere, ""},
    {"flows on another worker's queue, of which nobody told", run_elsewhere, "-X"},
    {"flows on a queue without a worker are copied", run_by_copy, &(const unsigned){OTHER_PORT}},
    {"unsteered flows are copied", run_by_copy, &(const unsigned){NET_UNSTEERED_PORT}},
};

int main(void) {
    return trial_run("engine-faults", cases, sizeof(cases) / sizeof(cases[0]));
}

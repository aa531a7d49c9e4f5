/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole workers of both engines under settings that are not the usual ones: every profile that a
 * device may have or an operator may state, packets of odd sizes, a NIC whose ring takes up the
 * whole area, queues that flows are moved between in mid-stream. What lies in the stores
 * afterwards is compared byte by byte on the host.
 */
#include "check.h"
#include "net.h"
#include "trial.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SPREAD_PORT 7003 /* run_engine.sh spreads it over queues 1 to 3 */
#define MOVED_PORT 7006  /* for rule 21, which cases make and change */
#define POLL_US 20000
#define SECOND_US 1000000
#define WAIT_SECONDS 600
#define SEEDS_PER_CASE 4096u
#define MSS_DEFAULT 0
#define FLOWS_USUAL 12u
#define BYTES_USUAL 45001u

static unsigned fresh_seed(void) {
    return (unsigned)getpid() % 4093 * SEEDS_PER_CASE + 1024;
}

struct round_trip {
    const char *disk;
    const char *options;   /* of the server: engine, profile */
    unsigned flows, bytes; /* 0: FLOWS_USUAL, BYTES_USUAL */
    unsigned mss;          /* 0: what the MTU gives */
    int mtu;               /* 0: 1500 */
    unsigned pack_align, drop_every;
    bool is_recv;
    bool is_pressed; /* for chunks: how much is copied to free some is a matter of timing */
};

static void set_mss(unsigned mss) {
    net_command("ip route replace 10.9.0.0/24 dev zc0 proto kernel scope link src " NET_ADDRESS
                " %s %u",
                mss ? "advmss" : "metric", mss);
}

static void set_up(const struct round_trip *t) {
    net_reset();
    net_set_mtu(t->mtu ? t->mtu : NET_MTU_ETHERNET);
    set_mss(t->mss);
    net_set_parameter("pack", t->pack_align > 0);
    if (t->pack_align > 0)
        net_set_parameter("pack_align", t->pack_align);
    net_set_parameter("drop_every", t->drop_every);
}

static void run_round_trip(const void *argument) {
    const struct round_trip *t = argument;
    const struct disk *disk = trial_disk(t->disk);
    unsigned flows = t->flows ? t->flows : FLOWS_USUAL;
    unsigned bytes = t->bytes ? t->bytes : BYTES_USUAL;
    struct program server, sender;

    set_up(t);
    trial_serve(&server, "-f %s -i %s -q 2 -p %u %s", trial_device(disk),
                t->is_recv ? "none -e" : "zc0", NET_STEERED_PORT, t->options ? t->options : "");
    struct nic_counters before = trial_nic();
    trial_send(&sender, disk, NET_ADDRESS, "-p %u -n %u -b %u -S %u", NET_STEERED_PORT, flows,
               bytes, fresh_seed());
    trial_join(&sender);
    trial_stop(&server);
    trial_check_accounts(&server, &before, t->is_recv ? PATH_SOCKET : PATH_ZERO_COPY);
    CHECK(trial_value(&server, "flows_sealed") == flows, "not every flow is sealed");
    trial_check_sum(&server);
    if (!t->is_recv && !t->is_pressed)
        trial_check_bounces(&server);
    trial_report(&server);
    set_mss(MSS_DEFAULT);
}

static void await_received(const struct program *server, uint64_t bytes) {
    int tries = 0;

    while (trial_value_now(server, "received_bytes") < bytes) {
        CHECK(tries++ < WAIT_SECONDS * (SECOND_US / POLL_US), "nothing comes");
        usleep(POLL_US);
    }
}

/* Flows are moved to other queues, as by irqbalance of senders' hashes or an operator's hand. */
struct move {
    unsigned port, flows, bytes;
    const char *queues;
    const char *commands[4]; /* in mid-stream, one after the other; the last one ends it all */
    bool may_end;            /* flows that no longer come by their own queue end, with a reason */
};

static void run_move(const void *argument) {
    const struct move *t = argument;
    const uint64_t total = (uint64_t)t->flows * t->bytes;
    struct program server, sender;
    uint64_t sealed, interrupted, refused;

    net_reset();
    net_command("ethtool -N zc0 flow-type tcp4 dst-port %u action 2 loc 21 > /dev/null",
                MOVED_PORT);
    trial_serve(&server, "-f %s -i zc0 -q %s -p %u", trial_device(trial_disk("nvme512")), t->queues,
                t->port);
    trial_send(&sender, trial_disk("nvme512"), NET_ADDRESS, "-p %u -n %u -b %u -S %u%s", t->port,
               t->flows, t->bytes, fresh_seed(), t->may_end ? " -l" : "");
    for (size_t index = 0; index < 4 && t->commands[index]; index++) {
        await_received(&server, (index + 1) * total / 16);
        net_command("%s", t->commands[index]);
        CHECK(index > 0 || trial_value_now(&server, "received_bytes") < total,
              "all had come by then");
    }
    trial_join(&sender);
    trial_stop(&server);
    net_command("ethtool -N zc0 delete 21");
    trial_check_returned(&server);
    trial_check_sum(&server);
    trial_report(&server);
    sealed = trial_value(&server, "flows_sealed");
    interrupted = trial_value(&server, "flows_interrupted");
    refused = trial_value(&server, "flows_refused");
    printf("    %llu sealed, %llu interrupted, %llu refused, %llu ended without a line\n",
           (unsigned long long)sealed, (unsigned long long)interrupted, (unsigned long long)refused,
           (unsigned long long)trial_value(&sender, "ended"));
    CHECK(sealed + interrupted + refused == t->flows, "%u flows came", t->flows);
    CHECK(t->may_end || sealed == t->flows, "a flow was ended");
    CHECK(sealed == trial_value(&sender, "sealed"), "sealed otherwise than was told");
}

/* The NIC again, with as many buffers posted ahead; the rules of run_engine.sh are gone then. */
static void reload_nic(const void *posted) {
    net_command("ip netns del peer && sleep 1 && rmmod zcsim && sh -c '. ./setup_nic.sh' sh "
                "posted=%u",
                *(const unsigned *)posted);
}

static bool is_blank(const char *device) {
    char begin[4096], zeros[4096] = {0};
    int fd = open(device, O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0 && read(fd, begin, sizeof(begin)) == (ssize_t)sizeof(begin), "%s: %m", device);
    close(fd);
    return memcmp(begin, zeros, sizeof(begin)) == 0;
}

/* Stores that other programs have written to already stay as they are. */
static void run_format(const void *argument) {
    (void)argument;
    static const char *const labels[] = {"nvme512", "nvme4k", "virtio", "null512",
                                         "null4k",  "nullvb", "loop",   "ram"};

    for (size_t index = 0; index < sizeof(labels) / sizeof(labels[0]); index++)
        if (is_blank(trial_device(trial_disk(labels[index]))))
            trial_format(trial_disk(labels[index]));
}

#define TRIP(text, device, ...)                                                                    \
    {                                                                                              \
        text, run_round_trip, &(const struct round_trip) {                                         \
            .disk = device, __VA_ARGS__                                                            \
        }                                                                                          \
    }
#define STATED(text, device, profile) TRIP("zcrx, " text, device, .options = profile)
#define RECV(text, device, profile) TRIP("recv, " text, device, .options = profile, .is_recv = true)
/* Four flows of little, and silence: what wrote beyond the end of its bounce memory once. */
#define RECV_SMALL(text, device, profile)                                                          \
    TRIP("recv, small flows, " text, device, .options = profile, .is_recv = true, .flows = 4,      \
         .bytes = 4998)

static const unsigned ring_64 = 64, ring_1024 = 1024, ring_2048 = 2048;

static const struct check_case cases[] = {
    {"formatting what is blank", run_format, NULL},

    RECV("NVMe 512 as found", "nvme512", ""),
    RECV("NVMe 4096 as found", "nvme4k", ""),
    RECV("virtio-blk as found", "virtio", ""),
    RECV("null_blk 512 as found", "null512", ""),
    RECV("null_blk 4096 as found", "null4k", ""),
    RECV("virtual boundary as found", "nullvb", ""),
    RECV("loop as found", "loop", ""),
    RECV("RAM disk that lies", "ram", ""),
    RECV_SMALL("virtual boundary as found", "nullvb", ""),
    RECV("NVMe 512, M 4, V 4096, as before 6.19", "nvme512", "-A 4 -V 4096"),
    RECV_SMALL("NVMe 512, M 4, V 4096", "nvme512", "-A 4 -V 4096"),
    RECV("NVMe 4096, M 4, V 4096", "nvme4k", "-A 4 -V 4096"),
    RECV_SMALL("NVMe 4096, M 4, V 4096", "nvme4k", "-A 4 -V 4096"),
    RECV("virtual boundary, M 512, V 4096", "nullvb", "-A 512 -V 4096"),
    RECV_SMALL("virtual boundary, M 512, V 4096", "nullvb", "-A 512 -V 4096"),
    RECV_SMALL("null_blk 512, M 2, V 4096", "null512", "-A 2 -V 4096"),
    RECV_SMALL("NVMe 512, M 4096", "nvme512", "-A 4096"),
    RECV_SMALL("NVMe 4096, M 4096, V 4096", "nvme4k", "-A 4096 -V 4096"),

    STATED("NVMe 512, M 4, V 4096", "nvme512", "-A 4 -V 4096"),
    STATED("NVMe 512, M 512", "nvme512", "-A 512"),
    STATED("NVMe 512, M 512, V 4096", "nvme512", "-A 512 -V 4096"),
    STATED("NVMe 512, M 4096", "nvme512", "-A 4096"),
    STATED("NVMe 512, M 4096, V 4096", "nvme512", "-A 4096 -V 4096"),
    STATED("NVMe 4096, M 4, V 4096", "nvme4k", "-A 4 -V 4096"),
    STATED("NVMe 4096, M 512, V 4096", "nvme4k", "-A 512 -V 4096"),
    STATED("NVMe 4096, M 4096, V 4096", "nvme4k", "-A 4096 -V 4096"),
    STATED("null_blk 512, M 2, V 4096", "null512", "-A 2 -V 4096"),
    STATED("virtual boundary, M 512, V 4096", "nullvb", "-A 512 -V 4096"),
    STATED("virtual boundary, M 4096, V 4096", "nullvb", "-A 4096 -V 4096"),
    STATED("virtio-blk, M 512, V 4096", "virtio", "-A 512 -V 4096"),
    TRIP("zcrx, packed byte by byte, M 4, V 4096", "nvme512", .options = "-A 4 -V 4096",
         .pack_align = 1),
    TRIP("zcrx, packed by 4, jumbo packets, M 512, V 4096", "nvme4k", .options = "-A 512 -V 4096",
         .pack_align = 4, .mtu = NET_MTU_JUMBO),

    TRIP("zcrx, MSS 536", "nvme512", .mss = 536),
    TRIP("zcrx, MSS 1221, lossy", "nvme512", .mss = 1221, .drop_every = 40),
    TRIP("zcrx, MSS 1447, packed by 4", "nvme512", .mss = 1447, .pack_align = 4),
    TRIP("zcrx, MSS 4093, MTU 9000", "nvme4k", .mss = 4093, .mtu = NET_MTU_JUMBO),
    TRIP("zcrx, MSS 8947, MTU 9000, V 4096", "nvme512", .options = "-A 4 -V 4096", .mss = 8947,
         .mtu = NET_MTU_JUMBO, .drop_every = 30),
    TRIP("recv, MSS 537", "nullvb", .mss = 537, .is_recv = true),

    /* What came out of order lies in sockets, and holds chunks until what was lost has come. */
    TRIP("an area of 1 MiB, much lost", "nvme512", .options = "-a 1024 -w 128", .flows = 30,
         .bytes = 150001, .drop_every = 15, .is_pressed = true),
    TRIP("an area of 1 MiB, much lost, jumbo packets", "nvme512", .options = "-a 1024 -w 128",
         .flows = 30, .bytes = 150001, .drop_every = 15, .mtu = NET_MTU_JUMBO, .is_pressed = true),
    TRIP("an area of 1 MiB, much lost, packed by 64", "nvme512", .options = "-a 1024 -w 128",
         .flows = 12, .bytes = 400001, .drop_every = 11, .pack_align = 64, .is_pressed = true),
    TRIP("60 flows in an area of 1 MiB, 1 packet of 7 lost", "nvme512", .options = "-a 1024 -w 128",
         .flows = 60, .bytes = 60001, .drop_every = 7, .mtu = NET_MTU_JUMBO, .is_pressed = true),

    {"a rule moved to another worker's queue in mid-stream", run_move,
     &(const struct move){
         .port = MOVED_PORT,
         .flows = 6,
         .bytes = 9000001,
         .queues = "2,3",
         .commands = {"ethtool -N zc0 flow-type tcp4 dst-port 7006 action 3 loc 21 > /dev/null"},
         .may_end = true}},
    {"a rule moved to an ordinary queue and back, twice", run_move,
     &(const struct move){
         .port = MOVED_PORT,
         .flows = 6,
         .bytes = 9000001,
         .queues = "2",
         .commands = {"ethtool -N zc0 flow-type tcp4 dst-port 7006 action 0 loc 21 > /dev/null",
                      "ethtool -N zc0 flow-type tcp4 dst-port 7006 action 2 loc 21 > /dev/null",
                      "ethtool -N zc0 flow-type tcp4 dst-port 7006 action 0 loc 21 > /dev/null",
                      "ethtool -N zc0 flow-type tcp4 dst-port 7006 action 2 loc 21 > /dev/null"}}},
    {"RSS of three queues made one in mid-stream, and three again", run_move,
     &(const struct move){.port = SPREAD_PORT,
                          .flows = 12,
                          .bytes = 3000001,
                          .queues = "1,2,3",
                          .commands = {"ethtool -X zc0 context 1 start 1 equal 1 > /dev/null",
                                       "ethtool -X zc0 context 1 start 1 equal 3 > /dev/null"},
                          .may_end = true}},

    {"the NIC again, with a ring of half the area", reload_nic, &ring_1024},
    TRIP("a ring of half the area", "nvme512", .options = "-a 8192", .bytes = 900001,
         .is_pressed = true),
    TRIP("a ring as large as the area", "nvme512", .options = "-a 4096", .bytes = 900001,
         .is_pressed = true),
    {"the NIC again, with a ring of 2048", reload_nic, &ring_2048},
    TRIP("a ring twice as large as the area", "nvme512", .options = "-a 4096", .bytes = 900001,
         .is_pressed = true),
    TRIP("a ring as large as the area, packed, lossy", "nvme512", .options = "-a 8192",
         .pack_align = 64, .drop_every = 40, .is_pressed = true),
    TRIP("a ring as large as the area, jumbo packets, lossy", "nvme512", .options = "-a 8192",
         .mtu = NET_MTU_JUMBO, .drop_every = 40, .bytes = 300001, .is_pressed = true),
    {"the NIC again, as it was", reload_nic, &ring_64},
};

int main(void) {
    return trial_run("engine-settings", cases, sizeof(cases) / sizeof(cases[0]));
}

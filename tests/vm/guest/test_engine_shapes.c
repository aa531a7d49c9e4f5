/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine zcrx of the core from the NIC to the disk and back to the sender, in every shape of
 * fragment and on every kind of device: receipts, accounts, copied bytes against what the shapes
 * ask for. What lies in the stores afterwards is compared byte by byte on the host.
 */
#include "check.h"
#include "net.h"
#include "trial.h"

#include <string.h>

#define KIB 1024u
#define MIB (1024u * KIB)
#define SPREAD_PORT 7003 /* run_engine.sh spreads it over queues 1 to 3 */
#define SEEDS_PER_CASE 4096u
#define LOOPBACK_MTU 65536
#define FLOWS_AT_ONCE 64 /* as many as the area can bear, and more */

struct round_trip {
    const char *name;
    const char *disk;
    unsigned flows, bytes; /* flow i has i more */
    int mtu;               /* 0: 1500 */
    bool tso, pack, pressure;
    unsigned pack_align, drop_every, linear_bytes, rx_buf_len;
    const char *address; /* NULL: NET_ADDRESS; NET_LOOPBACK: device-less mode */
    uint16_t port;       /* 0: NET_STEERED_PORT */
    const char *queues;  /* NULL: the steered one */
    const char *options; /* more for the server */
    enum trial_path path;
    bool unsummed; /* no check sum, commit marks instead */
};

/* Every row has content of its own. */
static unsigned seed_of(const struct round_trip *t) {
    unsigned hash = 2166136261u;

    for (const char *at = t->name; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 16777619u;
    return hash % 4093u * SEEDS_PER_CASE;
}

static bool is_deviceless(const struct round_trip *t) {
    return t->address && strcmp(t->address, NET_LOOPBACK) == 0;
}

static void set_up(const struct round_trip *t) {
    net_reset();
    net_set_mtu(t->mtu ? t->mtu : NET_MTU_ETHERNET);
    net_set_sender_tso(t->tso);
    net_set_parameter("pack", t->pack);
    if (t->pack)
        net_set_parameter("pack_align", t->pack_align);
    net_set_parameter("drop_every", t->drop_every);
    net_set_parameter("linear_bytes", t->linear_bytes);
    if (is_deviceless(t))
        net_command("ip link set lo mtu %d", LOOPBACK_MTU);
}

/* From the NIC's settings and the flows' sizes alone: where packets begin on multiples of M and
 * have as many bytes as M divides, nothing but the flows' own odd tails is copied for it. Ten jumbo
 * packets are more than the window of the handshake, 65535 bytes, which cuts one of them in two. */
static void check_tails(const struct round_trip *t, const struct disk *disk,
                        const struct program *server) {
    uint64_t tails = 0, found = trial_value(server, "bounced_tail_bytes");
    uint64_t cuts = t->mtu == NET_MTU_JUMBO ? t->flows * 2ull * (disk->mem_align - 1) : 0;
    uint64_t heads = trial_value(server, "bounced_head_bytes");

    for (unsigned flow = 0; flow < t->flows; flow++)
        tails += (t->bytes + flow) % disk->mem_align;
    CHECK(found >= tails && found <= tails + cuts,
          "the flows' odd tails are %llu bytes, %llu were copied", (unsigned long long)tails,
          (unsigned long long)found);
    CHECK(heads == 0, "%llu bytes of heads were copied", (unsigned long long)heads);
    CHECK(trial_value(server, "bounced_boundary_bytes") == 0, "bytes copied for a boundary");
}

static void check_all(const struct round_trip *t, const struct disk *disk,
                      const struct program *server, const struct nic_counters *before) {
    trial_check_accounts(server, before, t->path);
    CHECK(trial_value(server, "flows_sealed") == t->flows, "not every flow is sealed");
    trial_check_sum(server);
    if (!t->pressure)
        trial_check_bounces(server);
    /* Packed byte by byte, packets behind an odd tail begin at odd places. */
    bool clean =
        disk->mem_align <= 4 && !(t->pack && t->pack_align < 4) && t->linear_bytes % 4 == 0;
    if (clean && t->path == PATH_ZERO_COPY && !t->pressure)
        check_tails(t, disk, server);
    if (t->rx_buf_len != 0)
        CHECK(trial_value(server, "rx_buf_len") == t->rx_buf_len &&
                  trial_value(server, "area_hugepage_bytes") > 0,
              "chunks have %llu bytes", (unsigned long long)trial_value(server, "rx_buf_len"));
}

static void run_round_trip(const void *argument) {
    const struct round_trip *t = argument;
    const struct disk *disk = trial_disk(t->disk);
    struct program server, sender;
    uint64_t bytes = 0;

    set_up(t);
    if (t->rx_buf_len != 0)
        trial_await_hugepages();
    trial_serve(&server, "-f %s -i %s -q %s -p %u -b %u -c %d %s", trial_device(disk),
                is_deviceless(t) ? "none" : "zc0",
                t->queues          ? t->queues
                : is_deviceless(t) ? "0"
                                   : "2",
                t->port ? t->port : NET_STEERED_PORT, t->rx_buf_len, !t->unsummed,
                t->options ? t->options : "");
    struct nic_counters before = trial_nic();
    trial_send(&sender, disk, t->address ? t->address : NET_ADDRESS,
               "-p %u -n %u -b %u -S %u -c %d", t->port ? t->port : NET_STEERED_PORT, t->flows,
               t->bytes, seed_of(t), !t->unsummed);
    trial_join(&sender);
    trial_stop(&server);
    for (unsigned flow = 0; flow < t->flows; flow++)
        bytes += t->bytes + flow;
    CHECK(trial_value(&server, "received_bytes") == bytes &&
              trial_value(&sender, "bytes") == bytes && trial_value(&sender, "sealed") == t->flows,
          "%u flows have %llu bytes, received %llu", t->flows, (unsigned long long)bytes,
          (unsigned long long)trial_value(&server, "received_bytes"));
    check_all(t, disk, &server, &before);
    CHECK(t->flows > FLOWS_AT_ONCE || trial_value(&sender, "window_scale") > 0,
          "no window can have more than 64 KiB");
    trial_report(&server);
}

static void run_format(const void *argument) {
    (void)argument;
    static const char *const labels[] = {"nvme512", "nvme4k", "virtio", "null512",
                                         "null4k",  "nullvb", "loop",   "ram"};

    for (size_t index = 0; index < sizeof(labels) / sizeof(labels[0]); index++)
        trial_format(trial_disk(labels[index]));
}

#define ROW(text, device, count, size, ...)                                                        \
    {                                                                                              \
        text, run_round_trip, &(const struct round_trip) {                                         \
            .name = text, .disk = device, .flows = count, .bytes = size, __VA_ARGS__               \
        }                                                                                          \
    }

static const struct check_case cases[] = {
    {"formatting; the probe finds what each device is like", run_format, NULL},

    ROW("NVMe 512, MTU 1500", "nvme512", 4, 1000001, .mtu = 1500),
    ROW("NVMe 512, MTU 1500, IPv6", "nvme512", 4, 1000001, .address = NET_ADDRESS6),
    ROW("NVMe 512, MTU 4148: whole pages", "nvme512", 4, 1000001, .mtu = NET_MTU_PAGE),
    ROW("NVMe 512, MTU 4168, IPv6: whole pages", "nvme512", 4, 1000001, .mtu = NET_MTU_PAGE6,
        .address = NET_ADDRESS6),
    ROW("NVMe 512, MTU 9000", "nvme512", 4, 1000001, .mtu = NET_MTU_JUMBO),
    ROW("NVMe 512, packed by 64", "nvme512", 6, 600001, .pack = true, .pack_align = 64),
    ROW("NVMe 512, packed by 4, MTU 9000", "nvme512", 6, 600001, .pack = true, .pack_align = 4,
        .mtu = NET_MTU_JUMBO),
    ROW("NVMe 512, packed byte by byte", "nvme512", 6, 600001, .pack = true, .pack_align = 1),
    ROW("NVMe 512, sender's TSO", "nvme512", 4, 1000001, .tso = true),
    ROW("NVMe 512, TSO, MTU 9000", "nvme512", 4, 1000001, .tso = true, .mtu = NET_MTU_JUMBO),
    ROW("NVMe 512, chunks of 64 KiB, TSO", "nvme512", 4, 2000001, .tso = true, .rx_buf_len = 65536),
    ROW("NVMe 512, chunks of 64 KiB, MTU 1500", "nvme512", 2, 500001, .rx_buf_len = 65536,
        .pressure = true),
    ROW("NVMe 512, chunks of 64 KiB, packed, MTU 9000", "nvme512", 4, 1000001, .rx_buf_len = 65536,
        .pack = true, .pack_align = 64, .mtu = NET_MTU_JUMBO),
    ROW("NVMe 512, 1 packet of 50 lost", "nvme512", 4, 700001, .drop_every = 50),
    ROW("NVMe 512, 1 packet of 30 lost, packed byte by byte", "nvme512", 4, 500001,
        .drop_every = 30, .pack = true, .pack_align = 1),
    ROW("NVMe 512, 1 burst of 20 lost, TSO", "nvme512", 4, 700001, .drop_every = 20, .tso = true),
    ROW("NVMe 512, split imperfect by 100 bytes", "nvme512", 4, 500001, .linear_bytes = 100,
        .path = PATH_IMPERFECT),
    ROW("NVMe 512, no check sum", "nvme512", 4, 1000001, .unsummed = true),
    ROW("NVMe 512, 1 flow", "nvme512", 1, 8000003),
    ROW("NVMe 512, 64 flows", "nvme512", 64, 60001),
    ROW("NVMe 512, 1000 flows", "nvme512", 1000, 5001),
    ROW("NVMe 512, 6 flows on 3 queues", "nvme512", 6, 600001, .queues = "1,2,3",
        .port = SPREAD_PORT),
    ROW("NVMe 512, 64 flows on 3 queues", "nvme512", 64, 60001, .queues = "1,2,3",
        .port = SPREAD_PORT, .mtu = NET_MTU_PAGE),
    ROW("NVMe 512, 1000 flows on 3 queues", "nvme512", 1000, 5001, .queues = "1,2,3",
        .port = SPREAD_PORT),
    ROW("NVMe 512, an ordinary queue", "nvme512", 4, 300001, .port = NET_UNSTEERED_PORT,
        .path = PATH_COPY),
    ROW("NVMe 512, device-less, 1 flow", "nvme512", 1, 3000001, .address = NET_LOOPBACK,
        .path = PATH_COPY),
    ROW("NVMe 512, device-less, 64 flows", "nvme512", 64, 60001, .address = NET_LOOPBACK,
        .path = PATH_COPY),
    ROW("NVMe 512, device-less, 1000 flows", "nvme512", 1000, 3001, .address = NET_LOOPBACK,
        .path = PATH_COPY),

    ROW("NVMe 4096, MTU 1500", "nvme4k", 4, 1000001, .mtu = 1500),
    ROW("NVMe 4096, MTU 4148: whole pages", "nvme4k", 4, 1000001, .mtu = NET_MTU_PAGE),
    ROW("NVMe 4096, MTU 9000", "nvme4k", 4, 1000001, .mtu = NET_MTU_JUMBO),
    ROW("NVMe 4096, packed byte by byte, lossy", "nvme4k", 6, 400001, .pack = true, .pack_align = 1,
        .drop_every = 40),
    ROW("NVMe 4096, chunks of 64 KiB, TSO", "nvme4k", 4, 1000001, .tso = true, .rx_buf_len = 65536),
    ROW("NVMe 4096, 64 flows on 3 queues, no check sum", "nvme4k", 64, 60001, .queues = "1,2,3",
        .port = SPREAD_PORT, .unsummed = true),
    ROW("NVMe 4096, device-less", "nvme4k", 4, 500001, .address = NET_LOOPBACK, .path = PATH_COPY),

    ROW("virtio-blk, MTU 1500", "virtio", 4, 500001, .mtu = 1500),
    ROW("virtio-blk, MTU 4148: whole pages", "virtio", 4, 500001, .mtu = NET_MTU_PAGE),
    ROW("virtio-blk, MTU 9000", "virtio", 4, 500001, .mtu = NET_MTU_JUMBO),
    ROW("virtio-blk, packed byte by byte", "virtio", 6, 300001, .pack = true, .pack_align = 1),
    ROW("virtio-blk, TSO, lossy", "virtio", 4, 500001, .tso = true, .drop_every = 20),
    ROW("virtio-blk, device-less", "virtio", 4, 500001, .address = NET_LOOPBACK, .path = PATH_COPY),

    ROW("null_blk 512, MTU 1500", "null512", 4, 500001, .mtu = 1500),
    ROW("null_blk 512, MTU 9000", "null512", 4, 500001, .mtu = NET_MTU_JUMBO),
    ROW("null_blk 512, packed byte by byte", "null512", 6, 300001, .pack = true, .pack_align = 1),
    ROW("null_blk 512, device-less", "null512", 4, 500001, .address = NET_LOOPBACK,
        .path = PATH_COPY),
    ROW("null_blk 4096, MTU 1500", "null4k", 4, 500001, .mtu = 1500),
    ROW("null_blk 4096, TSO", "null4k", 4, 500001, .tso = true),
    ROW("virtual boundary, MTU 1500", "nullvb", 4, 500001, .mtu = 1500),
    ROW("virtual boundary, MTU 4148: whole pages", "nullvb", 4, 500001, .mtu = NET_MTU_PAGE),
    ROW("virtual boundary, MTU 9000, packed by 64", "nullvb", 4, 500001, .mtu = NET_MTU_JUMBO,
        .pack = true, .pack_align = 64),
    ROW("virtual boundary, TSO", "nullvb", 4, 500001, .tso = true),
    ROW("loop, MTU 1500", "loop", 4, 300001, .mtu = 1500),
    ROW("loop, MTU 4148: whole pages", "loop", 4, 500001, .mtu = NET_MTU_PAGE),
    ROW("RAM disk that lies, MTU 1500", "ram", 4, 300001, .mtu = 1500),
    ROW("RAM disk that lies, packed byte by byte", "ram", 4, 300001, .pack = true, .pack_align = 1),
};

int main(void) {
    return trial_run("engine-shapes", cases, sizeof(cases) / sizeof(cases[0]));
}

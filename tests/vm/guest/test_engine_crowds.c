/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine zcrx of the core when more connections come, or other ones, than it has chunks or
 * places for: none may hold what all need, whoever waits continues as soon as it may, and whoever
 * is sent away gets the reason. What lies in the store afterwards is compared byte by byte on the
 * host.
 */
#include "check.h"
#include "net.h"
#include "trial.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define SPREAD_PORT 7003 /* run_engine.sh spreads it over queues 1 to 3 */
#define MOVED_PORT 7005  /* ... and has a rule for it, which a case takes away */
#define POLL_US 20000
#define SECOND_US 1000000
#define WAIT_SECONDS 600

static unsigned fresh_seed(void) {
    return (unsigned)getpid() % 4093 * 4096 + 3072;
}

static void run_format(const void *argument) {
    (void)argument;
    trial_format(trial_disk("crowds"));
}

struct crowd {
    const char *options; /* of the server */
    unsigned port, flows, bytes;
    bool is_suspended; /* until all have shaken hands and sent what they may */
    bool is_by_copy;
    unsigned mtu, drop_every;
};

static void open_crowd(struct program *server, const struct crowd *t) {
    net_reset();
    net_set_mtu(t->mtu ? (int)t->mtu : NET_MTU_ETHERNET);
    net_set_parameter("drop_every", t->drop_every);
    trial_serve(server, "-f %s -i zc0 -p %u %s", trial_device(trial_disk("crowds")), t->port,
                t->options);
}

/* All flows of a drained server are sealed, and it has its chunks back. */
static void close_crowd(struct program *server, unsigned flows) {
    trial_stop(server);
    trial_check_returned(server);
    trial_check_sum(server);
    trial_report(server);
    CHECK(trial_value(server, "flows_sealed") == flows, "%llu of %u flows are sealed",
          (unsigned long long)trial_value(server, "flows_sealed"), flows);
    CHECK(trial_value(server, "received_bytes") == trial_value(server, "durable_bytes"),
          "not all is durable that was received");
}

static void run_crowd(const void *argument) {
    const struct crowd *t = argument;
    struct program server, sender;

    open_crowd(&server, t);
    if (t->is_suspended)
        CHECK_CALL(kill(server.pid, SIGSTOP));
    trial_send(&sender, trial_disk("crowds"), NET_ADDRESS, "-p %u -n %u -b %u -S %u", t->port,
               t->flows, t->bytes, fresh_seed());
    if (t->is_suspended) {
        usleep(3 * SECOND_US);
        CHECK_CALL(kill(server.pid, SIGCONT));
    }
    trial_join(&sender);
    CHECK(trial_value(&sender, "window_scale") > 0, "windows of 64 KiB at most");
    close_crowd(&server, t->flows);
    bool copied = trial_value(&server, "flows_by_copy") > 0;
    CHECK(copied == t->is_by_copy, "flows were%s copied", copied ? "" : " not");
    printf("    %llu handed over, %llu packets found no chunk\n",
           (unsigned long long)trial_value(&server, "flows_handed_away"),
           (unsigned long long)trial_nic().alloc_fail);
}

/* The rule of a port is taken away while flows come by it: the kernel copies what comes then. */
static void run_rule_taken_away(const void *argument) {
    const struct crowd *t = argument;
    struct program server, sender;
    int tries = 0;

    open_crowd(&server, t);
    trial_send(&sender, trial_disk("crowds"), NET_ADDRESS, "-p %u -n %u -b %u -S %u", t->port,
               t->flows, t->bytes, fresh_seed());
    while (trial_value_now(&server, "received_bytes") < t->bytes) {
        CHECK(tries++ < WAIT_SECONDS * (SECOND_US / POLL_US), "nothing comes");
        usleep(POLL_US);
    }
    net_command("ethtool -N zc0 delete 20");
    trial_join(&sender);
    close_crowd(&server, t->flows);
    CHECK(trial_value(&server, "kernel_copied_bytes") > 0, "the kernel has copied nothing");
}

#define CROWD(text, ...)                                                                           \
    {                                                                                              \
        text, run_crowd, &(const struct crowd) {                                                   \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct check_case cases[] = {
    {"formatting", run_format, NULL},
    CROWD("copied flows, several areas of them", .options = "-q 2 -a 4096",
          .port = NET_UNSTEERED_PORT, .flows = 4, .bytes = 3000001, .is_by_copy = true),
    {"a rule taken away in mid-stream", run_rule_taken_away,
     &(const struct crowd){
         .options = "-q 2 -a 4096", .port = MOVED_PORT, .flows = 6, .bytes = 1500001}},
    CROWD("80 senders, 16 places", .options = "-q 2 -n 17", .port = NET_STEERED_PORT, .flows = 80,
          .bytes = 2000001),
    CROWD("200 senders, 16 places, lossy", .options = "-q 2 -n 17", .port = NET_STEERED_PORT,
          .flows = 200, .bytes = 60001, .drop_every = 53),
    CROWD("60 senders, an area of 1 MiB", .options = "-q 2 -a 1024 -w 128",
          .port = NET_STEERED_PORT, .flows = 60, .bytes = 100001),
    CROWD("60 senders, an area of 1 MiB, jumbo packets", .options = "-q 2 -a 1024 -w 128",
          .port = NET_STEERED_PORT, .flows = 60, .bytes = 100001, .mtu = NET_MTU_JUMBO),
    CROWD("60 senders before the first accept, an area of 1 MiB", .options = "-q 2 -a 1024 -w 128",
          .port = NET_STEERED_PORT, .flows = 60, .bytes = 100001, .is_suspended = true),
    CROWD("300 senders before the first accept, 16 places", .options = "-q 2 -n 17 -a 8192",
          .port = NET_STEERED_PORT, .flows = 300, .bytes = 40001, .is_suspended = true),
    CROWD("300 senders, three queues of 64 places", .options = "-q 1,2,3 -n 65",
          .port = SPREAD_PORT, .flows = 300, .bytes = 60001),
};

int main(void) {
    return trial_run("engine-crowds", cases, sizeof(cases) / sizeof(cases[0]));
}

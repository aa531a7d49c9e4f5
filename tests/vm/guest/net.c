/* SPDX-License-Identifier: Apache-2.0
 *
 * The NIC pair and streams: see net.h.
 */
#define _GNU_SOURCE
#include "net.h"
#include "check.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_BYTES_MAX 512
#define SEND_BYTES (256u << 10)
#define PATTERN_BYTES ((1u << 20) + 13)
#define COUNTERS_MAX 512
#define CONNECT_TRIES 100
#define CONNECT_PAUSE_US 100000

void net_command(const char *format, ...) {
    char command[COMMAND_BYTES_MAX];
    va_list arguments;

    va_start(arguments, format);
    int bytes = vsnprintf(command, sizeof(command), format, arguments);
    va_end(arguments);
    CHECK(bytes > 0 && (size_t)bytes < sizeof(command), "a command too long: %s", command);
    int status = system(command);
    CHECK(status == 0, "%s: exit status %d", command, status);
}

uint32_t net_interface_index(void) {
    uint32_t index = if_nametoindex("zc0");
    CHECK(index, "there is no zc0");
    return index;
}

/* A socket in the peer's namespace, through which its interface can be asked and set. */
static int peer_socket(void) {
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int peer = open("/run/netns/peer", O_RDONLY | O_CLOEXEC);

    CHECK(here >= 0 && peer >= 0, "opening the network namespaces: %m");
    CHECK_CALL(setns(peer, CLONE_NEWNET));
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_CALL(control);
    CHECK_CALL(setns(here, CLONE_NEWNET));
    close(here);
    close(peer);
    return control;
}

/* Settings are made many times per run, and starting a program in the machine is slow. */
static void control(bool peer, unsigned long operation, struct ifreq *request) {
    int fd = peer ? peer_socket() : socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    CHECK_CALL(fd);
    snprintf(request->ifr_name, sizeof(request->ifr_name), "%s", peer ? "zc1" : "zc0");
    CHECK(ioctl(fd, operation, request) == 0, "setting up %s: %m", request->ifr_name);
    close(fd);
}

void net_set_mtu(int mtu) {
    struct ifreq request = {.ifr_mtu = mtu};

    control(false, SIOCSIFMTU, &request);
    control(true, SIOCSIFMTU, &request);
}

void net_set_sender_tso(bool on) {
    struct ethtool_value value = {.cmd = ETHTOOL_STSO, .data = on};
    struct ifreq request = {.ifr_data = (char *)&value};

    control(true, SIOCETHTOOL, &request);
}

void net_set_parameter(const char *name, unsigned value) {
    char path[COMMAND_BYTES_MAX];

    snprintf(path, sizeof(path), "/sys/module/zcsim/parameters/%s", name);
    FILE *file = fopen(path, "w");
    CHECK(file, "%s: %m", path);
    fprintf(file, "%u", value);
    CHECK(fclose(file) == 0, "%s takes no %u: %m", path, value);
}

void net_reset(void) {
    net_set_parameter("pack", 0);
    net_set_parameter("pack_align", 64);
    net_set_parameter("buffer_offset", 0);
    net_set_parameter("drop_every", 0);
    net_set_parameter("linear_bytes", 0);
    net_set_parameter("gro", 1);
    net_set_sender_tso(false);
    net_set_mtu(NET_MTU_ETHERNET);
}

uint64_t net_counter(unsigned queue, const char *name) {
    struct {
        struct ethtool_gstrings head;
        char names[COUNTERS_MAX][ETH_GSTRING_LEN];
    } strings = {.head = {.cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_STATS}};
    struct {
        struct ethtool_stats head;
        uint64_t values[COUNTERS_MAX];
    } stats = {.head = {.cmd = ETHTOOL_GSTATS}};
    struct ifreq request = {.ifr_data = (char *)&strings};
    char wanted[ETH_GSTRING_LEN];

    control(false, SIOCETHTOOL, &request);
    request.ifr_data = (char *)&stats;
    control(false, SIOCETHTOOL, &request);
    snprintf(wanted, sizeof(wanted), "rx%u_%s", queue, name);
    for (uint32_t index = 0; index < strings.head.len && index < COUNTERS_MAX; index++)
        if (strncmp(strings.names[index], wanted, ETH_GSTRING_LEN) == 0)
            return stats.values[index];
    check_fail(__FILE__, __LINE__, "the NIC has no counter %s", wanted);
}

uint64_t net_queue_counter(const char *name) {
    return net_counter(NET_QUEUE, name);
}

struct name {
    struct sockaddr_storage storage;
    socklen_t bytes;
};

static struct name name_of(const char *address, uint16_t port) {
    struct name name = {.bytes = sizeof(struct sockaddr_in)};
    struct sockaddr_in *four = (struct sockaddr_in *)(void *)&name.storage;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)&name.storage;

    if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        return name;
    }
    CHECK(inet_pton(AF_INET6, address, &six->sin6_addr) == 1, "%s is no address", address);
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    name.bytes = sizeof(*six);
    return name;
}

static int tcp_socket(const struct name *name) {
    int fd = socket(name->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_CALL(fd);
    return fd;
}

int net_listen(const char *address, uint16_t port) {
    struct name name = name_of(address, port);
    int on = 1, listener = tcp_socket(&name);

    CHECK_CALL(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
    CHECK_CALL(bind(listener, (const struct sockaddr *)&name.storage, name.bytes));
    CHECK_CALL(listen(listener, 64));
    return listener;
}

int net_accept(int listener) {
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK_CALL(connection);
    return connection;
}

/* One period and the begin of the next, so that whatever is sent at once lies in one piece; made
 * once per process, from a fixed seed. */
static const char *pattern(void) {
    static char *bytes;
    uint64_t state = 88172645463325252u;

    if (bytes)
        return bytes;
    bytes = malloc(PATTERN_BYTES + SEND_BYTES);
    CHECK(bytes, "no memory for the pattern");
    for (size_t index = 0; index < PATTERN_BYTES; index += sizeof(state)) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(bytes + index, &state, sizeof(state));
    }
    memcpy(bytes + PATTERN_BYTES, bytes, SEND_BYTES);
    return bytes;
}

bool net_stream_matches(const void *data, size_t bytes, uint64_t offset) {
    const char *found = data;

    while (bytes) {
        size_t begin = offset % PATTERN_BYTES;
        size_t piece = PATTERN_BYTES - begin < bytes ? PATTERN_BYTES - begin : bytes;
        if (memcmp(found, pattern() + begin, piece) != 0)
            return false;
        found += piece;
        bytes -= piece;
        offset += piece;
    }
    return true;
}

static int connect_patiently(const char *address, uint16_t port) {
    struct name name = name_of(address, port);

    for (int tries = 0; tries < CONNECT_TRIES; tries++) {
        int connection = tcp_socket(&name);
        if (connect(connection, (const struct sockaddr *)&name.storage, name.bytes) == 0)
            return connection;
        close(connection);
        usleep(CONNECT_PAUSE_US);
    }
    check_fail(__FILE__, __LINE__, "cannot connect to %s port %u: %m", address, port);
}

/* Every send but the last has the same size, a multiple of every alignment that a test wants of
 * the segments: the sender's kernel may end a segment where a send ends. */
static void send_stream(int connection, uint64_t bytes) {
    for (uint64_t offset = 0; offset < bytes;) {
        size_t left = bytes - offset < SEND_BYTES ? bytes - offset : SEND_BYTES;
        const char *data = pattern() + offset % PATTERN_BYTES;
        while (left) {
            ssize_t sent = send(connection, data, left, MSG_NOSIGNAL);
            CHECK(sent > 0, "sending at %llu: %m", (unsigned long long)offset);
            data += sent;
            offset += (uint64_t)sent;
            left -= (size_t)sent;
        }
    }
}

pid_t net_send(const char *address, uint16_t port, uint64_t bytes) {
    pattern(); /* made before the fork, so that both sides share it */
    pid_t child = fork();

    CHECK_CALL(child);
    if (child)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (strcmp(address, NET_LOOPBACK) != 0) {
        int peer = open("/run/netns/peer", O_RDONLY | O_CLOEXEC);
        CHECK(peer >= 0 && setns(peer, CLONE_NEWNET) == 0, "entering the peer's namespace: %m");
    }
    int connection = connect_patiently(address, port);
    send_stream(connection, bytes);
    _exit(close(connection) ? 1 : 0);
}

void net_join(pid_t sender) {
    int status;

    CHECK_CALL(waitpid(sender, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the sender failed, status %#x", status);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The played sockets: what has come of a sender, what the worker says to it, and the calls and
 * operations on both.
 *
 * Invariants: a descriptor that is closed is given again at once; whoever names it afterwards has
 * another connection, or none, and the simulation fails. A reset leaves what had come; a receive
 * that meets it behind some bytes tells of those only, and then of an end.
 */
#include "sim.h"

#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define FIRST_PORT 2000u

static struct socket_ sockets[SOCKETS_MAX];
static uint32_t sockets_upto; /* the first so many have been used: they are large */
static uint64_t listener_buffer_bytes[LISTENERS_COUNT];
static bool listener_is_locked[LISTENERS_COUNT], listener_is_bound[LISTENERS_COUNT];
static uint32_t by_descriptor[SOCKETS_MAX]; /* index + 1; 0: nobody's */
static uint16_t ports_given;

struct socket_ *socket_of(int fd) {
    uint32_t at = (uint32_t)(fd - FD_SOCKET);
    if (at >= SOCKETS_MAX || by_descriptor[at] == 0)
        sim_fail("descriptor %d is nobody's", fd);
    return &sockets[by_descriptor[at] - 1];
}

struct socket_ *socket_connect(uint32_t listener) {
    uint32_t i = 0;
    while (i < SOCKETS_MAX && sockets[i].is_used)
        i++;
    if (i == SOCKETS_MAX)
        sim_fail("more connections than are played");
    struct socket_ *s = &sockets[i];
    sockets_upto = i >= sockets_upto ? i + 1 : sockets_upto;
    memset(s, 0, sizeof *s);
    if (listener_is_locked[listener] || listener_is_bound[listener])
        sim_fail("listener %u gives connections small windows for good", listener);
    s->is_used = s->is_pending = s->has_sender = true;
    s->index = i;
    s->listener = listener;
    s->port = (uint16_t)(FIRST_PORT + ports_given++);
    s->inbox_room = sizeof s->inbox;
    s->chunk = UINT32_MAX;
    s->last_data_ns = sim.now_ns;
    s->is_other_queue = sim_one_of(8);
    s->host = (uint8_t)(1 + s->port % HOSTS_COUNT);
    return s;
}

static int give_descriptor(struct socket_ *s) {
    uint32_t at = 0;
    while (by_descriptor[at] != 0)
        at++;
    by_descriptor[at] = s->index + 1;
    s->is_pending = false;
    s->is_open = s->is_accepted = true;
    return FD_SOCKET + (int)at;
}

int socket_hand_over(struct socket_ *s) {
    return give_descriptor(s);
}

/* Whom the listener does not let in, or who has as many as he may, is not received from. */
void socket_served(struct socket_ *s) {
    uint32_t count = 0, most = sim.shape.per_peer[s->listener];
    if (s->is_served)
        return;
    s->is_served = true;
    if (!border_allows(s->listener, s->host))
        sim_fail("10.0.0.%u is let in by listener %u", s->host, s->listener);
    for (uint32_t i = 0; i < sockets_upto; i++)
        count += sockets[i].is_used && sockets[i].is_open && sockets[i].is_served &&
                 sockets[i].listener == s->listener && sockets[i].host == s->host;
    if (most != 0 && count > most)
        sim_fail("10.0.0.%u has %u connections with listener %u", s->host, count, s->listener);
}

void socket_settle(struct socket_ *s) {
    if (s->is_open || s->is_pending || s->operations > 0)
        return;
    nic_drop(s);
    s->is_used = s->has_sender;
}

static void close_descriptor(int fd) {
    struct socket_ *s = socket_of(fd);
    by_descriptor[fd - FD_SOCKET] = 0;
    s->is_open = false;
    sim_log("close %d, port %u", fd, s->port);
    socket_settle(s);
}

uint64_t socket_buffer_bytes(const struct socket_ *s) {
    if (s->buffer_bytes != 0)
        return s->buffer_bytes;
    uint64_t bytes = listener_buffer_bytes[s->listener];
    return bytes != 0 ? bytes : sim.shape.receive_buffer_bytes;
}

uint64_t socket_deliver(struct socket_ *s, uint64_t bytes) {
    uint64_t waits = s->arrived - s->read;
    uint64_t buffer_bytes = socket_buffer_bytes(s);
    uint64_t room = waits < buffer_bytes ? buffer_bytes - waits : 0;
    bytes = bytes < room ? bytes : room;
    if (bytes > 0 && nic_is_open())
        bytes = nic_lay(s, (uint32_t)bytes);
    s->arrived += bytes;
    if (bytes > 0)
        s->last_data_ns = sim.now_ns;
    return bytes;
}

void socket_end(struct socket_ *s, bool reset) {
    s->has_reset = s->has_reset || reset;
    s->has_fin = s->has_fin || !reset;
    sim_log("port %u %s", s->port, reset ? "resets" : "has sent all");
}

bool network_has(const struct socket_ *s) {
    return s->arrived > s->read || s->has_fin || s->has_reset || s->shut_read;
}

/* --- Operations -------------------------------------------------------------------- */

static enum ready done(const struct operation *o, int result) {
    sim_post(o->user_data, result, 0, 0);
    return READY_DONE;
}

static void fill_peer(const struct socket_ *s, void *out, socklen_t *bytes) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(s->port)};
    in.sin_addr.s_addr = htonl(0x0a000000u + s->host);
    memcpy(out, &in, sizeof in);
    *bytes = sizeof in;
}

static enum ready complete_accept(struct operation *o) {
    static const int codes[] = {-ECONNABORTED, -EMFILE, -ENOMEM, -EINTR};
    uint32_t listener = (uint32_t)(o->fd - FD_LISTENER);
    if (listener >= LISTENERS_COUNT)
        sim_fail("an accept of descriptor %d", o->fd);
    if (o->is_cancelled)
        return done(o, -ECANCELED);
    if (!sim.calm && sim_one_of(sim.shape.accept_failure_of))
        return done(o, codes[sim_below(4)]);
    for (uint32_t i = 0; i < sockets_upto; i++) {
        struct socket_ *s = &sockets[i];
        if (!s->is_used || !s->is_pending || s->listener != listener)
            continue;
        fill_peer(s, o->peer, o->peer_bytes);
        int fd = give_descriptor(s);
        sim_log("accept port %u as %d", s->port, fd);
        return done(o, fd);
    }
    return READY_NOT;
}

static enum ready complete_poll(struct operation *o) {
    if (!network_has(o->socket))
        return o->is_cancelled ? done(o, -ECANCELED) : READY_NOT;
    return done(o, POLLIN | (o->socket->has_fin ? POLLRDHUP : 0));
}

/* What a receive that waits gets now; it may have some already. */
static uint32_t take(struct operation *o) {
    struct socket_ *s = o->socket;
    uint64_t waits = s->arrived - s->read, room = o->bytes - o->progress;
    uint32_t bytes = (uint32_t)(waits < room ? waits : room);
    if (bytes > 1 && sim_one_of(6))
        bytes = 1 + sim_below(bytes); /* more came behind the moment */
    if (bytes > 0 && o->memory != NULL)
        sender_wire(s, s->read, o->memory + o->progress, bytes);
    nic_consume(s, bytes);
    s->read += bytes;
    o->progress += bytes;
    return bytes;
}

static enum ready complete_receive(struct operation *o) {
    struct socket_ *s = o->socket;
    bool waits_for_all = (o->flags & MSG_WAITALL) != 0;
    if (s->arrived > s->read && !(s->shut_read && sim_below(2)))
        take(o);
    bool whole = o->progress == o->bytes;
    bool over = s->arrived == s->read && (s->has_fin || s->has_reset || s->shut_read);
    if (o->progress > 0 && (whole || !waits_for_all || over || o->is_cancelled)) {
        if (over && s->has_reset && sim_below(2))
            s->reset_told = true; /* cleared, and told to nobody */
        sim.receives_count++;
        sim.received_bytes += o->progress;
        return done(o, (int)o->progress);
    }
    if (o->progress > 0 || (!over && !o->is_cancelled))
        return READY_NOT;
    if (!over)
        return done(o, -ECANCELED);
    if (!s->has_reset || s->reset_told)
        return done(o, 0);
    s->reset_told = true;
    return done(o, sim_below(8) ? -ECONNRESET : -ETIMEDOUT);
}

static enum ready complete_send(struct operation *o) {
    struct socket_ *s = o->socket;
    if (s->has_reset || s->shut_write)
        return done(o, s->has_reset && sim_below(2) ? -ECONNRESET : -EPIPE);
    uint32_t room = s->inbox_room - s->inbox_bytes;
    uint32_t bytes = o->bytes - (uint32_t)o->progress;
    if (room == 0 && !(o->flags & MSG_WAITALL) && o->progress == 0)
        return (o->flags & MSG_DONTWAIT) ? done(o, -EAGAIN) : READY_NOT;
    bytes = bytes < room ? bytes : room;
    if (bytes > 1 && !sim.calm && sim_one_of(10))
        bytes = 1 + sim_below(bytes);
    memcpy(s->inbox + s->inbox_bytes, o->memory + o->progress, bytes);
    s->inbox_bytes += bytes;
    o->progress += bytes;
    if (o->progress < o->bytes && (o->flags & MSG_WAITALL))
        return READY_NOT;
    return done(o, (int)o->progress);
}

enum ready network_complete(struct operation *o) {
    switch (o->opcode) {
    case IORING_OP_ACCEPT:
        return complete_accept(o);
    case IORING_OP_POLL_ADD:
        return complete_poll(o);
    case IORING_OP_RECV:
        return complete_receive(o);
    case IORING_OP_SEND:
        return complete_send(o);
    case IORING_OP_CLOSE:
        close_descriptor(o->fd);
        return done(o, 0);
    }
    sim_fail("operation %u is not the network's", o->opcode);
}

/* --- Calls --------------------------------------------------------------------------- */

int sim_close(int fd) {
    if (fd >= FD_EVENTFD && fd < FD_EVENTFD + 2)
        return 0;
    close_descriptor(fd);
    return 0;
}

int sim_ioctl(int fd, unsigned long request, ...) {
    const struct socket_ *s = socket_of(fd);
    va_list arguments;
    va_start(arguments, request);
    int *out = va_arg(arguments, int *);
    va_end(arguments);
    if (request != FIONREAD)
        sim_fail("ioctl %lx of a socket", request);
    *out = (int)(s->arrived - s->read);
    return 0;
}

int sim_getsockopt(int fd, int level, int option, void *value, socklen_t *bytes) {
    const struct socket_ *s = socket_of(fd);
    if (level == IPPROTO_TCP && option == TCP_INFO) {
        struct tcp_info info = {.tcpi_state = s->has_reset ? TCP_CLOSE
                                              : s->has_fin ? TCP_CLOSE_WAIT
                                                           : TCP_ESTABLISHED};
        info.tcpi_last_data_recv = (uint32_t)((sim.now_ns - s->last_data_ns) / MS);
        memcpy(value, &info, *bytes < sizeof info ? *bytes : sizeof info);
        return 0;
    }
    if (level == SOL_SOCKET && option == SO_INCOMING_NAPI_ID) {
        unsigned napi = s->is_other_queue ? NAPI_OTHER : NAPI_OWN;
        memcpy(value, &napi, sizeof napi);
        return 0;
    }
    sim_fail("getsockopt %d of level %d", option, level);
}

int sim_setsockopt(int fd, int level, int option, const void *value, socklen_t bytes) {
    bool is_listener = fd >= FD_LISTENER && fd < FD_LISTENER + (int)LISTENERS_COUNT;
    uint64_t *buffer_bytes =
        is_listener ? &listener_buffer_bytes[fd - FD_LISTENER] : &socket_of(fd)->buffer_bytes;
    bool *is_bound =
        is_listener ? &listener_is_bound[fd - FD_LISTENER] : &socket_of(fd)->has_bound_window;
    int half = 0;
    if (level == SOL_SOCKET && option == SO_RCVBUFFORCE && bytes == sizeof half) {
        memcpy(&half, value, sizeof half);
        *buffer_bytes = 2 * (uint64_t)half;
        *is_bound = true; /* from Linux 7.3 on */
    }
    if (is_listener && level == SOL_SOCKET)
        listener_is_locked[fd - FD_LISTENER] = option != SO_BUF_LOCK;
    if (level == IPPROTO_TCP && option == TCP_WINDOW_CLAMP)
        *is_bound = false;
    return 0;
}

int sim_getpeername(int fd, struct sockaddr *peer, socklen_t *bytes) {
    const struct socket_ *s = socket_of(fd);
    fill_peer(s, peer, bytes); /* also of one that has gone: whose a flow is, its port tells */
    return 0;
}

ssize_t sim_send(int fd, const void *data, size_t bytes, int flags) {
    struct socket_ *s = socket_of(fd);
    (void)flags;
    uint32_t room = s->inbox_room - s->inbox_bytes;
    errno = s->has_reset ? EPIPE : EAGAIN;
    if (s->has_reset || room < bytes)
        return -1;
    memcpy(s->inbox + s->inbox_bytes, data, bytes);
    s->inbox_bytes += (uint32_t)bytes;
    return (ssize_t)bytes;
}

ssize_t sim_recv(int fd, void *data, size_t bytes, int flags) {
    struct socket_ *s = socket_of(fd);
    uint64_t waits = s->arrived - s->read;
    if (data != NULL || !(flags & MSG_TRUNC))
        sim_fail("a receive that does not drop what it gets");
    errno = EAGAIN;
    if (waits == 0)
        return s->has_fin ? 0 : -1;
    waits = waits < bytes ? waits : bytes;
    nic_consume(s, waits);
    s->read += waits;
    return (ssize_t)waits;
}

int sim_shutdown(int fd, int how) {
    struct socket_ *s = socket_of(fd);
    s->shut_write = s->shut_write || how != SHUT_RD;
    s->shut_read = s->shut_read || how != SHUT_WR;
    return 0;
}

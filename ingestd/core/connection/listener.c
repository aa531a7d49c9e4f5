/* SPDX-License-Identifier: Apache-2.0
 *
 * Accepts, admits and denies connections: listener.h.
 */
#include "connection/listener.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection/connection.h"
#include "connection/event.h"
#include "format/flow_id.h"
#include "connection/connections.h"

/* After an accept failed for want of descriptors or memory, others may give some back. */
#define ACCEPT_RETRY_NS 100000000ull
#define TURNED_AWAY_READS_MAX 4
#define DENIED_REPORT_NS 1000000000ull

static void listener_make_id(struct connections *c, uint8_t id[FLOW_ID_BYTES]) {
    flow_id_make(id, c->settings.store_uuid, reactor_unix_ns(c->reactor) / 1000000,
                 (uint8_t)c->settings.worker_index, c->flow_id_serial++);
}

static void listener_note_peer(struct connection *conn, const struct sockaddr_storage *peer) {
    if (peer->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)peer;
        conn->peer_family = 4;
        conn->peer_port = ntohs(in->sin_port);
        memcpy(conn->peer_address, &in->sin_addr, 4);
    } else if (peer->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)peer;
        bool mapped = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
        conn->peer_family = mapped ? 4 : 6;
        conn->peer_port = ntohs(in6->sin6_port);
        memcpy(conn->peer_address, in6->sin6_addr.s6_addr + (mapped ? 12 : 0), mapped ? 4 : 16);
    }
}

static void listener_arm_accept(struct connections *c, struct listener *l) {
    assert(!l->accepting && !l->stopped);
    struct io_uring_sqe *sqe = reactor_sqe(c->reactor, TAG_ACCEPT, (uint32_t)(l - c->listeners));
    l->peer_bytes = sizeof l->peer;
    io_uring_prep_accept(sqe, l->fd, (struct sockaddr *)&l->peer, &l->peer_bytes, SOCK_CLOEXEC);
    l->accepting = true;
}

static void listener_accept_failed(struct connections *c, struct listener *l, int code) {
    /* A peer that left before it was accepted is no failure of ours. */
    if (code == ECANCELED || code == ECONNABORTED || code == EINTR || code == EAGAIN)
        return;
    l->retry_ns = c->reactor->now_ns + ACCEPT_RETRY_NS;
    STAT_ADD(c->reactor, accept_errors, 1);
    struct event *e = reactor_new_event(
        c->reactor, (struct event_detail){.kind = EVENT_ACCEPT_FAILED, .accept_error = code});
    if (e == NULL)
        return;
    e->listener_index = (int32_t)l->index;
    mailbox_publish(&c->reactor->mailbox, false);
}

/* One event a second reports all, so that a flood of them hides nothing else. */
static void listener_note_denied(struct connections *c, const struct connection *peer,
                                 enum denial why) {
    struct denied *denied = &c->listeners[peer->listener].denied[why];
    denied->count++;
    if (c->reactor->now_ns < denied->reported_ns)
        return;
    connection_event(
        c, peer, (struct event_detail){.kind = EVENT_FLOW_DENIED, .denial = {why, denied->count}});
    denied->count = 0;
    denied->reported_ns = c->reactor->now_ns + DENIED_REPORT_NS;
}

static bool listener_admits(struct connections *c, struct listener *l, int fd) {
    struct connection peer = {.listener = (uint8_t)(l - c->listeners)};
    listener_note_peer(&peer, &l->peer);
    bool in = networks_hold(l->allow, l->allow_count, peer.peer_family, peer.peer_address);
    if (in)
        return true;
    close(fd);
    STAT_ADD(c->reactor, flows_denied, 1);
    listener_note_denied(c, &peer, DENIED_NETWORK);
    return false;
}

/* The line is sent only as far as the socket takes it at once. Bytes already received are
 * dropped before the close: else it would send a reset, which might overtake the line. */
static void listener_deny(const struct listener *l, const struct connection *conn) {
    char line[CONNECTION_LINE_BYTES];
    size_t bytes = l->protocol->format_denial(conn, line, sizeof line);
    if (send(conn->fd, line, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes)
        shutdown(conn->fd, SHUT_WR);
    for (int i = 0; i < TURNED_AWAY_READS_MAX; i++)
        if (recv(conn->fd, NULL, CONNECTION_DISCARD_BYTES, MSG_DONTWAIT | MSG_TRUNC) <= 0)
            break;
    close(conn->fd);
}

/* Of connections that stay with this worker: who is handed away is counted where it goes. One
 * whose peer has gone already, and is thus unknown, soon ends by itself. */
static bool listener_is_over_peer_max(struct connections *c, const struct listener *l,
                                      struct connection *conn) {
    if (l->flows_per_peer_max == 0 || conn->peer_family == 0)
        return false;
    struct peer peer = listener_peer(conn);
    conn->counted = peers_add(&c->peers, &peer, l->flows_per_peer_max);
    return !conn->counted;
}

static void listener_refuse_over_peer_max(struct connections *c, const struct listener *l,
                                          struct connection *conn) {
    conn->state = FLOW_STATE_INTERRUPTED;
    conn->reason = CLOSE_REASON_LIMIT;
    conn->error = EUSERS;
    memset(conn->stream.id, 0, sizeof conn->stream.id); /* no flow has begun */
    listener_deny(l, conn);
    STAT_ADD(c->reactor, flows_over_peer_max, 1);
    listener_note_denied(c, conn, DENIED_PEER);
    conn->fd = -1;
    conn->ended = true;
    connection_set_phase(conn, CONNECTION_GONE);
    connection_try_free(c, conn);
}

/* What the OPEN record says of a connection; a session adds what its hello says. */
static void listener_note_opening(struct connection *conn, const struct listener *l) {
    conn->opening = (struct frame_open){
        .started_ns = conn->started_ns,
        .peer_port = conn->peer_port,
        .peer_family = conn->peer_family,
        .protocol = l->protocol->number,
        .listener = l->name,
        .listener_bytes = (uint16_t)strlen(l->name),
    };
    memcpy(conn->opening.peer_address, conn->peer_address, sizeof conn->opening.peer_address);
}

static bool listener_hand_away(struct connections *c, struct connection *conn, uint32_t owner) {
    const struct event_detail elsewhere = {.kind = EVENT_FLOW_ELSEWHERE,
                                           .elsewhere = {owner, conn->fd}};
    if (conn->adopted || !connection_event(c, conn, elsewhere))
        return false;
    STAT_ADD(c->reactor, flows_handed_away, 1);
    conn->fd = -1;
    conn->ended = true;
    connection_set_phase(conn, CONNECTION_GONE); /* its socket now belongs to the other worker */
    connection_try_free(c, conn);
    return true;
}

/* The rx queue by which it arrived decides which worker serves it. */
static bool listener_is_elsewhere(struct connections *c, struct connection *conn) {
    struct engine_owner owner = c->engine->owner(c->receiver, conn);
    if (owner.is_elsewhere)
        return listener_hand_away(c, conn, owner.worker_index);
    if (owner.napi_id != 0)
        connection_event(
            c, conn, (struct event_detail){.kind = EVENT_FLOW_BY_COPY, .napi_id = owner.napi_id});
    return false;
}

/* handed: by another worker; NULL: accepted here. */
static void listener_begin(struct connections *c, struct listener *l, int fd,
                           const struct handed_over *handed) {
    struct connection *conn = connection_table_take(c->table);
    assert(conn != NULL); /* an accept is armed only while there is room */
    conn->fd = fd;
    conn->listener = (uint8_t)(l - c->listeners);
    conn->protocol = l->protocol;
    conn->started_ns = reactor_unix_ns(c->reactor);
    conn->active_ns = c->reactor->awake_ns;
    listener_note_peer(conn, &l->peer);
    listener_make_id(c, conn->stream.id);
    listener_note_opening(conn, l);
    conn->checksummed = c->settings.checksum;
    conn->adopted = handed != NULL;
    conn->move_id = handed != NULL ? handed->move_id : 0;
    listener_count_connection(l, 1);
    if (listener_is_elsewhere(c, conn))
        return; /* the worker that it belongs to counts it, and greets it */
    c->engine->take(c->receiver, conn);
    conn->idle_list = &l->idle;
    if (listener_is_over_peer_max(c, l, conn)) {
        listener_refuse_over_peer_max(c, l, conn);
        return;
    }
    STAT_ADD(c->reactor, flows_opened, 1);
    conn->protocol->begin(c, conn);
    if (l->stopped) /* its accept was faster than the stop, or another worker's */
        connection_interrupt(c, conn, CLOSE_REASON_SHUTDOWN, true);
}

static bool listener_has_room(const struct connections *c, const struct listener *l) {
    return l->connection_count < l->flows_max &&
           c->table->count < c->receiver->connections_at_once_max &&
           c->table->count + c->listener_count < c->table->capacity;
}

/* It has no entry in the table, which may be full. Where its event finds no room, its reader is
 * far behind: then the sender is to come back later. */
static void listener_give_away(struct connections *c, struct listener *l, int fd) {
    struct connection conn = {.listener = (uint8_t)(l - c->listeners)};
    listener_note_peer(&conn, &l->peer);
    const struct event_detail elsewhere = {.kind = EVENT_FLOW_ELSEWHERE,
                                           .elsewhere = {ELSEWHERE_ANY, fd}};
    if (connection_event(c, &conn, elsewhere))
        STAT_ADD(c->reactor, flows_handed_away, 1);
    else
        listener_turn_away(c, l, fd, CLOSE_REASON_LIMIT);
}

void listener_accepted(struct connections *c, uint32_t listener, int result) {
    struct listener *l = &c->listeners[listener];
    assert(l->accepting);
    l->accepting = false;
    c->accepts_ns = 0;
    if (result < 0) {
        listener_accept_failed(c, l, -result);
        return;
    }
    if (l->allow_count != 0 && !listener_admits(c, l, result))
        return;
    if (l->passing && !l->stopped)
        listener_give_away(c, l, result);
    else if (l->roomless && !listener_has_room(c, l))
        listener_turn_away(c, l, result, CLOSE_REASON_LIMIT);
    else
        listener_begin(c, l, result, NULL);
}

static void listener_find_peer(int fd, struct sockaddr_storage *peer) {
    socklen_t bytes = sizeof *peer;
    *peer = (struct sockaddr_storage){.ss_family = AF_UNSPEC};
    if (getpeername(fd, (struct sockaddr *)peer, &bytes) != 0)
        peer->ss_family = AF_UNSPEC; /* it has gone: unknown */
}

void listener_adopt(struct connections *c, struct listener *l, const struct handed_over *handed) {
    struct sockaddr_storage accepting = l->peer; /* an accept may be under way */
    listener_find_peer(handed->fd, &l->peer);
    listener_begin(c, l, handed->fd, handed);
    l->peer = accepting;
}

void listener_turn_away(struct connections *c, struct listener *l, int fd, uint8_t reason) {
    struct connection conn = {.fd = fd,
                              .protocol = l->protocol,
                              .listener = (uint8_t)(l - c->listeners),
                              .state = FLOW_STATE_INTERRUPTED,
                              .reason = reason};
    struct sockaddr_storage peer;
    listener_find_peer(fd, &peer);
    listener_note_peer(&conn, &peer);
    listener_deny(l, &conn);
    STAT_ADD(c->reactor, flows_refused, 1);
    connection_event_end(c, &conn, EVENT_FLOW_REFUSED);
}

static uint64_t listener_accept_more(struct connections *c, struct listener *l) {
    bool room = listener_has_room(c, l);
    if (l->stopped || l->accepting || !(room || l->passing))
        return TIME_NEVER;
    if (l->retry_ns > c->reactor->now_ns)
        return l->retry_ns;
    listener_arm_accept(c, l);
    l->roomless = !room;
    return TIME_NEVER;
}

void listener_pass_on(struct connections *c, uint32_t listener_index, bool wanted) {
    for (uint32_t i = 0; i < c->listener_count; i++)
        if (c->listeners[i].index == listener_index)
            c->listeners[i].passing = wanted;
    c->accepts_ns = 0; /* more, or fewer, may be armed */
}

uint64_t listeners_turn(struct connections *c) {
    uint64_t next_ns = TIME_NEVER;
    for (uint32_t i = 0; i < c->listener_count; i++)
        next_ns = time_min(next_ns, listener_accept_more(c, &c->listeners[i]));
    return next_ns;
}

void listeners_stop(struct connections *c) {
    for (uint32_t i = 0; i < c->listener_count; i++) {
        struct listener *l = &c->listeners[i];
        if (!l->stopped && l->accepting)
            reactor_cancel(c->reactor, TAG_ACCEPT, i, TAG_ACCEPT_CANCEL);
        l->stopped = true;
    }
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A stage for connections and listeners: the rest of the worker, played. One program each includes
 * it once.
 */
#ifndef TESTS_CORE_CONNECTION_STAGE_H
#define TESTS_CORE_CONNECTION_STAGE_H

#include "connection/connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connection/ingest/lines.h"
#include "harness.h"
#include "worker.h"

#define CAPACITY 8u

static struct {
    struct worker *w;
    struct io_uring_sqe sqe;
    uint32_t closes;       /* CLOSE records made ... */
    uint8_t state, reason; /* ... and what the last one says */
    bool refuses_close;    /* no batch has room for one */
    uint32_t begun, refused;
    uint32_t stopped;      /* flows that were stopped ... */
    uint8_t stopped_for;   /* ... and why, the last one */
    bool is_elsewhere;     /* connections accepted belong to another worker */
    bool is_reader_late;   /* ... and no event has room */
    int handed_away;       /* ... which has this one now ... */
    uint32_t handed_to;    /* ... and is that one */
    uint32_t denied, told; /* connections denied, events that report them */
    int denial;            /* and why, the last one */
    struct event accept_event;
} stage;

struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index) {
    (void)r, (void)tag, (void)index;
    return &stage.sqe;
}

uint64_t reactor_unix_ns(const struct reactor *r) {
    return r->now_ns;
}

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)r, (void)tag, (void)index, (void)found;
}

struct event *reactor_new_event(struct reactor *r, struct event_detail detail) {
    stage.accept_event.detail = ((void)r, detail);
    return &stage.accept_event;
}

void mailbox_publish(struct mailbox *m, bool quiet) {
    (void)m, (void)quiet;
}

void connection_event_end(struct connections *c, const struct connection *conn,
                          enum event_kind kind) {
    (void)c, (void)conn;
    stage.refused += kind == EVENT_FLOW_REFUSED;
}

bool connection_event(struct connections *c, const struct connection *conn,
                      struct event_detail detail) {
    (void)c, (void)conn;
    if (stage.is_reader_late)
        return false;
    if (detail.kind == EVENT_FLOW_ELSEWHERE) {
        stage.handed_away = detail.elsewhere.fd;
        stage.handed_to = detail.elsewhere.worker_index;
    }
    if (detail.kind != EVENT_FLOW_DENIED)
        return true;
    stage.told++;
    stage.denied += detail.denial.count;
    stage.denial = (int)detail.denial.why;
    return true;
}

bool storage_append_close(struct storage *s, struct storage_stream *t,
                          const struct frame_close *c) {
    (void)s, (void)t;
    if (stage.refuses_close)
        return false;
    stage.closes++;
    stage.state = (uint8_t)c->state;
    stage.reason = (uint8_t)c->reason;
    return true;
}

/* --- Another protocol than raw, played --------------------------------------------------- */

static void played_begin(struct connections *c, struct connection *conn) {
    (void)c;
    connection_set_phase(conn, CONNECTION_HELLO);
    stage.begun++;
}

static bool played_yes(struct connections *c, struct connection *conn) {
    (void)c, (void)conn;
    return true;
}

static bool played_no(struct connections *c, struct connection *conn) {
    (void)c, (void)conn;
    return false; /* an engine has it */
}

const struct protocol protocol_ingest = {
    .number = PROTOCOL_INGEST,
    .begin = played_begin,
    .stop = played_no,
    .release = played_yes,
    .format_denial = line_denial,
};

static void stop(struct receiver *r, struct connection *conn) {
    (void)r;
    stage.stopped++;
    stage.stopped_for = conn->reason;
}

static struct engine_owner owner(struct receiver *r, const struct connection *conn) {
    (void)r, (void)conn;
    return (struct engine_owner){.is_elsewhere = stage.is_elsewhere, .worker_index = 1};
}

static void take(struct receiver *r, struct connection *conn) {
    (void)r, (void)conn;
}

static void start(struct receiver *r, struct connection *conn) {
    (void)r;
    connection_set_phase(conn, CONNECTION_RECEIVING);
    stage.begun++;
}

static const struct engine engine = {.owner = owner, .take = take, .start = start, .stop = stop};

static void open_stage(void) {
    memset(&stage, 0, sizeof stage);
    struct worker *w = stage.w = calloc(1, sizeof *w);
    CHECK_EQUAL(connection_table_init(&w->table, CAPACITY), 0);
    w->receiver.reactor = &w->reactor;
    w->receiver.storage = &w->storage;
    w->receiver.table = &w->table;
    connections_init(&w->connections, &w->receiver, &engine);
    w->receiver.connections_at_once_max = CAPACITY;
    w->reactor.now_ns = 1;
    for (uint32_t i = 0; i < 2; i++) {
        struct listener *l = &w->connections.listeners[w->connections.listener_count++];
        l->index = 7 + i;
        l->protocol = i == 0 ? &protocol_raw : &protocol_ingest;
        l->idle = l->greeting = l->acks_pending = CONNECTION_LIST_EMPTY;
    }
}

static void close_stage(void) {
    CHECK_EQUAL(stage.w->connections.peers.connections, 0);
    connection_table_deinit(&stage.w->table);
    peers_close(&stage.w->connections.peers);
    free(stage.w);
}

#endif

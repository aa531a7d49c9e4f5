/* SPDX-License-Identifier: Apache-2.0
 *
 * The connection table and queues of connection_table.h.
 */
#include "receive/connection_table.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PHASE(name) (1u << CONNECTION_##name)
/* Its payload is received, by an engine that does as it sees fit. */
#define PHASES_PAYLOAD (PHASE(POLLING) | PHASE(RECEIVING) | PHASE(STARVED) | PHASE(BLOCKED))
/* What ends the payload: the end of the stream, its limit, or a stop. */
#define PHASES_BEHIND (PHASE(PENDING) | PHASE(TAIL) | PHASE(CLOSING))

static const char *const connection_phase_names[CONNECTION_PHASES_COUNT] = {
    [CONNECTION_FREE] = "FREE",           [CONNECTION_NEW] = "NEW",
    [CONNECTION_HELLO] = "HELLO",         [CONNECTION_PENDING] = "PENDING",
    [CONNECTION_POLLING] = "POLLING",     [CONNECTION_RECEIVING] = "RECEIVING",
    [CONNECTION_STARVED] = "STARVED",     [CONNECTION_BLOCKED] = "BLOCKED",
    [CONNECTION_TAIL] = "TAIL",           [CONNECTION_CLOSING] = "CLOSING",
    [CONNECTION_LAST_LINE] = "LAST_LINE", [CONNECTION_LINGERING] = "LINGERING",
    [CONNECTION_GONE] = "GONE",
};

/* Which phases follow each. */
const uint32_t connection_phase_next[CONNECTION_PHASES_COUNT] = {
    [CONNECTION_FREE] = PHASE(NEW),
    [CONNECTION_NEW] = PHASE(HELLO) | PHASE(PENDING) | PHASE(POLLING) | PHASE(RECEIVING) |
                       PHASE(STARVED) | PHASE(GONE),
    [CONNECTION_HELLO] = PHASE(PENDING) | PHASE(CLOSING),
    [CONNECTION_PENDING] = PHASE(POLLING) | PHASE(RECEIVING) | PHASE(STARVED) | PHASE(TAIL) |
                           PHASE(CLOSING) | PHASE(GONE),
    [CONNECTION_POLLING] = PHASES_PAYLOAD | PHASES_BEHIND,
    [CONNECTION_RECEIVING] = PHASES_PAYLOAD | PHASES_BEHIND,
    [CONNECTION_STARVED] = PHASES_PAYLOAD | PHASES_BEHIND,
    [CONNECTION_BLOCKED] = PHASES_PAYLOAD | PHASES_BEHIND,
    [CONNECTION_TAIL] = PHASE(TAIL) | PHASE(PENDING) | PHASE(CLOSING),
    [CONNECTION_CLOSING] = PHASE(LAST_LINE) | PHASE(GONE),
    [CONNECTION_LAST_LINE] = PHASE(LINGERING) | PHASE(GONE),
    [CONNECTION_LINGERING] = PHASE(GONE),
    [CONNECTION_GONE] = PHASE(FREE),
};

bool connection_phase_may_follow(enum connection_phase from, enum connection_phase to) {
    assert(from < CONNECTION_PHASES_COUNT && to < CONNECTION_PHASES_COUNT);
    return (connection_phase_next[from] >> to & 1u) != 0;
}

const char *connection_phase_name(enum connection_phase phase) {
    assert(phase < CONNECTION_PHASES_COUNT);
    return connection_phase_names[phase];
}

static struct connection_link *connection_table_link(struct connection_table *t, uint32_t index,
                                                     size_t link_offset) {
    return (struct connection_link *)((char *)&t->connections[index] + link_offset);
}

static void connection_table_append(struct connection_table *t, struct connection_list *l,
                                    uint32_t index, size_t link_offset) {
    struct connection_link *n = connection_table_link(t, index, link_offset);
    n->next = CONNECTION_NONE;
    n->prev = l->tail;
    if (l->tail == CONNECTION_NONE)
        l->head = index;
    else
        connection_table_link(t, l->tail, link_offset)->next = index;
    l->tail = index;
    l->count++;
}

static void connection_table_remove(struct connection_table *t, struct connection_list *l,
                                    uint32_t index, size_t link_offset) {
    struct connection_link *n = connection_table_link(t, index, link_offset);
    assert(l->count > 0);
    if (n->prev == CONNECTION_NONE)
        l->head = n->next;
    else
        connection_table_link(t, n->prev, link_offset)->next = n->next;
    if (n->next == CONNECTION_NONE)
        l->tail = n->prev;
    else
        connection_table_link(t, n->next, link_offset)->prev = n->prev;
    n->next = n->prev = CONNECTION_NONE;
    l->count--;
}

int connection_table_init(struct connection_table *t, uint32_t capacity) {
    /* calloc leaves pages of connections never used untouched: they cost no memory. */
    t->connections = calloc(capacity, sizeof *t->connections);
    if (t->connections == NULL)
        return -ENOMEM;
    t->capacity = capacity;
    t->used_upto = 0;
    t->free_head = CONNECTION_NONE;
    t->count = 0;
    for (int q = 0; q < QUEUES_COUNT; q++)
        t->waiting[q] = CONNECTION_LIST_EMPTY;
    return 0;
}

void connection_table_deinit(struct connection_table *t) {
    free(t->connections);
    t->connections = NULL;
}

struct connection *connection_table_take(struct connection_table *t) {
    struct connection *conn;
    if (t->free_head != CONNECTION_NONE) {
        conn = &t->connections[t->free_head];
        t->free_head = conn->wait.next;
    } else if (t->used_upto < t->capacity) {
        conn = &t->connections[t->used_upto++];
    } else {
        return NULL;
    }
    assert(conn->phase == CONNECTION_FREE);
    memset(conn, 0, sizeof *conn);
    conn->index = (uint32_t)(conn - t->connections);
    conn->fd = -1;
    conn->stream.owner = conn->index;
    conn->stream.open = &conn->opening;
    conn->recv = RECV_CONNECTION_NONE;
    conn->zcrx = ZCRX_CONNECTION_NONE;
    conn->wait = conn->idle = conn->ack =
        (struct connection_link){CONNECTION_NONE, CONNECTION_NONE};
    conn->limit_bytes = UINT64_MAX;
    connection_set_phase(conn, CONNECTION_NEW);
    t->count++;
    return conn;
}

void connection_table_put(struct connection_table *t, struct connection *conn) {
    assert(conn->queue == QUEUE_NONE && conn->report == 0);
    assert(conn->ops_in_flight == 0 && conn->stream.acks_pending == 0);
    assert(recv_has_nothing(&conn->recv) && zcrx_has_nothing(&conn->zcrx));
    connection_set_phase(conn, CONNECTION_FREE);
    conn->wait.next = t->free_head;
    t->free_head = conn->index;
    t->count--;
}

void connection_wait(struct connection_table *t, struct connection *conn,
                     enum connection_queue queue, uint64_t since_ns) {
    const size_t at = offsetof(struct connection, wait);
    if (conn->queue != QUEUE_NONE)
        connection_table_remove(t, &t->waiting[conn->queue], conn->index, at);
    conn->queue = (uint8_t)queue;
    conn->since_ns = since_ns;
    if (queue != QUEUE_NONE)
        connection_table_append(t, &t->waiting[queue], conn->index, at);
}

void connection_wait_in_order(struct connection_table *t, struct connection *conn,
                              enum connection_queue queue, uint64_t since_ns) {
    struct connection_list *l = &t->waiting[queue];
    connection_wait(t, conn, queue, since_ns);
    uint32_t next = l->head;
    while (next != conn->index && t->connections[next].since_ns <= since_ns)
        next = t->connections[next].wait.next;
    if (next == conn->index)
        return;
    connection_table_remove(t, l, conn->index, offsetof(struct connection, wait));
    struct connection_link *behind = &t->connections[next].wait;
    conn->wait = (struct connection_link){.next = next, .prev = behind->prev};
    if (behind->prev == CONNECTION_NONE)
        l->head = conn->index;
    else
        t->connections[behind->prev].wait.next = conn->index;
    behind->prev = conn->index;
    l->count++;
}

static bool connection_table_is_linked(const struct connection_list *list,
                                       const struct connection_link *link, uint32_t index) {
    return link->prev != CONNECTION_NONE || link->next != CONNECTION_NONE || list->head == index;
}

void connection_idle_move(struct connection_table *t, struct connection_list *list,
                          struct connection *conn) {
    connection_idle_remove(t, list, conn);
    connection_table_append(t, list, conn->index, offsetof(struct connection, idle));
}

void connection_idle_remove(struct connection_table *t, struct connection_list *list,
                            struct connection *conn) {
    if (connection_table_is_linked(list, &conn->idle, conn->index))
        connection_table_remove(t, list, conn->index, offsetof(struct connection, idle));
}

void connection_ack_add(struct connection_table *t, struct connection_list *list,
                        struct connection *conn) {
    if (!connection_table_is_linked(list, &conn->ack, conn->index))
        connection_table_append(t, list, conn->index, offsetof(struct connection, ack));
}

void connection_ack_remove(struct connection_table *t, struct connection_list *list,
                           struct connection *conn) {
    if (connection_table_is_linked(list, &conn->ack, conn->index))
        connection_table_remove(t, list, conn->index, offsetof(struct connection, ack));
}

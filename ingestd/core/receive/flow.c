/* SPDX-License-Identifier: Apache-2.0
 *
 * The flow table and queues of flow.h.
 */
#include "receive/flow.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PHASE(name) (1u << FLOW_##name)
/* Its payload is received, by an engine that does as it sees fit. */
#define PHASES_PAYLOAD (PHASE(POLLING) | PHASE(RECEIVING) | PHASE(STARVED) | PHASE(BLOCKED))
/* What ends the payload: the end of the stream, its limit, or a stop. */
#define PHASES_BEHIND (PHASE(PENDING) | PHASE(TAIL) | PHASE(CLOSING))

static const char *const flow_phase_names[FLOW_PHASES_COUNT] = {
    [FLOW_FREE] = "FREE",           [FLOW_NEW] = "NEW",
    [FLOW_HELLO] = "HELLO",         [FLOW_PENDING] = "PENDING",
    [FLOW_POLLING] = "POLLING",     [FLOW_RECEIVING] = "RECEIVING",
    [FLOW_STARVED] = "STARVED",     [FLOW_BLOCKED] = "BLOCKED",
    [FLOW_TAIL] = "TAIL",           [FLOW_CLOSING] = "CLOSING",
    [FLOW_ANSWERING] = "ANSWERING", [FLOW_LINGERING] = "LINGERING",
    [FLOW_GONE] = "GONE",
};

/* Which phases follow each. */
static const uint32_t flow_phase_next[FLOW_PHASES_COUNT] = {
    [FLOW_FREE] = PHASE(NEW),
    [FLOW_NEW] = PHASE(HELLO) | PHASE(POLLING) | PHASE(RECEIVING) | PHASE(STARVED) | PHASE(GONE),
    [FLOW_HELLO] = PHASE(PENDING) | PHASE(CLOSING),
    [FLOW_PENDING] =
        PHASE(POLLING) | PHASE(RECEIVING) | PHASE(STARVED) | PHASE(TAIL) | PHASE(CLOSING),
    [FLOW_POLLING] = PHASES_PAYLOAD | PHASES_BEHIND,
    [FLOW_RECEIVING] = PHASES_PAYLOAD | PHASES_BEHIND,
    [FLOW_STARVED] = PHASES_PAYLOAD | PHASES_BEHIND,
    [FLOW_BLOCKED] = PHASES_PAYLOAD | PHASES_BEHIND,
    [FLOW_TAIL] = PHASE(TAIL) | PHASE(PENDING) | PHASE(CLOSING),
    [FLOW_CLOSING] = PHASE(ANSWERING) | PHASE(GONE),
    [FLOW_ANSWERING] = PHASE(LINGERING) | PHASE(GONE),
    [FLOW_LINGERING] = PHASE(GONE),
    [FLOW_GONE] = PHASE(FREE),
};

bool flow_phase_may_follow(enum flow_phase from, enum flow_phase to) {
    assert(from < FLOW_PHASES_COUNT && to < FLOW_PHASES_COUNT);
    return (flow_phase_next[from] >> to & 1u) != 0;
}

const char *flow_phase_name(enum flow_phase phase) {
    assert(phase < FLOW_PHASES_COUNT);
    return flow_phase_names[phase];
}

void flow_set_phase(struct flow *f, enum flow_phase phase) {
    assert(flow_phase_may_follow((enum flow_phase)f->phase, phase));
    f->phase = (uint8_t)phase;
}

static void flow_list_init(struct flow_list *l) {
    *l = (struct flow_list){FLOW_NONE, FLOW_NONE, 0};
}

static struct flow_link *flow_link_at(struct flow_table *t, uint32_t index, size_t link_offset) {
    return (struct flow_link *)((char *)&t->flows[index] + link_offset);
}

static void flow_list_append(struct flow_table *t, struct flow_list *l, uint32_t index,
                             size_t link_offset) {
    struct flow_link *n = flow_link_at(t, index, link_offset);
    n->next = FLOW_NONE;
    n->prev = l->tail;
    if (l->tail == FLOW_NONE)
        l->head = index;
    else
        flow_link_at(t, l->tail, link_offset)->next = index;
    l->tail = index;
    l->count++;
}

static void flow_list_remove(struct flow_table *t, struct flow_list *l, uint32_t index,
                             size_t link_offset) {
    struct flow_link *n = flow_link_at(t, index, link_offset);
    assert(l->count > 0);
    if (n->prev == FLOW_NONE)
        l->head = n->next;
    else
        flow_link_at(t, n->prev, link_offset)->next = n->next;
    if (n->next == FLOW_NONE)
        l->tail = n->prev;
    else
        flow_link_at(t, n->next, link_offset)->prev = n->prev;
    n->next = n->prev = FLOW_NONE;
    l->count--;
}

int flow_table_init(struct flow_table *t, uint32_t capacity) {
    /* calloc leaves pages of flows never used untouched: they cost no memory. */
    t->flows = calloc(capacity, sizeof *t->flows);
    if (t->flows == NULL)
        return -ENOMEM;
    t->capacity = capacity;
    t->used_upto = 0;
    t->free_head = FLOW_NONE;
    t->count = 0;
    for (int q = 0; q < QUEUES_COUNT; q++)
        flow_list_init(&t->waiting[q]);
    return 0;
}

void flow_table_destroy(struct flow_table *t) {
    free(t->flows);
    t->flows = NULL;
}

struct flow *flow_take(struct flow_table *t) {
    struct flow *f;
    if (t->free_head != FLOW_NONE) {
        f = &t->flows[t->free_head];
        t->free_head = f->wait.next;
    } else if (t->used_upto < t->capacity) {
        f = &t->flows[t->used_upto++];
    } else {
        return NULL;
    }
    assert(f->phase == FLOW_FREE);
    memset(f, 0, sizeof *f);
    f->index = (uint32_t)(f - t->flows);
    f->fd = -1;
    f->stream.owner = f->index;
    f->stream.open = &f->opening;
    f->slot_offset = UINT64_MAX;
    f->fragment_head = f->fragment_tail = FLOW_NONE;
    f->wait = f->idle = f->ack = (struct flow_link){FLOW_NONE, FLOW_NONE};
    f->limit_bytes = UINT64_MAX;
    flow_set_phase(f, FLOW_NEW);
    t->count++;
    return f;
}

void flow_give(struct flow_table *t, struct flow *f) {
    assert(f->queue == QUEUE_NONE && f->report == 0);
    assert(f->ops_in_flight == 0 && f->stream.acks_pending == 0 && f->slot_offset == UINT64_MAX);
    flow_set_phase(f, FLOW_FREE);
    f->wait.next = t->free_head;
    t->free_head = f->index;
    t->count--;
}

void flow_wait(struct flow_table *t, struct flow *f, enum flow_queue queue, uint64_t since_ns) {
    const size_t at = offsetof(struct flow, wait);
    if (f->queue != QUEUE_NONE)
        flow_list_remove(t, &t->waiting[f->queue], f->index, at);
    f->queue = (uint8_t)queue;
    f->since_ns = since_ns;
    if (queue != QUEUE_NONE)
        flow_list_append(t, &t->waiting[queue], f->index, at);
}

void flow_wait_in_order(struct flow_table *t, struct flow *f, enum flow_queue queue,
                        uint64_t since_ns) {
    struct flow_list *l = &t->waiting[queue];
    flow_wait(t, f, queue, since_ns);
    uint32_t next = l->head;
    while (next != f->index && t->flows[next].since_ns <= since_ns)
        next = t->flows[next].wait.next;
    if (next == f->index)
        return;
    flow_list_remove(t, l, f->index, offsetof(struct flow, wait));
    struct flow_link *behind = &t->flows[next].wait;
    f->wait = (struct flow_link){.next = next, .prev = behind->prev};
    if (behind->prev == FLOW_NONE)
        l->head = f->index;
    else
        t->flows[behind->prev].wait.next = f->index;
    behind->prev = f->index;
    l->count++;
}

void flow_keep_waiting(struct flow_table *t, struct flow *f, enum flow_queue queue,
                       uint64_t since_ns) {
    if (f->queue != queue)
        flow_wait(t, f, queue, since_ns);
}

bool flow_is_behind(const struct flow_table *t, const struct flow *f, enum flow_queue queue) {
    uint32_t head = t->waiting[queue].head;
    return head != FLOW_NONE && head != f->index;
}

struct flow *flow_first(const struct flow_table *t, enum flow_queue queue) {
    uint32_t head = t->waiting[queue].head;
    return head == FLOW_NONE ? NULL : &t->flows[head];
}

static bool flow_is_linked(const struct flow_list *list, const struct flow_link *link,
                           uint32_t index) {
    return link->prev != FLOW_NONE || link->next != FLOW_NONE || list->head == index;
}

void flow_idle_touch(struct flow_table *t, struct flow_list *list, struct flow *f) {
    if (list->tail == f->index)
        return;
    flow_idle_remove(t, list, f);
    flow_list_append(t, list, f->index, offsetof(struct flow, idle));
}

void flow_idle_remove(struct flow_table *t, struct flow_list *list, struct flow *f) {
    if (flow_is_linked(list, &f->idle, f->index))
        flow_list_remove(t, list, f->index, offsetof(struct flow, idle));
}

void flow_ack_add(struct flow_table *t, struct flow_list *list, struct flow *f) {
    if (!flow_is_linked(list, &f->ack, f->index))
        flow_list_append(t, list, f->index, offsetof(struct flow, ack));
}

void flow_ack_remove(struct flow_table *t, struct flow_list *list, struct flow *f) {
    if (flow_is_linked(list, &f->ack, f->index))
        flow_list_remove(t, list, f->index, offsetof(struct flow, ack));
}

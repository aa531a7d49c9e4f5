/* SPDX-License-Identifier: Apache-2.0
 *
 * The queue of handover.h.
 */
#include "connection/handover.h"

#include <unistd.h>

#include "connection/connections.h"

static struct listener *handover_listener_for(struct connections *c, uint32_t listener_index) {
    for (uint32_t i = 0; i < c->listener_count; i++)
        if (c->listeners[i].index == listener_index)
            return &c->listeners[i];
    return NULL;
}

/* One place is kept for each listener's accept; those are not ours to use. */
static bool handover_has_room(const struct connections *c) {
    return c->table->count < c->receiver->connections_at_once_max &&
           c->table->count + c->listener_count < c->table->capacity;
}

void handover_take(struct connections *c, struct handed_over handed) {
    struct handover *h = &c->handover;
    struct listener *l = handover_listener_for(c, handed.listener_index);
    if (l == NULL) { /* all workers of a listener's stores have it */
        STAT_ADD(c->reactor, flows_refused, 1);
        close(handed.fd);
    } else if (c->draining || l->stopped) {
        listener_turn_away(c, l, handed.fd, CLOSE_REASON_SHUTDOWN);
    } else if (h->count == 0 && handover_has_room(c)) {
        listener_adopt(c, l, &handed);
    } else if (h->count == HANDOVER_WAITING_MAX) {
        listener_turn_away(c, l, handed.fd, CLOSE_REASON_LIMIT);
    } else {
        h->waiting[(h->first + h->count++) % HANDOVER_WAITING_MAX] = handed;
    }
}

static struct handed_over handover_take_first(struct handover *h) {
    struct handed_over first = h->waiting[h->first];
    h->first = (h->first + 1) % HANDOVER_WAITING_MAX;
    h->count--;
    return first;
}

void handover_turn(struct connections *c) {
    while (c->handover.count > 0 && handover_has_room(c)) {
        struct handed_over next = handover_take_first(&c->handover);
        listener_adopt(c, handover_listener_for(c, next.listener_index), &next);
    }
}

void handover_stop(struct connections *c) {
    while (c->handover.count > 0) {
        struct handed_over next = handover_take_first(&c->handover);
        listener_turn_away(c, handover_listener_for(c, next.listener_index), next.fd,
                           CLOSE_REASON_SHUTDOWN);
    }
}

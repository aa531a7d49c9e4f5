/* SPDX-License-Identifier: Apache-2.0
 *
 * The queue of handover.h.
 */
#include "connection/handover.h"

#include <unistd.h>

#include "worker.h"

static struct listener *listener_for(struct worker *w, uint32_t listener_index) {
    for (uint32_t i = 0; i < w->listener_count; i++)
        if (w->listeners[i].index == listener_index)
            return &w->listeners[i];
    return NULL;
}

/* One place is kept for each listener's accept; those are not ours to use. */
static bool has_room(const struct worker *w) {
    return w->flows.count < w->receiver.flows_at_once_max &&
           w->flows.count + w->listener_count < w->flows.capacity;
}

void handover_take(struct worker *w, uint32_t listener_index, int fd) {
    struct handover *h = &w->handover;
    struct listener *l = listener_for(w, listener_index);
    if (l == NULL) { /* all workers of a store have the same ones */
        STAT_ADD(&w->reactor, flows_refused, 1);
        close(fd);
    } else if (w->draining || l->stopped) {
        listener_turn_away(w, l, fd, CLOSE_REASON_SHUTDOWN);
    } else if (h->count == 0 && has_room(w)) {
        listener_adopt(w, l, fd);
    } else if (h->count == HANDOVER_WAITING_MAX) {
        listener_turn_away(w, l, fd, CLOSE_REASON_LIMIT);
    } else {
        h->waiting[(h->first + h->count++) % HANDOVER_WAITING_MAX] =
            (struct handed_over){fd, listener_index};
    }
}

static struct handed_over take_first(struct handover *h) {
    struct handed_over first = h->waiting[h->first];
    h->first = (h->first + 1) % HANDOVER_WAITING_MAX;
    h->count--;
    return first;
}

void handover_turn(struct worker *w) {
    while (w->handover.count > 0 && has_room(w)) {
        struct handed_over c = take_first(&w->handover);
        listener_adopt(w, listener_for(w, c.listener_index), c.fd);
    }
}

void handover_stop(struct worker *w) {
    while (w->handover.count > 0) {
        struct handed_over c = take_first(&w->handover);
        listener_turn_away(w, listener_for(w, c.listener_index), c.fd, CLOSE_REASON_SHUTDOWN);
    }
}

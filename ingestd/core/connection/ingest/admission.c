/* SPDX-License-Identifier: Apache-2.0
 *
 * The two queues of admission.h. Any thread may call; see there who does.
 */
#include "connection/ingest/admission.h"

#include <assert.h>

void admission_open(struct admission *a) {
    pthread_mutex_init(&a->lock, NULL);
}

void admission_close(struct admission *a) {
    pthread_mutex_destroy(&a->lock);
}

static struct admission_place *admission_place_of(struct admission *a, uint64_t serial) {
    struct admission_place *p = a->places;
    while (p < a->places + PLACES_MAX && (p->kind == 0 || p->serial != serial))
        p++;
    assert(p < a->places + PLACES_MAX); /* the request was sent, and its response not taken */
    return p;
}

static void admission_take_place(struct admission *a, const struct admission_request *q) {
    struct admission_place *p = a->places;
    while (p->kind != 0)
        p++;
    assert(p < a->places + PLACES_MAX);
    *p = (struct admission_place){.serial = q->serial, .kind = q->kind};
    a->pending++;
    a->hellos += q->kind == REQUEST_HELLO;
}

/* Of those that are not parked. */
static void admission_count_off(struct admission *a, const struct admission_place *p) {
    assert(!p->parked && a->pending > 0);
    a->pending--;
    a->hellos -= p->kind == REQUEST_HELLO;
}

static bool admission_has_room(const struct admission *a, uint32_t kind) {
    if (a->request_tail - a->request_head >= REQUESTS_MAX)
        return false;
    if (kind == NOTE_ENDED)
        return true;
    return a->pending < REQUESTS_MAX && (kind != REQUEST_HELLO || a->hellos < HELLOS_MAX);
}

bool admission_send(struct admission *a, const struct admission_request *q) {
    pthread_mutex_lock(&a->lock);
    bool room = admission_has_room(a, q->kind);
    if (room) {
        a->requests[a->request_tail++ % REQUESTS_MAX] = *q;
        if (q->kind != NOTE_ENDED)
            admission_take_place(a, q);
    }
    pthread_mutex_unlock(&a->lock);
    return room;
}

bool admission_park(struct admission *a, uint64_t serial) {
    pthread_mutex_lock(&a->lock);
    struct admission_place *p = admission_place_of(a, serial);
    bool room = a->parked < PARKED_MAX;
    if (room) {
        admission_count_off(a, p);
        p->parked = true;
        a->parked++;
    }
    pthread_mutex_unlock(&a->lock);
    return room;
}

bool admission_take_request(struct admission *a, struct admission_request *out) {
    pthread_mutex_lock(&a->lock);
    bool some = a->request_head != a->request_tail;
    if (some)
        *out = a->requests[a->request_head++ % REQUESTS_MAX];
    pthread_mutex_unlock(&a->lock);
    return some;
}

void admission_respond(struct admission *a, const struct admission_response *response) {
    pthread_mutex_lock(&a->lock);
    struct admission_place *p = admission_place_of(a, response->serial);
    assert(!p->responded); /* one response to each request */
    p->responded = true;
    a->responses[a->response_tail++ % PLACES_MAX] = *response;
    pthread_mutex_unlock(&a->lock);
}

bool admission_take_response(struct admission *a, struct admission_response *out) {
    pthread_mutex_lock(&a->lock);
    bool some = a->response_head != a->response_tail;
    if (some) {
        *out = a->responses[a->response_head++ % PLACES_MAX];
        struct admission_place *p = admission_place_of(a, out->serial);
        assert(p->responded);
        if (p->parked)
            a->parked--;
        else
            admission_count_off(a, p);
        p->kind = 0;
    }
    pthread_mutex_unlock(&a->lock);
    return some;
}

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
    assert(p < a->places + PLACES_MAX); /* the question was asked, and its answer not taken */
    return p;
}

static void admission_take_place(struct admission *a, const struct question *q) {
    struct admission_place *p = a->places;
    while (p->kind != 0)
        p++;
    assert(p < a->places + PLACES_MAX);
    *p = (struct admission_place){.serial = q->serial, .kind = q->kind};
    a->unanswered++;
    a->hellos += q->kind == QUESTION_HELLO;
}

/* Of those that are not parked. */
static void admission_count_off(struct admission *a, const struct admission_place *p) {
    assert(!p->parked && a->unanswered > 0);
    a->unanswered--;
    a->hellos -= p->kind == QUESTION_HELLO;
}

static bool admission_has_room(const struct admission *a, uint32_t kind) {
    if (a->question_tail - a->question_head >= QUESTIONS_MAX)
        return false;
    if (kind == NOTE_ENDED)
        return true;
    return a->unanswered < QUESTIONS_MAX && (kind != QUESTION_HELLO || a->hellos < HELLOS_MAX);
}

bool admission_ask(struct admission *a, const struct question *q) {
    pthread_mutex_lock(&a->lock);
    bool room = admission_has_room(a, q->kind);
    if (room) {
        a->questions[a->question_tail++ % QUESTIONS_MAX] = *q;
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

bool admission_take_question(struct admission *a, struct question *out) {
    pthread_mutex_lock(&a->lock);
    bool some = a->question_head != a->question_tail;
    if (some)
        *out = a->questions[a->question_head++ % QUESTIONS_MAX];
    pthread_mutex_unlock(&a->lock);
    return some;
}

void admission_answer(struct admission *a, const struct answer *answer) {
    pthread_mutex_lock(&a->lock);
    struct admission_place *p = admission_place_of(a, answer->serial);
    assert(!p->answered); /* one answer to each question */
    p->answered = true;
    a->answers[a->answer_tail++ % PLACES_MAX] = *answer;
    pthread_mutex_unlock(&a->lock);
}

bool admission_take_answer(struct admission *a, struct answer *out) {
    pthread_mutex_lock(&a->lock);
    bool some = a->answer_head != a->answer_tail;
    if (some) {
        *out = a->answers[a->answer_head++ % PLACES_MAX];
        struct admission_place *p = admission_place_of(a, out->serial);
        assert(p->answered);
        if (p->parked)
            a->parked--;
        else
            admission_count_off(a, p);
        p->kind = 0;
    }
    pthread_mutex_unlock(&a->lock);
    return some;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The two queues of admission.h. Any thread may call; see there who does.
 */
#include "admission.h"

#include <assert.h>

void admission_open(struct admission *a) {
    pthread_mutex_init(&a->lock, NULL);
}

void admission_close(struct admission *a) {
    pthread_mutex_destroy(&a->lock);
}

bool admission_ask(struct admission *a, const struct question *q) {
    bool wants_answer = q->kind != NOTE_ENDED;
    pthread_mutex_lock(&a->lock);
    bool room = a->question_tail - a->question_head < QUESTIONS_MAX &&
                (!wants_answer || a->unanswered < QUESTIONS_MAX);
    if (room) {
        a->questions[a->question_tail++ % QUESTIONS_MAX] = *q;
        a->unanswered += wants_answer;
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
    assert(a->answer_tail - a->answer_head < a->unanswered); /* one answer to each question */
    a->answers[a->answer_tail++ % QUESTIONS_MAX] = *answer;
    pthread_mutex_unlock(&a->lock);
}

bool admission_take_answer(struct admission *a, struct answer *out) {
    pthread_mutex_lock(&a->lock);
    bool some = a->answer_head != a->answer_tail;
    if (some) {
        *out = a->answers[a->answer_head++ % QUESTIONS_MAX];
        a->unanswered--;
    }
    pthread_mutex_unlock(&a->lock);
    return some;
}

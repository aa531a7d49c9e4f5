/* SPDX-License-Identifier: Apache-2.0
 *
 * The queues between a worker and Python: order, bounds, and one answer each.
 */
#include "admission.h"

#include <stdlib.h>
#include <string.h>

#include "harness.h"

static struct admission *fresh(void) {
    struct admission *a = calloc(1, sizeof *a);
    admission_open(a);
    return a;
}

static void discard(struct admission *a) {
    admission_close(a);
    free(a);
}

static bool ask(struct admission *a, enum question_kind kind, uint64_t serial) {
    struct question q = {.kind = kind, .serial = serial};
    memset(q.block, (int)serial, sizeof q.block);
    return admission_ask(a, &q);
}

static void answer(struct admission *a, uint64_t serial) {
    struct answer n = {.kind = ANSWER_REFUSE, .serial = serial};
    admission_answer(a, &n);
}

static void questions_and_answers_come_in_order(void) {
    struct admission *a = fresh();
    struct question q;
    struct answer n;
    CHECK(!admission_take_question(a, &q) && !admission_take_answer(a, &n));
    for (uint64_t round = 0; round < 10 * QUESTIONS_MAX; round += 3) {
        for (uint64_t i = round; i < round + 3; i++)
            CHECK(ask(a, QUESTION_HELLO, i));
        for (uint64_t i = round; i < round + 3; i++) {
            CHECK(admission_take_question(a, &q));
            CHECK_EQUAL(q.serial, i);
            CHECK_EQUAL(q.block[SESSION_BLOCK_BYTES - 1], (uint8_t)i);
            answer(a, i);
        }
        for (uint64_t i = round; i < round + 3; i++) {
            CHECK(admission_take_answer(a, &n));
            CHECK_EQUAL(n.serial, i);
        }
    }
    CHECK_EQUAL(a->unanswered, 0);
    discard(a);
}

/* Read and not answered, a question still counts: its answer is sure of room. */
static void only_so_many_are_without_an_answer(void) {
    struct admission *a = fresh();
    struct question q;
    struct answer n;
    for (uint64_t i = 0; i < QUESTIONS_MAX; i++)
        CHECK(ask(a, QUESTION_HELLO, i));
    CHECK(!ask(a, QUESTION_TRAILER, 99));
    while (admission_take_question(a, &q))
        continue;
    CHECK(!ask(a, QUESTION_TRAILER, 99));
    CHECK(ask(a, NOTE_ENDED, 100)); /* which wants no answer */
    for (uint64_t i = 0; i < QUESTIONS_MAX; i++)
        answer(a, i);
    CHECK(!ask(a, QUESTION_TRAILER, 99)); /* the answers are not taken yet */
    CHECK(admission_take_answer(a, &n));
    CHECK(ask(a, QUESTION_TRAILER, 99));
    discard(a);
}

static void notes_are_bounded_too(void) {
    struct admission *a = fresh();
    struct question q;
    for (uint64_t i = 0; i < QUESTIONS_MAX; i++)
        CHECK(ask(a, NOTE_ENDED, i));
    CHECK(!ask(a, NOTE_ENDED, 99));
    CHECK(admission_take_question(a, &q));
    CHECK(ask(a, NOTE_ENDED, 99));
    CHECK_EQUAL(a->unanswered, 0);
    discard(a);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(questions_and_answers_come_in_order),
        TEST(only_so_many_are_without_an_answer),
        TEST(notes_are_bounded_too),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

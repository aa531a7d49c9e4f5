/* SPDX-License-Identifier: Apache-2.0
 *
 * The queues between a worker and Python: order, bounds, and one answer each.
 */
#include "connection/ingest/admission.h"

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

static bool ask(struct admission *a, enum request_kind kind, uint64_t serial) {
    struct admission_request q = {.kind = kind, .serial = serial};
    memset(q.block, (int)serial, sizeof q.block);
    return admission_send(a, &q);
}

static void answer(struct admission *a, uint64_t serial) {
    struct admission_response n = {.kind = RESPONSE_REFUSE, .serial = serial};
    admission_respond(a, &n);
}

static void requests_and_responses_come_in_order(void) {
    struct admission *a = fresh();
    struct admission_request q;
    struct admission_response n;
    CHECK(!admission_take_request(a, &q) && !admission_take_response(a, &n));
    for (uint64_t round = 0; round < 10 * REQUESTS_MAX; round += 3) {
        for (uint64_t i = round; i < round + 3; i++)
            CHECK(ask(a, REQUEST_HELLO, i));
        for (uint64_t i = round; i < round + 3; i++) {
            CHECK(admission_take_request(a, &q));
            CHECK_EQUAL(q.serial, i);
            CHECK_EQUAL(q.block[SESSION_BLOCK_BYTES - 1], (uint8_t)i);
            answer(a, i);
        }
        for (uint64_t i = round; i < round + 3; i++) {
            CHECK(admission_take_response(a, &n));
            CHECK_EQUAL(n.serial, i);
        }
    }
    CHECK_EQUAL(a->pending, 0);
    discard(a);
}

/* Read and not responded, a request still counts: its answer is sure of room. */
static void only_so_many_are_without_an_answer(void) {
    struct admission *a = fresh();
    struct admission_request q;
    struct admission_response n;
    for (uint64_t i = 0; i < REQUESTS_MAX; i++)
        CHECK(ask(a, REQUEST_TRAILER, i));
    CHECK(!ask(a, REQUEST_TRAILER, 99));
    while (admission_take_request(a, &q))
        continue;
    CHECK(!ask(a, REQUEST_TRAILER, 99));
    CHECK(!ask(a, REQUEST_HELLO, 99));
    CHECK(ask(a, NOTE_ENDED, 100)); /* which wants no answer */
    for (uint64_t i = 0; i < REQUESTS_MAX; i++)
        answer(a, REQUESTS_MAX - 1 - i);
    CHECK(!ask(a, REQUEST_TRAILER, 99)); /* the responses are not taken yet */
    CHECK(admission_take_response(a, &n));
    CHECK(ask(a, REQUEST_TRAILER, 99));
    discard(a);
}

/* As many connections as may come: the end of a flow waits for none of them. */
static void hellos_leave_room_for_trailers(void) {
    struct admission *a = fresh();
    struct admission_request q;
    struct admission_response n;
    for (uint64_t i = 0; i < HELLOS_MAX; i++)
        CHECK(ask(a, REQUEST_HELLO, i));
    CHECK(!ask(a, REQUEST_HELLO, 99));
    for (uint64_t i = HELLOS_MAX; i < REQUESTS_MAX; i++)
        CHECK(ask(a, REQUEST_TRAILER, i));
    CHECK(!ask(a, REQUEST_TRAILER, 99));
    while (admission_take_request(a, &q))
        continue;
    answer(a, HELLOS_MAX);
    CHECK(admission_take_response(a, &n));
    CHECK(!ask(a, REQUEST_HELLO, 99)); /* a trailer's place is none for a hello */
    CHECK(ask(a, REQUEST_TRAILER, 100));
    answer(a, 0);
    CHECK(admission_take_response(a, &n));
    CHECK(ask(a, REQUEST_HELLO, 99));
    discard(a);
}

/* What takes long keeps nobody waiting, and is responded in any order. */
static void parked_requests_free_their_places(void) {
    struct admission *a = fresh();
    struct admission_request q;
    struct admission_response n;
    for (uint64_t i = 0; i < PARKED_MAX; i++) {
        CHECK(ask(a, REQUEST_HELLO, i));
        CHECK(admission_take_request(a, &q));
        CHECK(admission_park(a, i));
    }
    for (uint64_t i = 1000; i < 1000 + HELLOS_MAX; i++)
        CHECK(ask(a, REQUEST_HELLO, i));
    CHECK(!ask(a, REQUEST_HELLO, 99));
    while (admission_take_request(a, &q))
        continue;
    CHECK(!admission_park(a, 1000)); /* which keeps its place, and its claim to an answer */
    for (uint64_t i = 0; i < HELLOS_MAX; i++)
        answer(a, 1000 + i);
    for (uint64_t i = 0; i < PARKED_MAX; i++)
        answer(a, PARKED_MAX - 1 - i);
    for (uint64_t i = 0; i < HELLOS_MAX; i++) {
        CHECK(admission_take_response(a, &n));
        CHECK_EQUAL(n.serial, 1000 + i);
    }
    for (uint64_t i = 0; i < PARKED_MAX; i++) {
        CHECK(admission_take_response(a, &n));
        CHECK_EQUAL(n.serial, PARKED_MAX - 1 - i);
    }
    CHECK(!admission_take_response(a, &n));
    CHECK_EQUAL(a->pending + a->hellos + a->parked, 0);
    discard(a);
}

static void notes_are_bounded_too(void) {
    struct admission *a = fresh();
    struct admission_request q;
    for (uint64_t i = 0; i < REQUESTS_MAX; i++)
        CHECK(ask(a, NOTE_ENDED, i));
    CHECK(!ask(a, NOTE_ENDED, 99));
    CHECK(admission_take_request(a, &q));
    CHECK(ask(a, NOTE_ENDED, 99));
    CHECK_EQUAL(a->pending, 0);
    discard(a);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(requests_and_responses_come_in_order),
        TEST(only_so_many_are_without_an_answer),
        TEST(hellos_leave_room_for_trailers),
        TEST(parked_requests_free_their_places),
        TEST(notes_are_bounded_too),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

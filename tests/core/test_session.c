/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps of a session: what each input leads to, by the way that senders go, and by chance.
 */
#include "connection/ingest/session.h"

#include <errno.h>
#include <string.h>

#include "harness.h"
#include "random.h"

#define WALKS 20000u

static struct session_pages pages;

static struct session begun(void) {
    struct session s = {.pages = &pages, .serial = 7};
    memset(&pages, 0, sizeof pages);
    CHECK_EQUAL(session_begin(&s).kind, SESSION_RECEIVE_BLOCK);
    CHECK_EQUAL(s.step, SESSION_HELLO);
    return s;
}

static struct session_act came(struct session *s, uint64_t bytes) {
    const struct session_input in = {.kind = SESSION_BLOCK_RECEIVED, .bytes = bytes};
    return session_on(s, &in);
}

static struct session_act at(struct session *s, enum session_input_kind kind, uint64_t bytes) {
    const struct session_input in = {.kind = kind, .bytes = bytes};
    return session_on(s, &in);
}

static struct session_act answer(struct session *s, const struct admission_response *a) {
    const struct session_input in = {.kind = SESSION_RESPONSE, .response = a};
    return session_on(s, &in);
}

static void asked(struct session *s, struct session_act act, enum request_kind request) {
    CHECK_EQUAL(act.kind, SESSION_REQUEST);
    CHECK_EQUAL(act.request, request);
    s->pending = act.request;
    session_requested(s);
    CHECK_EQUAL(s->pending, 0);
    CHECK(session_owes_report(s));
}

/* A session whose flow has begun at an offset. */
static struct session admitted(uint32_t flags, uint64_t base_bytes, uint64_t limit_bytes) {
    const struct admission_response a = {.kind = RESPONSE_ADMIT,
                                         .serial = 7,
                                         .flags = flags,
                                         .base_bytes = base_bytes,
                                         .limit_bytes = limit_bytes,
                                         .name_bytes = 2,
                                         .name = "ab"};
    struct session s = begun();
    asked(&s, came(&s, SESSION_BLOCK_BYTES), REQUEST_HELLO);
    struct session_act act = answer(&s, &a);
    CHECK_EQUAL(act.kind, SESSION_START);
    bool is_held = flags == RESPONSE_TRAILER && limit_bytes != UINT64_MAX;
    CHECK_EQUAL(act.limit_bytes, limit_bytes + (is_held ? SESSION_BLOCK_BYTES : 0));
    CHECK_EQUAL(s.step, SESSION_PAYLOAD);
    CHECK_EQUAL(memcmp(pages.name, "ab", 2), 0);
    CHECK_EQUAL(s.outbox.reported_bytes, base_bytes);
    return s;
}

static void ends(const struct session *s, struct session_act act, enum flow_state state,
                 enum close_reason reason, int error) {
    CHECK_EQUAL(act.kind, SESSION_END);
    CHECK_EQUAL(act.end.state, state);
    CHECK_EQUAL(act.end.reason, reason);
    CHECK_EQUAL(act.end.error, error);
    CHECK(s->step == SESSION_ENDED || s->step == SESSION_REFUSED);
}

static void a_hello_comes_in_pieces(void) {
    struct session s = begun();
    for (uint32_t bytes = 0; bytes + 1000 < SESSION_BLOCK_BYTES; bytes += 1000) {
        CHECK(receive_block_room(&s.block).at == pages.block + bytes);
        CHECK_EQUAL(receive_block_room(&s.block).bytes, SESSION_BLOCK_BYTES - bytes);
        CHECK_EQUAL(came(&s, 1000).kind, SESSION_RECEIVE_BLOCK);
        CHECK_EQUAL(at(&s, SESSION_BLOCK_AGAIN, 0).kind, SESSION_RECEIVE_BLOCK);
    }
    asked(&s, came(&s, 96), REQUEST_HELLO);
}

static void a_hello_that_does_not_come_is_refused(void) {
    struct session s = begun();
    ends(&s, at(&s, SESSION_STREAM_ENDED, 0), FLOW_STATE_INTERRUPTED, CLOSE_REASON_PEER, 0);
    CHECK_EQUAL(s.step, SESSION_REFUSED);
    CHECK(!session_is_admitted(&s) && !session_owes_report(&s));
    session_free(&s);

    const struct session_input reset = {.kind = SESSION_STREAM_FAILED, .error = ECONNRESET};
    s = begun();
    ends(&s, session_on(&s, &reset), FLOW_STATE_INTERRUPTED, CLOSE_REASON_PEER, ECONNRESET);

    const struct session_input memory = {.kind = SESSION_STREAM_FAILED, .error = ENOMEM};
    s = begun();
    ends(&s, session_on(&s, &memory), FLOW_STATE_INTERRUPTED, CLOSE_REASON_RECEIVER, ENOMEM);
}

static void a_late_hello_is_stopped_first(void) {
    struct session s = begun();
    struct session_act act = at(&s, SESSION_TIMED_OUT, 0);
    CHECK_EQUAL(act.kind, SESSION_STOP);
    CHECK_EQUAL(act.stop_reason, CLOSE_REASON_IDLE);
    CHECK_EQUAL(s.step, SESSION_HELLO); /* its receive is still under way */
    const struct session_input in = {.kind = SESSION_STOPPED, .reason = act.stop_reason};
    ends(&s, session_on(&s, &in), FLOW_STATE_INTERRUPTED, CLOSE_REASON_IDLE, 0);
    CHECK_EQUAL(s.error, SESSION_ERROR_HELLO_TIMEOUT);
}

static void python_words_a_refusal(void) {
    const struct admission_response a = {
        .kind = RESPONSE_REFUSE, .serial = 7, .text_bytes = 4, .text = "nay\n"};
    struct session s = begun();
    asked(&s, came(&s, SESSION_BLOCK_BYTES), REQUEST_HELLO);
    ends(&s, answer(&s, &a), FLOW_STATE_INTERRUPTED, CLOSE_REASON_NONE, 0);
    CHECK_EQUAL(s.step, SESSION_REFUSED);
    CHECK_EQUAL(s.error, SESSION_ERROR_REFUSED);
    CHECK_EQUAL(memcmp(pages.text, "nay\n", s.text_bytes), 0);

    s = admitted(RESPONSE_TRAILER, 0, UINT64_MAX);
    s.block.filled = SESSION_BLOCK_BYTES;
    asked(&s, at(&s, SESSION_STREAM_ENDED, 9000), REQUEST_TRAILER);
    ends(&s, answer(&s, &a), FLOW_STATE_INTERRUPTED, CLOSE_REASON_CHECKSUM, 0);
    CHECK_EQUAL(s.step, SESSION_ENDED);
}

/* One session ends with the move, and the next begins with the decision. */
static void a_hello_is_moved(void) {
    const struct admission_response away = {.kind = RESPONSE_MOVE, .serial = 7};
    struct session s = begun();
    asked(&s, came(&s, SESSION_BLOCK_BYTES), REQUEST_HELLO);
    CHECK_EQUAL(answer(&s, &away).kind, SESSION_MOVE);
    CHECK_EQUAL(s.step, SESSION_MOVED);
    CHECK(!session_is_admitted(&s) && session_owes_report(&s));
    s.pending = NOTE_ENDED;
    session_requested(&s);
    session_free(&s);

    const struct admission_response here = {
        .kind = RESPONSE_ADMIT, .serial = 8, .base_bytes = 5, .limit_bytes = UINT64_MAX};
    s = (struct session){.pages = &pages, .serial = 8};
    asked(&s, session_begin_moved(&s), REQUEST_HELLO);
    CHECK_EQUAL(s.step, SESSION_HELLO_PENDING);
    CHECK_EQUAL(answer(&s, &here).kind, SESSION_START);
    CHECK_EQUAL(s.step, SESSION_PAYLOAD);
}

static void a_half_close_seals_where_nothing_was_stated(void) {
    struct session s = admitted(0, 100, UINT64_MAX);
    ends(&s, at(&s, SESSION_STREAM_ENDED, 150), FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

static void a_stated_length_is_neither_more_nor_less(void) {
    struct session s = admitted(RESPONSE_LENGTH_KNOWN, 0, 1000);
    ends(&s, at(&s, SESSION_STREAM_ENDED, 999), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LENGTH, 0);
    CHECK_EQUAL(s.error, SESSION_ERROR_TOO_SHORT);

    s = admitted(RESPONSE_LENGTH_KNOWN, 0, 1000);
    CHECK_EQUAL(at(&s, SESSION_LIMIT_REACHED, 1000).kind, SESSION_RECEIVE_BLOCK);
    CHECK_EQUAL(receive_block_room(&s.block).bytes, 1);
    CHECK_EQUAL(at(&s, SESSION_BLOCK_AGAIN, 0).kind, SESSION_RECEIVE_BLOCK);
    ends(&s, came(&s, 1), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LENGTH, 0);
    CHECK_EQUAL(s.error, SESSION_ERROR_TOO_LONG);

    s = admitted(RESPONSE_LENGTH_KNOWN, 0, 1000);
    at(&s, SESSION_LIMIT_REACHED, 1000);
    ends(&s, at(&s, SESSION_STREAM_ENDED, 1000), FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

static void a_listeners_limit_is_no_length(void) {
    struct session s = admitted(0, 0, 1000);
    at(&s, SESSION_LIMIT_REACHED, 1000);
    ends(&s, came(&s, 1), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LIMIT, 0);
    CHECK_EQUAL(s.error, 0);
}

static void a_trailer_behind_a_stated_length(void) {
    const struct admission_response seal = {
        .kind = RESPONSE_SEAL, .serial = 7, .flags = RESPONSE_HAS_CRC, .crc = 0xE3069283u};
    struct session s = admitted(RESPONSE_LENGTH_KNOWN | RESPONSE_TRAILER, 0, 1000);
    CHECK(!session_is_holding(&s));
    CHECK_EQUAL(at(&s, SESSION_LIMIT_REACHED, 1000).kind, SESSION_RECEIVE_BLOCK);
    CHECK_EQUAL(receive_block_room(&s.block).bytes, SESSION_BLOCK_BYTES + 1);
    CHECK_EQUAL(came(&s, SESSION_BLOCK_BYTES - 1).kind, SESSION_RECEIVE_BLOCK);
    CHECK_EQUAL(came(&s, 1).kind, SESSION_RECEIVE_BLOCK); /* for the end, or a byte too much */
    struct session_act act = at(&s, SESSION_STREAM_ENDED, 1000);
    CHECK_EQUAL(act.held_bytes, 0);
    asked(&s, act, REQUEST_TRAILER);
    ends(&s, answer(&s, &seal), FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    CHECK(s.has_sender_crc && s.sender_crc == 0xE3069283u);

    s = admitted(RESPONSE_LENGTH_KNOWN | RESPONSE_TRAILER, 0, 1000);
    at(&s, SESSION_LIMIT_REACHED, 1000);
    ends(&s, came(&s, SESSION_BLOCK_BYTES + 1), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LENGTH, 0);

    s = admitted(RESPONSE_LENGTH_KNOWN | RESPONSE_TRAILER, 0, 1000);
    at(&s, SESSION_LIMIT_REACHED, 1000);
    came(&s, SESSION_BLOCK_BYTES - 1);
    ends(&s, at(&s, SESSION_STREAM_ENDED, 1000), FLOW_STATE_INTERRUPTED, CLOSE_REASON_CHECKSUM, 0);
    CHECK_EQUAL(s.error, SESSION_ERROR_NO_TRAILER);
}

static void a_trailer_that_is_held_back(void) {
    static uint8_t slot[3 * SESSION_BLOCK_BYTES];
    slot[sizeof slot - 1] = 9;
    struct session s = admitted(RESPONSE_TRAILER, 0, UINT64_MAX);
    CHECK(session_is_holding(&s));
    CHECK_EQUAL(receive_block_hold(&s.block, slot, sizeof slot), SESSION_BLOCK_BYTES);
    CHECK_EQUAL(pages.block[SESSION_BLOCK_BYTES - 1], 9);
    struct session_act act = at(&s, SESSION_STREAM_ENDED, sizeof slot);
    CHECK_EQUAL(act.held_bytes, SESSION_BLOCK_BYTES);
    asked(&s, act, REQUEST_TRAILER);

    s = admitted(RESPONSE_TRAILER, 0, UINT64_MAX);
    CHECK_EQUAL(receive_block_hold(&s.block, slot, 10), 10);
    act = at(&s, SESSION_STREAM_ENDED, 10);
    CHECK_EQUAL(act.held_bytes, 10);
    ends(&s, act, FLOW_STATE_INTERRUPTED, CLOSE_REASON_CHECKSUM, 0);

    s = admitted(RESPONSE_TRAILER, 0, 1000); /* as many bytes as the listener lets a flow have */
    receive_block_hold(&s.block, slot, SESSION_BLOCK_BYTES);
    CHECK_EQUAL(at(&s, SESSION_LIMIT_REACHED, 1000 + SESSION_BLOCK_BYTES).kind,
                SESSION_RECEIVE_BLOCK);
    CHECK(receive_block_room(&s.block).at == pages.block + SESSION_BLOCK_BYTES);
    ends(&s, came(&s, 1), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LIMIT, 0);
}

static void bytes_beyond_the_bound_are_the_trailers(void) {
    static const uint8_t bytes[SESSION_BLOCK_BYTES + 1] = {5};
    struct session s = admitted(RESPONSE_LENGTH_KNOWN | RESPONSE_TRAILER, 0, 1000);
    receive_block_take_overrun(&s.block, bytes, 600);
    CHECK_EQUAL(pages.block[0], 5);
    CHECK_EQUAL(at(&s, SESSION_LIMIT_REACHED, 1000).kind, SESSION_RECEIVE_BLOCK);
    CHECK_EQUAL(receive_block_room(&s.block).bytes, SESSION_BLOCK_BYTES + 1 - 600);

    s = admitted(RESPONSE_LENGTH_KNOWN | RESPONSE_TRAILER, 0, 1000);
    receive_block_take_overrun(&s.block, bytes, sizeof bytes);
    ends(&s, at(&s, SESSION_LIMIT_REACHED, 1000), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LENGTH, 0);

    s = admitted(0, 0, 1000);
    receive_block_take_overrun(&s.block, bytes, 1);
    ends(&s, at(&s, SESSION_LIMIT_REACHED, 1000), FLOW_STATE_INTERRUPTED, CLOSE_REASON_LIMIT, 0);
}

static void python_hears_of_an_end_once(void) {
    struct session s = admitted(0, 0, UINT64_MAX);
    CHECK(session_owes_report(&s));
    at(&s, SESSION_STREAM_ENDED, 0);
    s.pending = NOTE_ENDED;
    session_requested(&s);
    CHECK(!session_owes_report(&s));
    session_free(&s);
    CHECK_EQUAL(s.step, SESSION_FREE);
}

/* --- By chance -------------------------------------------------------------------------- */

static const uint32_t terms[] = {0, RESPONSE_LENGTH_KNOWN, RESPONSE_TRAILER,
                                 RESPONSE_LENGTH_KNOWN | RESPONSE_TRAILER};

/* Most senders cause no trouble, and continue. */
static bool is_trouble(const struct session *s, enum session_input_kind kind) {
    return kind == SESSION_STREAM_FAILED || kind == SESSION_STOPPED || kind == SESSION_TIMED_OUT ||
           (kind == SESSION_STREAM_ENDED && s->step == SESSION_HELLO);
}

/* An input that may come in this step, with a value that an engine or Python might give. */
static struct session_input any_input(struct session *s, struct admission_response *a,
                                      uint64_t limit_bytes) {
    struct session_input in = {.kind = SESSION_INPUTS_COUNT};
    while (in.kind == SESSION_INPUTS_COUNT || !session_may_meet(s->step, in.kind) ||
           (is_trouble(s, in.kind) && random_below(50) != 0))
        in.kind = (enum session_input_kind)random_below(SESSION_INPUTS_COUNT);
    uint32_t held = session_is_holding(s) ? s->block.filled : 0;
    uint64_t most = limit_bytes + held;
    if (in.kind == SESSION_BLOCK_RECEIVED)
        in.bytes = 1 + random_below(receive_block_room(&s->block).bytes);
    if (in.kind == SESSION_BLOCK_RECEIVED && receive_block_room(&s->block).bytes > 1 &&
        random_below(2) == 0)
        in.bytes = receive_block_room(&s->block).bytes -
                   (s->step == SESSION_TAIL); /* whole, and no more */
    if (in.kind == SESSION_LIMIT_REACHED)
        in.bytes = most;
    if (in.kind == SESSION_STREAM_ENDED)
        in.bytes = s->step == SESSION_TAIL ? most : held + random_below((uint32_t)limit_bytes + 1);
    if (in.kind == SESSION_STREAM_FAILED)
        in.error = ECONNRESET;
    if (in.kind == SESSION_STOPPED)
        in.reason = CLOSE_REASON_SHUTDOWN;
    if (in.kind == SESSION_RESPONSE) {
        bool is_hello = s->step == SESSION_HELLO_PENDING;
        bool is_refused = random_below(4) == 0;
        *a = (struct admission_response){.serial = s->serial,
                                         .kind = is_refused ? RESPONSE_REFUSE
                                                 : is_hello ? RESPONSE_ADMIT
                                                            : RESPONSE_SEAL,
                                         .flags = is_hello ? terms[random_below(4)] : 0,
                                         .limit_bytes = limit_bytes,
                                         .text_bytes = is_refused};
        in.response = a;
    }
    return in;
}

static void check_walk(struct session *s, const struct session_input *in, struct session_act act,
                       enum session_step before) {
    CHECK(s->step == before || session_may_step(before, s->step));
    CHECK_EQUAL(act.kind == SESSION_END, s->step == SESSION_ENDED || s->step == SESSION_REFUSED);
    CHECK_EQUAL(act.kind == SESSION_START,
                before == SESSION_HELLO_PENDING && s->step == SESSION_PAYLOAD);
    if (act.kind == SESSION_RECEIVE_BLOCK)
        CHECK(receive_block_room(&s->block).bytes > 0);
    if (act.kind != SESSION_END || act.end.state != FLOW_STATE_SEALED)
        return;
    CHECK_EQUAL(act.end.reason, CLOSE_REASON_NONE);
    CHECK(!s->block.overrun);
    if (s->has_trailer)
        CHECK(before == SESSION_TRAILER_PENDING && s->block.filled == SESSION_BLOCK_BYTES);
    else if (s->length_known)
        CHECK_EQUAL(in->bytes, s->limit_bytes);
    else
        CHECK_EQUAL(in->kind, SESSION_STREAM_ENDED);
}

static void walk(uint32_t sealed[4]) {
    struct session s = begun();
    struct admission_response a;
    uint64_t limit_bytes = random_below(5000);
    for (uint32_t i = 0; s.step != SESSION_ENDED && s.step != SESSION_REFUSED; i++) {
        enum session_step before = s.step;
        if (session_is_holding(&s) && before == SESSION_PAYLOAD)
            receive_block_hold(&s.block, pages.block,
                               SESSION_BLOCK_BYTES - random_below(2) * random_below(9));
        struct session_input in = any_input(&s, &a, limit_bytes);
        struct session_act act = session_on(&s, &in);
        check_walk(&s, &in, act, before);
        if (act.kind == SESSION_END && act.end.state == FLOW_STATE_SEALED)
            sealed[s.length_known + 2 * s.has_trailer]++;
        if (harness_test_failed || i == 100000)
            break;
    }
    CHECK(s.step == SESSION_ENDED || s.step == SESSION_REFUSED);
}

static void walks_by_chance_keep_what_is_promised(void) {
    uint32_t sealed[4] = {0};
    random_seed();
    for (uint32_t i = 0; i < WALKS && !harness_test_failed; i++)
        walk(sealed);
    for (uint32_t i = 0; i < 4; i++)
        CHECK(sealed[i] > 0); /* each kind of flow was sealed in some of them */
}

static void all_steps_can_be_reached_and_left(void) {
    for (uint32_t to = 0; to < SESSION_STEPS_COUNT; to++) {
        uint32_t in = 0, out = 0;
        for (uint32_t from = 0; from < SESSION_STEPS_COUNT; from++) {
            in += session_may_step(from, to);
            out += session_may_step(to, from);
        }
        CHECK(in > 0 && out > 0);
        CHECK(session_step_name(to) != NULL);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(a_hello_comes_in_pieces),
        TEST(a_hello_that_does_not_come_is_refused),
        TEST(a_late_hello_is_stopped_first),
        TEST(python_words_a_refusal),
        TEST(a_hello_is_moved),
        TEST(a_half_close_seals_where_nothing_was_stated),
        TEST(a_stated_length_is_neither_more_nor_less),
        TEST(a_listeners_limit_is_no_length),
        TEST(a_trailer_behind_a_stated_length),
        TEST(a_trailer_that_is_held_back),
        TEST(bytes_beyond_the_bound_are_the_trailers),
        TEST(python_hears_of_an_end_once),
        TEST(walks_by_chance_keep_what_is_promised),
        TEST(all_steps_can_be_reached_and_left),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

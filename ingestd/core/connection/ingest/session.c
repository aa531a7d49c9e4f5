/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps of session.h.
 */
#include "connection/ingest/session.h"

#include <assert.h>
#include <string.h>

#include "format/close_reason.h"

static_assert(sizeof(struct session_pages) <= SESSION_PAGES_BYTES, "pages of a session");
static_assert(offsetof(struct session_pages, block) == 0, "the block has the first page alone");

#define STEP(name) (1u << SESSION_##name)

static const char *const session_names[SESSION_STEPS_COUNT] = {
    [SESSION_FREE] = "FREE",
    [SESSION_HELLO] = "HELLO",
    [SESSION_HELLO_PENDING] = "HELLO_PENDING",
    [SESSION_PAYLOAD] = "PAYLOAD",
    [SESSION_TAIL] = "TAIL",
    [SESSION_TRAILER_PENDING] = "TRAILER_PENDING",
    [SESSION_ENDED] = "ENDED",
    [SESSION_REFUSED] = "REFUSED",
    [SESSION_MOVED] = "MOVED",
};

/* Which steps follow each. */
static const uint32_t session_next[SESSION_STEPS_COUNT] = {
    [SESSION_FREE] = STEP(HELLO) | STEP(HELLO_PENDING),
    [SESSION_HELLO] = STEP(HELLO_PENDING) | STEP(REFUSED),
    [SESSION_HELLO_PENDING] = STEP(PAYLOAD) | STEP(REFUSED) | STEP(MOVED),
    [SESSION_PAYLOAD] = STEP(TAIL) | STEP(TRAILER_PENDING) | STEP(ENDED),
    [SESSION_TAIL] = STEP(TRAILER_PENDING) | STEP(ENDED),
    [SESSION_TRAILER_PENDING] = STEP(ENDED),
    [SESSION_ENDED] = STEP(FREE),
    [SESSION_REFUSED] = STEP(FREE),
    [SESSION_MOVED] = STEP(FREE),
};

/* In which steps each input may come. */
static const uint32_t session_meets[SESSION_INPUTS_COUNT] = {
    [SESSION_BLOCK_RECEIVED] = STEP(HELLO) | STEP(TAIL),
    [SESSION_BLOCK_AGAIN] = STEP(HELLO) | STEP(TAIL),
    [SESSION_LIMIT_REACHED] = STEP(PAYLOAD),
    [SESSION_STREAM_ENDED] = STEP(HELLO) | STEP(PAYLOAD) | STEP(TAIL),
    [SESSION_STREAM_FAILED] = STEP(HELLO) | STEP(PAYLOAD) | STEP(TAIL),
    [SESSION_RESPONSE] = STEP(HELLO_PENDING) | STEP(TRAILER_PENDING),
    [SESSION_TIMED_OUT] = STEP(HELLO),
    [SESSION_STOPPED] =
        STEP(HELLO) | STEP(HELLO_PENDING) | STEP(PAYLOAD) | STEP(TAIL) | STEP(TRAILER_PENDING),
};

const char *session_step_name(enum session_step step) {
    assert(step < SESSION_STEPS_COUNT);
    return session_names[step];
}

bool session_may_step(enum session_step from, enum session_step to) {
    assert(from < SESSION_STEPS_COUNT && to < SESSION_STEPS_COUNT);
    return (session_next[from] >> to & 1u) != 0;
}

bool session_may_meet(enum session_step step, enum session_input_kind kind) {
    assert(step < SESSION_STEPS_COUNT && kind < SESSION_INPUTS_COUNT);
    return (session_meets[kind] >> step & 1u) != 0;
}

/* The one place that changes a step. */
static void session_set_step(struct session *s, enum session_step step) {
    assert(session_may_step((enum session_step)s->step, step));
    s->step = (uint8_t)step;
}

bool session_is_admitted(const struct session *s) {
    return (1u << s->step & (STEP(PAYLOAD) | STEP(TAIL) | STEP(TRAILER_PENDING) | STEP(ENDED))) !=
           0;
}

/* --- What Python knows ------------------------------------------------------------ */

void session_requested(struct session *s) {
    assert(s->pending != 0 && s->report != SESSION_REPORTED);
    assert(s->pending != NOTE_ENDED || s->report == SESSION_REPORT_OWED);
    s->report = s->pending == NOTE_ENDED ? SESSION_REPORTED : SESSION_REPORT_OWED;
    s->pending = 0;
}

bool session_owes_report(const struct session *s) {
    return s->report == SESSION_REPORT_OWED;
}

/* --- The block --------------------------------------------------------------------- */

/* How much may follow the payload, and one byte more, which shows that there is too much.
 * Where bytes are held back, the block is in use and only that byte at its end is free. */
static uint32_t session_tail_bytes_max(const struct session *s) {
    return s->length_known && s->has_trailer ? SESSION_BLOCK_BYTES + 1 : 1;
}

/* --- Acts ----------------------------------------------------------------------------- */

static struct session_act session_receive(void) {
    return (struct session_act){.kind = SESSION_RECEIVE_BLOCK};
}

static struct session_act session_request(enum request_kind request) {
    return (struct session_act){.kind = SESSION_REQUEST, .request = (uint8_t)request};
}

static struct session_act session_end(struct session *s, enum flow_state state, uint8_t reason,
                                      int error) {
    session_set_step(s, session_is_admitted(s) ? SESSION_ENDED : SESSION_REFUSED);
    assert(state != FLOW_STATE_SEALED || s->step == SESSION_ENDED);
    outbox_end_reports(&s->outbox);
    return (struct session_act){.kind = SESSION_END, .end = {(uint8_t)state, reason, error}};
}

static struct session_act session_interrupt(struct session *s, uint8_t reason, int error) {
    return session_end(s, FLOW_STATE_INTERRUPTED, reason, error);
}

static struct session_act session_end_with(struct session *s, enum session_error error,
                                           uint8_t reason) {
    s->error = (uint8_t)error;
    return session_interrupt(s, reason, 0);
}

/* --- Hello ------------------------------------------------------------------------------ */

static void session_set_block(struct session *s) {
    s->block = (struct receive_block){.memory = s->pages->block, .bytes_max = SESSION_BLOCK_BYTES};
}

struct session_act session_begin(struct session *s) {
    session_set_step(s, SESSION_HELLO);
    session_set_block(s);
    return session_receive();
}

struct session_act session_begin_moved(struct session *s) {
    session_set_step(s, SESSION_HELLO_PENDING);
    session_set_block(s);
    return session_request(REQUEST_HELLO);
}

static struct session_act session_hello_received(struct session *s, uint64_t bytes) {
    assert(bytes <= SESSION_BLOCK_BYTES - s->block.filled);
    s->block.filled += (uint32_t)bytes;
    if (s->block.filled < SESSION_BLOCK_BYTES)
        return session_receive();
    session_set_step(s, SESSION_HELLO_PENDING);
    return session_request(REQUEST_HELLO);
}

/* --- Behind the payload ---------------------------------------------------------------- */

static struct session_act session_receive_tail(struct session *s) {
    if (s->step != SESSION_TAIL)
        session_set_step(s, SESSION_TAIL);
    if (!s->block.overrun)
        return session_receive();
    if (!s->length_known)
        return session_interrupt(s, CLOSE_REASON_LIMIT, 0);
    return session_end_with(s, SESSION_ERROR_TOO_LONG, CLOSE_REASON_LENGTH);
}

static struct session_act session_tail_received(struct session *s, uint64_t bytes) {
    assert(bytes > 0 && bytes <= receive_block_room(&s->block).bytes);
    if (!session_is_holding(s))
        s->block.filled += (uint32_t)bytes;
    s->block.overrun = session_is_holding(s) || s->block.filled == session_tail_bytes_max(s);
    return session_receive_tail(s);
}

/* The sender has half-closed. */
static struct session_act session_judge(struct session *s, uint64_t received_bytes) {
    /* What was held back was received, but is no payload. */
    uint32_t held_bytes = session_is_holding(s) ? s->block.filled : 0;
    struct session_act act;
    assert(received_bytes >= held_bytes);
    if (s->length_known && received_bytes < s->limit_bytes) {
        act = session_end_with(s, SESSION_ERROR_TOO_SHORT, CLOSE_REASON_LENGTH);
    } else if (!s->has_trailer) {
        act = session_end(s, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
    } else if (s->block.filled < SESSION_BLOCK_BYTES) {
        act = session_end_with(s, SESSION_ERROR_NO_TRAILER, CLOSE_REASON_CHECKSUM);
    } else {
        session_set_step(s, SESSION_TRAILER_PENDING);
        act = session_request(REQUEST_TRAILER);
    }
    act.held_bytes = held_bytes;
    return act;
}

/* --- Responses -------------------------------------------------------------------------- */

static struct session_act session_admit(struct session *s, const struct admission_response *a) {
    assert(a->name_bytes <= sizeof s->pages->name && a->labels_bytes <= sizeof s->pages->labels);
    assert(a->base_bytes <= a->limit_bytes);
    memcpy(s->pages->name, a->name, a->name_bytes);
    memcpy(s->pages->labels, a->labels, a->labels_bytes);
    s->name_bytes = a->name_bytes;
    s->labels_bytes = a->labels_bytes;
    s->length_known = (a->flags & RESPONSE_LENGTH_KNOWN) != 0;
    s->has_trailer = (a->flags & RESPONSE_TRAILER) != 0;
    s->limit_bytes = a->limit_bytes;
    s->block.filled = 0; /* the hello has been read */
    s->block.bytes_max = session_tail_bytes_max(s);
    s->block.holding = s->has_trailer && !s->length_known;
    session_set_step(s, SESSION_PAYLOAD);
    outbox_accept(&s->outbox, a->base_bytes);
    uint64_t limit_bytes = a->limit_bytes;
    if (session_is_holding(s) && limit_bytes != UINT64_MAX)
        limit_bytes += SESSION_BLOCK_BYTES;
    return (struct session_act){.kind = SESSION_START, .limit_bytes = limit_bytes};
}

static struct session_act session_seal(struct session *s, const struct admission_response *a) {
    s->has_sender_crc = (a->flags & RESPONSE_HAS_CRC) != 0;
    s->sender_crc = a->crc;
    return session_end(s, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

static struct session_act session_refuse(struct session *s, const struct admission_response *a) {
    assert(a->text_bytes > 0 && a->text_bytes <= sizeof s->pages->text);
    memcpy(s->pages->text, a->text, a->text_bytes);
    s->text_bytes = a->text_bytes;
    uint8_t reason = session_is_admitted(s) ? CLOSE_REASON_CHECKSUM : CLOSE_REASON_NONE;
    return session_end_with(s, SESSION_ERROR_REFUSED, reason);
}

static struct session_act session_on_response(struct session *s,
                                              const struct admission_response *a) {
    assert(a->serial == s->serial);
    if (a->kind == RESPONSE_REFUSE)
        return session_refuse(s, a);
    bool is_hello = s->step == SESSION_HELLO_PENDING;
    if (a->kind == RESPONSE_MOVE) {
        session_set_step(s, SESSION_MOVED);
        return (struct session_act){.kind = SESSION_MOVE};
    }
    assert(a->kind == (is_hello ? RESPONSE_ADMIT : RESPONSE_SEAL));
    return is_hello ? session_admit(s, a) : session_seal(s, a);
}

/* --- Inputs ------------------------------------------------------------------------------- */

static struct session_act session_timed_out(struct session *s) {
    s->error = SESSION_ERROR_HELLO_TIMEOUT;
    return (struct session_act){.kind = SESSION_STOP, .stop_reason = CLOSE_REASON_IDLE};
}

static struct session_act session_stream_ended(struct session *s, uint64_t received_bytes) {
    if (s->step == SESSION_HELLO)
        return session_interrupt(s, CLOSE_REASON_PEER, 0);
    return session_judge(s, received_bytes);
}

struct session_act session_on(struct session *s, const struct session_input *in) {
    assert(session_may_meet((enum session_step)s->step, in->kind));
    bool is_hello = s->step == SESSION_HELLO;
    switch (in->kind) {
    case SESSION_BLOCK_RECEIVED:
        return is_hello ? session_hello_received(s, in->bytes)
                        : session_tail_received(s, in->bytes);
    case SESSION_BLOCK_AGAIN:
        return is_hello ? session_receive() : session_receive_tail(s);
    case SESSION_LIMIT_REACHED:
        return session_receive_tail(s);
    case SESSION_STREAM_ENDED:
        return session_stream_ended(s, in->bytes);
    case SESSION_STREAM_FAILED:
        return session_interrupt(s, close_reason_of(in->error), in->error);
    case SESSION_RESPONSE:
        return session_on_response(s, in->response);
    case SESSION_TIMED_OUT:
        return session_timed_out(s);
    case SESSION_STOPPED:
        return session_interrupt(s, in->reason, 0);
    case SESSION_INPUTS_COUNT:
        break;
    }
    assert(!"an input of no kind");
    return (struct session_act){.kind = SESSION_DO_NOTHING};
}

void session_free(struct session *s) {
    assert(!session_owes_report(s) && s->pending == 0);
    session_set_step(s, SESSION_FREE);
}

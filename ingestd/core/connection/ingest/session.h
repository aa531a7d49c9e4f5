/* SPDX-License-Identifier: Apache-2.0
 *
 * A session: the state machine of a connection of protocol `ingest`. Pure.
 *
 * hello block -> Python decides -> payload, which is the engine's -> trailer -> end. Or Python
 * moves it to a worker that has the flow, where another session begins with the decision.
 * An input says what has happened; the act that is returned, what the connection is to
 * do next. No system call, no clock, and nothing of the worker. Owned by the worker's
 * thread. Invariants:
 *  - A step leads only to those that the table in session.c names.
 *  - A session ends once. It is sealed only behind a half-close, with as many bytes as
 *    the hello announced, and with the trailer if it announced one.
 *  - The end of each connection that Python had a request about is reported to it, once.
 */
#ifndef INGESTD_CONNECTION_INGEST_SESSION_H
#define INGESTD_CONNECTION_INGEST_SESSION_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "connection/ingest/admission.h"
#include "format/format.h"
#include "connection/ingest/outbox.h"
#include "receive/engine.h"

static_assert(SESSION_BLOCK_BYTES == RECEIVE_BLOCK_BYTES,
              "what engines receive is what Python reads");
#define SESSION_PAGES_BYTES 8192u

enum session_step {
    SESSION_FREE = 0,        /* in its pool */
    SESSION_HELLO,           /* the hello block is being received */
    SESSION_HELLO_PENDING,   /* ... and is whole: Python decides on it */
    SESSION_PAYLOAD,         /* admitted: the engine receives the flow's bytes */
    SESSION_TAIL,            /* all bytes that it may have are there: what follows is received */
    SESSION_TRAILER_PENDING, /* Python compares the trailer */
    SESSION_ENDED,           /* the flow has ended, and the sender gets its last line */
    SESSION_REFUSED,         /* it never became a flow; the sender gets its last line */
    SESSION_MOVED,           /* another worker has the connection, and its sender hears nothing */
    SESSION_STEPS_COUNT
};

/* What Python knows of the connection. */
enum session_report {
    SESSION_UNKNOWN = 0, /* nothing */
    SESSION_REPORT_OWED, /* that it exists: its end is to be reported */
    SESSION_REPORTED,    /* the end, too */
};

/* Why a session ends, where no close_reason says it; 0: one does. */
enum session_error {
    SESSION_ERROR_HELLO_TIMEOUT = 1,
    SESSION_ERROR_TOO_LONG = 2,   /* more bytes than announced */
    SESSION_ERROR_TOO_SHORT = 3,  /* half-closed before the bytes announced */
    SESSION_ERROR_NO_TRAILER = 4, /* announced, and not there */
    SESSION_ERROR_REFUSED = 5,    /* by Python: text has the line */
};

enum session_input_kind {
    SESSION_BLOCK_RECEIVED, /* bytes: of the block, put where its room is */
    SESSION_BLOCK_AGAIN,    /* its receive ended with nothing; another one may bring some */
    SESSION_LIMIT_REACHED,  /* bytes: the flow's, all that the engine was to receive */
    SESSION_STREAM_ENDED,  /* the sender has half-closed; bytes: as above, also what is held back */
    SESSION_STREAM_FAILED, /* error: an errno */
    SESSION_RESPONSE,      /* response: Python's response */
    SESSION_TIMED_OUT,     /* no hello has come in time */
    SESSION_STOPPED,       /* it is to end for a reason, and nothing is being received */
    SESSION_INPUTS_COUNT
};

struct session_input {
    enum session_input_kind kind;
    union {
        uint64_t bytes;
        int error;
        uint8_t reason; /* enum close_reason */
        const struct admission_response *response;
    };
};

enum session_act_kind {
    SESSION_DO_NOTHING = 0,
    SESSION_RECEIVE_BLOCK, /* into its room */
    SESSION_START,         /* accepted: the engine receives payload up to limit_bytes */
    SESSION_REQUEST,       /* request: is to be sent to Python */
    SESSION_STOP,          /* for a reason: then SESSION_STOPPED, when no receive is under way */
    SESSION_END,           /* state, reason, error: of the flow's end */
    SESSION_MOVE,          /* its descriptor goes to Python with the note of its end */
};

struct session_act {
    enum session_act_kind kind;
    uint32_t held_bytes; /* of those received: held back, and no payload after all */
    union {
        uint64_t limit_bytes;
        uint8_t request; /* enum request_kind */
        struct {
            uint8_t state;  /* enum flow_state */
            uint8_t reason; /* enum close_reason */
            int error;      /* errno of the connection, or 0 */
        } end;
        uint8_t stop_reason;
    };
};

/* What a connection needs once it says something. It lies on pages of its own, which
 * cost no memory before that, and are released at its end. */
struct session_pages {
    uint8_t
        block[SESSION_BLOCK_BYTES + 1]; /* hello; then held bytes, or the trailer and one more */
    char name[SESSION_NAME_BYTES_MAX];
    char labels[SESSION_LABELS_BYTES_MAX];
    char text[REFUSAL_BYTES_MAX]; /* the last line, if Python has worded it */
};

struct session {
    uint32_t index, next_free; /* of its pool */
    uint64_t serial;
    uint8_t step;    /* enum session_step */
    uint8_t report;  /* enum session_report */
    uint8_t pending; /* enum request_kind that waits for room, or 0 */
    uint8_t error;   /* enum session_error */
    /* What the hello has agreed on. */
    bool length_known; /* limit_bytes is the length that the sender announced */
    bool has_trailer;  /* a trailer follows the payload */
    bool has_sender_crc;
    bool moves; /* it is to be moved as soon as its line has left */
    uint32_t sender_crc;
    struct receive_block block;
    uint64_t limit_bytes; /* the most that the flow may have */
    uint16_t name_bytes, labels_bytes, text_bytes;
    struct outbox outbox;
    uint8_t challenge[SESSION_CHALLENGE_BYTES];
    struct session_pages *pages;
};

/* A connection was accepted; challenge and serial are set. Its hello is to be received. */
struct session_act session_begin(struct session *s);
/* The same, behind a move: its hello has come elsewhere, and Python knows it. */
struct session_act session_begin_moved(struct session *s);
struct session_act session_on(struct session *s, const struct session_input *in);
/* It goes back to its pool. */
void session_free(struct session *s);

/* What waits for room was taken by the admission. */
void session_requested(struct session *s);
/* Whether the end is still to be reported to Python. */
bool session_owes_report(const struct session *s);

bool session_is_admitted(const struct session *s);
/* Whether the last SESSION_BLOCK_BYTES received may be the trailer, and are not to be stored
 * yet. */
static inline bool session_is_holding(const struct session *s) {
    return s->block.holding;
}

/* The step's name, and whether one leads to the other; for tests and documents. */
const char *session_step_name(enum session_step step);
bool session_may_step(enum session_step from, enum session_step to);
/* Whether that may happen in a step. */
bool session_may_meet(enum session_step step, enum session_input_kind kind);

#endif

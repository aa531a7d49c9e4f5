/* SPDX-License-Identifier: Apache-2.0
 *
 * The lines of lines.h.
 */
#include "connection/ingest/lines.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct refusal {
    const char *code;
    const char *text;
};

/* The receiver is at fault: what the sender can do about it depends on the errno. */
static const char *line_text_of_receiver(int error) {
    switch (error) {
    case EFAULT:
        return "the connection's packets came by another receive queue: send again";
    case ENOBUFS:
    case ENOMEM:
        return "the receiver had no room for what came: send again later";
    default:
        return "the receiver could not go on with the connection: send again";
    }
}

static const char *line_text_of_limit(int error) {
    return error == EUSERS ? "your address has as many connections as it may: end one first"
                           : "a limit of the listener was reached";
}

static struct refusal line_refusal_for(const struct connection *conn, int store_errno) {
    if (store_errno != 0)
        return (struct refusal){"store_failed", "the device failed: bytes counts what is safe"};
    switch (conn->reason) {
    case CLOSE_REASON_IDLE:
        return (struct refusal){"idle_timeout", "no byte came for idle_timeout_s"};
    case CLOSE_REASON_SHUTDOWN:
        return (struct refusal){"shutdown", "the daemon is stopping: send again later"};
    case CLOSE_REASON_STORE_FULL:
        return (struct refusal){"store_full", "the store has no free segment left"};
    case CLOSE_REASON_LIMIT:
        return (struct refusal){"limit", line_text_of_limit(conn->error)};
    case CLOSE_REASON_REPLACED:
        return (struct refusal){"replaced", "a newer connection goes on with the flow"};
    case CLOSE_REASON_EMPTY:
        return (struct refusal){"empty", "no byte came, and keep_empty is false: nothing is kept"};
    case CLOSE_REASON_RECEIVER:
        return (struct refusal){"interrupted", line_text_of_receiver(conn->error)};
    default:
        return (struct refusal){"interrupted", "the flow was ended before its end"};
    }
}

/* What only protocol ingest has words for. */
static struct refusal line_refusal_of_session(const struct connection *conn, int store_errno) {
    switch (store_errno != 0 ? 0 : conn->session->error) {
    case SESSION_ERROR_HELLO_TIMEOUT:
        return (struct refusal){"hello_timeout", "the hello block did not come in time"};
    case SESSION_ERROR_TOO_LONG:
        return (struct refusal){"too_long", "more bytes came than the hello had stated"};
    case SESSION_ERROR_TOO_SHORT:
        return (struct refusal){"too_short", "fewer bytes came than the hello had stated"};
    case SESSION_ERROR_NO_TRAILER:
        return (struct refusal){"trailer", "the trailer that the hello had announced is not there"};
    default:
        return line_refusal_for(conn, store_errno);
    }
}

static void line_format_id(const uint8_t id[16], char out[37]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *out++ = '-';
        *out++ = digits[id[i] >> 4];
        *out++ = digits[id[i] & 15];
    }
    *out = 0;
}

static int line_format_receipt(const struct connection *conn, const char *id, char *line,
                               size_t capacity) {
    char checksum[24] = "null";
    if (conn->checksummed)
        snprintf(checksum, sizeof checksum, "\"crc32c:%08" PRIx32 "\"", conn->stream.crc);
    return snprintf(line, capacity,
                    "{\"flow\": \"%s\", \"bytes\": %" PRIu64
                    ", \"durable\": true, \"state\": \"sealed\", \"checksum\": %s}\n",
                    id, conn->stream.durable_bytes, checksum);
}

static int line_format_refusal(const struct connection *conn, const char *id, int store_errno,
                               char *line, size_t capacity) {
    struct refusal r = line_refusal_for(conn, store_errno);
    /* Where the device failed, only bytes prove that the store knows the flow at all. */
    bool known = conn->stream.opened && (store_errno == 0 || conn->stream.durable_bytes > 0);
    bool whole = known && conn->stream.durable_bytes == conn->received_bytes;
    return snprintf(line, capacity,
                    "{\"flow\": %s%s%s, \"bytes\": %" PRIu64
                    ", \"durable\": %s, \"state\": \"%s\", \"error\": \"%s\", \"text\": \"%s\"}\n",
                    conn->stream.opened ? "\"" : "", conn->stream.opened ? id : "null",
                    conn->stream.opened ? "\"" : "", conn->stream.durable_bytes,
                    whole ? "true" : "false", conn->stream.opened ? "interrupted" : "refused",
                    r.code, r.text);
}

size_t line_of_raw(const struct connection *conn, int store_errno, char *line, size_t capacity) {
    char id[37];
    line_format_id(conn->stream.id, id);
    bool sealed = conn->state == FLOW_STATE_SEALED && store_errno == 0;
    int bytes = sealed ? line_format_receipt(conn, id, line, capacity)
                       : line_format_refusal(conn, id, store_errno, line, capacity);
    assert(bytes > 0 && (size_t)bytes < capacity);
    return (size_t)bytes;
}

/* --- Protocol ingest -------------------------------------------------------------- */

static size_t line_checked(int bytes, size_t capacity) {
    assert(bytes > 0 && (size_t)bytes < capacity);
    (void)capacity;
    return (size_t)bytes;
}

size_t line_greeting(bool authenticates, const uint8_t challenge[SESSION_CHALLENGE_BYTES],
                     char *line, size_t capacity) {
    char digits[2 * SESSION_CHALLENGE_BYTES + 1];
    for (uint32_t i = 0; i < SESSION_CHALLENGE_BYTES; i++)
        snprintf(digits + 2 * i, 3, "%02x", challenge[i]);
    int bytes = snprintf(line, capacity,
                         "{\"type\": \"hello\", \"protocol\": \"ingest\", \"versions\": [1], "
                         "\"auth\": \"%s\", \"challenge\": \"%s\"}\n",
                         authenticates ? "hmac-sha256" : "none", digits);
    return line_checked(bytes, capacity);
}

size_t line_accepted(const struct connection *conn, uint64_t ack_interval_ns, char *line,
                     size_t capacity) {
    char id[37];
    line_format_id(conn->stream.id, id);
    int bytes = snprintf(line, capacity,
                         "{\"type\": \"accepted\", \"flow\": \"%s\", \"offset\": %" PRIu64
                         ", \"ack_interval_s\": %" PRIu64 ".%03" PRIu64 "}\n",
                         id, conn->base_bytes, ack_interval_ns / 1000000000,
                         ack_interval_ns / 1000000 % 1000);
    return line_checked(bytes, capacity);
}

size_t line_durable(uint64_t offset, char *line, size_t capacity) {
    int bytes =
        snprintf(line, capacity, "{\"type\": \"durable\", \"offset\": %" PRIu64 "}\n", offset);
    return line_checked(bytes, capacity);
}

static void line_format_checksum(bool known, uint32_t crc, char *out, size_t capacity) {
    if (known)
        snprintf(out, capacity, "\"crc32c:%08" PRIx32 "\"", crc);
    else
        snprintf(out, capacity, "null");
}

static int line_format_sealed(const struct connection *conn, const char *id, char *line,
                              size_t capacity) {
    const struct session *s = conn->session;
    char ours[24], theirs[24];
    line_format_checksum(conn->checksummed, conn->stream.crc, ours, sizeof ours);
    line_format_checksum(s->has_sender_crc, s->sender_crc, theirs, sizeof theirs);
    return snprintf(line, capacity,
                    "{\"type\": \"sealed\", \"flow\": \"%s\", \"bytes\": %" PRIu64
                    ", \"durable\": true, \"checksum\": %s, \"sender_checksum\": %s}\n",
                    id, conn->stream.durable_bytes, ours, theirs);
}

size_t line_last(const struct connection *conn, int store_errno, char *line, size_t capacity) {
    const struct session *s = conn->session;
    char id[37];
    line_format_id(conn->stream.id, id);
    if (conn->state == FLOW_STATE_SEALED && store_errno == 0)
        return line_checked(line_format_sealed(conn, id, line, capacity), capacity);
    struct refusal r = line_refusal_of_session(conn, store_errno);
    const char *quote = session_is_admitted(s) ? "\"" : "";
    int bytes = snprintf(line, capacity,
                         "{\"type\": \"error\", \"code\": \"%s\", \"text\": \"%s\", "
                         "\"flow\": %s%s%s, \"durable\": %" PRIu64 "}\n",
                         r.code, r.text, quote, session_is_admitted(s) ? id : "null", quote,
                         conn->stream.durable_bytes);
    return line_checked(bytes, capacity);
}

size_t line_denial(const struct connection *conn, char *line, size_t capacity) {
    struct refusal r = line_refusal_for(conn, 0);
    if (conn->reason == CLOSE_REASON_LIMIT) { /* "limit" is of a flow, and not worth another try */
        bool of_peer = conn->error == EUSERS;
        const char *waits = "too many connections wait: come back later";
        r = (struct refusal){"busy", of_peer ? line_text_of_limit(conn->error) : waits};
    }
    int bytes = snprintf(line, capacity,
                         "{\"type\": \"error\", \"code\": \"%s\", \"text\": \"%s\", "
                         "\"flow\": null, \"durable\": 0}\n",
                         r.code, r.text);
    return line_checked(bytes, capacity);
}

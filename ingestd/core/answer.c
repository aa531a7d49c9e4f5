/* SPDX-License-Identifier: Apache-2.0
 *
 * The lines of answer.h.
 */
#include "answer.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

struct refusal {
    const char *code;
    const char *text;
};

static struct refusal refusal_for(uint8_t reason, int store_errno) {
    if (store_errno != 0)
        return (struct refusal){"store_failed", "the device failed: bytes counts what is safe"};
    switch (reason) {
    case CLOSE_REASON_IDLE:
        return (struct refusal){"idle_timeout", "no byte came for idle_timeout_s"};
    case CLOSE_REASON_SHUTDOWN:
        return (struct refusal){"shutdown", "the daemon is stopping: send again later"};
    case CLOSE_REASON_STORE_FULL:
        return (struct refusal){"store_full", "the store has no free segment left"};
    case CLOSE_REASON_LIMIT:
        return (struct refusal){"limit", "a limit of the listener was reached"};
    default:
        return (struct refusal){"interrupted", "the flow was ended before its end"};
    }
}

static void format_id(const uint8_t id[16], char out[37]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *out++ = '-';
        *out++ = digits[id[i] >> 4];
        *out++ = digits[id[i] & 15];
    }
    *out = 0;
}

static int format_receipt(const struct flow *f, const char *id, char *line, size_t capacity) {
    char checksum[24] = "null";
    if (f->checksummed)
        snprintf(checksum, sizeof checksum, "\"crc32c:%08" PRIx32 "\"", f->crc);
    return snprintf(line, capacity,
                    "{\"flow\": \"%s\", \"bytes\": %" PRIu64
                    ", \"durable\": true, \"state\": \"sealed\", \"checksum\": %s}\n",
                    id, f->durable_bytes, checksum);
}

static int format_refusal(const struct flow *f, const char *id, int store_errno, char *line,
                          size_t capacity) {
    struct refusal r = refusal_for(f->reason, store_errno);
    bool whole = f->opened && f->durable_bytes == f->received_bytes;
    return snprintf(line, capacity,
                    "{\"flow\": %s%s%s, \"bytes\": %" PRIu64
                    ", \"durable\": %s, \"state\": \"%s\", \"error\": \"%s\", \"text\": \"%s\"}\n",
                    f->opened ? "\"" : "", f->opened ? id : "null", f->opened ? "\"" : "",
                    f->durable_bytes, whole ? "true" : "false",
                    f->opened ? "interrupted" : "refused", r.code, r.text);
}

size_t answer_format(const struct flow *f, int store_errno, char *line, size_t capacity) {
    char id[37];
    format_id(f->id, id);
    bool sealed = f->state == FLOW_STATE_SEALED && store_errno == 0;
    int bytes = sealed ? format_receipt(f, id, line, capacity)
                       : format_refusal(f, id, store_errno, line, capacity);
    assert(bytes > 0 && (size_t)bytes < capacity);
    return (size_t)bytes;
}

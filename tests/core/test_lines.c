/* SPDX-License-Identifier: Apache-2.0
 *
 * The lines of protocol ingest, byte by byte.
 */
#include "connection/ingest/lines.h"

#include <errno.h>
#include <string.h>

#include "harness.h"

static char line[CONNECTION_LINE_BYTES];

static bool is_line(size_t bytes, const char *expected) {
    CHECK_EQUAL(bytes, strlen(line));
    if (strcmp(line, expected) != 0)
        printf("%s", line);
    return strcmp(line, expected) == 0;
}

static struct connection a_connection(struct session *s) {
    struct connection conn = {
        .stream.opened = true, .checksummed = true, .session = s, .stream.crc = 0xE3069283u};
    for (int i = 0; i < 16; i++)
        conn.stream.id[i] = (uint8_t)(i * 17);
    conn.base_bytes = 4096;
    conn.stream.durable_bytes = UINT64_MAX;
    s->step = SESSION_ENDED;
    return conn;
}

static void a_greeting_has_a_challenge(void) {
    uint8_t challenge[SESSION_CHALLENGE_BYTES] = {0x0f, 0xa0};
    challenge[31] = 0xff;
    size_t bytes = line_greeting(true, challenge, line, sizeof line);
    CHECK(is_line(bytes, "{\"type\": \"hello\", \"protocol\": \"ingest\", \"versions\": [1], "
                         "\"auth\": \"hmac-sha256\", \"challenge\": "
                         "\"0fa0000000000000000000000000000000000000000000000000000000000"
                         "0ff\"}\n"));
    line_greeting(false, challenge, line, sizeof line);
    CHECK(strstr(line, "\"auth\": \"none\"") != NULL);
}

static void accepted_tells_where_to_go_on(void) {
    struct session s = {0};
    struct connection conn = a_connection(&s);
    size_t bytes = line_accepted(&conn, 1020000000, line, sizeof line);
    CHECK(is_line(bytes, "{\"type\": \"accepted\", \"flow\": "
                         "\"00112233-4455-6677-8899-aabbccddeeff\", \"offset\": 4096, "
                         "\"ack_interval_s\": 1.020}\n"));
}

static void durable_is_one_number(void) {
    size_t bytes = line_durable(UINT64_MAX, line, sizeof line);
    CHECK(is_line(bytes, "{\"type\": \"durable\", \"offset\": 18446744073709551615}\n"));
}

static void sealed_has_both_checksums(void) {
    struct session s = {.has_sender_crc = true, .sender_crc = 1};
    struct connection conn = a_connection(&s);
    conn.state = FLOW_STATE_SEALED;
    size_t bytes = line_last(&conn, 0, line, sizeof line);
    CHECK(is_line(bytes, "{\"type\": \"sealed\", \"flow\": "
                         "\"00112233-4455-6677-8899-aabbccddeeff\", "
                         "\"bytes\": 18446744073709551615, \"durable\": true, "
                         "\"checksum\": \"crc32c:e3069283\", "
                         "\"sender_checksum\": \"crc32c:00000001\"}\n"));
    conn.checksummed = s.has_sender_crc = false;
    line_last(&conn, 0, line, sizeof line);
    CHECK(strstr(line, "\"checksum\": null, \"sender_checksum\": null}") != NULL);
    line_last(&conn, 5, line, sizeof line); /* a failed store never says sealed */
    CHECK(strstr(line, "\"type\": \"error\", \"code\": \"store_failed\"") != NULL);
}

static void every_error_has_a_code(void) {
    static const char *const codes[] = {
        [SESSION_ERROR_HELLO_TIMEOUT] = "hello_timeout",
        [SESSION_ERROR_TOO_LONG] = "too_long",
        [SESSION_ERROR_TOO_SHORT] = "too_short",
        [SESSION_ERROR_NO_TRAILER] = "trailer",
    };
    static const char *const reasons[] = {
        [CLOSE_REASON_IDLE] = "idle_timeout",     [CLOSE_REASON_SHUTDOWN] = "shutdown",
        [CLOSE_REASON_STORE_FULL] = "store_full", [CLOSE_REASON_LIMIT] = "limit",
        [CLOSE_REASON_REPLACED] = "replaced",
    };
    char code[64];
    for (uint8_t error = SESSION_ERROR_HELLO_TIMEOUT; error <= SESSION_ERROR_NO_TRAILER; error++) {
        struct session s = {.error = error};
        struct connection conn = a_connection(&s);
        conn.state = FLOW_STATE_INTERRUPTED;
        CHECK(line_last(&conn, 0, line, sizeof line) > 0);
        snprintf(code, sizeof code, "\"code\": \"%s\", ", codes[error]);
        CHECK(strstr(line, code) != NULL);
    }
    for (uint8_t reason = CLOSE_REASON_IDLE; reason <= CLOSE_REASON_REPLACED; reason++) {
        struct session s = {0};
        struct connection conn = a_connection(&s);
        conn.state = FLOW_STATE_INTERRUPTED;
        conn.reason = reason;
        s.step = SESSION_REFUSED;
        CHECK(line_last(&conn, 0, line, sizeof line) > 0);
        snprintf(code, sizeof code, "\"code\": \"%s\", ", reasons[reason]);
        CHECK(strstr(line, code) != NULL);
        CHECK(strstr(line, "\"flow\": null, \"durable\": ") != NULL);
    }
}

/* Where we are the reason, the text says what happened, and that it may be tried again. */
static void our_own_errors_say_what_happened(void) {
    static const struct {
        int error;
        const char *text;
    } cases[] = {{EFAULT, "receive queue"}, {ENOBUFS, "had no room"}, {EINVAL, "could not go on"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct session s = {0};
        struct connection conn = a_connection(&s);
        conn.state = FLOW_STATE_INTERRUPTED;
        conn.reason = CLOSE_REASON_RECEIVER;
        conn.error = cases[i].error;
        CHECK(line_last(&conn, 0, line, sizeof line) > 0);
        CHECK(strstr(line, "\"code\": \"interrupted\", ") != NULL);
        CHECK(strstr(line, cases[i].text) != NULL);
        CHECK(line_of_raw(&conn, 0, line, sizeof line) > 0);
        CHECK(strstr(line, "\"error\": \"interrupted\", ") != NULL);
        CHECK(strstr(line, cases[i].text) != NULL);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(a_greeting_has_a_challenge), TEST(accepted_tells_where_to_go_on),
        TEST(durable_is_one_number),      TEST(sealed_has_both_checksums),
        TEST(every_error_has_a_code),     TEST(our_own_errors_say_what_happened),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A protocol: how a connection is handled apart from its payload, as a table of functions.
 *
 * Its listener names one for all of its connections. All are called on the worker's thread.
 * Invariant: only a protocol's own files depend on which one it is.
 */
#ifndef INGESTD_CONNECTION_PROTOCOL_H
#define INGESTD_CONNECTION_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct connections;
struct connection;

struct protocol {
    const char *name;
    uint8_t number; /* record_open.protocol */
    /* A connection was admitted: it is to be received. */
    void (*begin)(struct connections *c, struct connection *conn);
    /* The engine receives no more payload: all of it is with batches, or was dropped. */
    void (*payload_over)(struct connections *c, struct connection *conn);
    /* The engine has filled so many bytes of the block's room; 0: the stream has ended; or
     * -errno. NULL: no blocks are received. */
    void (*block_received)(struct connections *c, struct connection *conn, int result);
    /* It is to end now. True: it has ended, as nothing of it was being received. */
    bool (*stop)(struct connections *c, struct connection *conn);
    /* Its durable offset has advanced. */
    void (*advanced)(struct connections *c, struct connection *conn);
    /* The checksum that its sender sent, if it did. */
    bool (*sender_crc)(const struct connection *conn, uint32_t *out);
    /* It has ended, and the outcome is known: reports it to whoever decided on it. */
    void (*report_end)(struct connections *c, struct connection *conn);
    /* ... and nothing of it is stored: the event that says so. */
    void (*report_refused)(struct connections *c, struct connection *conn);
    /* ... then its last line, and connection_last_line_sent(). */
    void (*send_last)(struct connections *c, struct connection *conn);
    /* A send with TAG_LINE is complete: bytes, or -errno. */
    void (*line_sent)(struct connections *c, struct connection *conn, int result);
    /* It can be freed; false: not yet, and connection_try_free() will be called again. */
    bool (*release)(struct connections *c, struct connection *conn);
    /* The line for a connection that is denied. Returns its bytes, at most CONNECTION_LINE_BYTES.
     */
    size_t (*format_denial)(const struct connection *conn, char *line, size_t capacity);
};

extern const struct protocol protocol_raw;
extern const struct protocol protocol_ingest;

#endif

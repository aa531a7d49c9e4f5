/* SPDX-License-Identifier: Apache-2.0
 *
 * A block: bytes of a connection that are no payload, or may be none. Pure.
 *
 * Before the payload and behind it a protocol has one received here, never a byte more than
 * it has room for. Where a trailer follows a payload of unknown length, the last
 * RECEIVE_BLOCK_BYTES of the payload may be the trailer: they are held back in it. Owned by
 * the worker's thread. Invariant: filled + chunk_bytes <= RECEIVE_BLOCK_BYTES + 1.
 */
#ifndef INGESTD_RECEIVE_BLOCK_H
#define INGESTD_RECEIVE_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define RECEIVE_BLOCK_BYTES 4096u

struct receive_block {
    uint8_t *memory;      /* RECEIVE_BLOCK_BYTES, and one more by which too much shows */
    uint32_t bytes_max;   /* it may have so many now */
    uint32_t filled;      /* ... and has these */
    uint32_t chunk_bytes; /* engine zcrx: behind them, by the receive under way */
    bool holding;         /* it has the payload's last bytes, which are not to be stored yet */
    bool overrun;         /* more was received than it has room for */
};

/* Where a receive puts bytes, and how many there may be. */
struct receive_room {
    uint8_t *at;
    uint32_t bytes;
};

struct receive_room receive_block_room(const struct receive_block *b);
/* Keeps the last bytes of a slot back; returns how many. */
uint32_t receive_block_hold(struct receive_block *b, const uint8_t *slot, uint32_t bytes);
/* Bytes that were received behind the payload with its last ones, as the kernel did not keep to
 * the receive's bound: they are the first of what follows. */
void receive_block_take_overrun(struct receive_block *b, const uint8_t *data, uint32_t bytes);

#endif

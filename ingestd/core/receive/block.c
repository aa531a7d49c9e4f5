/* SPDX-License-Identifier: Apache-2.0
 *
 * The block of block.h.
 */
#include "receive/block.h"

#include <assert.h>
#include <string.h>

/* Where bytes are held back, the block is in use and its last byte alone is free. */
struct receive_room receive_block_room(const struct receive_block *b) {
    if (b->holding)
        return (struct receive_room){b->memory + RECEIVE_BLOCK_BYTES, 1};
    assert(b->filled < b->bytes_max && b->bytes_max <= RECEIVE_BLOCK_BYTES + 1);
    return (struct receive_room){b->memory + b->filled, b->bytes_max - b->filled};
}

uint32_t receive_block_hold(struct receive_block *b, const uint8_t *slot, uint32_t bytes) {
    assert(b->holding);
    uint32_t held = bytes < RECEIVE_BLOCK_BYTES ? bytes : RECEIVE_BLOCK_BYTES;
    memcpy(b->memory, slot + bytes - held, held);
    b->filled = held;
    return held;
}

void receive_block_take_overrun(struct receive_block *b, const uint8_t *data, uint32_t bytes) {
    assert(bytes > 0 && b->bytes_max > 0);
    uint32_t room = b->holding ? 0 : b->bytes_max - 1 - b->filled;
    b->overrun = b->overrun || bytes > room;
    if (b->overrun)
        return;
    memcpy(b->memory + b->filled, data, bytes);
    b->filled += bytes;
}

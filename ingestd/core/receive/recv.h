/* SPDX-License-Identifier: Apache-2.0
 *
 * What engine `recv` has of a connection: the slot that it borrows. recv.c alone looks into it.
 * Owned by the worker's thread. Invariant: slot_copied + slot_taken <= slot_filled, and all
 * three are 0 without a slot.
 */
#ifndef INGESTD_RECEIVE_RECV_H
#define INGESTD_RECEIVE_RECV_H

#include <stdbool.h>
#include <stdint.h>

struct recv_connection {
    uint64_t slot_offset; /* UINT64_MAX: none */
    uint32_t slot_order;
    uint32_t slot_filled;
    uint32_t slot_copied; /* of these, bytes that we copied to its front */
    uint32_t slot_taken;  /* of these, bytes that a batch has, and a share of the slot */
    bool polled;          /* a poll of its socket is under way */
    bool bulk;            /* fills whole slots: receives wait for a full one */
};

#define RECV_CONNECTION_NONE ((struct recv_connection){.slot_offset = UINT64_MAX})

/* No byte of it is in the engine's hands, nor memory. */
static inline bool recv_has_nothing(const struct recv_connection *own) {
    return own->slot_offset == UINT64_MAX;
}

#endif

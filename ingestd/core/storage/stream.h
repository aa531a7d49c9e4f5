/* SPDX-License-Identifier: Apache-2.0
 *
 * A stream: what storage knows of a flow. Its owner embeds it, and sets `id`, `owner`,
 * `open` and where it begins; storage alone changes the rest. Owned by the worker's
 * thread. Invariants:
 *  - durable_bytes <= stored_bytes.
 *  - Its memory stays while acks_pending > 0, and while the open batch has bytes of it.
 */
#ifndef INGESTD_STORAGE_STREAM_H
#define INGESTD_STORAGE_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "format/frame.h"
#include "format/segment.h"

struct storage_stream {
    uint8_t id[16];
    uint32_t owner;        /* the owner's index: what news name */
    uint32_t crc;          /* CRC32C of the bytes stored */
    uint64_t stored_bytes; /* handed to batches, from the flow's first byte on */
    uint64_t durable_bytes;
    uint32_t acks_pending; /* entries of the acknowledgement queue that name it */
    bool opened;           /* its OPEN record is in a batch */
    struct segment_span_ref span;
    const struct frame_open *open; /* what its OPEN record says, read whenever one is written */
};

#endif

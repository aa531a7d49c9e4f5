/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of a flow, which follow from its seed: ../engine_stores.py makes the same ones, so
 * that what lies in a store can be checked without any file having been kept.
 *
 * A flow is a walk round one ring of random bytes, begun at a place that its seed names. The ring
 * is no multiple of any packet, page or block: a piece in the wrong place, or of another flow, is
 * noticed.
 */
#ifndef VM_CONTENT_H
#define VM_CONTENT_H

#include <stddef.h>
#include <stdint.h>

/* What content_at gives at least. */
#define CONTENT_PIECE_BYTES (256u << 10)

/* The flow's bytes from `offset` on: CONTENT_PIECE_BYTES of them lie there. */
const uint8_t *content_at(uint64_t seed, uint64_t offset);

/* CRC32C (Castagnoli, RFC 3720), carried on from `crc`; 0 to begin with. */
uint32_t content_crc32c(uint32_t crc, const void *data, size_t bytes);

#endif

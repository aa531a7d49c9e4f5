/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of flows and their check sum: see content.h. The check sum is on purpose not the one
 * of the core: it is what the core's is compared with.
 */
#include "content.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RING_BYTES ((1u << 20) + 13)
#define RING_STATE 88172645463325252ull
#define SEED_STEP 7919u
#define POLYNOMIAL_REFLECTED 0x82f63b78u
#define SLICES 8

static uint8_t *make_ring(void) {
    uint64_t state = RING_STATE;
    uint8_t *ring = malloc(RING_BYTES + CONTENT_PIECE_BYTES);

    if (!ring) {
        fprintf(stderr, "no memory for the content of flows\n");
        exit(1);
    }
    for (size_t index = 0; index < RING_BYTES; index += sizeof(state)) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(ring + index, &state, sizeof(state));
    }
    memcpy(ring + RING_BYTES, ring, CONTENT_PIECE_BYTES);
    return ring;
}

const uint8_t *content_at(uint64_t seed, uint64_t offset) {
    static uint8_t *ring;

    if (!ring)
        ring = make_ring();
    return ring + (seed % RING_BYTES * SEED_STEP + offset) % RING_BYTES;
}

static uint32_t tables[SLICES][256];

static void make_tables(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL_REFLECTED : crc >> 1;
        tables[0][value] = crc;
    }
    for (uint32_t value = 0; value < 256; value++)
        for (int slice = 1; slice < SLICES; slice++)
            tables[slice][value] =
                tables[slice - 1][value] >> 8 ^ tables[0][tables[slice - 1][value] & 255];
}

uint32_t content_crc32c(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *at = data;

    if (!tables[0][1])
        make_tables();
    crc = ~crc;
    for (; bytes >= SLICES; bytes -= SLICES, at += SLICES) {
        uint32_t low, high;
        memcpy(&low, at, 4);
        memcpy(&high, at + 4, 4);
        low ^= crc;
        crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^
              tables[4][low >> 24] ^ tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^
              tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
    }
    for (; bytes > 0; bytes--)
        crc = crc >> 8 ^ tables[0][(crc ^ *at++) & 255];
    return ~crc;
}

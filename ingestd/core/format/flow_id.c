/* SPDX-License-Identifier: Apache-2.0
 *
 * The layout of flow_id.h: bytes 0 to 5 time, then version and variant where RFC 9562
 * has them, byte 7 the worker, the serial number in what is left, the mark at the end.
 */
#include "format/flow_id.h"

#include "format/frame.h"

#define MARK_OFFSET 12

static void flow_id_put_big_endian(uint8_t *out, int bytes, uint64_t value) {
    for (int i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

void flow_id_make(uint8_t id[FLOW_ID_BYTES], const uint8_t store_uuid[16], uint64_t unix_ms,
                  uint8_t worker_index, uint64_t serial) {
    flow_id_put_big_endian(id, 6, unix_ms);
    id[6] = (uint8_t)(0x70 | (serial >> 30 & 0x0f));
    id[7] = worker_index;
    id[8] = (uint8_t)(0x80 | (serial >> 24 & 0x3f));
    flow_id_put_big_endian(id + 9, 3, serial);
    uint32_t mark = frame_crc32c(frame_crc32c(0, store_uuid, 16), id, MARK_OFFSET);
    flow_id_put_big_endian(id + MARK_OFFSET, 4, mark);
}

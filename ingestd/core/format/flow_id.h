/* SPDX-License-Identifier: Apache-2.0
 *
 * Ids of flows that this daemon names: UUIDs of version 7 (RFC 9562) that carry a mark.
 *
 * The last 4 bytes are the CRC32C of the store's UUID and the 12 bytes before. Thus
 * the admission (daemon/admission/marked_ids.py) recognises an id of ours without a list,
 * at any time, of any worker and generation: before its flow is reported, and after a
 * restart. The mark is no secret: a sender that makes an id that bears it is only refused.
 * Invariants: a worker makes no id twice, whatever the clock does (FLOW_ID_SERIAL_BITS
 * of them), nor do two workers of a store make one; an id of the sender's own choice
 * bears the mark of a store once in 2^32. Pure.
 */
#ifndef INGESTD_FORMAT_FLOW_ID_H
#define INGESTD_FORMAT_FLOW_ID_H

#include <stdint.h>

#define FLOW_ID_BYTES 16
#define FLOW_ID_SERIAL_BITS 34

/* serial: begins at random with each worker, and grows by one with each id. */
void flow_id_make(uint8_t id[FLOW_ID_BYTES], const uint8_t store_uuid[16], uint64_t unix_ms,
                  uint8_t worker_index, uint64_t serial);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx` and the blocks of protocol `ingest`, which are no payload: the hello,
 * and what follows the payload.
 *
 * No system call. Owned by the worker's thread. A block that is expected is received
 * by a bounded receive: the kernel cuts where it ends, in a fragment's middle too, and
 * what lies behind stays in the socket. Its bytes are copied out of the area as they
 * arrive and their chunks released at once, so that no sender pins a chunk by sending
 * them slowly. They are no payload and counted as no bytes.
 *
 * Only where a trailer follows a payload of unknown length, the flow's last bytes may
 * be the trailer. Invariants of what is held back then:
 *  - It is in the block, `filled` bytes, the older ones; then in the connection's list.
 *  - As fragments it is few and young: the rest, and what is old, is copied to the block,
 *    and to a batch from there (reason `trailer`) if it turns out to be payload.
 *  - When the connection ends, it is in the block, and nothing is in the list.
 */
#ifndef INGESTD_RECEIVE_ZCRX_CONTROL_H
#define INGESTD_RECEIVE_ZCRX_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

struct receiver;
struct connection;

/* A fragment of the block being received. */
void zcrx_block_delivered(struct receiver *r, struct connection *conn, uint64_t offset,
                          uint32_t bytes);
/* Its receive has ended. True: reported, as the block is whole, the stream over, or the
 * rest to be received. False: no chunk was free, and nothing was received. */
bool zcrx_block_ended(struct receiver *r, struct connection *conn, int result);

/* Gives batches what can be no trailer of the flow's pending bytes. all: to the last
 * byte, with the rest copied to the block; else as whole fragments. False: no batch
 * took some of it. */
bool zcrx_settle_held(struct receiver *r, struct connection *conn, bool all);

#endif

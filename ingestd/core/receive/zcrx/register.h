/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls of the engine `zcrx`: registration, flush, events, queries.
 * Worker's thread, except zcrx_query(), which any may call.
 */
#ifndef INGESTD_RECEIVE_ZCRX_REGISTER_H
#define INGESTD_RECEIVE_ZCRX_REGISTER_H

#include "receive/zcrx/zcrx.h"

struct receiver;

/* io_uring_register(2); 0 or more, or -errno. */
int zcrx_register(int ring_fd, unsigned operation, void *argument, unsigned count);

/* What the running kernel's zcrx has; -EINVAL or -EOPNOTSUPP without the query. */
int zcrx_query(struct abi_query_zcrx *out);

/* Registers the area with (interface, rx queue) and maps the refill ring. */
int zcrx_open_queue(struct receiver *r);
uint32_t zcrx_chunk_shift(const struct zcrx *z);

/* Device-less mode: nothing but this makes the kernel take refill entries. */
int zcrx_flush_refill(struct receiver *r);
/* An event is reported once, then not again until it is armed. */
int zcrx_arm_event(struct receiver *r, uint32_t type);

#endif

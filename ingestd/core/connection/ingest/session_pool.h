/* SPDX-License-Identifier: Apache-2.0
 *
 * A listener's sessions: one for each connection that may be open.
 *
 * All memory is taken at start and touched late. Owned by the worker's thread. Invariant:
 * the pages of a session that nobody has are zeros, unless it is one of those that keep them.
 */
#ifndef INGESTD_CONNECTION_INGEST_SESSION_POOL_H
#define INGESTD_CONNECTION_INGEST_SESSION_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "connection/ingest/session.h"

#define SESSIONS_WARM_MAX 64u /* so many sessions of a listener keep their pages */

struct session_pool {
    struct session *sessions;
    uint8_t *pages; /* SESSION_PAGES_BYTES of each */
    uint32_t capacity, used_upto, free_head;
};

int session_pool_init(struct session_pool *p, uint32_t capacity); /* 0 or -ENOMEM */
void session_pool_deinit(struct session_pool *p);

/* One that is cleared. */
struct session *session_pool_take(struct session_pool *p);
/* ... and one that has ended goes back. */
void session_pool_put(struct session_pool *p, struct session *s);
/* The kernel gets the first bytes of its pages back; what is read of them next are zeros. */
void session_pool_clear_pages(const struct session *s, size_t bytes);

#endif

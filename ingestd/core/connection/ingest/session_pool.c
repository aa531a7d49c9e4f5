/* SPDX-License-Identifier: Apache-2.0
 *
 * The pool of session_pool.h.
 */
#include "connection/ingest/session_pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SESSION_POOL_END UINT32_MAX

int session_pool_init(struct session_pool *p, uint32_t capacity) {
    /* Pages of sessions never used stay untouched, and cost no memory. */
    size_t bytes = (size_t)capacity * SESSION_PAGES_BYTES;
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    p->pages = pages != MAP_FAILED ? pages : NULL;
    p->sessions = calloc(capacity, sizeof *p->sessions);
    p->capacity = capacity;
    p->used_upto = 0;
    p->free_head = SESSION_POOL_END;
    if (p->pages == NULL || p->sessions == NULL) {
        session_pool_deinit(p);
        return -ENOMEM;
    }
    madvise(p->pages, bytes, MADV_NOHUGEPAGE);
    return 0;
}

void session_pool_deinit(struct session_pool *p) {
    if (p->pages != NULL)
        munmap(p->pages, (size_t)p->capacity * SESSION_PAGES_BYTES);
    free(p->sessions);
    p->sessions = NULL;
    p->pages = NULL;
}

struct session *session_pool_take(struct session_pool *p) {
    uint32_t index = p->free_head;
    if (index != SESSION_POOL_END)
        p->free_head = p->sessions[index].next_free;
    else
        index = p->used_upto++;
    assert(index < p->capacity); /* one for each connection that the listener may have */
    struct session *s = &p->sessions[index];
    assert(s->step == SESSION_FREE);
    memset(s, 0, sizeof *s);
    s->index = index;
    s->pages = (void *)(p->pages + (size_t)index * SESSION_PAGES_BYTES);
    return s;
}

void session_pool_put(struct session_pool *p, struct session *s) {
    session_free(s);
    session_pool_clear_pages(s, SESSION_PAGES_BYTES);
    s->next_free = p->free_head;
    p->free_head = s->index;
}

void session_pool_clear_pages(const struct session *s, size_t bytes) {
    if (s->index >= SESSIONS_WARM_MAX)
        madvise(s->pages, bytes, MADV_DONTNEED);
}

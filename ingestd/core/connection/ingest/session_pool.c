/* SPDX-License-Identifier: Apache-2.0
 *
 * The pool of sessions of session.h: their memory, taken at start, touched late.
 */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "connection/ingest/session.h"

static_assert(sizeof(struct session_pages) <= SESSION_PAGES_BYTES, "pages of a session");
static_assert(offsetof(struct session_pages, block) == 0, "the block has the first page alone");

int session_pool_open(struct session_pool *p, uint32_t capacity) {
    /* Pages of sessions never used stay untouched, and cost no memory. */
    size_t bytes = (size_t)capacity * SESSION_PAGES_BYTES;
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    p->pages = pages != MAP_FAILED ? pages : NULL;
    p->sessions = calloc(capacity, sizeof *p->sessions);
    p->capacity = capacity;
    p->used_upto = 0;
    p->free_head = FLOW_NONE;
    if (p->pages == NULL || p->sessions == NULL) {
        session_pool_close(p);
        return -ENOMEM;
    }
    madvise(p->pages, bytes, MADV_NOHUGEPAGE);
    return 0;
}

void session_pool_close(struct session_pool *p) {
    if (p->pages != NULL)
        munmap(p->pages, (size_t)p->capacity * SESSION_PAGES_BYTES);
    free(p->sessions);
    p->sessions = NULL;
    p->pages = NULL;
}

struct session *session_pool_take(struct session_pool *p) {
    uint32_t index = p->free_head;
    if (index != FLOW_NONE)
        p->free_head = p->sessions[index].next_free;
    else
        index = p->used_upto++;
    assert(index < p->capacity); /* one for each connection that the listener may have */
    struct session *s = &p->sessions[index];
    assert(!s->in_use);
    memset(s, 0, sizeof *s);
    s->index = index;
    s->in_use = true;
    s->pages = (void *)(p->pages + (size_t)index * SESSION_PAGES_BYTES);
    return s;
}

void session_give_pages(const struct session *s, size_t bytes) {
    if (s->index >= SESSIONS_WARM_MAX)
        madvise(s->pages, bytes, MADV_DONTNEED);
}

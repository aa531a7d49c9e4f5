/* SPDX-License-Identifier: Apache-2.0
 *
 * The group commit of commit.h.
 */
#include "storage/commit.h"

#include <assert.h>
#include <string.h>

void commit_init(struct commit *c) {
    memset(c, 0, sizeof *c);
}

bool commit_has_room(const struct commit *c) {
    return c->next_item - c->written_upto < COMMIT_WINDOW;
}

uint64_t commit_begin(struct commit *c) {
    assert(commit_has_room(c));
    c->written[c->next_item % COMMIT_WINDOW] = 0;
    return c->next_item++;
}

void commit_written(struct commit *c, uint64_t item, uint64_t now_ns) {
    assert(item >= c->written_upto && item < c->next_item);
    assert(!c->written[item % COMMIT_WINDOW]);
    c->written[item % COMMIT_WINDOW] = 1;
    if (c->written_upto == c->flushing_upto && item == c->written_upto)
        c->oldest_ns = now_ns;
    while (c->written_upto < c->next_item && c->written[c->written_upto % COMMIT_WINDOW])
        c->written_upto++;
}

void commit_want(struct commit *c, uint64_t item) {
    assert(item < c->next_item);
    if (item < c->flushing_upto)
        return;
    if (c->wanted_upto <= c->flushing_upto || item < c->wanted_first)
        c->wanted_first = item;
    if (c->wanted_upto <= item)
        c->wanted_upto = item + 1;
}

uint64_t commit_due_ns(const struct commit *c, uint64_t interval_ns) {
    if (c->flushing || c->written_upto == c->committed_upto)
        return UINT64_MAX;
    if (c->wanted_upto > c->committed_upto && c->written_upto > c->wanted_first)
        return 0;
    return c->oldest_ns + interval_ns;
}

uint64_t commit_flush(struct commit *c) {
    assert(!c->flushing && c->written_upto > c->committed_upto);
    c->flushing = true;
    c->flushing_upto = c->written_upto;
    /* Which of the waits beyond are the first is not kept: any may be. */
    if (c->wanted_first < c->flushing_upto)
        c->wanted_first = c->flushing_upto;
    return c->flushing_upto;
}

void commit_done(struct commit *c, uint64_t now_ns) {
    assert(c->flushing && c->flushing_upto > c->committed_upto);
    c->flushing = false;
    c->committed_upto = c->flushing_upto;
    c->oldest_ns = now_ns;
}

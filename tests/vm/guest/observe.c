/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions put between the core's parts: see observe.h. Those of a worker run on its thread.
 */
#include "observe.h"

#include <stddef.h>
#include <inttypes.h>

#include "worker.h"

#define WORKERS_MAX 16u
#define FLOWS_MAX 2048u

struct seen {
    uint64_t fragments, bytes, shortest, longest, unaligned, lent_max, overflows;
    uint64_t head, tail, boundary, small, small_maybe;
    uint64_t ends[FLOWS_MAX]; /* behind each flow's last fragment, in the area */
};

static struct {
    unsigned ring_entries; /* 0: as is */
    bool no_relief;
} settings;
static struct seen seen[WORKERS_MAX];
static _Thread_local uint64_t offset_delivered;
static _Thread_local uint32_t chunks_lent;

bool observe_option(int option, uint64_t value) {
    if (option == 'C')
        settings.ring_entries = (unsigned)value;
    if (option == 'x')
        settings.no_relief = true;
    return option == 'C' || option == 'x';
}

static uint64_t down(uint64_t value, uint64_t unit) {
    return value / unit * unit;
}

static uint64_t up(uint64_t value, uint64_t unit) {
    return down(value + unit - 1, unit);
}

/* A piece between two edges: written from where it lies, unless it is shorter than is worth it and
 * does not carry on the piece before. A batch that is full ends on a page inside of it. */
static void judge_body(struct seen *s, uint64_t begin, uint64_t end, bool carries_on) {
    uint64_t first = up(begin, PLAN_PAGE_BYTES) - begin, last = end % PLAN_PAGE_BYTES;

    if (end - begin < PLAN_GATHER_BYTES_MIN) {
        *(carries_on ? &s->small_maybe : &s->small) += end - begin;
        return;
    }
    if (down(begin, PLAN_PAGE_BYTES) == down(end - 1, PLAN_PAGE_BYTES))
        return;
    s->small_maybe += first < PLAN_GATHER_BYTES_MIN ? first : 0;
    s->small_maybe += last < PLAN_GATHER_BYTES_MIN ? last : 0;
}

/* Flows that wait hand over what they have one behind the other, whoever received last. */
static bool may_carry_on(const struct seen *s, const struct worker *w, uint64_t begin) {
    for (uint32_t i = 0; i < w->table.used_upto && i < FLOWS_MAX; i++)
        if (s->ends[i] == begin)
            return true;
    return false;
}

static void judge(struct seen *s, const struct worker *w, uint64_t begin, uint64_t bytes) {
    const uint64_t align = w->settings.mem_align, end = begin + bytes;
    const uint64_t boundary = w->settings.virt_mask + 1;
    const uint64_t edge = boundary > align ? boundary : align;
    const uint64_t body_begin = up(begin, edge), body_end = down(end, edge);
    uint64_t copied = bytes, head = up(begin, align) - begin, tail = end % align;

    if (up(begin, align) >= end) { /* no multiple of M inside: all of it is head */
        head = bytes;
        tail = 0;
    }
    if (body_end > body_begin) {
        copied -= body_end - body_begin;
        judge_body(s, body_begin, body_end, begin == body_begin && may_carry_on(s, w, begin));
    }
    s->head += head;
    s->tail += tail;
    s->boundary += copied - head - tail;
    s->unaligned += begin % align != 0 || end % align != 0;
}

void __real_refill_delivered(struct refill *r, uint64_t offset);
void __wrap_refill_delivered(struct refill *r, uint64_t offset);
void __wrap_refill_delivered(struct refill *r, uint64_t offset) {
    __real_refill_delivered(r, offset);
    offset_delivered = offset;
    chunks_lent = r->chunks_lent;
}

/* A receiver lies in its worker. */
static const struct worker *container_of_receiver(const struct receiver *r) {
    return (const struct worker *)(const void *)((const char *)r -
                                                 offsetof(struct worker, receiver));
}

void __real_engine_received(struct receiver *r, struct connection *conn, uint32_t bytes);
void __wrap_engine_received(struct receiver *r, struct connection *conn, uint32_t bytes);
void __wrap_engine_received(struct receiver *r, struct connection *conn, uint32_t bytes) {
    const struct worker *w = container_of_receiver(r);
    struct seen *s = &seen[w->settings.worker_index % WORKERS_MAX];

    s->shortest = s->fragments == 0 || bytes < s->shortest ? bytes : s->shortest;
    s->longest = bytes > s->longest ? bytes : s->longest;
    s->lent_max = chunks_lent > s->lent_max ? chunks_lent : s->lent_max;
    s->overflows +=
        (__atomic_load_n(w->reactor.ring.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW) != 0;
    s->fragments++;
    s->bytes += bytes;
    judge(s, w, offset_delivered, bytes);
    s->ends[conn->index % FLOWS_MAX] = offset_delivered + bytes;
    __real_engine_received(r, conn, bytes);
}

int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p) {
    if (settings.ring_entries != 0) {
        entries = settings.ring_entries / 2;
        p->cq_entries = settings.ring_entries;
    }
    return __real_io_uring_queue_init_params(entries, ring, p);
}

uint64_t __real_buddy_take(struct buddy *b, uint32_t order);
uint64_t __wrap_buddy_take(struct buddy *b, uint32_t order);
uint64_t __wrap_buddy_take(struct buddy *b, uint32_t order) {
    return settings.no_relief ? UINT64_MAX : __real_buddy_take(b, order);
}

void observe_print(FILE *out) {
    struct seen all = {.shortest = UINT64_MAX};

    for (unsigned index = 0; index < WORKERS_MAX; index++) {
        const struct seen *s = &seen[index];
        if (s->fragments == 0)
            continue;
        all.fragments += s->fragments;
        all.bytes += s->bytes;
        all.shortest = s->shortest < all.shortest ? s->shortest : all.shortest;
        all.longest = s->longest > all.longest ? s->longest : all.longest;
        all.unaligned += s->unaligned;
        all.lent_max = s->lent_max > all.lent_max ? s->lent_max : all.lent_max;
        all.overflows += s->overflows;
        all.head += s->head;
        all.tail += s->tail;
        all.boundary += s->boundary;
        all.small += s->small;
        all.small_maybe += s->small_maybe;
    }
    fprintf(out,
            "seen_fragments=%" PRIu64 "\nseen_bytes=%" PRIu64 "\nseen_shortest=%" PRIu64
            "\nseen_longest=%" PRIu64 "\nseen_unaligned=%" PRIu64 "\nseen_lent_max=%" PRIu64
            "\nseen_overflows=%" PRIu64 "\ndue_head=%" PRIu64 "\ndue_tail=%" PRIu64
            "\ndue_boundary=%" PRIu64 "\ndue_small=%" PRIu64 "\ndue_small_maybe=%" PRIu64 "\n",
            all.fragments, all.bytes, all.shortest, all.longest, all.unaligned, all.lent_max,
            all.overflows, all.head, all.tail, all.boundary, all.small, all.small_maybe);
}

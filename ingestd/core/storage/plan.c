/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner: see plan.h. Pure; owned by the worker's thread.
 *
 * A fragment is split (head, body, tail), the split is checked against all that
 * is bounded, then it is laid: nothing is changed before it is known to fit.
 * The common fragment is body from end to end; for it the same functions are
 * inlined with an empty head and tail, and shrink to a few compares.
 */
#include "storage/plan.h"

#include <stddef.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE static __attribute__((noinline))

/* How the first `head + body + tail` bytes of a fragment are written. */
struct split {
    uint32_t head;     /* copied, before the body; all of it where there is no body */
    uint32_t body;     /* written from where it lies */
    uint32_t body_pad; /* zeros put behind the body in place */
    uint32_t tail;     /* copied, behind the body */
};

/* M, L and V + 1 are powers of two, so or-ing their masks gives the largest. */
ALWAYS_INLINE uintptr_t edge_mask(const struct plan_profile *p) {
    return (uintptr_t)((p->mem_align - 1) | p->virt_mask);
}

ALWAYS_INLINE uint32_t end_mask(const struct plan_profile *p) {
    return (p->mem_align - 1) | (p->block_bytes - 1);
}

ALWAYS_INLINE uint32_t header_unit(const struct plan_profile *p) {
    return (end_mask(p) | p->virt_mask) + 1;
}

ALWAYS_INLINE uint64_t round_up(uint64_t value, uint64_t mask) {
    return (value + mask) & ~mask;
}

ALWAYS_INLINE uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static bool plan_is_power_of_two(uint32_t value) {
    return value != 0 && (value & (value - 1)) == 0;
}

bool plan_profile_is_usable(const struct plan_profile *p, uint32_t header_capacity,
                            uint32_t iov_capacity) {
    if (!plan_is_power_of_two(p->mem_align) || !plan_is_power_of_two(p->block_bytes) ||
        !plan_is_power_of_two(p->virt_mask + 1))
        return false;
    if (p->mem_align > PLAN_PAGE_BYTES || p->virt_mask >= PLAN_PAGE_BYTES ||
        p->block_bytes > BLOCK_BYTES_MAX)
        return false;
    if (smaller(p->iovecs_max, iov_capacity) < PLAN_IOVECS_MIN)
        return false;
    if (header_capacity > BATCH_HEADER_BYTES_MAX || header_capacity % header_unit(p) != 0 ||
        header_capacity == 0)
        return false;
    /* The first part of a fragment ends by the next page; copying it adds less
     * than an edge, and rounding less than a unit. */
    const uint64_t first_part = 2 * PLAN_PAGE_BYTES + (uint64_t)header_unit(p);
    return header_capacity + first_part <= p->batch_bytes_max && p->batch_bytes_max <= 1u << 30;
}

uint32_t plan_bounce_bytes_min(const struct plan_profile *p) {
    /* A head and a tail of less than an edge each, or a piece that is shorter
     * than copy_below between them; their run's padding; the batch's padding. */
    return (uint32_t)round_up(3 * (edge_mask(p) + 1) + p->copy_below + header_unit(p),
                              PLAN_PAGE_BYTES - 1);
}

void plan_begin(struct plan_batch *b, struct iovec *iov, uint32_t iov_capacity, uint8_t *header,
                uint32_t header_capacity, uint8_t *bounce, uint32_t bounce_capacity,
                bool checksum) {
    assert((uintptr_t)header % PLAN_PAGE_BYTES == 0);
    assert((uintptr_t)bounce % PLAN_PAGE_BYTES == 0);
    assert(iov_capacity >= PLAN_IOVECS_MIN);
    memset(b, 0, sizeof(*b));
    frame_begin(&b->frame, header, header_capacity);
    b->iov = iov;
    b->iov[0] = (struct iovec){.iov_base = header, .iov_len = 0};
    b->iov_count = 1;
    b->iov_capacity = iov_capacity;
    b->bounce = bounce;
    b->bounce_capacity = bounce_capacity;
    b->checksum = checksum;
}

/* A bounce run is open when the last iovec is one: copies may be appended. */
ALWAYS_INLINE bool run_is_open(const struct plan_batch *b) {
    return b->iov_count > 1 && b->direct_end == NULL;
}

/* Zeros that bring an open run, grown by `head`, up to an edge. Runs begin on
 * edges and bounce memory on a page, so its used part gives the position. */
ALWAYS_INLINE uint32_t run_gap(const struct plan_batch *b, const struct plan_profile *p,
                               uint32_t head) {
    return (0u - (b->bounce_used + head)) & (uint32_t)edge_mask(p);
}

ALWAYS_INLINE bool merges(const struct plan_batch *b, const struct plan_fragment *f,
                          uint32_t head) {
    return head == 0 && f->data == b->direct_end;
}

ALWAYS_INLINE bool split_fits(const struct plan_batch *b, const struct plan_profile *p,
                              const struct plan_fragment *f, struct split s) {
    const bool open = run_is_open(b);
    const uint32_t gap = s.body != 0 ? run_gap(b, p, s.head) : 0;

    /* Each piece may need a record of its own. */
    const uint32_t record_bytes =
        (uint32_t)sizeof(struct record_extent) * ((s.head != 0) + (s.body != 0) + (s.tail != 0));
    if (record_bytes > b->frame.capacity - b->frame.used)
        return false;
    const uint64_t header_bytes = round_up(b->frame.used + record_bytes, header_unit(p) - 1);
    const uint64_t end = (uint64_t)b->payload_end + s.head + gap + s.body + s.body_pad + s.tail;
    if (header_bytes + round_up(end, end_mask(p)) > p->batch_bytes_max)
        return false;

    /* Room is kept for the iovec that pads the batch behind a direct piece. */
    uint32_t iovecs = (s.head != 0 && !open) + (s.tail != 0);
    if (s.body != 0)
        iovecs += !merges(b, f, s.head) + (s.tail == 0);
    if (b->iov_count + iovecs > smaller(p->iovecs_max, b->iov_capacity))
        return false;

    const uint64_t bounce_bytes = (uint64_t)b->bounce_used + s.head + gap + s.tail;
    return bounce_bytes + end_mask(p) + 1 <= b->bounce_capacity;
}

ALWAYS_INLINE bool same_flow(const uint8_t *a, const uint8_t *b) {
    uint64_t left[2], right[2];
    memcpy(left, a, sizeof(left));
    memcpy(right, b, sizeof(right));
    return ((left[0] ^ right[0]) | (left[1] ^ right[1])) == 0;
}

/* Accounts for the fragment's next `bytes`, which lie at payload_end: the last
 * extent grows, or a new one begins. */
ALWAYS_INLINE void take(struct plan_batch *b, struct plan_fragment *f, uint32_t bytes) {
    struct record_extent *last = b->frame.last_extent;
    const uint32_t crc_before = b->checksum ? f->crc : 0;
    const uint32_t crc_after = b->checksum ? frame_crc32c(f->crc, f->data, bytes) : 0;
    if (last != NULL && last->payload_offset + last->bytes == b->payload_end &&
        last->stream_offset + last->bytes == f->stream_offset &&
        same_flow(last->head.flow, f->flow)) {
        assert(last->crc_after == crc_before); /* the caller carries the flow's CRC on */
        last->bytes += bytes;
        last->crc_after = crc_after;
        b->frame.payload_bytes += bytes;
    } else {
        const int error = frame_add_extent(&b->frame, f->flow, f->stream_offset, b->payload_end,
                                           bytes, crc_before, crc_after);
        assert(error == 0);
        (void)error;
    }
    if (b->checksum)
        f->crc = crc_after;
    f->stream_offset += bytes;
    f->data += bytes;
    f->bytes -= bytes;
    b->payload_end += bytes;
}

ALWAYS_INLINE struct iovec *last_iovec(struct plan_batch *b) {
    return &b->iov[b->iov_count - 1];
}

ALWAYS_INLINE void push_iovec(struct plan_batch *b, uint8_t *base) {
    assert(b->iov_count < b->iov_capacity);
    b->iov[b->iov_count++] = (struct iovec){.iov_base = base, .iov_len = 0};
}

/* Appends zeros to the bounce run; begins one if none is open. */
NEVER_INLINE void pad_run(struct plan_batch *b, uint32_t bytes) {
    assert(bytes <= b->bounce_capacity - b->bounce_used);
    if (!run_is_open(b))
        push_iovec(b, b->bounce + b->bounce_used);
    b->direct_end = NULL;
    memset(b->bounce + b->bounce_used, 0, bytes);
    last_iovec(b)->iov_len += bytes;
    b->bounce_used += bytes;
    b->payload_end += bytes;
    b->padding_bytes += bytes;
}

NEVER_INLINE void lay_copied(struct plan_batch *b, struct plan_fragment *f, uint32_t bytes) {
    assert(bytes <= b->bounce_capacity - b->bounce_used);
    if (!run_is_open(b))
        push_iovec(b, b->bounce + b->bounce_used);
    b->direct_end = NULL;
    memcpy(b->bounce + b->bounce_used, f->data, bytes);
    last_iovec(b)->iov_len += bytes;
    b->bounce_used += bytes;
    take(b, f, bytes);
}

ALWAYS_INLINE void lay_direct(struct plan_batch *b, const struct plan_profile *p,
                              struct plan_fragment *f, uint32_t bytes, uint32_t pad) {
    assert((((uintptr_t)f->data | (bytes + pad)) & edge_mask(p)) == 0);
    const uint32_t gap = run_gap(b, p, 0);
    if (gap != 0)
        pad_run(b, gap);
    if (f->data != b->direct_end)
        push_iovec(b, f->data);
    last_iovec(b)->iov_len += bytes + pad;
    b->direct_end = f->data + bytes + pad;
    b->direct_bytes += bytes;
    take(b, f, bytes);
    if (pad != 0) {
        memset(f->data, 0, pad);
        f->slack -= pad;
        b->payload_end += pad;
        b->padding_bytes += pad;
    }
}

/* Counts what the split of the first `bytes` bytes copies, by reason. */
static void plan_count_bounced(struct plan_batch *b, const struct plan_profile *p,
                               const struct plan_fragment *f, struct split s,
                               uint32_t small_bytes) {
    const uint32_t m_mask = p->mem_align - 1;
    const uint32_t bytes = s.head + s.body + s.tail;
    const uint32_t head = smaller(bytes, (0u - (uint32_t)(uintptr_t)f->data) & m_mask);
    /* What could have been padded in place is small up to its end, and has no tail. */
    const uint32_t lead =
        smaller(bytes, (0u - (uint32_t)(uintptr_t)f->data) & (uint32_t)edge_mask(p));
    const bool has_end = s.body_pad != 0 || (small_bytes != 0 && lead + small_bytes == bytes);
    const uint32_t tail = has_end ? 0 : (bytes - head) & m_mask;
    const uint32_t copied = s.head + s.tail;
    if (copied == 0)
        return;
    assert(head + tail + small_bytes <= copied);
    b->bounced_bytes[BOUNCE_HEAD] += head;
    b->bounced_bytes[BOUNCE_TAIL] += tail;
    b->bounced_bytes[BOUNCE_SMALL] += small_bytes;
    b->bounced_bytes[BOUNCE_BOUNDARY] += copied - head - tail - small_bytes;
}

/* Splits the fragment's first `bytes` bytes. *small_bytes are those of a body
 * that is not written in place, as copying is cheaper. */
static struct split plan_split_fragment(const struct plan_batch *b, const struct plan_profile *p,
                                        const struct plan_fragment *f, uint32_t bytes,
                                        uint32_t *small_bytes) {
    const uintptr_t mask = edge_mask(p);
    const uintptr_t begin = (uintptr_t)f->data;
    const uintptr_t end = begin + bytes;
    const uintptr_t body_begin = round_up(begin, mask);
    const uintptr_t body_end = end & ~mask; /* the body's last edge without padding */
    const uint32_t pad = (uint32_t)((0 - end) & mask);
    const struct split all_copied = {.head = bytes};
    *small_bytes = 0;

    struct split s = {.head = (uint32_t)(body_begin - begin)};
    if (bytes == f->bytes && pad < p->mem_align && pad <= f->slack && end > body_begin) {
        s.body = (uint32_t)(end - body_begin);
        s.body_pad = pad;
    } else if (body_end > body_begin) {
        s.body = (uint32_t)(body_end - body_begin);
        s.tail = (uint32_t)(end - body_end);
    } else {
        return all_copied;
    }
    if (s.body < p->copy_below && !merges(b, f, s.head)) {
        *small_bytes = s.body;
        return all_copied;
    }
    return s;
}

/* The longest first part of the fragment that ends on a page (so that the rest
 * is aligned) and may fit; 0 if none does. */
static uint32_t plan_first_part(const struct plan_batch *b, const struct plan_profile *p,
                                const struct plan_fragment *f) {
    const uint32_t record_bytes = 3 * (uint32_t)sizeof(struct record_extent);
    const uint64_t header_bytes = round_up(b->frame.used + record_bytes, header_unit(p) - 1);
    if (header_bytes >= p->batch_bytes_max)
        return 0;
    const uint64_t end_max = (p->batch_bytes_max - header_bytes) & ~(uint64_t)end_mask(p);
    const uint32_t head = (uint32_t)((0 - (uintptr_t)f->data) & edge_mask(p));
    const uint64_t begin = (uint64_t)b->payload_end + run_gap(b, p, head);
    if (end_max <= begin)
        return 0;
    const uint64_t bytes_max = end_max - begin < f->bytes ? end_max - begin : f->bytes;
    const uintptr_t cut =
        ((uintptr_t)f->data + bytes_max) & ~(edge_mask(p) | (PLAN_PAGE_BYTES - 1));
    return cut > (uintptr_t)f->data ? (uint32_t)(cut - (uintptr_t)f->data) : 0;
}

NEVER_INLINE uint32_t add_in_pieces(struct plan_batch *b, const struct plan_profile *p,
                                    struct plan_fragment *f) {
    uint32_t small_bytes;
    struct split s = plan_split_fragment(b, p, f, f->bytes, &small_bytes);
    if (!split_fits(b, p, f, s)) {
        const uint32_t bytes = plan_first_part(b, p, f);
        if (bytes == 0)
            return 0;
        s = plan_split_fragment(b, p, f, bytes, &small_bytes);
        if (!split_fits(b, p, f, s))
            return 0;
    }
    plan_count_bounced(b, p, f, s, small_bytes);
    if (s.head != 0)
        lay_copied(b, f, s.head);
    if (s.body != 0)
        lay_direct(b, p, f, s.body, s.body_pad);
    if (s.tail != 0)
        lay_copied(b, f, s.tail);
    return s.head + s.body + s.tail;
}

uint32_t plan_add(struct plan_batch *b, const struct plan_profile *p, struct plan_fragment *f) {
    const uint32_t bytes = f->bytes;
    assert(bytes > 0);
    const struct split whole = {.body = bytes};
    const bool is_clean = (((uintptr_t)f->data | bytes) & edge_mask(p)) == 0;
    if (is_clean && (bytes >= p->copy_below || merges(b, f, 0)) && split_fits(b, p, f, whole)) {
        lay_direct(b, p, f, bytes, 0);
        return bytes;
    }
    return add_in_pieces(b, p, f);
}

bool plan_copy(struct plan_batch *b, const struct plan_profile *p, struct plan_fragment *f,
               enum bounce_reason reason) {
    const struct split whole = {.head = f->bytes};
    assert(f->bytes > 0);
    if (!split_fits(b, p, f, whole))
        return false;
    b->bounced_bytes[reason] += f->bytes;
    lay_copied(b, f, f->bytes);
    return true;
}

bool plan_has_record_room(const struct plan_batch *b, const struct plan_profile *p,
                          uint32_t record_bytes) {
    if (!frame_has_room(&b->frame, record_bytes))
        return false;
    const uint64_t header_bytes = round_up(b->frame.used + record_bytes, header_unit(p) - 1);
    return header_bytes + round_up(b->payload_end, end_mask(p)) <= p->batch_bytes_max;
}

uint64_t plan_bytes(const struct plan_batch *b, const struct plan_profile *p) {
    return frame_header_bytes(&b->frame, header_unit(p)) + round_up(b->payload_end, end_mask(p));
}

/* The other half of the pair: what plan_add kept true piece by piece must hold
 * for the whole batch before the device sees it. */
static void plan_check_batch(const struct plan_batch *b, const struct plan_profile *p,
                             uint64_t batch_bytes) {
    const uint32_t m_mask = p->mem_align - 1;
    uint64_t iovec_bytes = 0;
    uint64_t bounced_bytes = 0;
    uintptr_t any = 0, inner_begins = 0, inner_ends = 0;
    for (uint32_t i = 0; i < b->iov_count; i++) {
        const uintptr_t begin = (uintptr_t)b->iov[i].iov_base;
        const uintptr_t end = begin + b->iov[i].iov_len;
        any |= begin | end;
        inner_begins |= i > 0 ? begin : 0;
        inner_ends |= i + 1 < b->iov_count ? end : 0;
        iovec_bytes += b->iov[i].iov_len;
    }
    for (int reason = 0; reason < BOUNCE_REASONS_COUNT; reason++)
        bounced_bytes += b->bounced_bytes[reason];
    assert((any & m_mask) == 0);
    assert(((inner_begins | inner_ends) & p->virt_mask) == 0);
    assert(b->iov_count <= smaller(p->iovecs_max, b->iov_capacity));
    assert(b->bounce_used <= b->bounce_capacity);
    assert(iovec_bytes == batch_bytes && batch_bytes <= p->batch_bytes_max);
    assert((batch_bytes & (p->block_bytes - 1)) == 0);
    assert(b->direct_bytes + bounced_bytes == b->frame.payload_bytes);
    assert(b->frame.payload_bytes + b->padding_bytes == b->payload_end);
}

uint64_t plan_finish(struct plan_batch *b, const struct plan_profile *p, struct frame_batch *info) {
    assert(!plan_is_empty(b));
    const uint32_t pad = (0u - b->payload_end) & end_mask(p);
    if (pad != 0)
        pad_run(b, pad);
    info->block_bytes = header_unit(p);
    info->flags = b->checksum ? info->flags | BATCH_HAS_CRC32C : info->flags & ~BATCH_HAS_CRC32C;
    info->batch_bytes = frame_header_bytes(&b->frame, info->block_bytes) + b->payload_end;
    b->iov[0].iov_len = frame_finish(&b->frame, info);
    plan_check_batch(b, p, info->batch_bytes);
    return info->batch_bytes;
}

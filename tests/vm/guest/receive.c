/* SPDX-License-Identifier: Apache-2.0
 *
 * Receiving one stream: see receive.h.
 *
 * Invariant: a fragment is on the list of held ones or has been given back, never both.
 */
#include "receive.h"
#include "check.h"
#include "net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TAG_STREAM 1u

struct held {
    struct fragment *fragments;
    uint32_t count_max, head, tail;
};

static void give_back_oldest(struct zcrx *zcrx, struct held *held) {
    zcrx_give_back(zcrx, held->fragments[held->head++ % (held->count_max + 1)]);
}

static void hold(struct zcrx *zcrx, struct held *held, struct fragment fragment) {
    held->fragments[held->tail++ % (held->count_max + 1)] = fragment;
    if (held->tail - held->head > held->count_max)
        give_back_oldest(zcrx, held);
}

static void give_back_all(struct zcrx *zcrx, struct held *held) {
    while (held->head != held->tail)
        give_back_oldest(zcrx, held);
    CHECK_ERROR(zcrx_flush(zcrx), 0, "flushing the refill ring");
}

static void note_shape(struct shape *shape, struct fragment fragment, struct fragment previous) {
    uint64_t in_page = fragment.offset % ZCRX_PAGE_BYTES;

    shape->bytes += fragment.bytes;
    shape->fragments++;
    shape->at_page_start += in_page == 0;
    shape->crossing_page += in_page + fragment.bytes > ZCRX_PAGE_BYTES;
    if (previous.bytes) {
        shape->after_previous += fragment.offset == previous.offset + previous.bytes;
        shape->in_previous_page +=
            fragment.offset / ZCRX_PAGE_BYTES == previous.offset / ZCRX_PAGE_BYTES;
    }
    if (fragment.bytes > shape->longest)
        shape->longest = fragment.bytes;
    while (fragment.offset % shape->offset_granule)
        shape->offset_granule /= 2;
    if (fragment.bytes < SHAPE_LENGTHS_COUNT)
        shape->lengths[fragment.bytes]++;
}

void receive_rearm_event(const struct zcrx *zcrx, int type) {
    struct zcrx_ctrl control = {.op = ZCRX_CTRL_ARM_EVENT};

    control.zc_arm_event.event_type = (uint32_t)type;
    CHECK_ERROR(zcrx_control(zcrx, &control), 0, "arming an event");
}

static void note_event(const struct zcrx *zcrx, const struct completion *completion,
                       struct shape *shape) {
    CHECK(completion->result == ZCRX_EVENT_ALLOC_FAIL || completion->result == ZCRX_EVENT_COPY,
          "an event of unknown type %d", completion->result);
    shape->events_alloc_fail += completion->result == ZCRX_EVENT_ALLOC_FAIL;
    shape->events_copy += completion->result == ZCRX_EVENT_COPY;
    receive_rearm_event(zcrx, completion->result);
}

/* Returns false at the end of the stream. */
static bool continue_after(struct zcrx *zcrx, int socket, const struct completion *completion,
                           struct held *held, struct shape *shape) {
    if (completion->result > 0 || completion->flags & IORING_CQE_F_MORE)
        return true;
    if (completion->result == 0)
        return false;
    CHECK(completion->result == -ENOSPC || completion->result == -ENOMEM,
          "the receive ended at %llu with %s", (unsigned long long)shape->bytes,
          check_error_name(completion->result));
    give_back_all(zcrx, held);
    zcrx_receive(zcrx, socket, TAG_STREAM, 0);
    shape->rearms++;
    return true;
}

void receive_stream(struct zcrx *zcrx, int socket, const struct receive_options *options,
                    struct shape *shape) {
    struct held held = {.count_max = options->held_max};
    struct fragment fragment, previous = {0};
    struct completion completion;

    memset(shape, 0, sizeof(*shape));
    shape->offset_granule = ZCRX_PAGE_BYTES;
    held.fragments = calloc(held.count_max + 1, sizeof(*held.fragments));
    CHECK(held.fragments, "no memory for %u fragments", held.count_max);
    zcrx_receive(zcrx, socket, TAG_STREAM, 0);
    do {
        completion = ring_wait(zcrx->ring);
        if (completion.user_data == ZCRX_TAG_EVENT) {
            note_event(zcrx, &completion, shape);
            completion.flags |= IORING_CQE_F_MORE;
            continue;
        }
        if (completion.result <= 0)
            continue;
        fragment = zcrx_fragment(&completion);
        CHECK(net_stream_matches(zcrx->area + fragment.offset, fragment.bytes, shape->bytes),
              "wrong bytes at %llu", (unsigned long long)shape->bytes);
        note_shape(shape, fragment, previous);
        previous = fragment;
        hold(zcrx, &held, fragment);
        if (!(completion.flags & IORING_CQE_F_MORE))
            zcrx_receive(zcrx, socket, TAG_STREAM, 0);
    } while (continue_after(zcrx, socket, &completion, &held, shape));
    give_back_all(zcrx, &held);
    free(held.fragments);
    CHECK(shape->bytes == options->bytes_expected, "received %llu bytes of %llu",
          (unsigned long long)shape->bytes, (unsigned long long)options->bytes_expected);
}

double shape_percent(const struct shape *shape, uint64_t count) {
    return shape->fragments ? 100.0 * (double)count / (double)shape->fragments : 0.0;
}

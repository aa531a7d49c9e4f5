/* SPDX-License-Identifier: Apache-2.0
 *
 * libFuzzer target: bytes choose a profile, then fragments; the model reads
 * every batch back and ends the program when a byte or an invariant is wrong.
 *
 * Input: 5 bytes of profile, then 5 bytes for each step.
 */
#include "plan_model.h"

#include <stdlib.h>

#define PAGE PLAN_PAGE_BYTES
#define STEPS_MAX 200
#define STEP_BYTES 5
#define PROFILE_BYTES 5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static struct plan_profile profile_of(const uint8_t *data) {
    static const uint32_t mem_aligns[] = {1, 2, 4, 512, 4096};
    static const uint32_t block_bytes[] = {512, 4096, 16384};
    static const uint32_t virt_masks[] = {0, 0, 511, 4095};
    static const uint32_t copy_below[] = {0, 64, 512, 5000};
    static const uint32_t iovecs_max[] = {PLAN_IOVECS_MIN, 5, 16, MODEL_IOVECS_MAX};
    return (struct plan_profile){.mem_align = mem_aligns[data[0] % 5],
                                 .block_bytes = block_bytes[data[1] % 3],
                                 .virt_mask = virt_masks[data[2] % 4],
                                 .iovecs_max = iovecs_max[data[2] / 4 % 4],
                                 .batch_bytes_max = 65536 + 8192u * data[3],
                                 .copy_below = copy_below[data[2] / 16 % 4]};
}

static uint32_t length_of(uint8_t kind, uint8_t value) {
    switch (kind % 8) {
    case 0:
        return 1u + value;
    case 1:
        return 1448;
    case 2:
        return PAGE * (1u + value % 16);
    case 3:
        return 8948;
    case 4:
        return 4u * (1u + value);
    case 5:
        return 65536u - value;
    case 6:
        return 512u * (1u + value % 16);
    default:
        return 1u + value * 257u;
    }
}

/* Where the fragment begins: behind the last one, on a page, or just beside one. */
static uint32_t offset_of(uint8_t kind, uint8_t value, uint32_t used) {
    const uint32_t page = (used + PAGE - 1) / PAGE * PAGE;
    switch (kind / 8 % 4) {
    case 0:
        return used;
    case 1:
        return page;
    case 2:
        return page + value * 4u;
    default:
        return page + value;
    }
}

static void fuzz_step(struct plan_model *m, const uint8_t *data) {
    uint32_t left = length_of(data[1], data[2]);
    const uint32_t slack = data[4] < 128 ? 0 : data[4] * 33u;
    uint32_t offset = offset_of(data[1], data[3], m->arena_used);
    if (offset + left + slack > MODEL_ARENA_BYTES) {
        model_finish(m);
        offset = offset_of(data[1], data[3], m->arena_used);
    }
    while (left != 0) {
        const bool was_empty = plan_is_empty(&m->batch);
        const uint32_t taken = model_add(m, data[0] % MODEL_FLOWS_COUNT, offset, left, slack);
        if (taken == 0 && was_empty)
            model_fail("an empty batch took nothing of %u bytes", left);
        left -= taken;
        m->arena_used = offset + taken + (left == 0 ? slack : 0);
        offset += taken;
        if (left != 0) {
            model_finish(m);
            offset %= PAGE;
        }
    }
}

static void add_record(struct plan_model *m, const uint8_t *data) {
    const uint32_t record_bytes = sizeof(struct record_close);
    const struct frame_close c = {.stream_bytes = data[2], .state = FLOW_STATE_SEALED};
    if (!plan_has_record_room(&m->batch, &m->profile, record_bytes))
        model_finish(m);
    if (!plan_has_record_room(&m->batch, &m->profile, record_bytes) ||
        frame_add_close(&m->batch.frame, m->flows[data[0] % MODEL_FLOWS_COUNT].id, &c) != 0)
        model_fail("an empty batch has no room for a record");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes < PROFILE_BYTES)
        return 0;
    const struct plan_profile profile = profile_of(data);
    const uint32_t header_capacity = data[4] & 1 ? 65536 : 16384;
    const uint32_t bounce_bytes = plan_bounce_bytes_min(&profile) + (data[4] / 2 % 8) * PAGE;
    if (!plan_profile_is_usable(&profile, header_capacity, MODEL_IOVECS_MAX))
        return 0;
    struct plan_model *m = malloc(sizeof(*m));
    if (m == NULL)
        return 0;
    model_setup(m, &profile, header_capacity, bounce_bytes, (data[4] & 16) != 0);
    const uint8_t *at = data + PROFILE_BYTES;
    for (int i = 0; i < STEPS_MAX && at + STEP_BYTES <= data + bytes; i++, at += STEP_BYTES) {
        if (at[0] >= 240)
            add_record(m, at);
        else
            fuzz_step(m, at);
    }
    model_finish(m);
    model_teardown(m);
    free(m);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The planner: what it makes of fragments of known shape. Every batch is also
 * read back by the model, byte by byte.
 */
#include "plan_model.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#define PAGE PLAN_PAGE_BYTES
#define MIB (1024u * 1024u)

static const struct plan_profile nvme = {
    .mem_align = 4, .block_bytes = 4096, .iovecs_max = 1024, .batch_bytes_max = MIB};

static struct plan_profile with_align(uint32_t mem_align, uint32_t block_bytes) {
    struct plan_profile p = nvme;
    p.mem_align = mem_align;
    p.block_bytes = block_bytes;
    return p;
}

static struct plan_model *setup(const struct plan_profile *p, bool checksum) {
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, p, 16 * PAGE, 64 * PAGE, checksum);
    return m;
}

static void teardown(struct plan_model *m) {
    model_finish(m);
    model_teardown(m);
    free(m);
}

static uint64_t bounced_sum(const struct plan_batch *b) {
    uint64_t sum = 0;
    for (int reason = 0; reason < BOUNCE_REASONS_COUNT; reason++)
        sum += b->bounced_bytes[reason];
    return sum;
}

static const struct record_extent *extent(const struct plan_model *m, uint32_t index) {
    return (const struct record_extent *)(const void *)(m->header + sizeof(struct batch_header)) +
           index;
}

static void pages_merge_into_one_iovec(void) {
    struct plan_model *m = setup(&nvme, true);
    for (uint32_t i = 0; i < 16; i++)
        CHECK_EQUAL(model_add(m, 0, i * PAGE, PAGE, 0), PAGE);
    CHECK_EQUAL(m->batch.iov_count, 2);
    CHECK_EQUAL(m->batch.iov[1].iov_len, 16 * PAGE);
    CHECK_EQUAL(m->batch.frame.record_count, 1);
    CHECK_EQUAL(extent(m, 0)->bytes, 16 * PAGE);
    CHECK_EQUAL(m->batch.direct_bytes, 16 * PAGE);
    CHECK_EQUAL(bounced_sum(&m->batch) + m->batch.padding_bytes, 0);
    CHECK_EQUAL(model_finish(m), 17 * PAGE);
    teardown(m);
}

static void clean_pieces_apart_share_an_extent(void) {
    struct plan_model *m = setup(&nvme, false);
    for (uint32_t i = 0; i < 100; i++)
        CHECK_EQUAL(model_add(m, 0, i * PAGE, 1448, 0), 1448);
    CHECK_EQUAL(m->batch.iov_count, 101);
    CHECK_EQUAL(m->batch.frame.record_count, 1);
    CHECK_EQUAL(m->batch.direct_bytes, 144800);
    CHECK_EQUAL(m->batch.bounce_used, 0);
    model_finish(m);
    CHECK_EQUAL(m->padding_bytes, (0u - 144800u) % PAGE);
    CHECK_EQUAL(bounced_sum(&m->batch), 0);
    teardown(m);
}

static void odd_tail_costs_its_odd_bytes_only(void) {
    struct plan_model *m = setup(&nvme, true);
    CHECK_EQUAL(model_add(m, 0, 0, 1447, 0), 1447);
    CHECK_EQUAL(model_add(m, 0, PAGE, 1448, 0), 1448);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 3);
    CHECK_EQUAL(bounced_sum(&m->batch), 3);
    CHECK_EQUAL(m->batch.direct_bytes, 1444 + 1448);
    CHECK_EQUAL(m->batch.padding_bytes, 1);
    /* header, body, tail with its zero, the next fragment */
    CHECK_EQUAL(m->batch.iov_count, 4);
    CHECK_EQUAL(m->batch.iov[2].iov_len, 4);
    CHECK_EQUAL(m->batch.frame.record_count, 2);
    CHECK_EQUAL(extent(m, 0)->bytes, 1447);
    CHECK_EQUAL(extent(m, 1)->payload_offset, 1448);
    teardown(m);
}

static void odd_head_is_copied_up_to_the_edge(void) {
    struct plan_model *m = setup(&nvme, true);
    CHECK_EQUAL(model_add(m, 0, 1, 4095, 0), 4095);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_HEAD], 3);
    CHECK_EQUAL(bounced_sum(&m->batch), 3);
    CHECK_EQUAL(m->batch.direct_bytes, 4092);
    CHECK_EQUAL(extent(m, 0)->bytes, 3);
    CHECK_EQUAL(extent(m, 1)->payload_offset, 4);
    teardown(m);
}

static void slack_saves_the_tail_copy(void) {
    struct plan_model *m = setup(&nvme, true);
    CHECK_EQUAL(model_add(m, 0, 0, 1447, 1), 1447);
    CHECK_EQUAL(bounced_sum(&m->batch), 0);
    CHECK_EQUAL(m->batch.padding_bytes, 1);
    CHECK_EQUAL(m->batch.iov_count, 2);
    CHECK_EQUAL(m->batch.iov[1].iov_len, 1448);
    /* Too little slack is no slack; a gap begins a new extent. */
    CHECK_EQUAL(model_add(m, 0, PAGE, 1445, 2), 1445);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 1);
    CHECK_EQUAL(m->batch.frame.record_count, 2);
    /* A piece below one M, too; but its bytes before an edge have none to pad to. */
    CHECK_EQUAL(model_add(m, 0, 2 * PAGE, 3, 1), 3);
    CHECK_EQUAL(model_add(m, 0, 3 * PAGE + 1, 2, 64), 2);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 1);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_HEAD], 2);
    teardown(m);
}

static void slack_is_not_used_up_to_a_boundary(void) {
    struct plan_profile p = nvme;
    p.virt_mask = PAGE - 1;
    struct plan_model *m = setup(&p, true);
    CHECK_EQUAL(model_add(m, 0, 0, 1448, PAGE), 1448);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_BOUNDARY], 1448);
    CHECK_EQUAL(model_add(m, 0, 2 * PAGE, PAGE - 1, 1), PAGE - 1);
    CHECK_EQUAL(m->batch.direct_bytes, PAGE - 1);
    teardown(m);
}

static void copies_are_packed_byte_by_byte(void) {
    struct plan_profile p = with_align(512, 512);
    struct plan_model *m = setup(&p, true);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQUAL(model_add(m, i % 2, i * 512, 100, 0), 100);
    CHECK_EQUAL(m->batch.iov_count, 2);
    CHECK_EQUAL(m->batch.bounce_used, 800);
    CHECK_EQUAL(m->batch.padding_bytes, 0);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 800);
    CHECK_EQUAL(m->batch.frame.record_count, 8);
    CHECK_EQUAL(model_finish(m), 512 + 1024);
    teardown(m);
}

static void copies_of_one_flow_are_one_extent(void) {
    struct plan_profile p = with_align(512, 512);
    struct plan_model *m = setup(&p, true);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQUAL(model_add(m, 0, i * 512, 100, 0), 100);
    CHECK_EQUAL(m->batch.frame.record_count, 1);
    CHECK_EQUAL(extent(m, 0)->bytes, 800);
    teardown(m);
}

static void boundary_makes_inner_pieces_whole_pages(void) {
    struct plan_profile p = nvme;
    p.virt_mask = PAGE - 1;
    struct plan_model *m = setup(&p, true);
    CHECK_EQUAL(model_add(m, 0, 0, 1448, 0), 1448);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_BOUNDARY], 1448);
    CHECK_EQUAL(model_add(m, 0, PAGE, 3 * PAGE, 0), 3 * PAGE);
    CHECK_EQUAL(m->batch.direct_bytes, 3 * PAGE);
    CHECK_EQUAL(m->batch.padding_bytes, PAGE - 1448);
    CHECK_EQUAL(model_add(m, 0, 5 * PAGE - 6, PAGE + 8, 0), PAGE + 8);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_HEAD], 2);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TAIL], 2);
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_BOUNDARY], 1448 + 4);
    CHECK_EQUAL(m->batch.direct_bytes, 4 * PAGE);
    teardown(m);
}

static void header_ends_on_the_boundary(void) {
    struct plan_profile p = with_align(4, 512);
    struct plan_model *m = setup(&p, true);
    CHECK_EQUAL(model_add(m, 0, 0, 512, 0), 512);
    CHECK_EQUAL(model_finish(m), 512 + 512);
    teardown(m);
    p.virt_mask = PAGE - 1;
    m = setup(&p, true);
    CHECK_EQUAL(model_add(m, 0, 0, 512, 0), 512);
    CHECK_EQUAL(model_finish(m), PAGE + 512);
    teardown(m);
}

static void batch_fills_to_the_last_byte(void) {
    struct plan_model *m = setup(&nvme, false);
    uint32_t count = 0;
    while (model_add(m, 0, count * PAGE, PAGE, 0) == PAGE)
        count++;
    CHECK_EQUAL(count, MIB / PAGE - 1);
    CHECK_EQUAL(model_finish(m), MIB);
    teardown(m);
}

static void large_fragment_is_cut_on_a_page(void) {
    struct plan_model *m = setup(&nvme, true);
    CHECK_EQUAL(model_add(m, 0, 8, MIB + PAGE, 0), MIB - PAGE - 8);
    CHECK_EQUAL(bounced_sum(&m->batch), 0);
    CHECK_EQUAL(model_finish(m), MIB);
    teardown(m);
}

static void iovecs_are_bounded(void) {
    struct plan_profile p = nvme;
    p.iovecs_max = PLAN_IOVECS_MIN;
    struct plan_model *m = setup(&p, true);
    /* One is kept for the padding. */
    CHECK_EQUAL(model_add(m, 0, 0, 1448, 0), 1448);
    CHECK_EQUAL(model_add(m, 0, PAGE, 1448, 0), 1448);
    CHECK_EQUAL(model_add(m, 0, 2 * PAGE, 1448, 0), 0);
    /* What lies behind the last piece needs none. */
    CHECK_EQUAL(model_add(m, 0, PAGE + 1448, 1448, 0), 1448);
    model_finish(m);
    CHECK_EQUAL(model_add(m, 0, 1, 4097, 0), 4097);
    CHECK_EQUAL(m->batch.iov_count, 4);
    teardown(m);
}

static void records_are_bounded(void) {
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, &nvme, PAGE, 64 * PAGE, true);
    uint32_t count = 0;
    while (model_add(m, count % 2, count * PAGE, 1448, 0) == 1448)
        count++;
    CHECK_EQUAL(count, (PAGE - sizeof(struct batch_header)) / sizeof(struct record_extent));
    teardown(m);
}

static void growing_header_counts(void) {
    struct plan_profile p = nvme;
    p.batch_bytes_max = 64 * PAGE;
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, &p, 4 * PAGE, 64 * PAGE, true);
    uint32_t count = 0;
    while (model_add(m, count % 2, count * PAGE, 2048, 0) == 2048)
        count++;
    /* 82 records fit a header of one block: the rest needs a second one. */
    CHECK_EQUAL(count, 2 * 62);
    CHECK_EQUAL(plan_bytes(&m->batch, &p), 64 * PAGE);
    CHECK(plan_has_record_room(&m->batch, &p, sizeof(struct record_close)));
    CHECK(!plan_has_record_room(&m->batch, &p, 8 * 512));
    teardown(m);
}

static void bounce_memory_is_bounded(void) {
    struct plan_profile p = with_align(512, 4096);
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, &p, 16 * PAGE, plan_bounce_bytes_min(&p), true);
    uint32_t taken = 0, offset = 0, step;
    while ((step = model_add(m, 0, offset, 500, 0)) != 0) {
        offset += 512;
        taken += step;
    }
    CHECK(taken > plan_bounce_bytes_min(&p) - PAGE - 512);
    CHECK(taken <= plan_bounce_bytes_min(&p));
    teardown(m);
}

static void room_is_kept_for_the_last_padding(void) {
    struct plan_profile p = with_align(512, 4096);
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, &p, 16 * PAGE, plan_bounce_bytes_min(&p), true);
    /* Behind one direct block, copies end off the bounce memory's own blocks. */
    CHECK_EQUAL(model_add(m, 0, 0, 512, 0), 512);
    uint32_t offset = 512;
    while (model_add(m, 0, offset, 128, 0) != 0)
        offset += 512;
    CHECK(model_finish(m) > 2 * PAGE);
    teardown(m);
}

static void hole_in_a_stream_begins_an_extent(void) {
    struct plan_model *m = setup(&nvme, false);
    CHECK_EQUAL(model_add(m, 0, 0, PAGE, 0), PAGE);
    struct plan_fragment f = {
        .flow = m->flows[0].id, .stream_offset = 3 * PAGE, .data = m->arena + PAGE, .bytes = PAGE};
    CHECK_EQUAL(plan_add(&m->batch, &nvme, &f), PAGE);
    CHECK_EQUAL(m->batch.iov_count, 2);
    CHECK_EQUAL(m->batch.frame.record_count, 2);
    CHECK_EQUAL(extent(m, 1)->stream_offset, 3 * PAGE);
    CHECK_EQUAL(extent(m, 1)->payload_offset, PAGE);
    model_teardown(m);
    free(m);
}

static void a_copy_is_whole_or_refused(void) {
    struct plan_model *m = setup(&nvme, true);
    uint32_t copied = 0;
    for (bool fits = true; fits; copied += fits ? PAGE : 0) {
        struct plan_fragment f = {
            .flow = m->flows[0].id, .stream_offset = copied, .data = m->arena, .bytes = PAGE};
        const uint32_t crc = f.crc = m->batch.frame.record_count ? extent(m, 0)->crc_after : 0;
        fits = plan_copy(&m->batch, &nvme, &f, BOUNCE_TRAILER);
        CHECK_EQUAL(f.bytes, fits ? 0 : PAGE);
        CHECK((f.crc == crc) == !fits);
    }
    CHECK_EQUAL(copied, m->bounce_capacity - PAGE); /* a page is kept for the padding */
    CHECK_EQUAL(m->batch.bounced_bytes[BOUNCE_TRAILER], copied);
    CHECK_EQUAL(m->batch.direct_bytes, 0);
    CHECK_EQUAL(m->batch.iov_count, 2);
    CHECK_EQUAL(m->batch.frame.record_count, 1);
    CHECK(memcmp(m->batch.bounce, m->arena, PAGE) == 0);
    model_teardown(m);
    free(m);
}

static void record_that_grows_the_header_too_far_is_refused(void) {
    struct plan_profile p = nvme;
    p.batch_bytes_max = 22 * PAGE;
    struct plan_model *m = malloc(sizeof(*m));
    model_setup(m, &p, 2 * PAGE, 64 * PAGE, true);
    for (uint32_t i = 0; i < 82; i++)
        CHECK_EQUAL(model_add(m, i % 2, i * PAGE, 1024, 0), 1024);
    /* 21 pages of payload have room for it, but not with a second header block. */
    CHECK_EQUAL(model_add(m, 0, 82 * PAGE, 512, 0), 0);
    CHECK(!plan_has_record_room(&m->batch, &p, sizeof(struct record_extent)));
    CHECK_EQUAL(model_finish(m), 22 * PAGE);
    teardown(m);
}

static void limit_need_not_be_whole_blocks(void) {
    struct plan_profile p = nvme;
    p.batch_bytes_max = 64 * PAGE + 100;
    struct plan_model *m = setup(&p, true);
    CHECK_EQUAL(model_add(m, 0, 0, 63 * PAGE, 0), 63 * PAGE);
    CHECK_EQUAL(model_add(m, 0, 63 * PAGE, 64, 0), 0);
    CHECK_EQUAL(model_finish(m), 64 * PAGE);
    teardown(m);
}

static void records_alone_make_a_batch(void) {
    struct plan_model *m = setup(&nvme, true);
    CHECK(plan_is_empty(&m->batch));
    CHECK_EQUAL(model_finish(m), 0);
    const struct frame_close c = {.state = FLOW_STATE_SEALED};
    CHECK_EQUAL(frame_add_close(&m->batch.frame, m->flows[0].id, &c), 0);
    CHECK(!plan_is_empty(&m->batch));
    CHECK_EQUAL(model_finish(m), PAGE);
    teardown(m);
}

static void record_between_fragments_begins_an_extent(void) {
    struct plan_model *m = setup(&nvme, true);
    CHECK_EQUAL(model_add(m, 0, 0, PAGE, 0), PAGE);
    const struct frame_close c = {.state = FLOW_STATE_SEALED};
    CHECK_EQUAL(frame_add_close(&m->batch.frame, m->flows[1].id, &c), 0);
    CHECK_EQUAL(model_add(m, 0, PAGE, PAGE, 0), PAGE);
    CHECK_EQUAL(m->batch.frame.record_count, 3);
    CHECK_EQUAL(m->batch.iov_count, 2);
    teardown(m);
}

static void unusable_profiles_are_told(void) {
    CHECK(plan_profile_is_usable(&nvme, PAGE, 16));
    CHECK(!plan_profile_is_usable(&nvme, 0, 16));
    CHECK(!plan_profile_is_usable(&nvme, 512, 16));
    CHECK(!plan_profile_is_usable(&nvme, 2 * BATCH_HEADER_BYTES_MAX, 16));
    CHECK(!plan_profile_is_usable(&nvme, PAGE, PLAN_IOVECS_MIN - 1));
    struct plan_profile p = with_align(3, 4096);
    CHECK(!plan_profile_is_usable(&p, PAGE, 16));
    p = with_align(8192, 4096);
    CHECK(!plan_profile_is_usable(&p, 16 * PAGE, 16));
    p = with_align(4, 0);
    CHECK(!plan_profile_is_usable(&p, PAGE, 16));
    p = nvme;
    p.virt_mask = 4094;
    CHECK(!plan_profile_is_usable(&p, PAGE, 16));
    p = nvme;
    p.batch_bytes_max = 2 * PAGE;
    CHECK(!plan_profile_is_usable(&p, PAGE, 16));
    p = nvme;
    p.iovecs_max = PLAN_IOVECS_MIN - 1;
    CHECK(!plan_profile_is_usable(&p, PAGE, 16));
}

/* Runs in a child and expects it to abort: a broken invariant must not pass. */
static bool aborts(void (*run)(void)) {
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        if (freopen("/dev/null", "w", stderr) == NULL)
            _exit(1);
        run();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return child > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void break_crc_chain(void) {
    struct plan_model *m = setup(&nvme, true);
    model_add(m, 0, 0, PAGE, 0);
    m->flows[0].crc ^= 1;
    model_add(m, 0, PAGE, PAGE, 0);
}

static void break_iovec(void) {
    struct plan_model *m = setup(&nvme, true);
    model_add(m, 0, 0, PAGE, 0);
    m->iov[1].iov_len -= 2;
    model_finish(m);
}

static void break_account(void) {
    struct plan_model *m = setup(&nvme, true);
    model_add(m, 0, 0, PAGE, 0);
    m->batch.direct_bytes++;
    model_finish(m);
}

static void add_nothing(void) {
    struct plan_model *m = setup(&nvme, true);
    model_add(m, 0, 0, 0, 0);
}

static void break_nothing(void) {
    struct plan_model *m = setup(&nvme, true);
    model_add(m, 0, 0, PAGE, 0);
    model_finish(m);
}

static void broken_invariants_abort(void) {
    CHECK(aborts(break_crc_chain));
    CHECK(aborts(break_iovec));
    CHECK(aborts(break_account));
    CHECK(aborts(add_nothing));
    CHECK(!aborts(break_nothing));
}

static const struct harness_test tests[] = {
    TEST(pages_merge_into_one_iovec),
    TEST(clean_pieces_apart_share_an_extent),
    TEST(odd_tail_costs_its_odd_bytes_only),
    TEST(odd_head_is_copied_up_to_the_edge),
    TEST(slack_saves_the_tail_copy),
    TEST(slack_is_not_used_up_to_a_boundary),
    TEST(copies_are_packed_byte_by_byte),
    TEST(copies_of_one_flow_are_one_extent),
    TEST(boundary_makes_inner_pieces_whole_pages),
    TEST(header_ends_on_the_boundary),
    TEST(batch_fills_to_the_last_byte),
    TEST(large_fragment_is_cut_on_a_page),
    TEST(iovecs_are_bounded),
    TEST(records_are_bounded),
    TEST(growing_header_counts),
    TEST(bounce_memory_is_bounded),
    TEST(room_is_kept_for_the_last_padding),
    TEST(hole_in_a_stream_begins_an_extent),
    TEST(a_copy_is_whole_or_refused),
    TEST(record_that_grows_the_header_too_far_is_refused),
    TEST(limit_need_not_be_whole_blocks),
    TEST(records_alone_make_a_batch),
    TEST(record_between_fragments_begins_an_extent),
    TEST(unusable_profiles_are_told),
    TEST(broken_invariants_abort),
};

int main(void) {
    return harness_run(tests, sizeof(tests) / sizeof(tests[0]));
}

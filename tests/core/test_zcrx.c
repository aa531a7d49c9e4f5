/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx` on made-up completions: every shape of fragment, chunks in any order, batches that
 * complete when they like, receives that end in the middle. Each flow's bytes must reach the
 * batches whole and in order, and every chunk must come back to the NIC once. The same for flows
 * of protocol ingest, whose blocks lie in fragments wherever packets end.
 */
#include "zcrx_stage.h"

#include <errno.h>

#include "harness.h"

#define KIB 1024u

static void run(const struct stage_shape *shape) {
    stage_open(shape);
    bool over = stage_run();
    if (stage.wrong != NULL)
        printf("%s\n", stage.wrong);
    CHECK(stage.wrong == NULL);
    CHECK(over);
    for (uint32_t i = 0; i < stage.shape.flows_count; i++) {
        const struct stage_sender *s = &stage.senders[i];
        bool due = !s->stopped && shape->silent_at == 0;
        bool is_right = !s->stated || shape->excess_bytes == 0;
        if (due)
            CHECK_EQUAL(s->handed, time_min(s->payload_bytes, s->sent_bytes + s->tail_bytes));
        if (due)
            CHECK_EQUAL(s->sealed, is_right);
    }
    CHECK_EQUAL(stage.w->receiver.zcrx.refill.fragments_lent, 0);
    CHECK_EQUAL(stage.w->receiver.zcrx.refill.chunks_lent, 0);
    CHECK_EQUAL(stage.w->receiver.zcrx.fragments_pending, 0);
    CHECK_EQUAL(stage.w->receiver.zcrx.relief.free_bytes,
                stage.w->receiver.zcrx.relief.total_bytes);
    if (shape->trouble_of != 0)
        CHECK(stage.ended_early_count > 0);
}

#define CASE(function, ...)                                                                        \
    static void function(void) {                                                                   \
        run(&(const struct stage_shape){__VA_ARGS__});                                             \
        stage_close();                                                                             \
    }

CASE(packets_of_1448, .packet_bytes = 1448)
CASE(packets_of_1448_in_shared_pages, .packet_bytes = 1448, .shares_chunks = true)
CASE(whole_pages, .packet_bytes = 4096)
CASE(whole_pages_in_order, .packet_bytes = 4096, .in_order = true)
CASE(jumbo_packets, .packet_bytes = 8948)
CASE(jumbo_packets_in_shared_pages, .packet_bytes = 8948, .shares_chunks = true)
CASE(merged_packets, .packet_bytes = 1448, .shares_chunks = true, .merged_max = 16)
CASE(odd_sizes, .packet_bytes = 1448, .odd_of = 3, .shares_chunks = true)
CASE(large_chunks, .packet_bytes = 8948, .shares_chunks = true, .chunk_shift = 16,
     .chunk_count = 64, .merged_max = 8)
CASE(large_chunks_a_packet_each, .packet_bytes = 1448, .chunk_shift = 16, .chunk_count = 64)
CASE(sixteen_flows, .packet_bytes = 1448, .odd_of = 20, .flows_count = 16,
     .stream_bytes = 150 * KIB)
CASE(receives_end_in_the_middle, .packet_bytes = 1448, .odd_of = 20, .trouble_of = 7)
CASE(memory_of_512, .packet_bytes = 1448, .odd_of = 10, .mem_align = 512, .block_bytes = 512)

/* Few chunks, slow writes: flows are blocked, and what they hold is copied out. */
static void slow_writes_and_few_chunks(void) {
    run(&(const struct stage_shape){.chunk_count = 64,
                                    .flows_count = 6,
                                    .packet_bytes = 1448,
                                    .odd_of = 20,
                                    .stream_bytes = 300 * KIB,
                                    .trouble_of = 11,
                                    .slow_of = 300,
                                    .block_bytes = 512});
    CHECK(stage.blocked_count > 0);
    CHECK(stage.pressure_bytes > 0);
    stage_close();
}

/* Protocol ingest. Of each kind as many flows as of the others; a hello is split by packets of any
 * size, or lies with payload in one fragment. */
#define INGEST .ingest = true, .flows_count = 8, .stream_bytes = 90 * KIB

CASE(ingest_packets_of_1448, INGEST, .packet_bytes = 1448)
CASE(ingest_in_shared_pages, INGEST, .packet_bytes = 1448, .shares_chunks = true)
CASE(ingest_whole_pages, INGEST, .packet_bytes = 4096)
CASE(ingest_jumbo_packets, INGEST, .packet_bytes = 8948, .shares_chunks = true)
CASE(ingest_odd_sizes, INGEST, .packet_bytes = 1448, .odd_of = 2)
CASE(ingest_large_fragments, INGEST, .packet_bytes = 8948, .shares_chunks = true, .chunk_shift = 16,
     .chunk_count = 64, .merged_max = 16)
CASE(ingest_receives_end_in_the_middle, INGEST, .packet_bytes = 700, .odd_of = 4, .trouble_of = 5)
CASE(ingest_byte_by_byte, .ingest = true, .packet_bytes = 1, .shares_chunks = true,
     .stream_bytes = 6 * KIB)
CASE(ingest_shorter_than_a_block, .ingest = true, .packet_bytes = 1448, .odd_of = 2,
     .stream_bytes = 1)
CASE(ingest_without_payload, .ingest = true, .packet_bytes = 1448, .flows_count = 1,
     .one_kind = true, .first_kind = STAGE_HELD_TRAILER, .stream_bytes = 0)
CASE(ingest_more_than_stated, INGEST, .packet_bytes = 1448, .excess_bytes = 1)
CASE(ingest_less_than_stated, INGEST, .packet_bytes = 1448, .odd_of = 4, .excess_bytes = -1)
CASE(ingest_memory_of_512, INGEST, .packet_bytes = 1448, .odd_of = 10, .mem_align = 512,
     .block_bytes = 512)

/* Flows are ended at any moment, also while they wait for a chunk to receive a block into. */
static void ingest_stopped_anywhere(void) {
    run(&(const struct stage_shape){INGEST, .packet_bytes = 500, .odd_of = 2, .trouble_of = 5,
                                    .stop_of = 300});
    stage_close();
}

/* ... most of the time, as the rest of the hello never comes. */
static void ingest_stopped_in_a_hello(void) {
    run(&(const struct stage_shape){INGEST, .packet_bytes = 500, .silent_at = 4000, .trouble_of = 2,
                                    .stop_of = 500});
    stage_close();
}

/* ... and cancels miss receives that are there: they are asked for again. */
static void ingest_stopped_by_a_second_cancel(void) {
    run(&(const struct stage_shape){INGEST, .packet_bytes = 500, .silent_at = 4000, .missed_of = 2,
                                    .stop_of = 500});
    stage_close();
}

/* What is held back for a trailer, by full packets: a few fragments, and nothing is copied. */
static void held_back_where_it_lies(void) {
    run(&(const struct stage_shape){INGEST, .one_kind = true, .packet_bytes = 1448});
    CHECK(stage.held_count_max >= 3);
    CHECK(stage.held_count_max <= 8);
    CHECK_EQUAL(stage.held_copied_bytes, 0);
    stage_close();
}

/* By small ones, a chunk each: it is copied together before it pins many. */
static void held_back_by_a_copy(void) {
    run(&(const struct stage_shape){INGEST, .one_kind = true, .packet_bytes = 20});
    CHECK(stage.held_count_max <= 8);
    CHECK(stage.held_copied_bytes > 0);
    stage_close();
}

/* Silence in a hello, or behind some payload: after a while nothing pins a chunk. */
static void silent(uint32_t silent_at, uint32_t packet_bytes) {
    const struct stage_shape shape = {INGEST,
                                      .one_kind = true,
                                      .packet_bytes = packet_bytes,
                                      .silent_at = silent_at,
                                      .hello_timeout_ns = 50000000,
                                      .flush_interval_ns = 10000000};
    stage_open(&shape);
    stage_steps(100000);
    CHECK(stage.wrong == NULL);
    CHECK_EQUAL(stage.w->receiver.zcrx.refill.chunks_lent, 0);
    CHECK_EQUAL(stage.w->receiver.zcrx.fragments_pending, 0);
}

static void silent_in_a_hello(void) {
    silent(SESSION_BLOCK_BYTES - 1, 1);
    for (uint32_t i = 0; i < stage.shape.flows_count; i++)
        CHECK_EQUAL(stage.flows[i]->session->error, SESSION_ERROR_HELLO_TIMEOUT);
    stage_close();
}

static void silent_behind_payload(void) {
    silent(SESSION_BLOCK_BYTES + 10000, 1448);
    for (uint32_t i = 0; i < stage.shape.flows_count; i++) {
        CHECK(!stage.senders[i].over);
        CHECK_EQUAL(stage.senders[i].handed, 10000 - SESSION_BLOCK_BYTES);
        CHECK_EQUAL(stage.flows[i]->block->filled, SESSION_BLOCK_BYTES);
    }
    stage_close();
}

/* Few chunks and slow writes: what surely is payload is copied out of blocked flows' lists. */
static void ingest_slow_writes_and_few_chunks(void) {
    run(&(const struct stage_shape){.ingest = true,
                                    .one_kind = true,
                                    .flows_count = 8,
                                    .stream_bytes = 400 * KIB,
                                    .chunk_count = 64,
                                    .packet_bytes = 1448,
                                    .odd_of = 2,
                                    .trouble_of = 11,
                                    .slow_of = 4000,
                                    .flush_interval_ns = 300000});
    CHECK(stage.blocked_count > 0);
    CHECK(stage.pressure_bytes > 0);
    CHECK(stage.held_copied_bytes > 0);
    stage_close();
}

/* --- A table of fragments that is too small for what comes --------------------------- */

/* Slow writes, many small fragments: some flow's next one finds no place. It may not continue
 * receiving, and it may not be sealed; with those that had room all is well. */
static void lost_fragments(bool ingest, enum stage_kind kind) {
    const struct stage_shape shape = {.ingest = ingest,
                                      .one_kind = true,
                                      .first_kind = kind,
                                      .flows_count = 8,
                                      .packet_bytes = 1448,
                                      .odd_of = 4,
                                      .shares_chunks = true,
                                      .stream_bytes = 300 * KIB,
                                      .slow_of = 400,
                                      .table_count = 24};
    uint32_t lost_count = 0;
    stage_open(&shape);
    CHECK(stage_run());
    if (stage.wrong != NULL)
        printf("%s\n", stage.wrong);
    CHECK(stage.wrong == NULL);
    for (uint32_t i = 0; i < stage.shape.flows_count; i++) {
        const struct stage_sender *s = &stage.senders[i];
        CHECK_EQUAL(s->sealed, s->error == 0);
        if (s->error == 0) {
            CHECK_EQUAL(s->handed, s->payload_bytes);
            continue;
        }
        lost_count++;
        CHECK_EQUAL(s->error, ENOBUFS);
        CHECK(s->handed < s->payload_bytes);
        /* It is cancelled at once; what was received by then is released. */
        CHECK(s->delivered - s->head_bytes - s->handed < 100 * KIB);
    }
    CHECK(lost_count > 0);
    CHECK_EQUAL(stage.w->receiver.zcrx.refill.fragments_lent, 0);
    CHECK_EQUAL(stage.w->receiver.zcrx.fragments_pending, 0);
    stage_close();
}

static void lost_fragments_of_raw(void) {
    lost_fragments(false, STAGE_OPEN);
}

static void lost_fragments_of_a_stated_length(void) {
    lost_fragments(true, STAGE_STATED);
}

static void lost_fragments_before_a_trailer(void) {
    lost_fragments(true, STAGE_TRAILER);
    lost_fragments(true, STAGE_HELD_TRAILER);
}

/* Where it is known how much a turn can bring, receives pause before the table is full: most turns
 * bring that much, and so do those in which the kernel has not seen the cancels yet. */
static void no_fragment_is_lost(bool ingest) {
    run(&(const struct stage_shape){.ingest = ingest,
                                    .flows_count = 16,
                                    .packet_bytes = 700,
                                    .odd_of = 4,
                                    .shares_chunks = true,
                                    .stream_bytes = 200 * KIB,
                                    .slow_of = 2000,
                                    .turn_completions_max = 16,
                                    .turn_of = 64,
                                    .table_count = 48});
    CHECK(stage.table_low_count > 0);
    for (uint32_t i = 0; i < stage.shape.flows_count; i++)
        CHECK_EQUAL(stage.senders[i].error, 0);
    stage_close();
}

static void receives_pause_for_the_table(void) {
    no_fragment_is_lost(false);
    no_fragment_is_lost(true);
}

/* There was room between two turns that found none, and a connection came: it pauses as well. */
static void what_is_armed_meanwhile_pauses(void) {
    const struct stage_shape shape = {
        .flows_count = 1, .packet_bytes = 1448, .turn_completions_max = 16, .table_count = 48};
    stage_open(&shape);
    struct receiver *r = &stage.w->receiver;
    r->zcrx.fragments_pending = 40;
    engine_zcrx.turn(r);
    CHECK(stage.senders[0].cancelled);
    r->zcrx.fragments_pending = 0;
    struct connection *late = stage.flows[1] = connection_table_take(&stage.w->table);
    late->idle_list = stage.flows[0]->idle_list;
    engine_zcrx.start(r, late);
    stage_submit();
    CHECK(late->zcrx.armed);
    r->zcrx.fragments_pending = 40;
    engine_zcrx.turn(r);
    CHECK(stage.senders[1].cancelled);
    r->zcrx.fragments_pending = 0;
    stage_close();
}

/* --- Kernels that go beyond a receive's bound --------------------------------------- */

CASE(beyond_the_bound, INGEST, .packet_bytes = 1448, .ignores_bounds = true)
CASE(beyond_the_bound_large_fragments, INGEST, .packet_bytes = 8948, .shares_chunks = true,
     .chunk_shift = 16, .chunk_count = 64, .merged_max = 16, .ignores_bounds = true)
CASE(beyond_the_bound_too_much, INGEST, .packet_bytes = 1448, .excess_bytes = 5000,
     .ignores_bounds = true)

/* --- Chunks of the area's free list ------------------------------------------------- */

/* What is copied takes no chunk that lies in the refill ring: several areas' worth of it. */
static void by_copy(void) {
    run(&(const struct stage_shape){.by_copy = true, .chunk_count = 64, .packet_bytes = 1448});
    CHECK(stage.armed_count > stage.shape.flows_count);
    stage_close();
}

/* No write is ever complete, and no chunk comes back: flows do not all try again and again. */
static void starved_flows_wait(void) {
    const struct stage_shape shape = {.by_copy = true,
                                      .flows_count = 16,
                                      .chunk_count = 8,
                                      .packet_bytes = 1448,
                                      .slow_of = UINT32_MAX};
    stage_open(&shape);
    struct buddy *relief =
        &stage.w->receiver.zcrx.relief; /* nothing is copied out: who has a chunk keeps it */
    while (relief->free_bytes > 0)
        buddy_take(relief, buddy_order(relief, relief->total_bytes / 4));
    stage_steps(200000);
    uint64_t armed = stage.armed_count, since_ns = stage.w->reactor.now_ns;
    stage_steps(200000);
    CHECK(stage.wrong == NULL);
    CHECK(stage.w->table.waiting[QUEUE_STARVED].count > 5);
    uint64_t milliseconds = (stage.w->reactor.now_ns - since_ns) / 1000000;
    CHECK(stage.armed_count > armed);
    CHECK(stage.armed_count - armed <= 2 * milliseconds);
    stage_close();
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(packets_of_1448),
        TEST(packets_of_1448_in_shared_pages),
        TEST(whole_pages),
        TEST(whole_pages_in_order),
        TEST(jumbo_packets),
        TEST(jumbo_packets_in_shared_pages),
        TEST(merged_packets),
        TEST(odd_sizes),
        TEST(large_chunks),
        TEST(large_chunks_a_packet_each),
        TEST(sixteen_flows),
        TEST(receives_end_in_the_middle),
        TEST(memory_of_512),
        TEST(slow_writes_and_few_chunks),
        TEST(ingest_packets_of_1448),
        TEST(ingest_in_shared_pages),
        TEST(ingest_whole_pages),
        TEST(ingest_jumbo_packets),
        TEST(ingest_odd_sizes),
        TEST(ingest_large_fragments),
        TEST(ingest_receives_end_in_the_middle),
        TEST(ingest_byte_by_byte),
        TEST(ingest_shorter_than_a_block),
        TEST(ingest_without_payload),
        TEST(ingest_more_than_stated),
        TEST(ingest_less_than_stated),
        TEST(ingest_memory_of_512),
        TEST(ingest_stopped_anywhere),
        TEST(ingest_stopped_in_a_hello),
        TEST(ingest_stopped_by_a_second_cancel),
        TEST(held_back_where_it_lies),
        TEST(held_back_by_a_copy),
        TEST(silent_in_a_hello),
        TEST(silent_behind_payload),
        TEST(ingest_slow_writes_and_few_chunks),
        TEST(lost_fragments_of_raw),
        TEST(lost_fragments_of_a_stated_length),
        TEST(lost_fragments_before_a_trailer),
        TEST(receives_pause_for_the_table),
        TEST(what_is_armed_meanwhile_pauses),
        TEST(beyond_the_bound),
        TEST(beyond_the_bound_large_fragments),
        TEST(beyond_the_bound_too_much),
        TEST(by_copy),
        TEST(starved_flows_wait),
    };
    stage_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

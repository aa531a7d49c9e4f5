/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx` on made-up completions: every shape of fragment, chunks in any order, batches that
 * complete when they like, receives that end in the middle. Each flow's bytes must reach the
 * batches whole and in order, and every chunk must come back to the NIC once.
 */
#include "zcrx_stage.h"

#include "harness.h"

#define KIB 1024u

static void run(const struct stage_shape *shape) {
    stage_open(shape);
    bool over = stage_run();
    if (stage.wrong != NULL)
        printf("%s\n", stage.wrong);
    CHECK(stage.wrong == NULL);
    CHECK(over);
    for (uint32_t i = 0; i < stage.shape.flows_count; i++)
        CHECK_EQUAL(stage.senders[i].handed, stage.shape.stream_bytes + i);
    CHECK_EQUAL(stage.w->zcrx.refill.fragments_lent, 0);
    CHECK_EQUAL(stage.w->zcrx.refill.chunks_lent, 0);
    CHECK_EQUAL(stage.w->zcrx.fragments_pending, 0);
    CHECK_EQUAL(stage.w->zcrx.relief.free_bytes, stage.w->zcrx.relief.total_bytes);
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

int main(void) {
    static const struct harness_test tests[] = {
        TEST(packets_of_1448), TEST(packets_of_1448_in_shared_pages),
        TEST(whole_pages),     TEST(whole_pages_in_order),
        TEST(jumbo_packets),   TEST(jumbo_packets_in_shared_pages),
        TEST(merged_packets),  TEST(odd_sizes),
        TEST(large_chunks),    TEST(large_chunks_a_packet_each),
        TEST(sixteen_flows),   TEST(receives_end_in_the_middle),
        TEST(memory_of_512),   TEST(slow_writes_and_few_chunks),
    };
    stage_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Engine `zcrx` between two turns that find its table of fragments low: what is armed meanwhile
 * pauses as well. In the simulator that takes more chance than its hunts have: between these turns
 * a connection must have given its fragments up, another one begun, and new ones come, in this
 * order. And a fragment of which a batch takes the first part only, which lives whose batches end
 * between fragments hardly have. All that the engine calls beside its own files is a stub here, and
 * none of it is reached but for requests to the ring, and appending by a script.
 */
#include "receive/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/socket.h"
#include "harness.h"
#include "receive/zcrx/pending.h"
#include "receive/zcrx/register.h"

#define CHUNKS_COUNT 16u
#define CHUNK_BYTES 4096u
#define CONNECTIONS_MAX 2u
#define TURN_COMPLETIONS_MAX 16u
#define ROOM_COUNT 8u /* fragments beside those that two turns can bring */

static struct io_uring_sqe sqe;
static bool is_cancelled[CONNECTIONS_MAX];
static uint32_t head, tail;
static uint8_t own[1u << 20];
static struct abi_zcrx_refill_entry entries[CHUNKS_COUNT];
static uint32_t takes[4], takes_head; /* what each append takes, in turn */

struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index) {
    (void)r, (void)tag, (void)index;
    memset(&sqe, 0, sizeof sqe);
    return &sqe;
}

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)r, (void)found;
    CHECK_EQUAL(tag, TAG_RECEIVE);
    is_cancelled[index] = true;
}

int zcrx_open_queue(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    z->rx_buf_len = CHUNK_BYTES;
    z->chunk_count = CHUNKS_COUNT;
    z->refill.head = &head;
    z->refill.tail = &tail;
    z->refill.entries = entries;
    z->refill.entry_count = CHUNKS_COUNT;
    return 0;
}

uint32_t zcrx_chunk_shift(const struct zcrx *z) {
    (void)z;
    return 12;
}

uint8_t *area_own(struct area *a, uint64_t bytes) {
    (void)a;
    return bytes <= sizeof own ? own : NULL;
}

void storage_bound(struct storage *s, uint32_t holds_max, uint32_t writes_in_flight_max) {
    (void)s, (void)holds_max, (void)writes_in_flight_max;
}

void socket_set_receive_buffer(int fd, uint64_t bytes) {
    (void)fd, (void)bytes;
}

void socket_unbind_window(int fd) {
    (void)fd;
}

/* --- Not reached ---------------------------------------------------------------------- */

int zcrx_flush_refill(struct receiver *r) {
    (void)r;
    abort();
}

int zcrx_arm_event(struct receiver *r, uint32_t type) {
    (void)r, (void)type;
    abort();
}

int socket_end_of_stream(int fd) {
    (void)fd;
    abort();
}

uint32_t socket_napi_id(int fd) {
    (void)fd;
    abort();
}

void socket_unlock_receive_buffer(int fd) {
    (void)fd;
    abort();
}

void storage_request_flush(struct storage *s) {
    (void)s;
    abort();
}

uint32_t storage_append(struct storage *s, struct storage_stream *t,
                        const struct batch_piece *piece) {
    (void)s, (void)t;
    CHECK(takes[takes_head] <= piece->bytes);
    return takes[takes_head++];
}

bool storage_append_copy(struct storage *s, struct storage_stream *t, uint8_t *data,
                         uint32_t bytes) {
    (void)s, (void)t, (void)data, (void)bytes;
    abort();
}

/* --- The test ---------------------------------------------------------------------------- */

static void leave_room(struct receiver *r, uint32_t count) {
    r->zcrx.fragments_pending = r->zcrx.fragment_count - count;
    engine_zcrx.turn(r);
}

static void open_engine(struct receiver *r) {
    static struct reactor reactor;
    static struct area area = {.slots_bytes = CHUNKS_COUNT * CHUNK_BYTES};
    static struct storage storage;
    static struct connection_table table;
    reactor.ring.cq.ring_entries = TURN_COMPLETIONS_MAX;
    area.base = own;
    receiver_init(r, &reactor, &area, &storage, &table);
    CHECK_EQUAL(connection_table_init(&table, CONNECTIONS_MAX), 0);
    CHECK_EQUAL(engine_zcrx.open(r), 0);
}

static void close_engine(struct receiver *r) {
    engine_zcrx.close(r);
    connection_table_deinit(r->table);
}

static struct connection *begin(struct receiver *r) {
    struct connection *conn = connection_table_take(r->table);
    engine_zcrx.start(r, conn);
    return conn;
}

static void what_is_armed_between_two_low_turns_pauses(void) {
    static struct receiver r;
    uint32_t coming = 2 * TURN_COMPLETIONS_MAX;
    open_engine(&r);
    leave_room(&r, coming + ROOM_COUNT);
    struct connection *first = begin(&r);
    CHECK(first->zcrx.armed);
    leave_room(&r, coming - 1);
    CHECK(is_cancelled[first->index]);
    r.zcrx.fragments_pending -= ROOM_COUNT; /* some have gone, and the next turn is not yet */
    struct connection *late = begin(&r);
    CHECK(late->zcrx.armed && !is_cancelled[late->index]);
    leave_room(&r, coming - 1);
    CHECK(is_cancelled[late->index]);
    close_engine(&r);
}

/* The batch that took the first part gives the fragment back before or after the rest is taken:
 * the chunk is the kernel's again only when both have. */
static void what_is_split_between_batches_has_two_holders(void) {
    const uint32_t first = 1000, rest = CHUNK_BYTES - first;
    for (int early = 0; early < 2; early++) {
        static struct receiver r;
        open_engine(&r);
        struct refill *refill = &r.zcrx.refill;
        struct connection *conn = begin(&r);
        refill_delivered(refill, 0);
        CHECK(zcrx_append(&r, conn, 0, CHUNK_BYTES));
        memcpy(takes, (uint32_t[]){first, 0, rest}, 3 * sizeof *takes);
        takes_head = 0;
        CHECK(!zcrx_settle(&r, conn));
        if (early)
            zcrx_release(&r, 0);
        CHECK_EQUAL(refill->chunks_lent, 1);
        CHECK(zcrx_settle(&r, conn));
        if (!early)
            zcrx_release(&r, 0);
        CHECK_EQUAL(refill->chunks_lent, 1);
        zcrx_release(&r, first);
        CHECK_EQUAL(refill->chunks_lent, 0);
        CHECK_EQUAL(refill->fragments_lent, 0);
        close_engine(&r);
    }
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(what_is_armed_between_two_low_turns_pauses),
        TEST(what_is_split_between_batches_has_two_holders),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The accounts that need the worker's inner fields: the one file of the simulator that has to
 * follow when those change.
 *
 * Invariants, between two turns: of each flow received bytes are those stored and those held; of
 * the area's chunks, those lent are out.
 */
#include "sim.h"

#include "worker.h"

#define HELD_BACK_MAX 8u /* 4096 bytes are three full packets, and a part of a fourth */

static uint64_t held_by_recv(const struct connection *conn) {
    if (conn->recv.slot_offset != UINT64_MAX) /* what is held back lies there too */
        return conn->recv.slot_filled - conn->recv.slot_taken;
    return engine_is_holding(conn) ? conn->block->filled : 0;
}

static uint64_t held_by_zcrx(const struct worker *w, const struct connection *conn) {
    uint64_t bytes = engine_is_holding(conn) ? conn->block->filled : 0;
    for (uint32_t i = conn->zcrx.fragment_head; i != ZCRX_FRAGMENT_NONE;
         i = w->receiver.zcrx.fragments[i].next)
        bytes += w->receiver.zcrx.fragments[i].bytes;
    return bytes;
}

static bool is_fed(const struct connection *conn) {
    return conn->phase == CONNECTION_POLLING || conn->phase == CONNECTION_RECEIVING ||
           conn->phase == CONNECTION_STARVED || conn->phase == CONNECTION_BLOCKED ||
           conn->phase == CONNECTION_TAIL;
}

static void check_connection(const struct worker *w, const struct connection *conn) {
    if (conn->stream.durable_bytes > conn->stream.stored_bytes ||
        conn->stream.stored_bytes > conn->received_bytes)
        sim_fail("flow %u: %llu received, %llu stored, %llu durable", conn->index,
                 (unsigned long long)conn->received_bytes,
                 (unsigned long long)conn->stream.stored_bytes,
                 (unsigned long long)conn->stream.durable_bytes);
    if (!is_fed(conn) || conn->drop || conn->error != 0)
        return;
    uint64_t held = w->settings.engine == ENGINE_ZCRX ? held_by_zcrx(w, conn) : held_by_recv(conn);
    if (conn->received_bytes != conn->stream.stored_bytes + held)
        sim_fail("flow %u: %llu received are not %llu stored and %llu held", conn->index,
                 (unsigned long long)conn->received_bytes,
                 (unsigned long long)conn->stream.stored_bytes, (unsigned long long)held);
}

static void check_slots(const struct worker *w) {
    uint64_t lent = w->reactor.stats.area_receiving_bytes + w->reactor.stats.area_writing_bytes;
    if (lent + w->area.slots.free_bytes != w->area.slots_bytes)
        sim_fail("area: %llu lent and %llu free of %llu", (unsigned long long)lent,
                 (unsigned long long)w->area.slots.free_bytes,
                 (unsigned long long)w->area.slots_bytes);
}

/* Of each fragment that the kernel delivered it has an entry, or somebody has the fragment. */
static void check_fragments(const struct worker *w) {
    const struct refill *r = &w->receiver.zcrx.refill;
    uint64_t unseen = r->tail_next - *r->tail;
    for (uint32_t i = 0; i < r->chunk_count; i++)
        unseen += r->waiting[i];
    if (nic_fragments_out() != r->fragments_lent + unseen)
        sim_fail("%llu fragments are out, of which %llu are lent and %llu come back",
                 (unsigned long long)nic_fragments_out(), (unsigned long long)r->fragments_lent,
                 (unsigned long long)unseen);
}

/* Few and young fragments are held back for a trailer; the rest is copied. */
static void check_held_back(struct worker *w) {
    static uint32_t old_turns;
    const struct connection *first = connection_first(&w->table, QUEUE_DIRTY);
    bool is_old = first != NULL &&
                  first->since_ns + w->storage.settings.flush_interval_ns <= w->reactor.now_ns;
    old_turns = is_old ? old_turns + 1 : 0; /* the interval may have become shorter just now */
    if (old_turns > 2)
        sim_fail("flow %u holds fragments back for longer than it may", first->index);
    for (uint32_t i = 0; i < w->table.used_upto; i++) {
        const struct connection *conn = &w->table.connections[i];
        uint32_t count = 0;
        if (conn->phase != CONNECTION_RECEIVING || !engine_is_holding(conn))
            continue;
        for (uint32_t k = conn->zcrx.fragment_head; k != ZCRX_FRAGMENT_NONE;
             k = w->receiver.zcrx.fragments[k].next)
            count++;
        if (count > HELD_BACK_MAX)
            sim_fail("flow %u holds %u fragments back", i, count);
    }
}

/* While the table of fragments has no room for what two turns bring, every receive pauses. */
static void check_table(const struct worker *w) {
    const struct zcrx *z = &w->receiver.zcrx;
    if (z->fragment_count - z->fragments_pending >= 2ull * w->reactor.ring.cq.ring_entries)
        return;
    for (uint32_t i = 0; i < w->table.used_upto; i++) {
        const struct connection *conn = &w->table.connections[i];
        if (conn->phase == CONNECTION_RECEIVING && conn->zcrx.armed && !conn->cancelling)
            sim_fail("flow %u is received while the table of fragments is low", i);
    }
}

/* Who is to end is ended, or waits for something that is sure to come. */
static void check_stopped(const struct worker *w) {
    for (uint32_t i = 0; i < w->table.used_upto; i++) {
        const struct connection *conn = &w->table.connections[i];
        bool is_cancelled = conn->zcrx.armed && conn->cancelling;
        if (conn->phase != CONNECTION_FREE && conn->stop && !conn->ended && !is_cancelled &&
            conn->phase != CONNECTION_BLOCKED)
            sim_fail("flow %u is to end, and waits for nothing", i);
    }
}

/* Memory for no more than so many: the worker does not know. Or it does, and has so many more than
 * it keeps free for what is coming. */
void accounts_cut_table(void *worker, uint32_t entries_max, bool is_known) {
    struct worker *w = worker;
    struct zcrx *z = &w->receiver.zcrx;
    if (is_known)
        entries_max += 2 * w->reactor.ring.cq.ring_entries;
    if (entries_max >= z->fragment_count)
        return;
    z->fragments[entries_max - 1].next = ZCRX_FRAGMENT_NONE;
    if (is_known)
        z->fragment_count = entries_max;
}

void accounts_check(void *worker) {
    struct worker *w = worker;
    for (uint32_t i = 0; i < w->table.used_upto; i++)
        if (w->table.connections[i].phase != CONNECTION_FREE)
            check_connection(w, &w->table.connections[i]);
    if (w->settings.engine != ENGINE_ZCRX)
        check_slots(w);
    else
        check_fragments(w);
    if (w->settings.engine != ENGINE_ZCRX || w->reactor.fault.code != 0)
        return;
    check_held_back(w);
    check_table(w);
    check_stopped(w);
}

/* Receives pause in time: none is lost, unless the kernel did not see that they should. */
void accounts_check_lost(const void *event_detail) {
    const struct event_detail *d = event_detail;
    bool is_end = d->kind == EVENT_FLOW_INTERRUPTED || d->kind == EVENT_FLOW_REFUSED;
    bool may_lose = sim.shape.missed_cancel_of != 0 ||
                    (sim.shape.fragment_entries_max != 0 && !sim.shape.is_table_known);
    if (is_end && d->end.error == ENOBUFS && !may_lose)
        sim_fail("a fragment has come for which the table had no room");
}

/* A batch that could have its place now waits for nothing: the loop may not sleep on it. */
void accounts_check_sleep(void *worker) {
    struct worker *w = worker;
    const struct batch *waits = w->storage.batches.open;
    if (waits == NULL || !waits->full || w->reactor.fault.code != 0)
        return;
    storage_place(&w->storage);
    if (w->storage.batches.open != waits)
        sim_fail("a batch that had its place is slept on");
}

bool accounts_has_failed(const void *worker) {
    return ((const struct worker *)worker)->storage.state == STORAGE_FAILED;
}

/* After a drain everything has come back. */
bool accounts_are_empty(const void *worker) {
    const struct worker *w = worker;
    bool nothing_lent =
        w->settings.engine == ENGINE_ZCRX
            ? w->receiver.zcrx.refill.fragments_lent == 0 &&
                  w->receiver.zcrx.fragments_pending == 0 &&
                  w->receiver.zcrx.relief.free_bytes == w->receiver.zcrx.relief.total_bytes
            : w->area.slots.free_bytes == w->area.slots_bytes;
    return w->table.count == 0 && w->connections.peers.connections == 0 &&
           w->storage.batches.open == NULL && nothing_lent &&
           w->storage.batches.free_count == w->storage.batches.count;
}

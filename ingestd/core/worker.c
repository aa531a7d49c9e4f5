/* SPDX-License-Identifier: Apache-2.0
 *
 * Building and taking down a worker; what is read of it from other threads.
 */
#include "worker.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/random.h>

static uint64_t worker_random(void) {
    uint64_t word;
    while (getrandom(&word, sizeof word, 0) != (ssize_t)sizeof word)
        continue; /* a signal came: random(7) */
    return word;
}

static_assert(LISTENERS_MAX <= RECEIVER_LISTENERS_MAX, "the engine knows all listeners");

static void worker_init_connections(struct worker *w) {
    struct connections *c = &w->connections;
    connections_init(c, &w->receiver, w->engine);
    c->settings.worker_index = w->settings.worker_index;
    c->settings.checksum = w->settings.checksum;
    memcpy(c->settings.store_uuid, w->settings.store_uuid, sizeof c->settings.store_uuid);
    c->flow_id_serial = worker_random(); /* so that a clock set back makes no id again */
    admission_open(&c->admission);
}

struct worker *worker_create(const struct worker_settings *s) {
    struct worker *w = calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    w->settings = *s;
    receiver_init(&w->receiver, &w->reactor, &w->area, &w->storage, &w->table);
    w->receiver.settings = (struct receiver_settings){
        .interface_index = s->interface_index,
        .rx_queue = s->rx_queue,
        .rx_buf_len = s->rx_buf_len,
        .refill_entries = s->refill_entries,
        .queue_retry_ns = s->queue_retry_ns,
    };
    w->engine = s->engine == ENGINE_ZCRX ? &engine_zcrx : &engine_recv;
    worker_init_connections(w);
    if (mailbox_open(&w->reactor.mailbox, &w->reactor.fault) < 0) {
        worker_destroy(w);
        return NULL;
    }
    w->reactor.mailbox.grants_wanted = SEGMENTS_READY_MAX;
    return w;
}

/* Those of a loop that ended by a fault, and those that arrived too late for it. */
static void worker_close_connections(struct worker *w) {
    struct command c;
    struct admission_request q;
    for (uint32_t i = 0; i < w->table.used_upto; i++) {
        const struct connection *conn = &w->table.connections[i];
        if (conn->phase != CONNECTION_FREE && conn->fd >= 0)
            close(conn->fd);
    }
    while (mailbox_take(&w->reactor.mailbox, &c))
        if (c.kind == COMMAND_ADOPT)
            close(c.adopt.fd);
    while (admission_take_request(&w->connections.admission, &q))
        if (q.fd >= 0)
            close(q.fd);
}

void worker_destroy(struct worker *w) {
    if (w == NULL)
        return;
    reactor_close_ring(&w->reactor);
    worker_close_connections(w);
    w->engine->close(&w->receiver);
    for (uint32_t i = 0; i < w->connections.listener_count; i++)
        session_pool_deinit(&w->connections.listeners[i].sessions);
    peers_close(&w->connections.peers);
    admission_close(&w->connections.admission);
    storage_close(&w->storage);
    connection_table_deinit(&w->table);
    area_close(&w->area);
    mailbox_close(&w->reactor.mailbox);
    free(w);
}

static int worker_count_peers(struct worker *w) {
    uint64_t secret[PEERS_SECRET_WORDS];
    if (w->connections.peers.places != NULL)
        return 0;
    for (uint32_t i = 0; i < PEERS_SECRET_WORDS; i++)
        secret[i] = worker_random();
    return peers_open(&w->connections.peers, w->settings.flows_max, secret);
}

int worker_add_listener(struct worker *w, const struct listener_settings *s) {
    if (w->connections.listener_count == LISTENERS_MAX)
        return -E2BIG;
    struct listener *l = &w->connections.listeners[w->connections.listener_count];
    *l = (struct listener){
        .fd = s->fd,
        .index = s->index,
        .protocol = s->protocol == PROTOCOL_INGEST ? &protocol_ingest : &protocol_raw,
        .idle_timeout_ns = s->idle_timeout_ns,
        .hello_timeout_ns = s->hello_timeout_ns,
        .ack_interval_ns = s->ack_interval_ns,
        .authenticates = s->authenticates,
        .drops_empty = s->drops_empty,
        .flows_max = s->flows_max,
        .flows_per_peer_max = s->flows_per_peer_max,
        .allow_count = s->allow_count,
        .idle = CONNECTION_LIST_EMPTY,
        .greeting = CONNECTION_LIST_EMPTY,
        .acks_pending = CONNECTION_LIST_EMPTY,
    };
    memcpy(l->name, s->name, sizeof l->name);
    memcpy(l->allow, s->allow, sizeof l->allow);
    /* Connections that other workers accepted come beside its own. */
    bool others = s->shared || w->settings.engine == ENGINE_ZCRX;
    uint64_t own_max = others ? UINT64_MAX : s->flows_max;
    uint32_t sessions_max = (uint32_t)time_min(own_max, w->settings.flows_max);
    if (s->flows_per_peer_max > 0 && worker_count_peers(w) < 0)
        return -ENOMEM;
    if (s->protocol == PROTOCOL_INGEST && session_pool_init(&l->sessions, sessions_max) < 0)
        return -ENOMEM;
    w->receiver.listener_fds[w->connections.listener_count++] = s->fd;
    w->receiver.listener_count = w->connections.listener_count;
    return 0;
}

static int worker_pin(struct worker *w) {
    cpu_set_t set;
    char object[32];
    if (w->settings.cpu < 0)
        return 0;
    CPU_ZERO(&set);
    CPU_SET((size_t)w->settings.cpu, &set);
    snprintf(object, sizeof object, "CPU %d", w->settings.cpu);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        return fault_set(&w->reactor.fault, errno, "sched_setaffinity", object);
    return 0;
}

static uint32_t worker_power_of_two_below(uint64_t value) {
    uint32_t power = 1;
    while (power * 2ull <= value)
        power *= 2;
    return power;
}

static uint32_t worker_ring_completions(const struct worker_settings *s) {
    return reactor_completions(s->flows_max, s->area_bytes);
}

/* Older kernels want every iovec to be a multiple of the logical block, and `recv`
 * has nothing to gain from less: its slots are padded in place, up to an edge, which
 * is one of the virtual boundary where the device has one. */
static uint32_t worker_recv_mem_align(const struct worker_settings *s) {
    uint32_t align = s->mem_align > s->write_align ? s->mem_align : s->write_align;
    return s->virt_mask >= align ? s->virt_mask + 1 : align;
}

/* False: the device's profile cannot be served. */
static bool worker_init_storage(struct worker *w) {
    const struct worker_settings *s = &w->settings;
    bool zcrx = s->engine == ENGINE_ZCRX;
    struct storage_settings out = {
        .store_fd = s->store_fd,
        .store_bytes = s->store_bytes,
        .segments_offset = s->segments_offset,
        .segment_bytes = s->segment_bytes,
        .block_bytes = s->block_bytes,
        .worker_index = s->worker_index,
        .mem_align = zcrx ? s->mem_align : worker_recv_mem_align(s),
        .write_align = s->write_align,
        .virt_mask = s->virt_mask,
        .iovecs_max = s->iovecs_max,
        .any_address = zcrx,
        .payload_bytes_max = s->write_bytes_max,
        .writes_in_flight_max = s->writes_in_flight_max,
        .flush_interval_ns = s->flush_interval_ns,
        .commit_interval_ns = s->commit_interval_ns,
        .checksum = s->checksum,
        .part_record_bytes = s->part_record_bytes,
    };
    memcpy(out.store_uuid, s->store_uuid, sizeof out.store_uuid);
    if (zcrx) /* several batches must fit into the area, and leave the NIC its part */
        out.payload_bytes_max =
            time_min(s->write_bytes_max, s->area_bytes / 8 / AREA_PAGE_BYTES * AREA_PAGE_BYTES);
    return storage_init(&w->storage, &out);
}

/* What the area comes to: slots, and behind them the worker's own part. */
static int worker_area_parts(struct worker *w, struct area_parts *out) {
    const struct worker_settings *s = &w->settings;
    out->slot_bytes_max = worker_power_of_two_below(w->storage.batches.payload_bytes_max);
    if (out->slot_bytes_max < SLOT_BYTES_MIN || s->area_bytes < 2 * out->slot_bytes_max)
        return fault_set(&w->reactor.fault, EINVAL, "area", "area too small for write_bytes_max");
    out->slots_bytes = s->area_bytes / out->slot_bytes_max * out->slot_bytes_max;
    out->own_bytes = storage_own_bytes(&w->storage);
    if (s->engine == ENGINE_ZCRX)
        out->own_bytes += zcrx_relief_bytes(out->slots_bytes);
    return 0;
}

static int worker_open_area(struct worker *w) {
    struct area_parts parts;
    int code = worker_area_parts(w, &parts);
    code = code < 0 ? code : area_open(&w->area, &parts, &w->reactor.fault);
    STAT_SET(&w->reactor, area_bytes, w->area.slots_bytes);
    STAT_SET(&w->reactor, area_free_bytes, w->area.slots_bytes);
    STAT_SET(&w->reactor, area_hugepage_bytes, w->area.hugepage_bytes);
    return code;
}

int64_t worker_locked_bytes(const struct worker_settings *s) {
    struct worker *w = calloc(1, sizeof *w);
    struct area_parts parts;
    if (w == NULL)
        return -ENOMEM;
    w->settings = *s;
    worker_init_storage(w);
    int64_t bytes = worker_area_parts(w, &parts);
    if (bytes == 0 && area_mapping_bytes(&parts) > AREA_MAPPING_BYTES_MAX)
        bytes = -E2BIG;
    if (bytes == 0)
        bytes =
            (int64_t)(area_mapping_bytes(&parts) +
                      reactor_locked_bytes(worker_ring_completions(s), s->engine == ENGINE_ZCRX) +
                      (s->engine == ENGINE_ZCRX ? parts.slots_bytes : 0));
    free(w);
    return bytes;
}

int worker_setup(struct worker *w) {
    int code = worker_pin(w);
    if (!worker_init_storage(w) && code == 0)
        code = fault_set(&w->reactor.fault, EINVAL, "profile", "device's direct-I/O profile");
    code = code < 0 ? code : worker_open_area(w);
    code = code < 0 ? code
                    : reactor_open_ring(&w->reactor, worker_ring_completions(&w->settings),
                                        w->settings.engine == ENGINE_ZCRX);
    code = code < 0 ? code
                    : reactor_register(&w->reactor, w->area.base, w->area.mapping_bytes,
                                       w->settings.store_fd);
    code = code < 0 ? code : storage_open(&w->storage, &w->reactor, &w->area);
    w->receiver.connections_at_once_max = w->settings.flows_max;
    code = code < 0 ? code : w->engine->open(&w->receiver);
    if (code == 0 && connection_table_init(&w->table, w->settings.flows_max) < 0)
        code = fault_set(&w->reactor.fault, ENOMEM, "calloc", "connection table");
    return code;
}

void worker_respond(struct worker *w, const struct admission_response *a) {
    admission_respond(&w->connections.admission, a);
    mailbox_wake_worker(&w->reactor.mailbox);
}

bool worker_park(struct worker *w, uint64_t serial) {
    bool parked = admission_park(&w->connections.admission, serial);
    if (parked)
        mailbox_wake_worker(&w->reactor.mailbox); /* somebody may wait for the place */
    return parked;
}

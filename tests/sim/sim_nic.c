/* SPDX-License-Identifier: Apache-2.0
 *
 * The played NIC and the kernel's zero-copy receive: an rx queue, or the device-less mode.
 *
 * The NIC lays packets into chunks that it has, one or several to a chunk; sockets keep them until
 * a receive brings them; what the worker gives back by the refill ring is read when the queue
 * wants chunks, or by a flush. What comes by copy takes chunks of the free list alone.
 *
 * Invariants: a chunk has as many references as there are fragments of it in sockets and with the
 * worker, and one more while the NIC fills it. A chunk that is free is overwritten at once; a
 * write under way may not read from what the worker has given back.
 */
#include "sim.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "receive/zcrx/uapi.h"

#define CHUNKS_MAX 4096u
#define PAGE_BYTES 4096u
#define PACKET_BYTES_MAX 1448u
#define TINY_PACKET_BYTES 60u
#define TINY_PACKET_COST_BYTES 768u
#define TINY_PACKETS_OF_CHUNK 64u
#define STARVED_TRIES_MAX 8u
#define REGION_HEADER_BYTES 128u
#define IFQ_ID 3u
#define TOKEN (5ull << 48)

static struct {
    bool is_open, is_armed; /* armed: the event of a missing chunk is told */
    bool by_copy;
    uint8_t *area, *region;
    uint64_t region_bytes, event_user_data;
    uint32_t chunk_count, entries, seen;
    uint64_t returned_count; /* entries of the refill ring that were read */
    uint32_t references[CHUNKS_MAX], lent[CHUNKS_MAX]; /* lent: with the worker */
    uint32_t free[CHUNKS_MAX], free_count;
    struct abi_zcrx_stats *stats;
} nic;

bool nic_is_open(void) {
    return nic.is_open;
}

static uint32_t *refill_head(void) {
    return (void *)nic.region;
}

static uint32_t *refill_tail(void) {
    return (void *)(nic.region + 4);
}

static void post_chunk(uint32_t chunk) {
    memset(nic.area + (uint64_t)chunk * sim.shape.chunk_bytes, 0xdd, sim.shape.chunk_bytes);
    nic.free[nic.free_count++] = chunk;
}

static void drop_reference(uint32_t chunk) {
    if (chunk >= nic.chunk_count || nic.references[chunk] == 0)
        sim_fail("chunk %u came back and was not out", chunk);
    if (--nic.references[chunk] == 0)
        post_chunk(chunk);
}

static uint32_t chunk_of_entry(uint32_t at) {
    const struct abi_zcrx_refill_entry *entries = (const void *)(nic.region + REGION_HEADER_BYTES);
    const struct abi_zcrx_refill_entry *e = &entries[at % nic.entries];
    if ((e->offset & ~ABI_ZCRX_OFFSET_MASK) != TOKEN)
        sim_fail("a refill entry does not name the area");
    return (uint32_t)((e->offset & ABI_ZCRX_OFFSET_MASK) / sim.shape.chunk_bytes);
}

/* Entries are looked at as soon as they are shown: the kernel may read them any time. */
static void look_at_entries(void) {
    uint32_t tail = __atomic_load_n(refill_tail(), __ATOMIC_ACQUIRE);
    if (tail - *refill_head() > nic.entries)
        sim_fail("the refill ring holds more than it has room for");
    for (; nic.seen != tail; nic.seen++) {
        uint32_t chunk = chunk_of_entry(nic.seen);
        if (chunk >= nic.chunk_count || nic.lent[chunk] == 0)
            sim_fail("a fragment of chunk %u is given back that is not out", chunk);
        if (--nic.lent[chunk] == 0)
            disk_check_free(nic.area + (uint64_t)chunk * sim.shape.chunk_bytes,
                            sim.shape.chunk_bytes, "the kernel");
    }
}

static void take_entries(uint32_t most) {
    look_at_entries();
    for (; most > 0 && *refill_head() != *refill_tail(); most--) {
        drop_reference(chunk_of_entry(*refill_head()));
        nic.returned_count++;
        __atomic_store_n(refill_head(), *refill_head() + 1, __ATOMIC_RELEASE);
    }
}

static bool take_chunk(uint32_t *chunk) {
    if (nic.free_count == 0)
        return false;
    uint32_t at = sim_below(nic.free_count);
    *chunk = nic.free[at];
    nic.free[at] = nic.free[--nic.free_count];
    return true;
}

void nic_step(void) {
    if (!nic.is_open)
        return;
    look_at_entries();
    if (!nic.by_copy && (sim.calm || sim.shape.is_plain || sim_one_of(3)))
        take_entries(1 + sim_below(64));
}

uint64_t nic_fragments_out(void) {
    uint64_t count = 0;
    look_at_entries();
    for (uint32_t i = 0; i < nic.chunk_count; i++)
        count += nic.lent[i];
    return count;
}

/* --- Packets ------------------------------------------------------------------------- */

static void tell_of_no_chunk(void) {
    if (nic.is_armed && sim_post(nic.event_user_data, ABI_ZCRX_EVENT_ALLOC_FAIL, 0, 0))
        nic.is_armed = false;
}

static void leave_chunk(struct socket_ *s) {
    if (s->chunk != UINT32_MAX)
        drop_reference(s->chunk);
    s->chunk = UINT32_MAX;
}

static struct fragment *last_of(struct socket_ *s) {
    return &s->fragments[(s->first + s->count - 1) % FRAGMENTS_MAX];
}

static bool queue_fragment(struct socket_ *s, uint64_t offset, uint32_t bytes, bool is_copied) {
    if (s->count == FRAGMENTS_MAX)
        return false;
    s->count++;
    *last_of(s) = (struct fragment){offset, bytes, is_copied};
    return true;
}

/* One packet, or what the NIC has room for of it. Returns the bytes that have a place. */
static uint32_t lay_packet(struct socket_ *s, uint32_t bytes) {
    uint32_t laid = 0;
    if (s->count + 2 >= FRAGMENTS_MAX)
        return 0;
    bool is_large = sim.shape.chunk_bytes > PAGE_BYTES; /* several packets share a large one */
    uint32_t leaves_of = is_large ? 16 : sim.shape.small_packets ? 4 : 1;
    if (sim_one_of(sim.shape.tiny_packets ? TINY_PACKETS_OF_CHUNK : leaves_of))
        leave_chunk(s);
    while (laid < bytes) {
        if (s->chunk == UINT32_MAX || s->chunk_used == sim.shape.chunk_bytes) {
            leave_chunk(s);
            if (!take_chunk(&s->chunk)) {
                s->chunk = UINT32_MAX;
                tell_of_no_chunk();
                return laid;
            }
            nic.references[s->chunk]++;
            s->chunk_used = 0;
        }
        uint32_t part = sim.shape.chunk_bytes - s->chunk_used;
        part = part < bytes - laid ? part : bytes - laid;
        uint64_t offset = (uint64_t)s->chunk * sim.shape.chunk_bytes + s->chunk_used;
        sender_wire(s, s->arrived + laid, nic.area + offset, part);
        struct fragment *last = last_of(s);
        bool joins = s->count > 0 && !sim.shape.tiny_packets && s->chunk_used > 0 &&
                     last->offset + last->bytes == offset && !last->is_copied && sim_below(2);
        if (joins) {
            last->bytes += part;
        } else {
            nic.references[s->chunk]++;
            queue_fragment(s, offset, part, false);
        }
        s->chunk_used += part;
        laid += part;
    }
    return laid;
}

uint32_t nic_lay(struct socket_ *s, uint32_t bytes) {
    uint32_t laid = 0;
    /* Each fragment that waits counts as a chunk, as the kernel's truesize has it; or as what a
     * packet takes beside its bytes. */
    uint64_t cost = sim.shape.tiny_packets ? TINY_PACKET_COST_BYTES : PAGE_BYTES;
    while (laid < bytes && s->count * cost < socket_buffer_bytes(s)) {
        uint32_t packet = PACKET_BYTES_MAX;
        if (sim.shape.small_packets)
            packet = 1 + sim_below(sim_below(8) ? 200 : PACKET_BYTES_MAX);
        if (sim.shape.tiny_packets)
            packet = 1 + sim_below(sim_below(8) ? TINY_PACKET_BYTES : PACKET_BYTES_MAX);
        packet = packet < bytes - laid ? packet : bytes - laid;
        uint64_t arrived = s->arrived;
        s->arrived += laid; /* where the packet's bytes lie in the stream */
        bool by_copy = nic.by_copy || s->is_other_queue;
        uint32_t came =
            by_copy ? (queue_fragment(s, 0, packet, true) ? packet : 0) : lay_packet(s, packet);
        s->arrived = arrived;
        laid += came;
        if (came < packet)
            break;
    }
    leave_chunk(s);
    return laid;
}

/* --- Receives -------------------------------------------------------------------------- */

static void pop(struct socket_ *s, uint32_t bytes) {
    struct fragment *f = &s->fragments[s->first];
    f->offset += bytes;
    f->bytes -= bytes;
    if (f->bytes > 0)
        return;
    s->first = (s->first + 1) % FRAGMENTS_MAX;
    s->count--;
}

void nic_consume(struct socket_ *s, uint64_t bytes) {
    while (nic.is_open && bytes > 0 && s->count > 0) {
        struct fragment f = s->fragments[s->first];
        uint32_t part = f.bytes < bytes ? f.bytes : (uint32_t)bytes;
        pop(s, part);
        if (part == f.bytes && !f.is_copied)
            drop_reference((uint32_t)(f.offset / sim.shape.chunk_bytes));
        bytes -= part;
    }
}

void nic_drop(struct socket_ *s) {
    if (!nic.is_open)
        return;
    leave_chunk(s);
    nic_consume(s, UINT64_MAX);
}

static enum ready ends(struct operation *o, int result) {
    sim_post(o->user_data, result, 0, 0);
    return READY_DONE;
}

static int copy(struct socket_ *s, uint32_t bytes, uint64_t *offset) {
    uint32_t chunk;
    if (!take_chunk(&chunk))
        return -ENOMEM;
    nic.references[chunk]++;
    nic.lent[chunk]++;
    *offset = (uint64_t)chunk * sim.shape.chunk_bytes;
    bytes = bytes < sim.shape.chunk_bytes ? bytes : sim.shape.chunk_bytes;
    sender_wire(s, s->read, nic.area + *offset, bytes);
    nic.stats->copy_bytes += bytes;
    nic.stats->copy_count++;
    return (int)bytes;
}

/* Who finds no chunk tries again when some came back, or after a while. */
static void check_starved(struct socket_ *s) {
    bool is_soon = s->starved_ns != 0 && sim.now_ns - s->starved_ns < MS / 2 &&
                   s->starved_at == nic.returned_count;
    s->starved_count = is_soon ? s->starved_count + 1 : 0;
    s->starved_ns = sim.now_ns;
    s->starved_at = nic.returned_count;
    if (s->starved_count > STARVED_TRIES_MAX)
        sim_fail("port %u finds no chunk, and tries again and again", s->port);
}

/* The receive brings the socket's next fragment. */
static enum ready bring(struct operation *o, bool is_last) {
    struct socket_ *s = o->socket;
    struct fragment f = s->fragments[s->first];
    uint32_t bytes = f.bytes;
    uint64_t offset = f.offset;
    bool keeps_bound = sim.shape.keeps_bounds || f.is_copied || o->bytes <= BLOCK + 1;
    if (bytes > o->bound && keeps_bound)
        bytes = (uint32_t)o->bound;
    if (f.is_copied) {
        int got = copy(s, bytes, &offset);
        if (got < 0) {
            check_starved(s);
            return ends(o, got);
        }
        bytes = (uint32_t)got;
    } else {
        uint32_t chunk = (uint32_t)(offset / sim.shape.chunk_bytes);
        nic.lent[chunk]++;
        nic.references[chunk] += bytes < f.bytes; /* the rest stays on it */
    }
    pop(s, bytes);
    s->read += bytes;
    if (o->bound != UINT64_MAX)
        o->bound -= bytes < o->bound ? bytes : o->bound;
    sim.receives_count++;
    sim.received_bytes += bytes;
    sim_post(o->user_data, (int)bytes, is_last ? 0 : IORING_CQE_F_MORE, TOKEN | offset);
    return is_last ? READY_DONE : READY_MORE;
}

enum ready nic_complete(struct operation *o) {
    static const int troubles[] = {-ENOSPC, -ENOMEM, -EINTR};
    struct socket_ *s = o->socket;
    bool trouble = !sim.calm && sim_one_of(sim.shape.receive_end_of);
    /* What the queue had no room for is not received any more: a request that is cancelled ends
     * before it looks at its socket again (io_poll_check_events(), Linux 6.15). */
    if (o->is_cancelled && (sim.step > o->cancelled_step + 1 || sim_one_of(4)))
        return ends(o, -ECANCELED);
    if (o->bound == 0) /* just like the end of the stream */
        return ends(o, 0);
    if (s->count > 0 && !(s->shut_read && sim_below(2)))
        return bring(o, trouble);
    if (o->is_cancelled)
        return ends(o, -ECANCELED);
    if (s->has_reset && !s->reset_told) {
        s->reset_told = true;
        return ends(o, sim_below(2) ? -ECONNRESET : 0);
    }
    if (s->has_fin || s->has_reset || s->shut_read)
        return ends(o, 0);
    if (trouble && sim_one_of(20))
        return ends(o, troubles[sim_below(3)]);
    return READY_NOT;
}

/* --- Registration ------------------------------------------------------------------------ */

static int open_queue(struct abi_zcrx_ifq *q) {
    struct abi_zcrx_area *area = (void *)(uintptr_t)q->area;
    struct abi_region *region = (void *)(uintptr_t)q->region;
    const struct abi_zcrx_event *event = (const void *)(uintptr_t)q->event;
    if ((q->rx_buf_len != 0 ? q->rx_buf_len : PAGE_BYTES) != sim.shape.chunk_bytes)
        return -EINVAL; /* it is asked for another size then */
    nic.by_copy = (q->flags & ABI_ZCRX_NODEV) != 0;
    nic.area = (void *)(uintptr_t)area->address;
    nic.chunk_count = (uint32_t)(area->bytes / sim.shape.chunk_bytes);
    nic.entries = q->refill_entries;
    nic.region_bytes = region->bytes;
    nic.region = aligned_alloc(4096, region->bytes);
    if (nic.chunk_count > CHUNKS_MAX || nic.region == NULL)
        return -ENOMEM;
    memset(nic.region, 0, region->bytes);
    static struct abi_zcrx_stats unseen;
    nic.stats = event != NULL ? (void *)(nic.region + event->stats_offset) : &unseen;
    nic.event_user_data = event != NULL ? event->user_data : 0;
    nic.is_armed = event != NULL;
    nic.is_open = true;
    area->token = TOKEN;
    q->offsets = (struct abi_zcrx_offsets){.head = 0, .tail = 4, .entries = REGION_HEADER_BYTES};
    q->id = IFQ_ID;
    q->rx_buf_len = sim.shape.chunk_bytes;
    for (uint32_t i = 0; i < nic.chunk_count; i++)
        post_chunk(i);
    return 0;
}

int nic_register(uint32_t operation, void *argument) {
    if (operation == ABI_REGISTER_QUERY) {
        struct abi_query_header *h = argument;
        struct abi_query_zcrx *out = (void *)(uintptr_t)h->data;
        out->features = sim_below(4) ? ABI_ZCRX_FEATURE_EVENT : 0;
        h->result = 0;
        return 0;
    }
    if (operation == ABI_REGISTER_ZCRX_IFQ)
        return open_queue(argument);
    const struct abi_zcrx_control *c = argument;
    if (operation != ABI_REGISTER_ZCRX_CTRL || c->id != IFQ_ID)
        return -EINVAL;
    if (c->operation == ABI_ZCRX_CTRL_FLUSH_RQ)
        take_entries(UINT32_MAX);
    else
        nic.is_armed = true;
    return 0;
}

void *nic_map(uint64_t bytes) {
    return bytes == nic.region_bytes ? nic.region : MAP_FAILED;
}

bool nic_is_mapped(const void *at) {
    return at != NULL && at == nic.region;
}

void nic_close(void) {
    nic.is_open = false;
    free(nic.region);
    nic.region = NULL;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Python's side of the core's border, played: it grants segments, decides on hellos and trailers
 * at once, late or not before the calm, sends commands and reads events.
 *
 * Uses what _core.pyx uses and nothing else of the core. Invariant: each request gets one answer
 * at most, and before the calm some get none.
 */
#include "sim.h"

#include <errno.h>
#include <string.h>

#include "worker.h"

/* Where _core.pyx finds them. */
#define MAILBOX (&w->reactor.mailbox)
#define ADMISSION (&w->connections.admission)
#define FAULT (w->reactor.fault)

#define WAITING_MAX 256u
#define MOVES_MAX 32u
#define CALM_STEPS_MAX 60000u
#define CALM_NS_MAX (120 * SECOND)

static struct worker *w;
static struct waiting {
    struct admission_request q;
    uint64_t not_before_ns;
    bool is_parked;
} waiting[WAITING_MAX];
static uint32_t waiting_count;
/* Hellos of connections that are moved, or were: by their place. */
static struct move {
    uint64_t serial; /* of the session that ends by it; 0: none does */
    uint64_t id;     /* that its request will have; 0: the place is free */
    uint8_t block[BLOCK];
} moves[MOVES_MAX];
static uint64_t move_ids;
static bool is_full_told;
static uint64_t next_wake_ns;
/* Of the connections that were let in: whose they are. */
static struct live {
    uint64_t serial;
    uint32_t connection_index, sender;
    struct stream *stream;
} lives[SOCKETS_MAX];
static uint32_t lives_count;

static void post(struct command c) {
    int code = mailbox_post(MAILBOX, c);
    sim_log("command %u %d", c.kind, code);
}

/* Behind a move it comes back, as if to the other worker: its hello is here. */
void border_adopt(int fd, uint32_t listener, uint64_t move_id) {
    post((struct command){.kind = COMMAND_ADOPT, .adopt = {fd, listener, move_id}});
}

/* --- Who is let in -------------------------------------------------------------------- */

static const struct {
    uint32_t hosts; /* a bit for each that is let in, 10.0.0.1's first */
    uint32_t count;
    struct network networks[2];
} allow_lists[] = {
    {0x1f, 0, {{0}}},
    {0x01, 1, {{4, 32, {10, 0, 0, 1}}}},
    {0x16, 2, {{4, 31, {10, 0, 0, 3}}, {4, 32, {10, 0, 0, 5}}}},
    {0x18, 1, {{4, 30, {10, 0, 0, 4}}}},
};

bool border_allows(uint32_t listener, uint8_t host) {
    return (allow_lists[sim.shape.allow[listener]].hosts >> (host - 1) & 1) != 0;
}

/* --- Opening -------------------------------------------------------------------------- */

static struct worker_settings settings(void) {
    const struct shape *p = &sim.shape;
    struct worker_settings s = {
        .store_fd = FD_STORE,
        .store_bytes = p->is_file ? SEGMENTS_OFFSET_BYTES + 1 : 0,
        .segments_offset = SEGMENTS_OFFSET_BYTES,
        .segment_bytes = SEGMENT_BYTES,
        .block_bytes = p->block_bytes,
        .mem_align = p->mem_align,
        .write_align = p->write_align,
        .virt_mask = p->virt_mask,
        .iovecs_max = p->iovecs_max,
        .cpu = -1,
        .area_bytes = p->area_bytes,
        .write_bytes_max = p->write_bytes_max,
        .writes_in_flight_max = p->writes_in_flight_max,
        .flows_max = p->flows_max,
        .flush_interval_ns = p->flush_interval_ns,
        .commit_interval_ns = p->commit_interval_ns,
        .checksum = p->checksum,
        .part_record_bytes = p->part_record_bytes,
        .engine = p->engine,
        .interface_index = p->interface_index,
        .rx_buf_len = p->rx_buf_len,
        .refill_entries = p->refill_entries,
    };
    memcpy(s.store_uuid, sim.uuid, sizeof s.store_uuid);
    return s;
}

/* By which rx queue connections come, other workers' and nobody's. */
static void set_queues(void) {
    struct zcrx *z = &w->receiver.zcrx;
    z->napi_own = NAPI_OWN;
    z->napi_others[0] = NAPI_OTHER;
    z->napi_owners[0] = 1;
    z->napi_other_count = sim.shape.is_queue_owned;
}

void border_open(void) {
    struct worker_settings s = settings();
    w = worker_create(&s);
    if (w == NULL || worker_setup(w) < 0)
        sim_fail("no worker: %s for %s", w ? FAULT.call : "", w ? FAULT.object : "");
    if (sim.shape.engine == ENGINE_ZCRX && sim.shape.interface_index != 0)
        set_queues();
    if (sim.shape.engine == ENGINE_ZCRX && sim.shape.fragment_entries_max != 0)
        accounts_cut_table(w, sim.shape.fragment_entries_max, sim.shape.is_table_known);
    for (uint32_t i = 0; i < LISTENERS_COUNT; i++) {
        struct listener_settings l = {
            .fd = FD_LISTENER + (int)i,
            .index = i,
            .protocol = i == 0 ? PROTOCOL_RAW : PROTOCOL_INGEST,
            .idle_timeout_ns = sim.shape.idle_timeout_ns,
            .flows_max = sim.shape.flows_max,
            .flows_per_peer_max = sim.shape.per_peer[i],
            .allow_count = allow_lists[sim.shape.allow[i]].count,
            .hello_timeout_ns = sim.shape.hello_timeout_ns,
            .ack_interval_ns = sim.shape.ack_interval_ns,
            .name = "sim",
        };
        memcpy(l.allow, allow_lists[sim.shape.allow[i]].networks, sizeof allow_lists->networks);
        if (worker_add_listener(w, &l) < 0)
            sim_fail("no listener");
    }
}

int border_run(void) {
    int code = worker_run(w);
    sim_log("the worker ends with %d, %s", code, FAULT.call);
    return code;
}

void border_close(void) {
    worker_destroy(w);
    w = NULL;
}

/* --- Questions ---------------------------------------------------------------------------- */

static struct live *live_of(uint64_t serial) {
    for (uint32_t i = 0; i < lives_count; i++)
        if (lives[i].serial == serial)
            return &lives[i];
    return NULL;
}

static struct live *live_of_stream(const struct stream *s) {
    for (uint32_t i = 0; i < lives_count; i++)
        if (lives[i].stream == s)
            return &lives[i];
    return NULL;
}

static void refuse(const struct admission_request *q, const char *why) {
    struct admission_response a = {
        .kind = RESPONSE_REFUSE, .connection_index = q->connection_index, .serial = q->serial};
    a.text_bytes = (uint16_t)snprintf(a.text, sizeof a.text,
                                      "{\"type\": \"error\", \"code\": \"%s\", \"text\": \"no\", "
                                      "\"flow\": null, \"durable\": 0}\n",
                                      why);
    worker_respond(w, &a);
}

static void admit(const struct admission_request *q, struct stream *s, uint32_t sender) {
    struct admission_response a = {
        .kind = RESPONSE_ADMIT,
        .connection_index = q->connection_index,
        .serial = q->serial,
        .base_bytes = s->base_bytes,
        .limit_bytes = sender_states_length(sender) ? s->payload_bytes : UINT64_MAX,
        .crc = s->base_crc,
    };
    a.flags = (s->base_crc_known ? RESPONSE_HAS_CRC : 0) |
              (sender_states_length(sender) ? RESPONSE_LENGTH_KNOWN : 0) |
              (sender_has_trailer(sender) ? RESPONSE_TRAILER : 0);
    memcpy(a.flow, s->id, sizeof a.flow);
    a.name_bytes = (uint16_t)snprintf(a.name, sizeof a.name, "stream-%u", s->number);
    a.labels_bytes = (uint16_t)snprintf(a.labels, sizeof a.labels, "sender=%u", sender);
    if (lives_count == SOCKETS_MAX)
        sim_fail("more connections are let in than are played");
    lives[lives_count++] = (struct live){q->serial, q->connection_index, sender, s};
    s->owner = (int)sender;
    sender_admitted(sender, s->base_bytes);
    sim_log("admit stream %u at %llu", s->number, (unsigned long long)s->base_bytes);
    worker_respond(w, &a);
}

static struct move *move_of_id(uint64_t id) {
    struct move *m = moves;
    while (m < moves + MOVES_MAX && m->id != id)
        m++;
    return m < moves + MOVES_MAX ? m : NULL;
}

/* False: too many are. */
static bool move_away(const struct admission_request *q, const uint8_t *block) {
    struct move *m = move_of_id(0);
    if (m == NULL)
        return false;
    *m = (struct move){.serial = q->serial, .id = ++move_ids};
    memcpy(m->block, block, sizeof m->block);
    struct admission_response a = {
        .kind = RESPONSE_MOVE, .connection_index = q->connection_index, .serial = q->serial};
    worker_respond(w, &a);
    return true;
}

/* It has ended: by its move, or before that. */
static void note_move(const struct admission_request *q) {
    struct move *m = moves;
    while (m < moves + MOVES_MAX && m->serial != q->serial)
        m++;
    bool is_moved = (q->flags & REQUEST_MOVED) != 0;
    if (is_moved != (q->fd >= 0) || (is_moved && m == moves + MOVES_MAX))
        sim_fail("a connection is moved, and was not to be");
    if (m == moves + MOVES_MAX)
        return;
    m->serial = 0;
    if (is_moved && !sim_one_of(5)) {
        border_adopt(q->fd, (uint32_t)q->listener_index, m->id);
        return;
    }
    if (is_moved)
        sim_close(q->fd); /* the other worker has done with it */
    m->id = 0;
}

/* False: it waits for the connection that feeds the flow now. */
static bool decide_hello(const struct admission_request *q) {
    uint32_t sender;
    struct move *m = q->move_id != 0 ? move_of_id(q->move_id) : NULL;
    if (q->move_id != 0 && m == NULL)
        sim_fail("a move is not known");
    uint8_t block[BLOCK];
    memcpy(block, m != NULL ? m->block : q->block, sizeof block);
    struct stream *s = stream_of_hello(block, &sender);
    struct live *other = live_of_stream(s);
    if (other != NULL) {
        if (sim_below(4) == 0)
            post((struct command){.kind = COMMAND_END_FLOW,
                                  .connection = {other->connection_index, other->serial}});
        return false;
    }
    if (m != NULL)
        m->id = 0; /* the decision is made: nobody asks by it again */
    if (!sim.calm && sim_one_of(6) && move_away(q, block)) {
        sender_moves(sender);
        return true;
    }
    bool fits = sender_waits(sender) || s->base_bytes == 0;
    if (s->is_removed || s->is_sealed || !s->is_resumable || !fits || (!sim.calm && sim_one_of(20)))
        refuse(q, s->is_removed ? "removed" : s->is_sealed ? "sealed" : "busy");
    else
        admit(q, s, sender);
    return true;
}

static bool decide_trailer(const struct admission_request *q) {
    const struct live *l = live_of(q->serial);
    if (l == NULL) { /* it has ended meanwhile, and gets its answer all the same */
        refuse(q, "busy");
        return true;
    }
    sender_check_trailer(l->sender, q->block, q->bytes_count);
    uint32_t crc = stream_crc(l->stream, q->bytes_count);
    if ((q->flags & REQUEST_HAS_CRC) && q->crc != crc)
        sim_fail("stream %u has another checksum behind %llu bytes", l->stream->number,
                 (unsigned long long)q->bytes_count);
    if (sim_one_of(12)) {
        refuse(q, "checksum");
        return true;
    }
    struct admission_response a = {
        .kind = RESPONSE_SEAL, .connection_index = q->connection_index, .serial = q->serial};
    a.flags = sim_below(2) ? RESPONSE_HAS_CRC : 0;
    a.crc = a.flags ? crc : 0;
    worker_respond(w, &a);
    return true;
}

static void forget_requests(uint64_t serial) {
    for (uint32_t i = 0; i < waiting_count; i++)
        if (waiting[i].q.serial == serial)
            waiting[i].not_before_ns = sim.now_ns; /* it still gets its answer */
}

static void note_ended(const struct admission_request *q) {
    struct live *l = live_of(q->serial);
    forget_requests(q->serial);
    note_move(q);
    if (l == NULL)
        return;
    struct stream *s = l->stream;
    s->owner = -1;
    if (q->flags & REQUEST_STORED) {
        if (q->bytes_count > s->sent_bytes)
            sim_fail("stream %u ends with more bytes than were sent", s->number);
        s->base_bytes = q->bytes_count;
        s->base_crc = q->crc;
        s->base_crc_known = (q->flags & REQUEST_HAS_CRC) != 0;
        s->is_resumable = (q->flags & REQUEST_WHOLE) != 0;
        s->is_sealed = s->is_sealed || (q->flags & REQUEST_SEALED);
    }
    *l = lives[--lives_count];
}

static void take_requests(void) {
    struct admission_request q;
    while (admission_take_request(ADMISSION, &q)) {
        sim_log("request %u of %llu", q.kind, (unsigned long long)q.serial);
        if (q.kind == NOTE_ENDED) {
            note_ended(&q);
            continue;
        }
        if (waiting_count == WAITING_MAX)
            sim_fail("more requests than there may be");
        struct waiting *n = &waiting[waiting_count++];
        *n = (struct waiting){.q = q};
        if (!sim.calm && sim_one_of(sim.shape.late_answer_of))
            n->not_before_ns = sim_one_of(4) ? NEVER : sim.now_ns + sim_time_below(20 * SECOND);
    }
}

static void answer_some(void) {
    for (uint32_t i = 0; i < waiting_count; i++) {
        struct waiting *n = &waiting[i];
        bool is_late = n->not_before_ns > sim.now_ns && !sim.calm;
        if (is_late && !n->is_parked && sim_one_of(8))
            n->is_parked = worker_park(w, n->q.serial);
        if (is_late)
            continue;
        bool is_done = n->q.kind == REQUEST_HELLO ? decide_hello(&n->q) : decide_trailer(&n->q);
        if (is_done)
            waiting[i--] = waiting[--waiting_count];
    }
}

/* --- Segments and commands -------------------------------------------------------------------- */

static void grant(void) {
    uint32_t wanted = mailbox_grants_wanted(MAILBOX);
    for (; wanted > 0; wanted--) {
        if (!sim.calm && sim_one_of(sim.shape.late_grant_of))
            return;
        if (sim.segments_granted == sim.segments_count) {
            if (!is_full_told)
                post((struct command){.kind = COMMAND_STORE_FULL});
            is_full_told = true;
            return;
        }
        uint32_t index = sim.segments[sim.segments_granted++];
        uint64_t sequence = sim.generation << 32 | (sim.sequences_used + sim.segments_granted);
        post((struct command){.kind = COMMAND_GRANT_SEGMENT, .segment = {index, sequence}});
        is_full_told = false;
    }
}

static void some_command(void) {
    switch (sim_below(6)) {
    case 5:
        post((struct command){.kind = COMMAND_PASS_ON,
                              .pass_on = {sim_below(LISTENERS_COUNT), sim_one_of(3)}});
        break;
    case 0:
        post((struct command){.kind = COMMAND_SET_FLUSH_INTERVAL,
                              .interval_ns = MS + sim_time_below(200 * MS)});
        break;
    case 1:
        post((struct command){.kind = COMMAND_SET_COMMIT_INTERVAL,
                              .interval_ns = sim_time_below(200 * MS)});
        break;
    case 2:
        post((struct command){
            .kind = COMMAND_SET_IDLE_TIMEOUT,
            .idle_timeout = {sim_below(LISTENERS_COUNT), SECOND + sim_time_below(5 * SECOND)}});
        break;
    case 3:
        if (lives_count > 0) {
            const struct live *l = &lives[sim_below(lives_count)];
            post((struct command){.kind = COMMAND_END_FLOW,
                                  .connection = {l->connection_index, l->serial}});
        }
        break;
    case 4:
        if (sim_one_of(200)) {
            sim.store_failed = true;
            post((struct command){.kind = COMMAND_FAIL_STORE, .error = 5});
        }
        break;
    }
}

static void read_events(void) {
    struct event e;
    while (mailbox_read(MAILBOX, &e)) {
        sim_log("event %u", e.detail.kind);
        accounts_check_lost(&e.detail);
        if (e.detail.kind == EVENT_FLOW_ELSEWHERE && sim_one_of(3))
            sim_close(e.detail.elsewhere.fd);           /* the other worker has done with it */
        else if (e.detail.kind == EVENT_FLOW_ELSEWHERE) /* ... or gives it back */
            border_adopt(e.detail.elsewhere.fd, (uint32_t)e.listener_index, 0);
        if (e.detail.kind == EVENT_STORE_FAILED)
            sim.store_failed = true;
    }
}

void border_sleep(void) {
    accounts_check_sleep(w);
}

void border_wake(void) {
    if (next_wake_ns > sim.now_ns) {
        sim_wake_at(next_wake_ns);
        return;
    }
    next_wake_ns = sim.now_ns + sim_below(sim_one_of(10) ? 50000000 : 2000000);
    sim_wake_at(next_wake_ns);
    read_events();
    grant();
    take_requests();
    answer_some();
    if (!sim.calm && sim_one_of(sim.shape.command_of))
        some_command();
}

void border_drain(void) {
    sim.draining = true;
    post((struct command){.kind = COMMAND_DRAIN, .timeout_ns = sim_time_below(20 * SECOND)});
}

/* Nothing new comes: all that has begun must end now, in its time. */
static void check_progress(void) {
    bool is_sent =
        sim.shape.is_plain && streams_count == sim.shape.senders_max && senders_are_over();
    if (!sim.calm && (is_sent || sim.step >= sim.shape.steps_max)) {
        sim.calm = true;
        sim.calm_step = sim.step;
        sim.calm_ns = sim.now_ns;
        senders_calm();
        for (uint32_t i = 0; i < LISTENERS_COUNT; i++)
            post((struct command){.kind = COMMAND_PASS_ON, .pass_on = {i, false}});
        sim_log("calm");
    }
    bool is_over = sim.calm && (senders_are_over() || sim.now_ns > sim.calm_ns + 40 * SECOND);
    if (!sim.draining && (is_over || sim.step >= sim.shape.drain_step))
        border_drain();
    if (sim.calm &&
        (sim.step > sim.calm_step + CALM_STEPS_MAX || sim.now_ns > sim.calm_ns + CALM_NS_MAX))
        sim_fail("it hangs: %llu steps and %llu s after all was said",
                 (unsigned long long)(sim.step - sim.calm_step),
                 (unsigned long long)((sim.now_ns - sim.calm_ns) / SECOND));
}

/* Between two turns of the worker. */
void border_step(void) {
    senders_listen();
    if (sim_ring_is_empty()) /* else it has not seen yet what has happened */
        accounts_check(w);
    border_wake();
    check_progress();
    if (sim.step >= sim.shape.crash_step) {
        sim.power_off = true;
        return;
    }
    if (sim_one_of(sim.shape.check_of))
        sim_check_point("step");
    if (sim_one_of(sim.shape.removal_of) && disk_is_there() && !sim.store_failed)
        sim_removal_point();
}

/* The life is over: what has not been read of the mailbox is lost. */
bool border_has_ended_well(void) {
    /* A footer that the device refuses behind the drain's deadline is not tried again. */
    sim.store_failed = sim.store_failed || accounts_has_failed(w);
    return accounts_are_empty(w);
}

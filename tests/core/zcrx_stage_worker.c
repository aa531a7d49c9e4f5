/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions of the worker that the engine and its sessions call; see zcrx_stage.h.
 */
#include "zcrx_stage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "receive/zcrx/register.h"

void stage_submit(void) {
    const struct io_uring_sqe *sqe = &stage.sqe;
    if (!stage.sqe_is_new)
        return;
    stage.sqe_is_new = false;
    if (sqe->opcode != URING_OP_RECV_ZC)
        return;
    struct stage_sender *s = &stage.senders[(uint32_t)sqe->user_data];
    s->tag = (enum uring_tag)(sqe->user_data >> 32);
    s->bound_bytes = sqe->len != 0 ? sqe->len : UINT64_MAX;
    stage.armed_count++;
}

struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index) {
    (void)r;
    stage_submit();
    memset(&stage.sqe, 0, sizeof stage.sqe);
    stage.sqe.user_data = uring_tag(tag, index);
    stage.sqe_is_new = true;
    return &stage.sqe;
}

void connection_event_end(struct connections *c, const struct connection *conn,
                          enum event_kind kind) {
    (void)c, (void)conn, (void)kind;
}

bool connection_event(struct connections *c, const struct connection *conn,
                      struct event_detail detail) {
    (void)c, (void)conn, (void)detail;
    return true;
}

int socket_end_of_stream(int fd) {
    (void)fd;
    return 0;
}

uint32_t socket_napi_id(int fd) {
    (void)fd;
    return 0;
}

void socket_set_receive_buffer(int fd, uint64_t bytes) {
    (void)fd, (void)bytes;
}

void socket_unlock_receive_buffer(int fd) {
    (void)fd;
}

void socket_unbind_window(int fd) {
    (void)fd;
}

void reactor_cancel(struct reactor *r, enum uring_tag tag, uint32_t index, enum uring_tag found) {
    (void)found;
    if (!stage.flows[index]->zcrx.armed || tag != stage.senders[index].tag)
        stage_wrong("a receive is cancelled that is not there");
    if (stage.shape.missed_of != 0 && random_below(stage.shape.missed_of) == 0) {
        stage.senders[index].cancel_missed = true;
        return;
    }
    stage.senders[index].cancelled = true;
    stage.senders[index].cancelled_ns = r->now_ns;
}

static void raw_payload_over(struct connections *c, struct connection *conn) {
    if (conn->stop || conn->error)
        connection_end(c, conn, FLOW_STATE_INTERRUPTED, conn->reason, conn->error);
    else
        connection_end(c, conn, FLOW_STATE_SEALED, CLOSE_REASON_NONE, 0);
}

const struct protocol stage_protocol_raw = {.payload_over = raw_payload_over};

/* No CLOSE record is made here. */
bool connection_retry_close(struct connections *c, struct connection *conn) {
    (void)c, (void)conn;
    abort();
}

void connection_end(struct connections *c, struct connection *conn, uint8_t state, uint8_t reason,
                    int error) {
    struct stage_sender *s = &stage.senders[conn->index];
    (void)reason;
    connection_wait(c->table, conn, QUEUE_NONE, c->reactor->now_ns);
    connection_idle_remove(c->table, &c->listeners[0].idle, conn);
    s->over = conn->ended = true;
    s->sealed = state == FLOW_STATE_SEALED;
    s->error = error;
    if ((error && error != ENOBUFS) || conn->zcrx.armed ||
        conn->zcrx.fragment_head != ZCRX_FRAGMENT_NONE)
        stage_wrong("a flow ended with an error, or in the middle");
    if (s->sealed && s->handed != s->payload_bytes)
        stage_wrong("a flow was sealed without all of its bytes");
    connection_set_phase(conn, CONNECTION_CLOSING);
}

void connection_interrupt(struct connections *c, struct connection *conn, uint8_t reason,
                          bool drop) {
    if (conn->ended || conn->stop)
        return;
    conn->stop = true;
    conn->drop = drop;
    conn->reason = reason;
    if (conn->session == NULL || !conn->protocol->stop(c, conn))
        engine_zcrx.stop(c->receiver, conn);
}

void connection_last_line_sent(struct connections *c, struct connection *conn, int result) {
    (void)c, (void)conn, (void)result;
    abort(); /* no line is ever complete here */
}

void connection_try_free(struct connections *c, struct connection *conn) {
    (void)c, (void)conn;
    abort();
}

void connection_format_peer(const struct connection *conn, char *out, size_t capacity) {
    (void)conn, (void)capacity;
    *out = 0;
}

/* Python's side: what the worker asks must be the block as it was laid. */
static void check_block(const struct admission_request *q, uint64_t laid_at) {
    for (uint32_t i = 0; i < SESSION_BLOCK_BYTES; i++)
        if (q->block[i] != stage_pattern(q->connection_index, laid_at + i)) {
            stage_wrong("a block has other bytes than were laid");
            return;
        }
}

static void answer(const struct admission_request *q) {
    struct stage_sender *s = &stage.senders[q->connection_index];
    struct admission_response a = {.connection_index = q->connection_index, .serial = q->serial};
    if (q->kind == REQUEST_HELLO) {
        check_block(q, 0);
        s->accepted = true;
        a.kind = RESPONSE_ADMIT;
        a.flow[0] = (uint8_t)(1 + q->connection_index);
        a.base_bytes = s->base_bytes;
        a.limit_bytes = s->stated ? s->base_bytes + s->payload_bytes : UINT64_MAX;
        a.flags = (s->stated ? RESPONSE_LENGTH_KNOWN : 0) | (s->trailer ? RESPONSE_TRAILER : 0);
    } else {
        check_block(q, s->head_bytes + s->payload_bytes);
        if (q->bytes_count != s->base_bytes + s->payload_bytes)
            stage_wrong("the trailer was told with another length");
        a.kind = RESPONSE_SEAL;
    }
    admission_respond(&stage.w->connections.admission, &a);
}

void stage_answer(void) {
    static struct admission_request q;
    while (admission_take_request(&stage.w->connections.admission, &q))
        answer(&q);
    ingest_take_responses(&stage.w->connections);
    stage_submit();
}

int zcrx_open_queue(struct receiver *r) {
    struct zcrx *z = &r->zcrx;
    z->rx_buf_len = 1u << stage.shape.chunk_shift;
    z->chunk_count = stage.shape.chunk_count;
    z->refill.head = &stage.head;
    z->refill.tail = &stage.tail;
    z->refill.entries = stage.entries;
    z->refill.entry_count = sizeof stage.entries / sizeof stage.entries[0];
    return 0;
}

uint32_t zcrx_chunk_shift(const struct zcrx *z) {
    (void)z;
    return stage.shape.chunk_shift;
}

int zcrx_flush_refill(struct receiver *r) {
    (void)r;
    if (stage.shape.by_copy)
        stage_take_refill_entries(UINT32_MAX);
    return 0;
}

int zcrx_arm_event(struct receiver *r, uint32_t type) {
    (void)r, (void)type;
    return 0;
}

uint8_t *area_own(struct area *a, uint64_t bytes) {
    uint8_t *memory = a->own + a->own_used;
    a->own_used += (bytes + 4095) / 4096 * 4096;
    if (a->own_used > a->own_bytes)
        abort();
    return memory;
}

void storage_request_flush(struct storage *s) {
    (void)s;
    if (stage.open != NULL && stage.open->piece_count > 0) {
        stage.open->under_way = true;
        stage.open = NULL;
    }
}

void storage_bound(struct storage *s, uint32_t holds_max, uint32_t writes_in_flight_max) {
    (void)writes_in_flight_max;
    s->batches.holds_max = holds_max;
}

static bool open_batch(void) {
    for (uint32_t i = 0; stage.open == NULL && i < STAGE_BATCHES; i++) {
        struct stage_batch *b = &stage.batches[i];
        if (b->under_way)
            continue;
        plan_begin(&b->plan, b->iov, STAGE_IOVECS, b->header, STAGE_HEADER_BYTES, b->bounce,
                   STAGE_BOUNCE_BYTES, false);
        b->piece_count = 0;
        stage.open = b;
    }
    return stage.open != NULL;
}

void stage_check_bytes(const struct stage_piece *piece, const char *what) {
    uint64_t at = stage.senders[piece->flow].head_bytes + piece->stream_offset;
    for (uint32_t i = 0; i < piece->bytes; i++)
        if (piece->data[i] != stage_pattern(piece->flow, at + i)) {
            stage_wrong(what);
            return;
        }
}

/* What was taken is the flow's next, and lies as it was laid. */
static void note_taken(struct storage_stream *f, const uint8_t *data, uint32_t bytes,
                       uint64_t hold) {
    struct stage_sender *s = &stage.senders[f->owner];
    struct stage_batch *b = stage.open;
    b->pieces[b->piece_count++] = (struct stage_piece){data, s->handed, hold, bytes, f->owner};
    stage_check_bytes(&b->pieces[b->piece_count - 1], "other bytes are handed over than were laid");
    s->handed += bytes;
    f->stored_bytes += bytes;
}

bool storage_append_copy(struct storage *s, struct storage_stream *f, uint8_t *data,
                         uint32_t bytes) {
    for (uint32_t i = 0; i < 2; i++) {
        if (!open_batch()) {
            stage.blocked_count++;
            return false;
        }
        struct stage_batch *b = stage.open;
        struct plan_fragment fragment = {
            .flow = f->id, .stream_offset = f->stored_bytes, .data = data, .bytes = bytes};
        const uint8_t *copy = b->bounce + b->plan.bounce_used;
        if (b->piece_count < STAGE_PIECES_MAX &&
            plan_copy(&b->plan, &stage.profile, &fragment, BOUNCE_TRAILER)) {
            stage.held_copied_bytes += bytes;
            note_taken(f, copy, bytes, STAGE_NO_HOLD);
            return true;
        }
        storage_request_flush(s);
    }
    stage_wrong("an empty batch takes no block");
    return false;
}

uint32_t storage_append(struct storage *s, struct storage_stream *f,
                        const struct batch_piece *piece) {
    if (!open_batch()) {
        stage.blocked_count++;
        return 0;
    }
    struct stage_batch *b = stage.open;
    struct plan_fragment fragment = {
        .flow = f->id,
        .stream_offset = f->stored_bytes,
        .data = piece->data,
        .bytes = piece->bytes,
        .slack = piece->slack,
    };
    bool whole = (piece->hold & ZCRX_HOLD_COPIED) != 0;
    uint32_t taken = 0;
    if (b->piece_count < s->batches.holds_max && b->piece_count < STAGE_PIECES_MAX &&
        (!whole || b->plan.payload_end + piece->bytes <= STAGE_PAYLOAD_BYTES_MAX))
        taken = plan_add(&b->plan, &stage.profile, &fragment);
    if (taken == 0) {
        if (b->piece_count == 0)
            stage_wrong("an empty batch takes nothing");
        storage_request_flush(s);
        return storage_append(s, f, piece);
    }
    stage.pressure_bytes += whole ? taken : 0;
    note_taken(f, piece->data, taken, piece->hold);
    return taken;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * io_uring's multishot receive into provided buffers, two ways: buffers that one completion
 * uses up, whatever came, and buffers that are filled one behind the other
 * (IOU_PBUF_RING_INC, Linux 6.12).
 *
 * What comes in a used-up buffer begins and ends anywhere in the file, so O_DIRECT cannot
 * write it as it lies: it is gathered, by a copy, in memory of a whole write. Buffers that
 * are filled one behind the other are written as they lie. Invariants: a buffer is the
 * ring's, waits to be gathered, or is under a write; one receive at most is under way.
 */
#include <assert.h>
#include <liburing.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../bench.h"
#include "way.h"

#define GROUP 1
#define RING_ENTRIES 256u
#define USED_UP_BYTES (64u << 10) /* of a buffer that one completion uses up */
#define USED_UP_COUNT 128u
#define FILLED_COUNT 64u /* buffers of WAY_WRITE_BYTES each */
#define GATHER_COUNT 16u
#define INCREMENTAL 2u        /* IOU_PBUF_RING_INC of Linux 6.12's uapi/linux/io_uring.h */
#define BUFFER_MORE (1u << 4) /* IORING_CQE_F_BUF_MORE: more comes into this buffer */

enum tag { TAG_RECEIVE, TAG_WRITE };

struct piece {
    uint32_t buffer;
    uint32_t bytes;
};

struct state {
    struct way_job *job;
    struct io_uring ring;
    struct io_uring_buf_ring *buffers;
    uint8_t *memory; /* of the buffers */
    uint32_t buffer_bytes, buffer_count;
    bool is_incremental, is_armed, is_over;
    uint32_t writes_in_flight;
    /* Used-up buffers that wait to be gathered, in stream order: a ring. */
    struct piece pieces[USED_UP_COUNT];
    uint32_t piece_head, piece_count, piece_taken;
    uint8_t *gather;
    bool gather_busy[GATHER_COUNT];
    uint32_t gather_index;
    uint32_t filled; /* of the gathering memory, or of the buffer being filled */
    uint32_t filling;
};

static struct io_uring_sqe *new_sqe(struct state *s) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
    if (sqe == NULL && io_uring_submit(&s->ring) >= 0)
        sqe = io_uring_get_sqe(&s->ring);
    if (sqe == NULL)
        die("io_uring_submit", EBUSY);
    return sqe;
}

/* After prep, which clears it in some versions of liburing. */
static void tag_sqe(struct io_uring_sqe *sqe, enum tag tag, uint32_t index) {
    sqe->user_data = (uint64_t)tag << 32 | index;
}

static void arm(struct state *s) {
    struct io_uring_sqe *sqe = new_sqe(s);
    io_uring_prep_recv_multishot(sqe, s->job->connection, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    tag_sqe(sqe, TAG_RECEIVE, 0);
    s->is_armed = true;
}

static uint8_t *buffer_memory(const struct state *s, uint32_t index) {
    return s->memory + (uint64_t)index * s->buffer_bytes;
}

static void provide(struct state *s, uint32_t index) {
    io_uring_buf_ring_add(s->buffers, buffer_memory(s, index), s->buffer_bytes,
                          (unsigned short)index, io_uring_buf_ring_mask(RING_ENTRIES), 0);
    io_uring_buf_ring_advance(s->buffers, 1);
}

/* By the system call: liburing's function does not pass flags on in every version. */
static int register_buffers(struct state *s) {
    struct io_uring_buf_reg reg = {
        .ring_addr = (uintptr_t)s->buffers,
        .ring_entries = RING_ENTRIES,
        .bgid = GROUP,
    };
    uint16_t flags = s->is_incremental ? INCREMENTAL : 0;
    static_assert(offsetof(struct io_uring_buf_reg, bgid) == 12, "flags lie behind bgid");
    memcpy((uint8_t *)&reg + 14, &flags, sizeof flags);
    return (int)syscall(__NR_io_uring_register, s->ring.ring_fd, IORING_REGISTER_PBUF_RING, &reg,
                        1);
}

static bool open_ring(struct state *s) {
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int code = io_uring_queue_init_params(RING_ENTRIES, &s->ring, &p);
    if (code < 0)
        die("io_uring_queue_init", -code);
    s->memory = way_memory((uint64_t)s->buffer_bytes * s->buffer_count);
    s->buffers = (void *)way_memory(RING_ENTRIES * sizeof(struct io_uring_buf));
    if (register_buffers(s) < 0)
        return false;
    struct iovec written = {s->gather, (uint64_t)GATHER_COUNT * WAY_WRITE_BYTES};
    if (s->is_incremental)
        written = (struct iovec){s->memory, (uint64_t)s->buffer_bytes * s->buffer_count};
    code = io_uring_register_buffers(&s->ring, &written, 1);
    if (code < 0)
        die("io_uring_register_buffers", -code);
    io_uring_buf_ring_init(s->buffers);
    for (uint32_t i = 0; i < s->buffer_count; i++)
        provide(s, i);
    return true;
}

static void submit_write(struct state *s, uint8_t *data, uint32_t bytes, uint32_t index) {
    uint32_t whole = way_whole_blocks(bytes);
    memset(data + bytes, 0, whole - bytes);
    struct io_uring_sqe *sqe = new_sqe(s);
    io_uring_prep_write_fixed(sqe, s->job->file, data, whole, s->job->file_offset, 0);
    tag_sqe(sqe, TAG_WRITE, index);
    s->job->file_offset += whole;
    s->writes_in_flight++;
}

/* --- Buffers that one completion uses up ------------------------------------------------ */

static uint8_t *gather_memory(struct state *s) {
    return s->gather + (uint64_t)s->gather_index * WAY_WRITE_BYTES;
}

static void write_gathered(struct state *s) {
    s->gather_busy[s->gather_index] = true;
    submit_write(s, gather_memory(s), s->filled, s->gather_index);
    s->filled = 0;
    s->gather_index = (s->gather_index + 1) % GATHER_COUNT;
}

/* Copies what waits, as far as memory is not under a write. */
static void gather_pieces(struct state *s) {
    while (s->piece_count > 0 && !s->gather_busy[s->gather_index]) {
        const struct piece *p = &s->pieces[s->piece_head];
        uint32_t left = p->bytes - s->piece_taken;
        uint32_t room = WAY_WRITE_BYTES - s->filled;
        uint32_t part = left < room ? left : room;
        memcpy(gather_memory(s) + s->filled, buffer_memory(s, p->buffer) + s->piece_taken, part);
        s->job->user_copied += part;
        s->filled += part;
        s->piece_taken += part;
        if (s->piece_taken == p->bytes) {
            provide(s, p->buffer);
            s->piece_head = (s->piece_head + 1) % USED_UP_COUNT;
            s->piece_count--;
            s->piece_taken = 0;
        }
        if (s->filled == WAY_WRITE_BYTES)
            write_gathered(s);
    }
    if (s->is_over && s->piece_count == 0 && s->filled > 0 && !s->gather_busy[s->gather_index])
        write_gathered(s);
}

static void used_up(struct state *s, uint32_t buffer, uint32_t bytes) {
    s->pieces[(s->piece_head + s->piece_count++) % USED_UP_COUNT] = (struct piece){buffer, bytes};
}

/* --- Buffers that are filled one behind the other ---------------------------------------- */

static void write_buffer(struct state *s) {
    submit_write(s, buffer_memory(s, s->filling), s->filled, s->filling);
    s->filled = 0;
}

static void filled_on(struct state *s, uint32_t buffer, uint32_t bytes, bool is_more) {
    s->filling = buffer;
    s->filled += bytes;
    if (is_more)
        return;
    if (s->filled != WAY_WRITE_BYTES)
        die("a buffer that is not full is given up", EPROTO);
    write_buffer(s);
}

/* --- The loop ------------------------------------------------------------------------------ */

static void received(struct state *s, const struct io_uring_cqe *cqe) {
    if (!(cqe->flags & IORING_CQE_F_MORE))
        s->is_armed = false;
    if (cqe->res == -ENOBUFS)
        return; /* armed again when a buffer is back */
    if (cqe->res < 0)
        die("recv", -cqe->res);
    if (cqe->res == 0) {
        s->is_over = true;
        if (s->is_incremental && s->filled > 0)
            write_buffer(s);
        return;
    }
    uint32_t bytes = (uint32_t)cqe->res;
    s->job->received_bytes += bytes;
    s->job->kernel_copied += bytes;
    if (s->is_incremental)
        filled_on(s, cqe->flags >> IORING_CQE_BUFFER_SHIFT, bytes, cqe->flags & BUFFER_MORE);
    else
        used_up(s, cqe->flags >> IORING_CQE_BUFFER_SHIFT, bytes);
}

static void written(struct state *s, const struct io_uring_cqe *cqe) {
    if (cqe->res <= 0 || cqe->res % WAY_BLOCK_BYTES != 0)
        die("write", cqe->res < 0 ? -cqe->res : EIO);
    s->writes_in_flight--;
    if (s->is_incremental)
        provide(s, (uint32_t)cqe->user_data);
    else
        s->gather_busy[(uint32_t)cqe->user_data] = false;
}

static bool has_buffers(const struct state *s) {
    return s->is_incremental ? s->writes_in_flight < s->buffer_count
                             : s->piece_count < s->buffer_count;
}

static bool run(struct state *s) {
    if (!open_ring(s))
        return false;
    while (!s->is_over || s->piece_count > 0 || s->writes_in_flight > 0) {
        if (!s->is_armed && !s->is_over && has_buffers(s))
            arm(s);
        struct io_uring_cqe *cqe;
        unsigned head, count = 0;
        int code = io_uring_submit_and_wait(&s->ring, 1);
        if (code < 0 && code != -EINTR)
            die("io_uring_submit_and_wait", -code);
        io_uring_for_each_cqe(&s->ring, head, cqe) {
            if (cqe->user_data >> 32 == TAG_RECEIVE)
                received(s, cqe);
            else
                written(s, cqe);
            count++;
        }
        io_uring_cq_advance(&s->ring, count);
        if (!s->is_incremental)
            gather_pieces(s);
    }
    io_uring_queue_exit(&s->ring);
    return true;
}

bool way_multishot(struct way_job *job) {
    struct state s = {.job = job, .buffer_bytes = USED_UP_BYTES, .buffer_count = USED_UP_COUNT};
    s.gather = way_memory((uint64_t)GATHER_COUNT * WAY_WRITE_BYTES);
    return run(&s);
}

bool way_incremental(struct way_job *job) {
    struct state s = {.job = job,
                      .is_incremental = true,
                      .buffer_bytes = WAY_WRITE_BYTES,
                      .buffer_count = FILLED_COUNT};
    return run(&s);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The probe of probe.h. It writes as the daemon does: WRITEV_FIXED out of a
 * registered buffer where the kernel has it, WRITEV elsewhere.
 */
#include "storage/probe.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "storage/plan.h"
#include "base/uring.h"

#define PAGE 4096u
#define SOURCE_BYTES (4u << 20)
#define PIECES_MAX 1024u
#define MEM_ALIGN_LEAST 2u
/* The planner gathers nothing shorter: plan_profile.copy_below. */
#define PIECE_BYTES_MIN PLAN_GATHER_BYTES_MIN
#define LENGTH_MAX 3000u /* of a piece that stands for a packet's payload */

struct probe {
    int fd;
    uint32_t write_align;
    struct io_uring ring;
    bool fixed;
    uint8_t *source; /* registered: pieces are taken from here */
    uint8_t *back;   /* what was read back */
    struct iovec iov[PIECES_MAX];
    uint32_t count;
    uint64_t bytes;
    uint32_t round; /* makes the bytes of each try different */
    uint32_t tried, lied;
};

static void probe_fill(struct probe *p) {
    uint32_t x = 0x9E3779B9u * ++p->round;
    for (uint32_t i = 0; i < SOURCE_BYTES / 4; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        ((uint32_t *)(void *)p->source)[i] = x;
    }
}

static void probe_begin(struct probe *p) {
    p->count = 0;
    p->bytes = 0;
}

static void probe_piece(struct probe *p, uint64_t offset, uint64_t bytes) {
    p->iov[p->count++] = (struct iovec){p->source + offset, bytes};
    p->bytes += bytes;
}

/* The last piece brings the write to a whole number of blocks. */
static void probe_finish(struct probe *p) {
    uint64_t rest = p->bytes % p->write_align;
    if (rest != 0)
        probe_piece(p, SOURCE_BYTES - p->write_align, p->write_align - rest);
}

static int probe_write_shape(struct probe *p) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
    struct io_uring_cqe *cqe;
    io_uring_prep_writev(sqe, p->fd, p->iov, p->count, PROBE_OFFSET);
    if (p->fixed)
        sqe->opcode = URING_OP_WRITEV_FIXED;
    io_uring_submit(&p->ring);
    int code = io_uring_wait_cqe(&p->ring, &cqe);
    if (code < 0)
        return code;
    code = cqe->res;
    io_uring_cqe_seen(&p->ring, cqe);
    return code;
}

/* Whether the device takes the shape and holds it afterwards. A refusal is a
 * result; only a failure of plain reads is an error of the probe. */
static int probe_holds(struct probe *p) {
    assert(p->bytes <= PROBE_BYTES && p->count <= PIECES_MAX);
    p->tried++;
    int code = probe_write_shape(p);
    if (code < 0 || (uint64_t)code != p->bytes)
        return 0;
    ssize_t n = pread(p->fd, p->back, p->bytes, PROBE_OFFSET);
    if (n < 0 || (uint64_t)n != p->bytes)
        return n < 0 ? -errno : -EIO;
    const uint8_t *at = p->back;
    for (uint32_t i = 0; i < p->count; i++) {
        if (memcmp(at, p->iov[i].iov_base, p->iov[i].iov_len) != 0) {
            p->lied++;
            return 0;
        }
        at += p->iov[i].iov_len;
    }
    return 1;
}

/* Odd multiples of the alignment, at page starts and inside pages, some of them
 * longer than a page: what packets leave behind. */
static int probe_takes_alignment(struct probe *p, uint32_t align) {
    probe_fill(p);
    probe_begin(p);
    probe_piece(p, 0, p->write_align);
    uint32_t odd_count = LENGTH_MAX / align / 2 + 1;
    for (uint32_t i = 0; i < 16; i++)
        probe_piece(p, (2 * i + 4) * (uint64_t)PAGE, align * (1 + 2 * (i * 37 % odd_count)));
    probe_finish(p);
    int code = probe_holds(p);
    if (code <= 0)
        return code;
    probe_fill(p);
    probe_begin(p);
    probe_piece(p, 0, p->write_align);
    for (uint32_t i = 0; i < 16; i++)
        probe_piece(p, (4 * i + 8) * (uint64_t)PAGE + align * (1 + i % 3),
                    i % 4 ? align * 3ull : align * 3ull + PAGE);
    probe_finish(p);
    return probe_holds(p);
}

/* Whole pages from here and there: clean whatever the boundary is. */
static int probe_takes_pages(struct probe *p) {
    probe_fill(p);
    probe_begin(p);
    for (uint32_t i = 0; i < 16; i++)
        probe_piece(p, (40 - 2 * i) * (uint64_t)PAGE, PAGE);
    probe_finish(p);
    return probe_holds(p);
}

static int probe_takes_count(struct probe *p, uint32_t count, uint32_t align, uint32_t virt_mask) {
    uint64_t bytes = virt_mask ? PAGE : align > PIECE_BYTES_MIN ? align : PIECE_BYTES_MIN;
    uint64_t fit = PROBE_BYTES / bytes - 1;
    count = count < fit ? count : (uint32_t)fit;
    probe_fill(p);
    probe_begin(p);
    for (uint32_t i = 0; i + 1 < count; i++)
        probe_piece(p, (i * (uint64_t)(virt_mask ? 2 * PAGE : PAGE)) % (SOURCE_BYTES / 2), bytes);
    probe_finish(p);
    return probe_holds(p);
}

static int probe_search(struct probe *p, struct probe_profile *out) {
    int code = probe_takes_pages(p);
    if (code <= 0)
        return code < 0 ? code : -EINVAL;
    uint32_t align = MEM_ALIGN_LEAST;
    while (align <= PAGE && (code = probe_takes_alignment(p, align)) == 0)
        align *= 2;
    if (code < 0)
        return code;
    out->virt_mask = align > PAGE ? PAGE - 1 : 0;
    out->mem_align = align > PAGE ? p->write_align : align;
    out->iovecs_max = PIECES_MAX;
    while (out->iovecs_max > 16 &&
           (code = probe_takes_count(p, out->iovecs_max, out->mem_align, out->virt_mask)) == 0)
        out->iovecs_max /= 2;
    out->shapes_tried = p->tried;
    out->shapes_lied = p->lied;
    return code < 0 ? code : 0;
}

static int probe_prepare(struct probe *p, struct fault *fault) {
    p->source = mmap(NULL, SOURCE_BYTES + PROBE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->source == MAP_FAILED)
        return fault_set(fault, errno, "mmap", "memory of the device probe");
    /* Small pages: a shape must not become clean by lying in one large page. */
    madvise(p->source, SOURCE_BYTES, MADV_NOHUGEPAGE);
    p->back = p->source + SOURCE_BYTES;
    struct iovec all = {p->source, SOURCE_BYTES};
    int code = io_uring_register_buffers(&p->ring, &all, 1);
    if (code < 0)
        return fault_set(fault, -code, "io_uring_register_buffers", "memory of the device probe");
    struct io_uring_probe *ops = io_uring_get_probe_ring(&p->ring);
    p->fixed = ops != NULL && io_uring_opcode_supported(ops, URING_OP_WRITEV_FIXED);
    io_uring_free_probe(ops);
    return 0;
}

int probe_device(int fd, uint32_t write_align, struct probe_profile *out, struct fault *fault) {
    static _Thread_local struct probe p;
    memset(&p, 0, sizeof p);
    memset(out, 0, sizeof *out);
    p.fd = fd;
    p.write_align = write_align;
    p.source = MAP_FAILED;
    int code = io_uring_queue_init(8, &p.ring, 0);
    if (code < 0)
        return fault_set(fault, -code, "io_uring_setup", "ring of the device probe");
    code = probe_prepare(&p, fault);
    if (code == 0) {
        code = probe_search(&p, out);
        if (code < 0)
            fault_set(fault, -code, "write", "device probe");
    }
    io_uring_queue_exit(&p.ring);
    if (p.source != MAP_FAILED)
        munmap(p.source, SOURCE_BYTES + PROBE_BYTES);
    return code;
}

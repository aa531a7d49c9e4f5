/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel of crash_stage.h: writes and flushes under way, and what the core calls of it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crash_stage.h"
#include "random.h"

struct operation {
    uint32_t id;
    uint64_t user_data;
    const struct iovec *iov;
    uint32_t iov_count;
    struct iovec single;
    uint8_t *bytes; /* as they were at submission; NULL for a flush */
    uint64_t size;
};

static struct operation operations[KERNEL_OPERATIONS_MAX];
struct kernel kernel = {.operations = operations};

struct io_uring_sqe *reactor_sqe(struct reactor *r, enum uring_tag tag, uint32_t index) {
    (void)r;
    if (kernel.entries_count == KERNEL_OPERATIONS_MAX)
        die("more is submitted in a turn than fits");
    struct io_uring_sqe *sqe = &kernel.entries[kernel.entries_count++];
    memset(sqe, 0, sizeof *sqe);
    sqe->user_data = uring_tag(tag, index);
    return sqe;
}

struct io_uring_probe *io_uring_get_probe_ring(struct io_uring *ring) {
    (void)ring;
    return calloc(1, sizeof(struct io_uring_probe));
}

void io_uring_free_probe(struct io_uring_probe *probe) {
    free(probe);
}

static uint64_t gather(const struct operation *o, uint8_t *out) {
    uint64_t size = 0;
    for (uint32_t i = 0; i < o->iov_count; i++) {
        if (out != NULL)
            memcpy(out + size, o->iov[i].iov_base, o->iov[i].iov_len);
        size += o->iov[i].iov_len;
    }
    return size;
}

/* A device takes nothing but what its profile says, also of the rest behind a short write. */
static void check_shape(const struct operation *o, uint64_t offset) {
    const struct plan_profile *p = &kernel.w->storage.batches.profile;
    uint32_t write_align = kernel.w->storage.settings.write_align;
    if (o->iov_count > p->iovecs_max || offset % write_align != 0 || o->size % write_align != 0)
        die("a write has too many pieces, or an end that the device does not take");
    for (uint32_t i = 0; i < o->iov_count; i++) {
        uint64_t begin = (uintptr_t)o->iov[i].iov_base, end = begin + o->iov[i].iov_len;
        if (begin % p->mem_align != 0 || end % p->mem_align != 0 || begin == end)
            die("a piece of a write is empty, or not aligned");
        if ((i > 0 && (begin & p->virt_mask) != 0) ||
            (i + 1 < o->iov_count && (end & p->virt_mask) != 0))
            die("two pieces of a write meet beside the virtual boundary");
    }
}

void kernel_submit(void) {
    for (uint32_t i = 0; i < kernel.entries_count; i++) {
        const struct io_uring_sqe *sqe = &kernel.entries[i];
        if (kernel.operations_count == KERNEL_OPERATIONS_MAX)
            die("more is under way than fits");
        struct operation *o = &kernel.operations[kernel.operations_count++];
        *o = (struct operation){.id = kernel.operation_id++, .user_data = sqe->user_data};
        if (sqe->opcode == IORING_OP_FSYNC) {
            trace(TRACE_FLUSH, o->id, 0, 0, NULL, 0);
            continue;
        }
        if (sqe->opcode == IORING_OP_TIMEOUT)
            continue; /* a pause: its end comes some time */
        if (sqe->opcode == IORING_OP_WRITE_FIXED) {
            o->single = (struct iovec){(void *)(uintptr_t)sqe->addr, sqe->len};
            o->iov_count = 1;
        } else {
            o->iov = (const struct iovec *)(uintptr_t)sqe->addr;
            o->iov_count = sqe->len;
        }
        if (o->iov == NULL)
            o->iov = &o->single;
        const struct device_write *write = &kernel.w->storage.device.writes[(uint32_t)o->user_data];
        o->size = gather(o, NULL);
        check_shape(o, sqe->off);
        o->bytes = pages(o->size);
        gather(o, o->bytes);
        if (write->kind == DEVICE_BATCH)
            note_placed(&kernel.w->storage.batches.batches[write->owner]);
        trace(TRACE_WRITE, o->id, sqe->off, (sqe->rw_flags & RWF_DSYNC) != 0, o->bytes, o->size);
    }
    kernel.entries_count = 0;
}

static void check_memory(const struct operation *o) {
    uint8_t *now = pages(o->size);
    gather(o, now);
    if (memcmp(now, o->bytes, o->size) != 0)
        die("memory changed under a write");
    free(now);
}

static void complete_one(uint32_t i) {
    struct operation o = kernel.operations[i];
    if (o.iov_count == 1 && o.iov == &kernel.operations[i].single)
        o.iov = &o.single;
    kernel.operations[i] = kernel.operations[--kernel.operations_count];
    struct operation *moved = &kernel.operations[i];
    if (moved->iov == &kernel.operations[kernel.operations_count].single)
        moved->iov = &moved->single;
    if (o.user_data >> 32 == TAG_RETRY) {
        storage_complete(&kernel.w->storage, TAG_RETRY, (uint32_t)o.user_data, 0);
        return;
    }
    if (o.bytes == NULL) {
        bool fails = kernel.flush_fails && random_below(4) == 0;
        trace(TRACE_FLUSHED, o.id, fails, 0, NULL, 0);
        storage_complete(&kernel.w->storage, TAG_FLUSH, 0, fails ? -EIO : 0);
        take_news();
        return;
    }
    check_memory(&o);
    int result = (int)o.size;
    const struct device_write *d = &kernel.w->storage.device.writes[(uint32_t)o.user_data];
    if (kernel.trouble_of && d->tries + 1 < DEVICE_TRIES_MAX &&
        random_below(kernel.trouble_of) == 0)
        result = random_below(2) ? -EAGAIN : (int)(random_below((uint32_t)o.size / 4096) * 4096);
    trace(TRACE_DONE, o.id, result < 0 ? 0 : (uint64_t)result, 0, NULL, 0);
    free(o.bytes);
    storage_complete(&kernel.w->storage, TAG_WRITE, (uint32_t)o.user_data, result);
    take_news();
}

uint32_t kernel_complete_some(void) {
    uint32_t most = random_below(kernel.operations_count + 1), count = 0;
    if (random_below(kernel.slow_of) != 0)
        return 0;
    for (; count < most && kernel.operations_count > 0; count++)
        complete_one(random_below(kernel.operations_count));
    return count;
}

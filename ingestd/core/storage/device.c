/* SPDX-License-Identifier: Apache-2.0
 *
 * Submitting writes and flushes of device.h.
 */
#include "storage/device.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "storage/storage.h"

#define STORE_FILE 0 /* index of the store in the ring's file table */
#define AREA_BUFFER 0
#define DEVICE_AGE_NS 100000000ull /* each look passes over all writes */

int device_open(struct storage *s, uint32_t write_count) {
    struct device *d = &s->device;
    d->writes = calloc(write_count, sizeof *d->writes);
    if (d->writes == NULL)
        return fault_set(&s->reactor->fault, ENOMEM, "calloc", "device writes");
    d->write_count = write_count;
    for (uint32_t i = 0; i < write_count; i++)
        d->writes[i].index = i;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&s->reactor->ring);
    if (probe == NULL)
        return fault_set(&s->reactor->fault, ENOMEM, "io_uring_get_probe_ring", "worker's ring");
    d->writev_fixed = io_uring_opcode_supported(probe, URING_OP_WRITEV_FIXED);
    io_uring_free_probe(probe);
    return 0;
}

void device_close(struct storage *s) {
    free(s->device.writes);
    s->device.writes = NULL;
}

static void device_prepare(struct storage *s, struct device_write *d) {
    struct io_uring_sqe *sqe = reactor_sqe(s->reactor, TAG_WRITE, d->index);
    if (d->iov_count == 1) {
        io_uring_prep_write_fixed(sqe, STORE_FILE, d->iov[0].iov_base, (unsigned)d->iov[0].iov_len,
                                  d->offset, AREA_BUFFER);
    } else {
        io_uring_prep_writev(sqe, STORE_FILE, d->iov, d->iov_count, d->offset);
        if (s->device.writev_fixed) {
            sqe->opcode = URING_OP_WRITEV_FIXED;
            sqe->buf_index = AREA_BUFFER;
        }
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    sqe->rw_flags = d->stable ? RWF_DSYNC : 0;
}

void device_submit(struct storage *s, struct device_write *d) {
    assert(!d->in_flight && d->iov_count > 0 && d->bytes > 0);
    d->in_flight = true;
    d->tries = 0;
    d->submitted_ns = s->reactor->now_ns;
    s->device.in_flight++;
    s->device.batches_in_flight += d->kind == DEVICE_BATCH;
    device_prepare(s, d);
}

void device_submit_single(struct storage *s, struct device_write *d, void *data, uint64_t bytes,
                          uint64_t offset) {
    d->single = (struct iovec){data, bytes};
    d->iov = &d->single;
    d->iov_count = 1;
    d->bytes = bytes;
    d->offset = offset;
    device_submit(s, d);
}

void device_flush(struct storage *s) {
    struct io_uring_sqe *sqe = reactor_sqe(s->reactor, TAG_FLUSH, 0);
    assert(!s->device.flush_in_flight);
    /* A flush runs in a kernel thread, which would have to take the ring's lock to
     * look a registered file up, while this thread holds it to receive. */
    io_uring_prep_fsync(sqe, s->settings.store_fd, IORING_FSYNC_DATASYNC);
    s->device.flush_in_flight = true;
    s->device.flush_submitted_ns = s->reactor->now_ns;
}

static uint64_t device_oldest_ns(const struct storage *s) {
    const struct device *d = &s->device;
    uint64_t oldest_ns = d->flush_in_flight ? d->flush_submitted_ns : UINT64_MAX;
    uint32_t left = d->in_flight;
    for (uint32_t i = 0; i < d->write_count && left > 0; i++) {
        if (!d->writes[i].in_flight)
            continue;
        oldest_ns = time_min(oldest_ns, d->writes[i].submitted_ns);
        left--;
    }
    assert(left == 0);
    return oldest_ns;
}

void device_publish_age(struct storage *s) {
    struct device *d = &s->device;
    if (d->in_flight == 0 && !d->flush_in_flight) {
        STAT_SET(s->reactor, device_since_ns, 0);
        d->age_due_ns = 0;
    } else if (s->reactor->now_ns >= d->age_due_ns) {
        STAT_SET(s->reactor, device_since_ns, device_oldest_ns(s));
        d->age_due_ns = s->reactor->now_ns + DEVICE_AGE_NS;
    }
}

int device_lost(const struct storage *s) {
    struct stat file;
    if (s->settings.store_bytes == 0)
        return 0;
    if (fstat(s->settings.store_fd, &file) != 0)
        return errno;
    if (!S_ISREG(file.st_mode))
        return 0;
    if (file.st_nlink == 0)
        return EIDRM;
    return (uint64_t)file.st_size < s->settings.store_bytes ? ENODATA : 0;
}

/* Behind a short write the rest is tried alone: it either goes or gives the
 * errno that says why. */
static void device_skip_written(struct device_write *d, uint64_t written) {
    d->offset += written;
    d->bytes -= written;
    while (written >= d->iov[0].iov_len) {
        written -= d->iov[0].iov_len;
        d->iov++;
        d->iov_count--;
    }
    d->iov[0].iov_base = (uint8_t *)d->iov[0].iov_base + written;
    d->iov[0].iov_len -= written;
}

/* No other try could end differently. */
static bool device_refuses_for_good(int code) {
    return code == EINVAL || code == EBADF || code == EFAULT || code == EFBIG;
}

/* A device may refuse for a moment: a retry costs little, a failed store a night. Who
 * stops the daemon is not kept waiting by it. */
static bool device_may_retry(const struct storage *s, const struct device_write *d, int code) {
    bool late = s->reactor->now_ns >= s->retry_deadline_ns;
    return d->tries + 1 < DEVICE_TRIES_MAX && s->state != STORAGE_FAILED && !late &&
           !device_refuses_for_good(code);
}

static void device_pause(struct storage *s, struct device_write *d, int code) {
    uint64_t pause_ns = DEVICE_PAUSE_NS_MIN << d->tries;
    pause_ns = time_min(pause_ns, DEVICE_PAUSE_NS_MAX);
    d->tries++;
    d->pause.tv_sec = (long long)(pause_ns / 1000000000ull);
    d->pause.tv_nsec = (long long)(pause_ns % 1000000000ull);
    STAT_ADD(s->reactor, write_retries, 1);
    reactor_event(s->reactor, (struct event_detail){.kind = EVENT_WRITE_RETRIED,
                                                    .retry = {code, d->tries, d->offset}});
    struct io_uring_sqe *sqe = reactor_sqe(s->reactor, TAG_RETRY, d->index);
    io_uring_prep_timeout(sqe, &d->pause, 0, 0);
}

void device_retry(struct storage *s, uint32_t index) {
    struct device_write *d = &s->device.writes[index];
    assert(index < s->device.write_count && d->in_flight);
    device_prepare(s, d); /* also when the store has failed meanwhile: its completion says so */
}

static void device_note_written(struct storage *s, const struct device_write *d) {
    uint64_t latency_ns = s->reactor->now_ns - d->submitted_ns;
    STAT_ADD(s->reactor, written_bytes, d->bytes);
    if (d->kind != DEVICE_BATCH)
        return;
    histogram_add(&s->reactor->write_latency, latency_ns);
    STAT_ADD(s->reactor, write_latency_sum_ns, latency_ns);
}

struct device_result device_complete(struct storage *s, uint32_t index, int result) {
    struct device_write *d = &s->device.writes[index];
    assert(index < s->device.write_count && d->in_flight);
    bool whole = result >= 0 && (uint64_t)result == d->bytes;
    int code = result < 0 ? -result : EIO;
    if (!whole && result > 0 && (uint32_t)result % s->settings.write_align == 0)
        device_skip_written(d, (uint64_t)result);
    if (!whole && device_may_retry(s, d, code)) {
        device_pause(s, d, code);
        return (struct device_result){DEVICE_AGAIN, 0, d};
    }
    d->in_flight = false;
    assert(s->device.in_flight > 0);
    s->device.in_flight--;
    s->device.batches_in_flight -= d->kind == DEVICE_BATCH;
    if (!whole)
        return (struct device_result){DEVICE_FAILED, code, d};
    device_note_written(s, d);
    return (struct device_result){DEVICE_DONE, 0, d};
}

int device_flush_complete(struct storage *s, int result) {
    assert(s->device.flush_in_flight);
    s->device.flush_in_flight = false;
    if (result < 0)
        return -result;
    uint64_t latency_ns = s->reactor->now_ns - s->device.flush_submitted_ns;
    histogram_add(&s->reactor->flush_latency, latency_ns);
    STAT_ADD(s->reactor, flush_latency_sum_ns, latency_ns);
    STAT_ADD(s->reactor, flushes, 1);
    return 0;
}

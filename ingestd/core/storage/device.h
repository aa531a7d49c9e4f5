/* SPDX-License-Identifier: Apache-2.0
 *
 * Writes and flushes of the store's device, and what to do when they fail.
 *
 * Owned by the worker's thread. Invariants:
 *  - A write that completed with an error, or what is left of a short one, is
 *    submitted again after a pause, until it has been tried DEVICE_TRIES_MAX times;
 *    then the store has failed.
 *  - A flush is never tried again: after a failed flush the kernel may have
 *    dropped what it could not write, and a second one would not report it.
 */
#ifndef INGESTD_STORAGE_DEVICE_H
#define INGESTD_STORAGE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include <linux/time_types.h>

/* Pauses of 10 ms, doubled each time up to 1.28 s: 5.1 s in all, and what the device
 * takes to fail each. A multipath device abandons a path within 5 s (fast_io_fail_tmo,
 * multipath.conf(5)) and takes another one. */
#define DEVICE_TRIES_MAX 11u
#define DEVICE_PAUSE_NS_MIN 10000000ull
#define DEVICE_PAUSE_NS_MAX 1280000000ull

struct storage;

enum device_write_kind {
    DEVICE_BATCH,
    DEVICE_SEGMENT_HEADER,
    DEVICE_MARK,
    DEVICE_FOOTER,
    DEVICE_PART, /* of a footer */
};

struct device_write {
    uint32_t index; /* in device.writes */
    uint32_t owner; /* batch index, live segment index, or footer memory index */
    uint8_t kind;
    bool in_flight;
    bool stable; /* complete only once on stable media (RWF_DSYNC) */
    uint32_t tries;
    uint32_t iov_count;
    struct iovec *iov;
    struct iovec single; /* for writes of one run */
    uint64_t offset;
    uint64_t bytes;
    uint64_t submitted_ns;
    struct __kernel_timespec pause;
};

struct device {
    struct device_write *writes;
    uint32_t write_count;
    uint32_t in_flight; /* writes of any kind */
    uint32_t batches_in_flight;
    bool flush_in_flight;
    uint64_t flush_submitted_ns;
    uint64_t age_due_ns; /* all are not looked at before */
    bool writev_fixed;   /* the kernel has WRITEV_FIXED */
};

enum device_outcome {
    DEVICE_AGAIN,  /* it is tried again */
    DEVICE_DONE,   /* written whole */
    DEVICE_FAILED, /* error says why */
};

struct device_result {
    enum device_outcome outcome;
    int error; /* errno */
    struct device_write *write;
};

int device_open(struct storage *s, uint32_t write_count); /* 0 or -errno with the fault set */
void device_close(struct storage *s);
void device_submit(struct storage *s, struct device_write *d);
void device_submit_single(struct storage *s, struct device_write *d, void *data, uint64_t bytes,
                          uint64_t offset);
void device_flush(struct storage *s);

/* Publishes when the oldest write or flush under way was submitted, as of 100 ms ago at most. */
void device_publish_age(struct storage *s);

/* Why what is written can never be read again: EIDRM, the file was deleted;
 * ENODATA, it was cut off; 0: it can. One fstat(2), no access to the device. */
int device_lost(const struct storage *s);

/* A write has a completion. */
struct device_result device_complete(struct storage *s, uint32_t index, int result);
/* The pause before the next try of a write is over. */
void device_retry(struct storage *s, uint32_t index);
/* The flush has its completion: 0, or the errno by which it failed. */
int device_flush_complete(struct storage *s, int result);

#endif

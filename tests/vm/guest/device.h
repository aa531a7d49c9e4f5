/* SPDX-License-Identifier: Apache-2.0
 *
 * A block device (or file) under direct I/O, and the kernel's word on what it takes.
 *
 * Vocabulary: L is the logical block, M the alignment that every address and every length of a
 * vectored write must have, V the virtual boundary: with V set, an edge between two pieces must lie
 * on multiples of it on both sides, or between two logical blocks, where the kernel can split.
 */
#ifndef VM_DEVICE_H
#define VM_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct device {
    int fd;
    const char *path;
    uint32_t logical_block_bytes; /* L */
    uint32_t memory_align_bytes;  /* M */
    uint32_t virtual_boundary;    /* V, 0: none */
};

/* Opens with O_DIRECT and reads L, M and V from /sys; fails the case when it cannot. */
void device_open(struct device *device, const char *path);

/* Whether a write of these pieces must be accepted. */
bool device_takes(const struct device *device, const struct iovec *pieces, int count);

uint64_t device_total_bytes(const struct iovec *pieces, int count);

/* Reads back `bytes` at `offset` into fresh aligned memory, to be freed by the caller. */
char *device_read(const struct device *device, uint64_t offset, uint64_t bytes);

#endif

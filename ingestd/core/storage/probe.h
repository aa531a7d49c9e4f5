/* SPDX-License-Identifier: Apache-2.0
 *
 * What a device really takes: shapes are written, read back and compared.
 *
 * What a device says of itself is not enough: the virtual boundary is reported
 * apart from the alignment, kernels changed their rules, and there is a block
 * driver (brd, Linux 7.3) that reports success for pieces it then stores
 * wrongly. Called before the store is served, on a part of it that holds
 * nothing; any thread.
 */
#ifndef INGESTD_STORAGE_PROBE_H
#define INGESTD_STORAGE_PROBE_H

#include <stdint.h>

#include "base/fault.h"

/* Between the superblocks lies room that nothing else uses (docs/format.md). */
#define PROBE_OFFSET (64u * 1024u)
#define PROBE_BYTES (384u * 1024u)

struct probe_profile {
    uint32_t mem_align;  /* smallest multiple that addresses and lengths may have */
    uint32_t virt_mask;  /* 0, or 4095: inner edges lie on pages */
    uint32_t iovecs_max; /* of one write */
    uint32_t shapes_tried;
    uint32_t shapes_lied; /* reported as written, read back otherwise */
};

/* fd: open for reading and writing with O_DIRECT. write_align: multiple that
 * offsets and lengths of whole writes must have. Returns 0 or -errno with the
 * fault set: the device refuses even the plainest write. */
int probe_device(int fd, uint32_t write_align, struct probe_profile *out, struct fault *fault);

#endif

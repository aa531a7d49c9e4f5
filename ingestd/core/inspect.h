/* SPDX-License-Identifier: Apache-2.0
 *
 * What Python reads: counters by name, the kernel's abilities, a file's
 * direct-I/O alignment. Any thread.
 */
#ifndef INGESTD_INSPECT_H
#define INGESTD_INSPECT_H

#include <stdint.h>

#include "worker.h"

#define STATS_COUNT ((int)(sizeof(struct stats) / sizeof(uint64_t)))
#define FEATURES_COUNT 7

const char *stats_name(int index);
uint64_t stats_value(const struct worker *w, int index);
uint64_t histogram_count(const struct histogram *h, int bucket);
uint64_t histogram_bound_ns(int bucket);
uint64_t histogram_bound_bytes(int bucket);

/* 1: the running kernel has it, 0: it has not, -errno: the query was refused. */
const char *feature_name(int index);
int feature_query(int index);

/* What O_DIRECT wants of addresses and of lengths and offsets: statx(2),
 * STATX_DIOALIGN (Linux 6.1); 0 or -errno. */
int direct_io_alignment(int fd, uint32_t *mem_align, uint32_t *write_align);

#endif

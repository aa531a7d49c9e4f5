/* SPDX-License-Identifier: Apache-2.0
 *
 * What the ways from a socket to a file have in common: one connection, one file that is
 * written in whole blocks, one count of what was copied.
 *
 * Each way receives to the end of the stream and returns when all of its writes have
 * completed; main.c flushes and reports. Invariants: the file has the stream's bytes from
 * byte 0 on, and zeros up to a block behind them; a failure ends the program. One thread.
 */
#ifndef INGESTD_BENCH_WAY_H
#define INGESTD_BENCH_WAY_H

#include <stdbool.h>
#include <stdint.h>

#define WAY_BLOCK_BYTES 4096u
#define WAY_WRITE_BYTES (1u << 20) /* of one write, for all ways */

struct way_job {
    int connection; /* blocking */
    int file;
    uint64_t file_offset;    /* of the next write */
    uint64_t received_bytes; /* of the stream */
    uint64_t user_copied;    /* bytes copied by the program, after the kernel's copy if any */
    uint64_t kernel_copied;  /* bytes that the kernel copied out of packets or between caches */
};

/* One way; false: the kernel refuses it here, errno says why, and nothing was received. */
typedef bool (*way_run)(struct way_job *job);

bool way_discard(struct way_job *job);
bool way_epoll(struct way_job *job);
bool way_multishot(struct way_job *job);
bool way_incremental(struct way_job *job);
bool way_splice(struct way_job *job);
bool way_splice_direct(struct way_job *job);
bool way_tcp_zerocopy(struct way_job *job);

/* Memory of huge pages where the kernel has them, touched. */
uint8_t *way_memory(uint64_t bytes);
/* Bytes of whole blocks that hold so many. */
static inline uint32_t way_whole_blocks(uint32_t bytes) {
    return (bytes + WAY_BLOCK_BYTES - 1) / WAY_BLOCK_BYTES * WAY_BLOCK_BYTES;
}
/* Writes whole blocks at file_offset, which moves on; `data` has room for the zeros. */
void way_write(struct way_job *job, uint8_t *data, uint32_t bytes);

#endif

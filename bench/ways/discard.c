/* SPDX-License-Identifier: Apache-2.0
 *
 * No way at all: received by a copy into the same buffer again and again, and written nowhere.
 *
 * What sender and network cost together with it is what no receiver can save but by
 * zero-copy receive; the others are measured against it.
 */
#include <sys/socket.h>

#include "../bench.h"
#include "way.h"

bool way_discard(struct way_job *job) {
    uint8_t *buffer = way_memory(WAY_WRITE_BYTES);
    int64_t n;
    while ((n = check(recv(job->connection, buffer, WAY_WRITE_BYTES, 0), "recv")) > 0) {
        job->received_bytes += (uint64_t)n;
        job->kernel_copied += (uint64_t)n;
    }
    return true;
}

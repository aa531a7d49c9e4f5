/* SPDX-License-Identifier: Apache-2.0
 *
 * splice(): from the socket into a pipe, from the pipe into the file; without user memory.
 *
 * A pipe holds references to pieces of packets, which begin and end anywhere, so a file
 * opened with O_DIRECT takes them only where they happen to be whole blocks. Into the page
 * cache the kernel copies each byte, and writes it back later.
 */
#include <fcntl.h>
#include <unistd.h>

#include "../bench.h"
#include "way.h"

/* False where the file refuses what the pipe holds, by errno. */
static bool drain_pipe(struct way_job *job, int pipe_out, uint64_t bytes) {
    while (bytes > 0) {
        loff_t offset = (loff_t)job->file_offset;
        ssize_t n = splice(pipe_out, NULL, job->file, &offset, bytes, SPLICE_F_MOVE);
        if (n < 0 && errno == EINVAL)
            return false;
        if (check(n, "splice to the file") == 0)
            die("splice to the file", EIO);
        job->file_offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return true;
}

static bool run(struct way_job *job, bool is_copied) {
    int ends[2];
    check(pipe2(ends, O_CLOEXEC), "pipe2");
    check(fcntl(ends[1], F_SETPIPE_SZ, WAY_WRITE_BYTES), "F_SETPIPE_SZ");
    for (;;) {
        ssize_t n = splice(job->connection, NULL, ends[1], NULL, WAY_WRITE_BYTES, SPLICE_F_MOVE);
        if (check(n, "splice from the socket") == 0)
            break;
        job->received_bytes += (uint64_t)n;
        job->kernel_copied += is_copied ? (uint64_t)n : 0;
        if (!drain_pipe(job, ends[0], (uint64_t)n))
            return false;
    }
    close(ends[0]);
    close(ends[1]);
    return true;
}

bool way_splice(struct way_job *job) {
    return run(job, true);
}

bool way_splice_direct(struct way_job *job) {
    return run(job, false);
}

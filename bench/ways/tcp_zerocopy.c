/* SPDX-License-Identifier: Apache-2.0
 *
 * TCP_ZEROCOPY_RECEIVE (Linux 4.18): the kernel maps whole pages of packets into the
 * program's memory, from where O_DIRECT writes them as they lie.
 *
 * Only payload that fills whole pages of packets is mapped; the kernel says how much before
 * the next such page is to be received by a copy. Once a piece that is not whole blocks was
 * copied, what is mapped behind it belongs at a place in the file that is no multiple of a
 * block, and O_DIRECT cannot write it: from there on all is gathered by copies. tcp(7) does
 * not describe the option; the struct is that of uapi/linux/tcp.h.
 */
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "../bench.h"
#include "way.h"

struct state {
    struct way_job *job;
    uint8_t *mapping;
    uint8_t *gather;
    uint32_t filled; /* of the gathering memory */
};

static void gathered(struct state *s, uint32_t bytes) {
    s->filled += bytes;
    if (s->filled == WAY_WRITE_BYTES) {
        way_write(s->job, s->gather, s->filled);
        s->filled = 0;
    }
}

static void gather_mapped(struct state *s, uint32_t bytes) {
    const uint8_t *data = s->mapping;
    while (bytes > 0) {
        uint32_t room = WAY_WRITE_BYTES - s->filled;
        uint32_t part = bytes < room ? bytes : room;
        memcpy(s->gather + s->filled, data, part);
        s->job->user_copied += part;
        gathered(s, part);
        data += part;
        bytes -= part;
    }
}

/* What lies mapped is whole pages; it is written so where the file's next place allows it. */
static void mapped(struct state *s, uint32_t bytes) {
    s->job->received_bytes += bytes;
    if (s->filled % WAY_BLOCK_BYTES != 0) {
        gather_mapped(s, bytes);
        return;
    }
    if (s->filled > 0)
        way_write(s->job, s->gather, s->filled);
    s->filled = 0;
    way_write(s->job, s->mapping, bytes);
}

/* Receives so much by a copy. False at the end of the stream. */
static bool copied(struct state *s, uint32_t bytes) {
    uint32_t room = WAY_WRITE_BYTES - s->filled;
    ssize_t n = recv(s->job->connection, s->gather + s->filled, bytes < room ? bytes : room, 0);
    if (check(n, "recv") == 0)
        return false;
    s->job->received_bytes += (uint64_t)n;
    s->job->kernel_copied += (uint64_t)n;
    gathered(s, (uint32_t)n);
    return true;
}

static void wait_readable(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLRDHUP};
    if (poll(&p, 1, -1) < 0 && errno != EINTR)
        die("poll", errno);
}

bool way_tcp_zerocopy(struct way_job *job) {
    struct state s = {.job = job, .gather = way_memory(WAY_WRITE_BYTES)};
    s.mapping = mmap(NULL, WAY_WRITE_BYTES, PROT_READ, MAP_SHARED, job->connection, 0);
    if (s.mapping == MAP_FAILED)
        return false;
    for (;;) {
        struct tcp_zerocopy_receive z = {
            .address = (uintptr_t)s.mapping,
            .length = WAY_WRITE_BYTES,
        };
        socklen_t size = sizeof z;
        wait_readable(job->connection);
        int code = getsockopt(job->connection, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &z, &size);
        if (code < 0 && errno == EIO)
            z.length = z.recv_skip_hint = 0; /* the stream is over, and recv() will say so */
        else
            check(code, "getsockopt TCP_ZEROCOPY_RECEIVE");
        if (z.length > 0)
            mapped(&s, z.length);
        if (z.length == 0 && !copied(&s, z.recv_skip_hint ? z.recv_skip_hint : WAY_BLOCK_BYTES))
            break;
    }
    if (s.filled > 0)
        way_write(job, s.gather, s.filled);
    return true;
}

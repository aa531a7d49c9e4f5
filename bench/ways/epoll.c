/* SPDX-License-Identifier: Apache-2.0
 *
 * The classic receiver: epoll, recv() into an aligned buffer, pwrite() when it is full.
 *
 * The kernel copies each byte once, out of the packets. While the device writes, nothing is
 * received: one thread, and no more than one write under way.
 */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../bench.h"
#include "way.h"

static bool wait_readable(int epoll) {
    struct epoll_event event;
    int count = epoll_wait(epoll, &event, 1, -1);
    if (count < 0 && errno != EINTR)
        die("epoll_wait", errno);
    return count > 0;
}

bool way_epoll(struct way_job *job) {
    int epoll = (int)check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    struct epoll_event event = {.events = EPOLLIN};
    check(fcntl(job->connection, F_SETFL, O_NONBLOCK), "fcntl O_NONBLOCK");
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, job->connection, &event), "epoll_ctl");
    uint8_t *buffer = way_memory(WAY_WRITE_BYTES);
    uint32_t filled = 0;
    for (;;) {
        ssize_t n = recv(job->connection, buffer + filled, WAY_WRITE_BYTES - filled, 0);
        if (n < 0 && errno == EAGAIN) {
            wait_readable(epoll);
            continue;
        }
        if (check(n, "recv") == 0)
            break;
        filled += (uint32_t)n;
        job->received_bytes += (uint64_t)n;
        job->kernel_copied += (uint64_t)n;
        if (filled == WAY_WRITE_BYTES) {
            way_write(job, buffer, filled);
            filled = 0;
        }
    }
    if (filled > 0)
        way_write(job, buffer, filled);
    close(epoll);
    return true;
}

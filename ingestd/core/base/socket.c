/* SPDX-License-Identifier: Apache-2.0
 *
 * The system calls of socket.h.
 */
#include "base/socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* tcp(7); no bound: the kernel takes what the window's scale admits. */
#define WINDOW_CLAMP_BYTES (1 << 30)

int socket_end_of_stream(int fd) {
    struct tcp_info info = {0};
    socklen_t bytes = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0)
        return errno;
    return info.tcpi_state == TCP_CLOSE_WAIT ? 0 : ECONNRESET;
}

uint32_t socket_pending_bytes(int fd) {
    int pending = 0;
    if (ioctl(fd, FIONREAD, &pending) != 0 || pending < 0)
        return 0;
    return (uint32_t)pending;
}

uint64_t socket_silence_ns(int fd) {
    struct tcp_info info = {0};
    socklen_t bytes = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0)
        return UINT64_MAX;
    return info.tcpi_last_data_recv * 1000000ull;
}

uint32_t socket_napi_id(int fd) {
    unsigned napi = 0;
    socklen_t bytes = sizeof napi;
    getsockopt(fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &napi, &bytes);
    return napi;
}

/* SO_RCVBUF is doubled by the kernel, and bounded by net.core.rmem_max unless forced, which wants
 * the CAP_NET_ADMIN that a queue wants as well: socket(7). */
void socket_set_receive_buffer(int fd, uint64_t bytes) {
    int value = (int)(bytes / 2);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &value, sizeof value) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, sizeof value);
}

/* SO_BUF_LOCK: Linux 5.14. */
void socket_unlock_receive_buffer(int fd) {
    int unlocked = 0;
    setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
}

void socket_unbind_window(int fd) {
    int clamp = WINDOW_CLAMP_BYTES;
    setsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &clamp, sizeof clamp);
}

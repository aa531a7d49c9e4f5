/* SPDX-License-Identifier: Apache-2.0
 *
 * State of a TCP socket that is read or set by a system call of its own, as no request
 * of the ring does. None of these calls blocks.
 */
#ifndef INGESTD_BASE_SOCKET_H
#define INGESTD_BASE_SOCKET_H

#include <stdint.h>

/* After a receive that returned 0: 0 if that was the sender's FIN, else the errno that ended
 * the stream. Only the socket's state distinguishes them: a receive of io_uring that meets a
 * reset clears the error and reports only the bytes before it. */
int socket_end_of_stream(int fd);

/* How many bytes can be read at once; 0 where that is unknown. */
uint32_t socket_pending_bytes(int fd);

/* How long no data has come: tcpi_last_data_recv of TCP_INFO; UINT64_MAX: unknown. */
uint64_t socket_silence_ns(int fd);

/* SO_INCOMING_NAPI_ID of socket(7): which rx queue brought the last packet; 0: unknown. */
uint32_t socket_napi_id(int fd);

/* The receive buffer, beyond net.core.rmem_max where the process may: CAP_NET_ADMIN. */
void socket_set_receive_buffer(int fd, uint64_t bytes);
/* Accepted sockets inherit a listener's buffer size, but it does not bind their window scale. */
void socket_unlock_receive_buffer(int fd);
/* The window may become as large as its scale and the buffer admit. */
void socket_unbind_window(int fd);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * What is asked of a TCP socket, or set on it, by a system call of its own: no request
 * of the ring says it. None of them waits.
 */
#ifndef INGESTD_BASE_SOCKET_H
#define INGESTD_BASE_SOCKET_H

#include <stdint.h>

/* A receive returned 0. Whether that is the sender's FIN the socket's state tells:
 * io_uring may have met a reset, which clears the error, and told only of the
 * bytes before it. Returns 0 for a FIN, else the errno that ended the stream. */
int socket_end_of_stream(int fd);

/* How many bytes can be read at once; 0 where that cannot be told. */
uint32_t socket_pending_bytes(int fd);

/* How long no data has come: tcpi_last_data_recv of TCP_INFO; UINT64_MAX: unknown. */
uint64_t socket_silence_ns(int fd);

/* SO_INCOMING_NAPI_ID of socket(7): which rx queue brought the last packet; 0: unknown. */
uint32_t socket_napi_id(int fd);

/* The receive buffer, beyond net.core.rmem_max where the process may: CAP_NET_ADMIN. */
void socket_set_receive_buffer(int fd, uint64_t bytes);
/* A listener's buffer goes on to what it accepts, without binding the scale of windows. */
void socket_unlock_receive_buffer(int fd);
/* The window may become as large as its scale and the buffer admit. */
void socket_unbind_window(int fd);

#endif

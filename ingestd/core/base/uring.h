/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel's io_uring has and Debian 12's liburing (2.3) does not name.
 * Newer headers win; whether the running kernel has it is queried at start.
 */
#ifndef INGESTD_BASE_URING_H
#define INGESTD_BASE_URING_H

#include <liburing.h>

/* Opcode numbers are ABI: include/uapi/linux/io_uring.h of Linux 6.15, where
 * IORING_OP_WRITEV_FIXED was added; #ifdef does not see an enum. */
#define URING_OP_RECV_ZC 58
#define URING_OP_WRITEV_FIXED 61

/* What a completion is for: the upper half of user_data; the lower is an index. */
enum uring_tag {
    TAG_COMMAND = 1, /* the mailbox's eventfd */
    TAG_ACCEPT,      /* index: listener */
    TAG_POLL,        /* index: connection */
    TAG_RECEIVE,     /* index: connection */
    TAG_CANCEL,      /* index: connection */
    TAG_DISCARD,     /* index: connection */
    TAG_LINE,        /* index: connection; a line to its sender */
    TAG_BLOCK,       /* index: connection; its hello, or what follows its payload */
    TAG_CLOSE,       /* index: connection; its socket */
    TAG_WRITE,       /* index: device write */
    TAG_RETRY,       /* index: device write; the pause before it is tried again is over */
    TAG_FLUSH,
    TAG_ACCEPT_CANCEL,
    TAG_ZCRX_EVENT, /* res: the event's type */
};

static inline uint64_t uring_tag(enum uring_tag tag, uint32_t index) {
    return (uint64_t)tag << 32 | index;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Why a connection ends by an errno of its receive. Pure.
 *
 * For most of them we are the reason, and the sender, who is there, is told.
 */
#ifndef INGESTD_FORMAT_CLOSE_REASON_H
#define INGESTD_FORMAT_CLOSE_REASON_H

#include <errno.h>
#include <stdint.h>

#include "format/format.h"

/* The enum close_reason of an errno. */
static inline uint8_t close_reason_of(int error) {
    switch (error) {
    case ECONNRESET:
    case ECONNABORTED:
    case ECONNREFUSED:
    case EPIPE:
    case ENOTCONN:
    case ETIMEDOUT:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETRESET:
    case ENETUNREACH:
    case ENOPROTOOPT: /* what ICMP tells of a peer that is no more: ip(7), tcp(7) */
    case EPROTO:
        return CLOSE_REASON_PEER;
    default:
        return CLOSE_REASON_RECEIVER;
    }
}

#endif

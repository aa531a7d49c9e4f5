/* SPDX-License-Identifier: Apache-2.0
 *
 * Why a connection ends by an errno of its receive. Pure.
 *
 * Most of them are the receiver's fault; the sender is still connected and gets the reason.
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
    case ENOPROTOOPT: /* what ICMP reports of a peer that is gone: ip(7), tcp(7) */
    case EPROTO:
        return CLOSE_REASON_PEER;
    default:
        return CLOSE_REASON_RECEIVER;
    }
}

#endif

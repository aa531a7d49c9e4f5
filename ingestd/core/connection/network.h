/* SPDX-License-Identifier: Apache-2.0
 *
 * Networks that a listener admits. Pure.
 */
#ifndef INGESTD_CONNECTION_NETWORK_H
#define INGESTD_CONNECTION_NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#define NETWORKS_MAX 64u

struct network {
    uint8_t family; /* 4 or 6; of a mapped address (::ffff:0:0/96), 4 */
    uint8_t prefix_bits;
    uint8_t address[16]; /* 4 bytes, or 16; the bits behind the prefix are not looked at */
};

bool network_holds(const struct network *n, uint8_t family, const uint8_t address[16]);

/* Whether an address lies in one of them; where there is none, every one is admitted. */
bool networks_hold(const struct network *networks, uint32_t count, uint8_t family,
                   const uint8_t address[16]);

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * The comparison of network.h.
 */
#include "connection/network.h"

#include <assert.h>
#include <string.h>

bool network_holds(const struct network *n, uint8_t family, const uint8_t address[16]) {
    assert(n->prefix_bits <= (n->family == 4 ? 32 : 128));
    if (n->family != family)
        return false;
    uint32_t whole = n->prefix_bits / 8, rest = n->prefix_bits % 8;
    if (memcmp(n->address, address, whole) != 0)
        return false;
    return rest == 0 || (n->address[whole] ^ address[whole]) >> (8 - rest) == 0;
}

bool networks_hold(const struct network *networks, uint32_t count, uint8_t family,
                   const uint8_t address[16]) {
    bool held = count == 0;
    for (uint32_t i = 0; i < count && !held; i++)
        held = network_holds(&networks[i], family, address);
    return held;
}

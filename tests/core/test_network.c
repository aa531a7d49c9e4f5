/* SPDX-License-Identifier: Apache-2.0
 *
 * Which networks hold which addresses: every length of prefix, against counting bits.
 */
#include "connection/network.h"

#include <string.h>

#include "harness.h"

static bool same_bits(const uint8_t *a, const uint8_t *b, uint32_t bits) {
    for (uint32_t i = 0; i < bits; i++)
        if ((a[i / 8] ^ b[i / 8]) >> (7 - i % 8) & 1)
            return false;
    return true;
}

static void every_prefix(uint8_t family, uint32_t bits_max) {
    for (uint32_t bits = 0; bits <= bits_max; bits++) {
        struct network n = {.family = family, .prefix_bits = (uint8_t)bits};
        uint8_t address[16] = {0};
        memset(n.address, 0xa5, bits_max / 8);
        memset(address, 0xa5, bits_max / 8);
        CHECK(network_holds(&n, family, address));
        CHECK(!network_holds(&n, family == 4 ? 6 : 4, address));
        CHECK(!network_holds(&n, 0, address)); /* a peer that is not known */
        for (uint32_t flipped = 0; flipped < bits_max; flipped++) {
            address[flipped / 8] ^= (uint8_t)(0x80 >> flipped % 8);
            CHECK_EQUAL(network_holds(&n, family, address), flipped >= bits);
            CHECK_EQUAL(network_holds(&n, family, address), same_bits(n.address, address, bits));
            address[flipped / 8] ^= (uint8_t)(0x80 >> flipped % 8);
        }
    }
}

static void every_prefix_of_ipv4(void) {
    every_prefix(4, 32);
}

static void every_prefix_of_ipv6(void) {
    every_prefix(6, 128);
}

static void one_of_several_is_enough_and_none_is_all(void) {
    const struct network some[] = {
        {.family = 4, .prefix_bits = 8, .address = {10}},
        {.family = 6, .prefix_bits = 128, .address = {[15] = 1}},
    };
    const uint8_t ten[16] = {10, 1, 2, 3}, eleven[16] = {11, 1, 2, 3}, loopback[16] = {[15] = 1};
    CHECK(networks_hold(some, 2, 4, ten));
    CHECK(!networks_hold(some, 2, 4, eleven));
    CHECK(networks_hold(some, 2, 6, loopback));
    CHECK(!networks_hold(some, 1, 6, loopback));
    CHECK(networks_hold(some, 0, 4, eleven));
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(every_prefix_of_ipv4),
        TEST(every_prefix_of_ipv6),
        TEST(one_of_several_is_enough_and_none_is_all),
    };
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

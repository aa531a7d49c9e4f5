/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections of each peer, against counting them in a list.
 */
#include "connection/peers.h"

#include <string.h>

#include "harness.h"
#include "random.h"

#define CONNECTIONS 64u
#define PEERS 96u
#define STEPS 200000u

static const uint64_t secret[PEERS_SECRET_WORDS] = {
    0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb,
    0xd6e8feb86659fd93, 0xa0761d6478bd642f, 0xe7037ed1a0b428db,
};

static struct peer ipv4(uint8_t listener, uint8_t last) {
    const uint8_t address[16] = {192, 0, 2, last};
    return peers_name(listener, 4, address);
}

static struct peer ipv6(uint8_t listener, uint8_t eighth, uint8_t last) {
    const uint8_t address[16] = {0x20, 1, 0xd, 0xb8, 0, 0, 0, eighth, 0, 0, 0, 0, 0, 0, 0, last};
    return peers_name(listener, 6, address);
}

static void who_has_as_many_as_it_may_gets_no_more(void) {
    struct peers p = {0};
    CHECK_EQUAL(peers_open(&p, CONNECTIONS, secret), 0);
    struct peer one = ipv4(0, 1), other = ipv4(0, 2), elsewhere = ipv4(1, 1);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(peers_add(&p, &one, 3));
    CHECK(!peers_add(&p, &one, 3));
    CHECK_EQUAL(p.connections, 3);
    CHECK(peers_add(&p, &other, 3));
    CHECK(peers_add(&p, &elsewhere, 3)); /* each listener counts for itself */
    peers_remove(&p, &one);
    CHECK(peers_add(&p, &one, 3));
    CHECK(!peers_add(&p, &one, 3));
    peers_close(&p);
}

static void a_network_of_ipv6_is_one_peer(void) {
    struct peers p = {0};
    CHECK_EQUAL(peers_open(&p, CONNECTIONS, secret), 0);
    struct peer first = ipv6(0, 1, 1), second = ipv6(0, 1, 2), other = ipv6(0, 2, 1);
    CHECK(peers_add(&p, &first, 1));
    CHECK(!peers_add(&p, &second, 1));
    CHECK(peers_add(&p, &other, 1));
    peers_close(&p);
}

/* 32.1.13.184 has the first bytes of 2001:db8::, and is somebody else. */
static void families_are_told_apart(void) {
    struct peers p = {0};
    const uint8_t address[16] = {0x20, 1, 0xd, 0xb8};
    struct peer four = peers_name(0, 4, address), six = peers_name(0, 6, address);
    CHECK_EQUAL(peers_open(&p, CONNECTIONS, secret), 0);
    CHECK(peers_add(&p, &four, 1));
    CHECK(peers_add(&p, &six, 1));
    peers_close(&p);
}

/* More peers than connections, and as many connections as there may be: places are shared,
 * freed in the middle of a run, and at the table's end. */
static void counts_are_right_after_any_history(void) {
    struct peers p = {0};
    uint32_t counts[PEERS] = {0};
    CHECK_EQUAL(peers_open(&p, CONNECTIONS, secret), 0);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t who = random_below(PEERS);
        struct peer peer = who % 2 ? ipv4(0, (uint8_t)who) : ipv6(1, (uint8_t)who, 7);
        if (counts[who] > 0 && random_below(2)) {
            peers_remove(&p, &peer);
            counts[who]--;
        } else if (p.connections < CONNECTIONS) {
            bool added = peers_add(&p, &peer, 4);
            CHECK_EQUAL(added, counts[who] < 4);
            counts[who] += added;
        }
    }
    uint32_t left = p.connections, sum = 0, places = 0;
    for (uint32_t who = 0; who < PEERS; who++)
        for (sum += counts[who]; counts[who] > 0; counts[who]--) {
            struct peer peer = who % 2 ? ipv4(0, (uint8_t)who) : ipv6(1, (uint8_t)who, 7);
            peers_remove(&p, &peer);
        }
    CHECK_EQUAL(sum, left);
    CHECK_EQUAL(p.connections, 0);
    for (uint32_t i = 0; i < 1u << p.places_bits; i++)
        places += p.places[i].count > 0;
    CHECK_EQUAL(places, 0);
    peers_close(&p);
}

int main(void) {
    static const struct harness_test tests[] = {
        TEST(who_has_as_many_as_it_may_gets_no_more),
        TEST(a_network_of_ipv6_is_one_peer),
        TEST(families_are_told_apart),
        TEST(counts_are_right_after_any_history),
    };
    random_seed();
    return harness_run(tests, sizeof tests / sizeof tests[0]);
}

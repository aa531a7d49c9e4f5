/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of peers.h: open addressing, linear probing. What ends leaves no mark behind:
 * those that had to move on because of it move back.
 */
#include "connection/peers.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define IPV6_PEER_BYTES 8 /* RFC 6177: a site has a /64 at least */

__extension__ typedef unsigned __int128 peers_word;

int peers_open(struct peers *p, uint32_t connections_max,
               const uint64_t secret[PEERS_SECRET_WORDS]) {
    assert(p->places == NULL && connections_max > 0 && connections_max <= 1u << 30);
    p->places_bits = 1;
    while (1ull << p->places_bits < 2ull * connections_max)
        p->places_bits++;
    p->places = calloc(1ull << p->places_bits, sizeof *p->places);
    if (p->places == NULL)
        return -ENOMEM;
    p->connections = 0;
    p->connections_max = connections_max;
    memcpy(p->secret, secret, sizeof p->secret);
    return 0;
}

void peers_close(struct peers *p) {
    free(p->places);
    p->places = NULL;
}

struct peer peers_name(uint8_t listener, uint8_t family, const uint8_t address[16]) {
    struct peer peer = {.family = family, .listener = listener};
    assert(family == 4 || family == 6);
    memcpy(&peer.network, address, family == 4 ? 4 : IPV6_PEER_BYTES);
    return peer;
}

static peers_word peers_secret(const struct peers *p, uint32_t index) {
    return (peers_word)p->secret[index] << 64 | p->secret[index + 1];
}

/* Multiply-add-shift, which is strongly universal: M. Dietzfelbinger, "Universal hashing and
 * k-wise independent random variables via integer arithmetic without primes", STACS 1996. */
static uint32_t peers_home(const struct peers *p, const struct peer_place *of) {
    peers_word kind = (peers_word)of->family << 8 | of->listener;
    peers_word sum = peers_secret(p, 0) * of->network + peers_secret(p, 2) * kind;
    return (uint32_t)((sum + peers_secret(p, 4)) >> (128 - p->places_bits));
}

static uint32_t peers_next(const struct peers *p, uint32_t index) {
    return (index + 1) & ((1u << p->places_bits) - 1);
}

/* The peer's place, or the free one that it would get. */
static uint32_t peers_find(const struct peers *p, const struct peer *peer) {
    struct peer_place wanted = {peer->network, 0, peer->family, peer->listener};
    uint32_t i = peers_home(p, &wanted);
    for (; p->places[i].count > 0; i = peers_next(p, i)) {
        const struct peer_place *at = &p->places[i];
        if (at->network == peer->network && at->family == peer->family &&
            at->listener == peer->listener)
            break;
    }
    return i;
}

bool peers_add(struct peers *p, const struct peer *peer, uint32_t count_max) {
    struct peer_place *place = &p->places[peers_find(p, peer)];
    assert(count_max > 0);
    if (place->count >= count_max)
        return false;
    assert(p->connections < p->connections_max);
    *place = (struct peer_place){peer->network, place->count + 1, peer->family, peer->listener};
    p->connections++;
    return true;
}

/* Who stands behind a place that got free, and whose home is not between the two, moves there. */
static void peers_free(struct peers *p, uint32_t hole) {
    uint32_t mask = (1u << p->places_bits) - 1;
    for (uint32_t i = peers_next(p, hole); p->places[i].count > 0; i = peers_next(p, i)) {
        uint32_t home = peers_home(p, &p->places[i]);
        if (((i - home) & mask) < ((i - hole) & mask))
            continue;
        p->places[hole] = p->places[i];
        hole = i;
    }
    p->places[hole] = (struct peer_place){0};
}

void peers_remove(struct peers *p, const struct peer *peer) {
    uint32_t i = peers_find(p, peer);
    assert(p->places[i].count > 0 && p->connections > 0);
    p->connections--;
    if (--p->places[i].count == 0)
        peers_free(p, i);
}

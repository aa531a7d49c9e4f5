/* SPDX-License-Identifier: Apache-2.0
 *
 * How many connections each peer has on each listener. Pure.
 *
 * A peer is an IPv4 address, or the /64 network of an IPv6 address, as a host is given
 * all of that and may come from any of it. Owned by the worker's thread. Invariants:
 *  - A peer is in the table exactly while it has connections there.
 *  - At least half of the places are free, so that a look-up ends soon; where a peer's
 *    place is depends on a secret, so that nobody can choose addresses that share one.
 */
#ifndef INGESTD_CONNECTION_PEERS_H
#define INGESTD_CONNECTION_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#define PEERS_SECRET_WORDS 6

struct peer {
    uint64_t network; /* the address, or its first 8 bytes */
    uint8_t family;   /* 4 or 6 */
    uint8_t listener;
};

struct peer_place {
    uint64_t network;
    uint32_t count; /* 0: the place is free */
    uint8_t family;
    uint8_t listener;
};

struct peers {
    struct peer_place *places; /* NULL: nobody is counted */
    uint32_t places_bits;      /* there are 1 << places_bits */
    uint32_t connections;      /* of all peers */
    uint32_t connections_max;
    uint64_t secret[PEERS_SECRET_WORDS];
};

/* For so many connections at once; 0 or -ENOMEM. */
int peers_open(struct peers *p, uint32_t connections_max,
               const uint64_t secret[PEERS_SECRET_WORDS]);
void peers_close(struct peers *p);

struct peer peers_name(uint8_t listener, uint8_t family, const uint8_t address[16]);

/* Counts one more connection; false where the peer has as many as it may. */
bool peers_add(struct peers *p, const struct peer *peer, uint32_t count_max);
/* ... and one that was counted has ended. */
void peers_remove(struct peers *p, const struct peer *peer);

#endif

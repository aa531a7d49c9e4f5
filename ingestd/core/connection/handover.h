/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections that another worker has accepted: they arrived by our rx queue, or its store takes
 * none, or ours has the flow.
 *
 * They begin as those that we accept. Where there is no room they wait in their order,
 * as they would in a listener's backlog. Owned by the worker's thread. Invariant: each is
 * begun, or gets a line that says why not.
 */
#ifndef INGESTD_CONNECTION_HANDOVER_H
#define INGESTD_CONNECTION_HANDOVER_H

#include <stdint.h>

/* Descriptors only: what they have sent is bounded as in a backlog (zcrx.c). */
#define HANDOVER_WAITING_MAX 1024u

struct handed_over {
    int fd;
    uint32_t listener_index; /* the daemon's number */
    uint64_t move_id;        /* its hello is known to Python by this number; 0: it is new */
};

struct handover {
    struct handed_over waiting[HANDOVER_WAITING_MAX]; /* a ring */
    uint32_t first, count;
};

struct connections;

void handover_take(struct connections *c, struct handed_over handed);
/* Once a turn: begins those that there is room for. */
void handover_turn(struct connections *c);
/* No more are begun: those that wait are refused by a line. */
void handover_stop(struct connections *c);

#endif

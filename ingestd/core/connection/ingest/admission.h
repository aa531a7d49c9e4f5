/* SPDX-License-Identifier: Apache-2.0
 *
 * Admission: a worker's requests to Python about a connection, and the responses.
 *
 * Python decides on a hello and on a trailer, once per flow; a note reports to it the end
 * of each flow that it has admitted. Both ways are bounded queues under one mutex.
 * Invariants:
 *  - Nothing is lost: a request that finds no room is sent again later.
 *  - At most REQUESTS_MAX requests are without a response, of these HELLOS_MAX
 *    hellos, so that no flood of connections keeps a flow from its end; beside them at
 *    most PARKED_MAX, whose responses need a store to be read first. Each gets exactly
 *    one response, so that the responses always find room.
 *  - A connection is named by its index in the table and a serial number that no other
 *    connection of the worker ever has, by which late responses are recognised.
 */
#ifndef INGESTD_ADMISSION_H
#define INGESTD_ADMISSION_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SESSION_BLOCK_BYTES 4096u /* hello and trailer: blocks of payload stay blocks */
#define SESSION_CHALLENGE_BYTES 32u
#define SESSION_NAME_BYTES_MAX 255u
#define SESSION_LABELS_BYTES_MAX 1024u
#define REQUESTS_MAX 64u
#define HELLOS_MAX 32u
#define PARKED_MAX 64u
#define PLACES_MAX (REQUESTS_MAX + PARKED_MAX)
#define REFUSAL_BYTES_MAX 1024u
#define REQUEST_PEER_BYTES 64

enum request_kind {
    REQUEST_HELLO = 1,   /* block: the hello; may the flow begin, and where? */
    REQUEST_TRAILER = 2, /* block: the trailer; does it match? */
    NOTE_ENDED = 3,      /* no request: the connection has ended */
};

#define REQUEST_HAS_CRC 1u /* crc is that of all bytes of the flow up to bytes_count */
#define REQUEST_WHOLE 2u   /* ended: everything stored of it is durable */
#define REQUEST_STORED 4u  /* ended: this connection has stored something */
#define REQUEST_SEALED 8u  /* ended: and the flow with it */
#define REQUEST_MOVED 16u  /* ended: by RESPONSE_MOVE; fd belongs to whoever takes the note */

struct admission_request {
    uint32_t kind;
    uint32_t connection_index;
    uint64_t serial;
    int32_t listener_index;
    uint32_t flags;
    uint64_t bytes_count; /* trailer: of the payload; ended: durable ones */
    uint32_t crc;         /* the flow's chain at bytes_count, for a connection that resumes it */
    uint32_t reason;      /* ended: enum close_reason, if it was not sealed */
    int fd;               /* ended by a move: the connection's; else -1 */
    uint64_t move_id;     /* hello: not in block, but known by the number of a move; 0: in block */
    uint8_t flow[16];
    char peer[REQUEST_PEER_BYTES];
    uint8_t challenge[SESSION_CHALLENGE_BYTES];
    uint8_t block[SESSION_BLOCK_BYTES];
};

enum response_kind {
    RESPONSE_ADMIT = 1,  /* the flow begins, or is resumed */
    RESPONSE_REFUSE = 2, /* text is the line to send before hanging up */
    RESPONSE_SEAL = 3,   /* the trailer is right; crc is the sender's, if it has one */
    RESPONSE_MOVE = 4,   /* the hello is for another worker: a note brings the descriptor */
};

#define RESPONSE_HAS_CRC 1u      /* admit: crc is that of all bytes before; seal: the sender's */
#define RESPONSE_LENGTH_KNOWN 2u /* limit_bytes is the flow's length as announced */
#define RESPONSE_TRAILER 4u      /* a trailer follows the payload */

struct admission_response {
    uint32_t kind;
    uint32_t connection_index;
    uint64_t serial;
    uint32_t flags;
    uint32_t crc;
    uint64_t base_bytes;  /* where the connection begins in the flow */
    uint64_t limit_bytes; /* the most that the flow may have */
    uint8_t flow[16];
    uint16_t name_bytes, labels_bytes, text_bytes;
    char name[SESSION_NAME_BYTES_MAX];
    char labels[SESSION_LABELS_BYTES_MAX];
    char text[REFUSAL_BYTES_MAX];
};

/* A request without a response that was taken; of a connection there is one at most. */
struct admission_place {
    uint64_t serial;
    uint32_t kind; /* enum request_kind; 0: nobody has the place */
    bool parked;
    bool responded;
};

struct admission {
    pthread_mutex_t lock;
    struct admission_request requests[REQUESTS_MAX];
    uint32_t request_head, request_tail;
    struct admission_place places[PLACES_MAX];
    uint32_t pending, hellos, parked; /* hellos: of the pending */
    struct admission_response responses[PLACES_MAX];
    uint32_t response_head, response_tail;
};

void admission_open(struct admission *a);
void admission_close(struct admission *a);

/* Worker's thread: false when there is no room now. */
bool admission_send(struct admission *a, const struct admission_request *q);
bool admission_take_response(struct admission *a, struct admission_response *out);
/* Python's side, one thread at a time. */
bool admission_take_request(struct admission *a, struct admission_request *out);
/* Another request may come meanwhile; false: too many are parked. */
bool admission_park(struct admission *a, uint64_t serial);
void admission_respond(struct admission *a, const struct admission_response *response);

#endif
